//! A tiny service that does whatever its request names, and the server that serves it.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use libs::{
    cli::{DatabaseUrl, Serve},
    rpc::{deadline, principal::Principal},
    service::{App, ServeError},
};
use proto::inventory::v1::{
    GetStockRequest, GetStockResponse, ListStockRequest, ListStockResponse, Stock, WatchStockRequest,
    WatchStockResponse,
    inventory_query_service_client::InventoryQueryServiceClient,
    inventory_query_service_server::{InventoryQueryService, InventoryQueryServiceServer},
};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

/// The SKU of which there is news without end.
pub(crate) const FLOOD: &str = "flood";

/// Does what the SKU says.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    /// Gains a permit for each call that waits.
    pub(crate) waiting: Arc<Semaphore>,
    /// Each call that waits takes one to end.
    pub(crate) release: Arc<Semaphore>,
}

impl Default for Shelf {
    fn default() -> Self {
        Self { waiting: Arc::new(Semaphore::new(0)), release: Arc::new(Semaphore::new(0)) }
    }
}

#[tonic::async_trait]
impl InventoryQueryService for Shelf {
    async fn get_stock(&self, request: Request<GetStockRequest>) -> Result<Response<GetStockResponse>, Status> {
        let sku = request.into_inner().sku;
        match &*sku {
            "panic" => panic!("on purpose"),
            "bare" => return Err(Status::failed_precondition("a bare status")),
            "unreadable" => return Err(Status::internal("failed to decode Protobuf message: another service's")),
            "wait" => {
                self.waiting.add_permits(1);
                self.release.acquire().await.expect("open").forget();
            }
            _ => {}
        }
        let sku = match Principal::current() {
            Some(principal) => format!("{sku} for {}", principal.name()),
            None => sku,
        };
        Ok(Response::new(GetStockResponse { stock: Some(Stock { sku, ..Stock::default() }) }))
    }

    /// Answers how many milliseconds are left.
    async fn list_stock(&self, _: Request<ListStockRequest>) -> Result<Response<ListStockResponse>, Status> {
        let left = deadline::current().map(|deadline| deadline - tokio::time::Instant::now());
        let left = left.unwrap_or_default().as_millis().to_string();
        Ok(Response::new(ListStockResponse { next_page_token: left, ..ListStockResponse::default() }))
    }

    type WatchStockStream = Pin<Box<dyn Stream<Item = Result<WatchStockResponse, Status>> + Send>>;

    /// Answers once, then does what the SKU says; without one it never ends.
    async fn watch_stock(
        &self,
        request: Request<WatchStockRequest>,
    ) -> Result<Response<Self::WatchStockStream>, Status> {
        let sku = request.into_inner().sku;
        if sku == FLOOD {
            let news = WatchStockResponse {
                stock: Some(Stock { sku: "x".repeat(1 << 20), ..Stock::default() }),
                ..WatchStockResponse::default()
            };
            return Ok(Response::new(stream::repeat(Ok(news)).boxed()));
        }
        let rest = stream::once(async move {
            match &*sku {
                "panic" => panic!("on purpose"),
                "bare" => Err(Status::aborted("a bare status")),
                _ => std::future::pending().await,
            }
        });
        let first = stream::iter([Ok(WatchStockResponse { position: 1, ..WatchStockResponse::default() })]);
        Ok(Response::new(first.chain(rest).boxed()))
    }
}

/// The flags of a test's server: any free port of this machine, and no waiting for balancers.
pub(crate) fn flags() -> Serve {
    let mut flags = Serve::new("127.0.0.1:0".parse().expect("an address"), DatabaseUrl::Sqlite("unused.db".into()));
    flags.limits.drain_grace = Duration::ZERO;
    flags
}

/// A server under way.
pub(crate) struct Served {
    pub(crate) shelf: Shelf,
    pub(crate) channel: Channel,
    pub(crate) address: std::net::SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    pub(crate) async fn start(flags: &Serve) -> Self {
        Self::start_with(flags, |_| ()).await
    }

    pub(crate) async fn start_with(flags: &Serve, assemble: impl FnOnce(&mut App)) -> Self {
        let shelf = Shelf::default();
        let mut app = App::bind("shelf", flags).await.expect("a free port");
        app.add(InventoryQueryServiceServer::new(shelf.clone()));
        assemble(&mut app);
        let address = app.local_addr();
        let channel = Endpoint::from_shared(format!("http://{address}")).expect("a URI").connect_lazy();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(app.run_until(async {
            let _ = stopped.await;
        }));
        Self { shelf, channel, address, stop: Some(stop), ended }
    }

    pub(crate) fn client(&self) -> InventoryQueryServiceClient<Channel> {
        InventoryQueryServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn get(&self, sku: &str) -> Result<Response<GetStockResponse>, Status> {
        self.client().get_stock(GetStockRequest { sku: sku.to_owned() }).await
    }

    pub(crate) async fn watch(&self, sku: &str) -> tonic::Streaming<WatchStockResponse> {
        let request = WatchStockRequest { sku: sku.to_owned(), ..WatchStockRequest::default() };
        let mut stream = self.client().watch_stock(request).await.expect("a stream").into_inner();
        assert_eq!(stream.message().await.expect("a message").map(|message| message.position), Some(1));
        stream
    }

    /// Tells the server to stop, and hands out its end.
    pub(crate) fn stop(mut self) -> JoinHandle<Result<(), ServeError>> {
        self.drain();
        self.ended
    }

    /// Tells the server to stop.
    pub(crate) fn drain(&mut self) {
        self.stop.take().expect("told once").send(()).expect("the server runs");
    }

    /// Waits for a server that ends by itself.
    pub(crate) async fn ended(self) -> Result<(), ServeError> {
        self.ended.await.expect("no panic")
    }
}
