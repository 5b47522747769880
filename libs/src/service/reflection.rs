//! The contracts, told to clients such as grpcurl: both versions of the protocol, and of the services only those served.

use tonic::service::RoutesBuilder;
use tonic_reflection::server::{Builder, Error};

/// Adds both versions to a server that serves `services`.
pub(super) fn add(routes: &mut RoutesBuilder, services: &[&'static str]) -> Result<(), Error> {
    routes.add_service(builder(services).build_v1()?);
    routes.add_service(builder(services).build_v1alpha()?);
    Ok(())
}

fn builder(services: &[&'static str]) -> Builder<'static> {
    let contracts = Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
        // What a refusal's details are made of: without it clients show them as bytes.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // Each version describes the other too, for it can be asked for by either.
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health")
        .with_service_name("grpc.reflection.v1.ServerReflection")
        .with_service_name("grpc.reflection.v1alpha.ServerReflection");
    services.iter().fold(contracts, |contracts, service| contracts.with_service_name(*service))
}
