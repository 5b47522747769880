//! The real service on a free port and fresh data, and real clients.

use std::time::Duration;

use inventory::{
    commands::Commands,
    projections::StockView,
    queries::Queries,
    surface::{InventoryCommandSurface, InventoryQuerySurface},
};
use libs::{
    cqrs::{CommandSide, Log, Projections, Views},
    journal::Journal,
};
use proto::inventory::v1::{
    inventory_command_service_client::InventoryCommandServiceClient,
    inventory_command_service_server::InventoryCommandServiceServer,
    inventory_query_service_client::InventoryQueryServiceClient,
    inventory_query_service_server::InventoryQueryServiceServer,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};

/// The service under test.
pub struct TestApp {
    pub commands: InventoryCommandServiceClient<Channel>,
    pub queries: InventoryQueryServiceClient<Channel>,
    _data: TempDir,
}

impl TestApp {
    pub async fn start() -> Self {
        let data = TempDir::new().unwrap();
        let journal = Journal::open(&data.path().join("inventory.db"), &[]).await.unwrap();
        let projections = Projections::new().with(StockView);
        let views = Views::open(&data.path().join("views.db"), Log::of(&journal), &projections).await.unwrap();
        let read = views.read_side("inventory", Duration::from_secs(10));
        tokio::spawn(views.run());
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let commands = InventoryCommandSurface::new(CommandSide::new("inventory", journal), Commands);
        let server = Server::builder()
            .add_service(InventoryCommandServiceServer::new(commands))
            .add_service(InventoryQueryServiceServer::new(InventoryQuerySurface::new(read, Queries)))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        Self {
            commands: InventoryCommandServiceClient::new(channel.clone()),
            queries: InventoryQueryServiceClient::new(channel),
            _data: data,
        }
    }
}
