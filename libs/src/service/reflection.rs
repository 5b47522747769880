//! The contracts, told to clients such as grpcurl: both versions of the protocol, and of the services only those served.

use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::service::RoutesBuilder;
use tonic_reflection::server::{Builder, Error};

use crate::rpc::server::Methods;

const CONTRACTS: [&[u8]; 5] = [
    proto::DESCRIPTOR_SET,
    // What a refusal's details are made of: without it clients show them as bytes.
    tonic_types::pb::FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    // Each version describes the other too, for it can be asked for by either.
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// What every server serves.
const OF_ALL: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// Adds both versions to a server that serves `services`.
pub(super) fn add(routes: &mut RoutesBuilder, services: &[&'static str]) -> Result<(), Error> {
    routes.add_service(builder(services).build_v1()?);
    routes.add_service(builder(services).build_v1alpha()?);
    Ok(())
}

/// The methods of `services`, and those that every server has.
pub(super) fn methods(services: &[&str]) -> Result<Methods, Error> {
    let served = |name: &str| services.contains(&name) || OF_ALL.contains(&name);
    let (mut names, mut undescribed) = (Vec::new(), services.to_vec());
    for contracts in CONTRACTS {
        for file in FileDescriptorSet::decode(contracts)?.file {
            for service in &file.service {
                let full = format!("{}.{}", file.package(), service.name());
                if served(&full) {
                    undescribed.retain(|name| *name != full);
                    let named = service.method.iter();
                    names.extend(named.map(|of| (format!("{full}/{}", of.name()), of.server_streaming())));
                }
            }
        }
    }
    Ok(Methods::new(names, undescribed.into_iter().map(str::to_owned)))
}

fn builder(services: &[&'static str]) -> Builder<'static> {
    let contracts =
        CONTRACTS.iter().fold(Builder::configure(), |builder, set| builder.register_encoded_file_descriptor_set(set));
    OF_ALL.iter().chain(services).fold(contracts, |contracts, service| contracts.with_service_name(*service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_methods_are_those_of_what_is_served() -> Result<(), Error> {
        let said = format!("{:?}", methods(&["inventory.v1.InventoryQueryService"])?);
        for served in ["inventory.v1.InventoryQueryService/GetStock", "grpc.health.v1.Health/Check"] {
            assert!(said.contains(served), "{served} is not in {said}");
        }
        let methods = methods(&["inventory.v1.InventoryQueryService"])?;
        assert!(methods.may_stream("inventory.v1.InventoryQueryService/WatchStock"));
        assert!(!methods.may_stream("inventory.v1.InventoryQueryService/GetStock"));
        assert!(!said.contains("InventoryCommandService") && !said.contains("payment"), "{said}");
        Ok(())
    }
}
