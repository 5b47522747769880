//! A watcher over a socket who stops reading: nothing grows for it, and it is told when it comes back.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod database;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream};
use libs::{
    cli::{DatabaseUrl, Serve},
    cqrs::{Log, Outgoing, Projections, ReadSide, Views},
    journal::Journal,
    refusal::Refusal,
    service::App,
};
use proto::inventory::v1::{
    GetStockRequest, GetStockResponse, ListStockRequest, ListStockResponse, Stock, WatchStockRequest,
    WatchStockResponse,
    inventory_query_service_client::InventoryQueryServiceClient,
    inventory_query_service_server::{InventoryQueryService, InventoryQueryServiceServer},
};
use tempfile::TempDir;
use tokio::sync::Notify;
use tonic::{Code, Request, Response, Status};

/// More than a connection holds for a caller who doesn't read.
const LARGE: usize = 3 << 20;
/// One change in the connection's windows, and one that waits before them.
const MOST_HELD: i64 = 2;

/// Changes without end, each of them large.
#[derive(Clone)]
struct Flood {
    read: ReadSide,
    /// How many changes were handed out.
    handed: Arc<AtomicI64>,
    /// Told of each.
    news: Arc<Notify>,
}

#[tonic::async_trait]
impl InventoryQueryService for Flood {
    async fn get_stock(&self, _: Request<GetStockRequest>) -> Result<Response<GetStockResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_stock(&self, _: Request<ListStockRequest>) -> Result<Response<ListStockResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type WatchStockStream = Outgoing<WatchStockResponse>;

    async fn watch_stock(
        &self,
        request: Request<WatchStockRequest>,
    ) -> Result<Response<Self::WatchStockStream>, Status> {
        let Self { handed, news, .. } = self.clone();
        let change = move |_| {
            let position = handed.fetch_add(1, Ordering::SeqCst) + 1;
            news.notify_one();
            let stock = Stock { sku: "x".repeat(LARGE), ..Stock::default() };
            Ok(WatchStockResponse { stock: Some(stock), position, ..WatchStockResponse::default() })
        };
        self.read.stream(request, |_, _| Ok(stream::iter(0..).map(change).boxed())).await
    }
}

#[tokio::test]
async fn who_stops_reading_makes_nothing_grow_and_is_told_to_resume() {
    let folder = TempDir::new().unwrap();
    let location = database::location(folder.path(), "test");
    let journal = Journal::open(location.clone(), &[]).await.unwrap();
    let views = Views::open(location.views(), Log::of(&journal), &Projections::new()).await.unwrap();
    let (handed, news) = (Arc::<AtomicI64>::default(), Arc::<Notify>::default());
    let read = views.read_side("test", Duration::from_secs(1));
    let flags = Serve::new("127.0.0.1:0".parse().unwrap(), DatabaseUrl::Sqlite("unused.db".into()));
    let mut app = App::bind("test", &flags).await.unwrap();
    app.add(InventoryQueryServiceServer::new(Flood { read, handed: Arc::clone(&handed), news: Arc::clone(&news) }));
    let address = app.local_addr();
    let served = tokio::spawn(app.run_until(std::future::pending()));

    let mut client = InventoryQueryServiceClient::connect(format!("http://{address}")).await.unwrap();
    let mut changes = client.watch_stock(WatchStockRequest::default()).await.unwrap().into_inner();
    news.notified().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    let held = handed.load(Ordering::SeqCst);
    assert!(held <= MOST_HELD, "{held} changes wait for who doesn't read");

    // What was on its way still comes.
    let mut read = 0;
    let dropped = loop {
        match changes.message().await {
            Ok(change) => {
                let change = change.expect("no end");
                read += 1;
                assert!(read <= held, "it is served on as if nothing had been");
                assert_eq!((change.position, change.stock.unwrap().sku.len()), (read, LARGE));
            }
            Err(status) => break status,
        }
    };
    let reason = Refusal::from_status(&dropped).reason;
    assert_eq!((dropped.code(), &*reason), (Code::ResourceExhausted, "SLOW_WATCHER"));
    assert_eq!((read, handed.load(Ordering::SeqCst)), (held, held));

    // Who reads as it comes is served on.
    let mut resumed = client.watch_stock(WatchStockRequest::default()).await.unwrap().into_inner();
    for position in held + 1..held + 20 {
        assert_eq!(resumed.message().await.unwrap().unwrap().position, position);
    }
    served.abort();
}
