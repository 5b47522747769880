//! The real service on a free port and fresh data, and real clients.

use std::time::Duration;

use libs::{
    cqrs::{CommandSide, Log, Projections, Views},
    journal::Journal,
};
use payment::{
    commands::Commands,
    projections::{AccountsView, ChargesView},
    queries::Queries,
    surface::{PaymentCommandSurface, PaymentQuerySurface},
};
use proto::payment::v1::{
    payment_command_service_client::PaymentCommandServiceClient,
    payment_command_service_server::PaymentCommandServiceServer,
    payment_query_service_client::PaymentQueryServiceClient, payment_query_service_server::PaymentQueryServiceServer,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};

/// The service under test.
pub struct TestApp {
    pub commands: PaymentCommandServiceClient<Channel>,
    pub queries: PaymentQueryServiceClient<Channel>,
    _data: TempDir,
}

impl TestApp {
    pub async fn start() -> Self {
        let data = TempDir::new().unwrap();
        let journal = Journal::open(&data.path().join("payment.db"), &[]).await.unwrap();
        let projections = Projections::new().with(AccountsView).with(ChargesView);
        let views = Views::open(&data.path().join("views.db"), Log::of(&journal), &projections).await.unwrap();
        let read = views.read_side("payment", Duration::from_secs(10));
        tokio::spawn(views.run());
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let commands = PaymentCommandSurface::new(CommandSide::new("payment", journal), Commands);
        let server = Server::builder()
            .add_service(PaymentCommandServiceServer::new(commands))
            .add_service(PaymentQueryServiceServer::new(PaymentQuerySurface::new(read, Queries)))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        Self {
            commands: PaymentCommandServiceClient::new(channel.clone()),
            queries: PaymentQueryServiceClient::new(channel),
            _data: data,
        }
    }
}
