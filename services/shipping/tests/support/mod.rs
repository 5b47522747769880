//! The real service on a free port and fresh data, and real clients.

use std::time::Duration;

use libs::{
    cqrs::{CommandSide, Log, Projections, Views},
    journal::Journal,
};
use proto::shipping::v1::{
    shipping_command_service_client::ShippingCommandServiceClient,
    shipping_command_service_server::ShippingCommandServiceServer,
    shipping_query_service_client::ShippingQueryServiceClient,
    shipping_query_service_server::ShippingQueryServiceServer,
};
use shipping::{
    commands::Commands,
    projections::ShipmentsView,
    queries::Queries,
    surface::{ShippingCommandSurface, ShippingQuerySurface},
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};

/// The service under test.
pub struct TestApp {
    pub commands: ShippingCommandServiceClient<Channel>,
    pub queries: ShippingQueryServiceClient<Channel>,
    _data: TempDir,
}

impl TestApp {
    pub async fn start() -> Self {
        let data = TempDir::new().unwrap();
        let journal = Journal::open(&data.path().join("shipping.db"), &[]).await.unwrap();
        let projections = Projections::new().with(ShipmentsView);
        let views = Views::open(&data.path().join("views.db"), Log::of(&journal), &projections).await.unwrap();
        let read = views.read_side("shipping", Duration::from_secs(10));
        tokio::spawn(views.run());
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let commands = ShippingCommandSurface::new(CommandSide::new("shipping", journal), Commands);
        let server = Server::builder()
            .add_service(ShippingCommandServiceServer::new(commands))
            .add_service(ShippingQueryServiceServer::new(ShippingQuerySurface::new(read, Queries)))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        Self {
            commands: ShippingCommandServiceClient::new(channel.clone()),
            queries: ShippingQueryServiceClient::new(channel),
            _data: data,
        }
    }
}
