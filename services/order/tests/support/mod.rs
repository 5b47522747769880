//! The real service on a free port and fresh data, and real clients. Whom it calls is out.
#![expect(clippy::unwrap_used, reason = "a test that can not start has failed")]

use std::time::Duration;

use libs::{
    cli::{DatabaseUrl, Program as _, Serve},
    service::App,
};
use order::Service;
use proto::order::v1::{
    order_command_service_client::OrderCommandServiceClient, order_query_service_client::OrderQueryServiceClient,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// The service under test.
pub(crate) struct TestApp {
    pub(crate) commands: OrderCommandServiceClient<Channel>,
    pub(crate) queries: OrderQueryServiceClient<Channel>,
    data: TempDir,
}

impl TestApp {
    pub(crate) async fn start() -> Self {
        Self::start_with_shipping_at("127.0.0.1:1").await
    }

    pub(crate) async fn start_with_shipping_at(shipping: &str) -> Self {
        let data = TempDir::new().unwrap();
        let database = DatabaseUrl::Sqlite(data.path().join("order.db"));
        let mut flags = Serve::new("127.0.0.1:0".parse().unwrap(), database);
        // Nobody is there: an order is taken all the same, and goes on once they are back.
        let at = |name| if name == "shipping" { shipping } else { "127.0.0.1:1" };
        flags.peers =
            Service::PEERS.iter().map(|(name, _)| format!("{name}=http://{}", at(*name)).parse().unwrap()).collect();
        // Far more than the views are behind. No call has more than half a minute.
        flags.limits.max_staleness_wait = Duration::from_secs(20);
        let mut app = App::bind(Service::NAME, &flags).await.unwrap();
        Service::assemble(&mut app, &flags).await.unwrap();
        let channel = Endpoint::from_shared(format!("http://{}", app.local_addr())).unwrap().connect_lazy();
        tokio::spawn(app.run_until(std::future::pending()));
        Self {
            commands: OrderCommandServiceClient::new(channel.clone()),
            queries: OrderQueryServiceClient::new(channel),
            data,
        }
    }

    /// How many answers it keeps.
    pub(crate) fn kept(&self) -> i64 {
        let database = rusqlite::Connection::open(self.data.path().join("order.db")).unwrap();
        database.query_row("SELECT count(*) FROM requests", [], |row| row.get(0)).unwrap()
    }
}
