//! The real service on a free port and fresh data, and real clients.
#![expect(clippy::unwrap_used, reason = "a test that can not start has failed")]

use std::time::Duration;

use inventory::Service;
use libs::{
    cli::{DatabaseUrl, Program as _, Serve, Store},
    service::{App, ServeError},
};
use proto::inventory::v1::{
    inventory_command_service_client::InventoryCommandServiceClient,
    inventory_query_service_client::InventoryQueryServiceClient,
};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::transport::{Channel, Endpoint};

/// Far more than the views are behind. No call has more than half a minute.
const PATIENCE: Duration = Duration::from_secs(20);

/// The service under test.
pub(crate) struct TestApp {
    pub(crate) commands: InventoryCommandServiceClient<Channel>,
    pub(crate) queries: InventoryQueryServiceClient<Channel>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), ServeError>>,
    data: TempDir,
}

impl TestApp {
    pub(crate) async fn start() -> Self {
        Self::start_on(TempDir::new().unwrap()).await
    }

    /// Starts on data that is there.
    pub(crate) async fn start_on(data: TempDir) -> Self {
        Self::start_waiting(data, PATIENCE).await
    }

    /// Starts one whose queries wait for so long, at the most, for what they are to see.
    pub(crate) async fn start_waiting(data: TempDir, most_wait: Duration) -> Self {
        let mut flags = Serve::new("127.0.0.1:0".parse().unwrap(), store(&data).database_url);
        flags.limits.drain_grace = Duration::ZERO;
        flags.limits.max_staleness_wait = most_wait;
        // Nobody is there: inventory answers all the same.
        flags.peers = vec!["shipping=http://127.0.0.1:1".parse().unwrap()];
        let mut app = App::bind(Service::NAME, &flags).await.unwrap();
        Service::assemble(&mut app, &flags).await.unwrap();
        let channel = Endpoint::from_shared(format!("http://{}", app.local_addr())).unwrap().connect_lazy();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app.run_until(async move { drop(stopped.await) }));
        let commands = InventoryCommandServiceClient::new(channel.clone());
        Self { commands, queries: InventoryQueryServiceClient::new(channel), stop, running, data }
    }

    /// Stops in order, and leaves the data.
    pub(crate) async fn stop(self) -> TempDir {
        self.stop.send(()).unwrap();
        self.running.await.unwrap().unwrap();
        self.data
    }
}

pub(crate) fn store(data: &TempDir) -> Store {
    Store { database_url: DatabaseUrl::Sqlite(data.path().join("inventory.db")) }
}
