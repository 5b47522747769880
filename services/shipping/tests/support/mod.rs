//! The real service on a free port and fresh data, and real clients.
#![expect(clippy::unwrap_used, reason = "a test that can not start has failed")]
#![allow(dead_code, reason = "each test takes what it needs")]

use std::time::Duration;

use libs::{
    cli::{DatabaseUrl, Program as _, Serve},
    service::App,
};
use proto::{
    events::v1::event_service_client::EventServiceClient,
    shipping::v1::{
        shipping_command_service_client::ShippingCommandServiceClient,
        shipping_query_service_client::ShippingQueryServiceClient,
    },
};
use shipping::Service;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// The service under test.
pub(crate) struct TestApp {
    pub(crate) commands: ShippingCommandServiceClient<Channel>,
    pub(crate) queries: ShippingQueryServiceClient<Channel>,
    pub(crate) events: EventServiceClient<Channel>,
    _data: TempDir,
}

impl TestApp {
    pub(crate) async fn start() -> Self {
        Self::start_on(TempDir::new().unwrap()).await
    }

    /// Starts it on the data of this folder, in `shipping.db`.
    pub(crate) async fn start_on(data: TempDir) -> Self {
        let database = DatabaseUrl::Sqlite(data.path().join("shipping.db"));
        let mut flags = Serve::new("127.0.0.1:0".parse().unwrap(), database);
        // Far more than the views are behind. No call has more than half a minute.
        flags.limits.max_staleness_wait = Duration::from_secs(20);
        let mut app = App::bind(Service::NAME, &flags).await.unwrap();
        Service::assemble(&mut app, &flags).await.unwrap();
        let channel = Endpoint::from_shared(format!("http://{}", app.local_addr())).unwrap().connect_lazy();
        tokio::spawn(app.run_until(std::future::pending()));
        Self {
            commands: ShippingCommandServiceClient::new(channel.clone()),
            queries: ShippingQueryServiceClient::new(channel.clone()),
            events: EventServiceClient::new(channel),
            _data: data,
        }
    }
}
