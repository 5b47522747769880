//! gRPC over the simulated network, and parcels: what the store and its clients send each other without taking it to pieces.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use hyper::{
    body::Incoming,
    client::conn::http2::{self as client, SendRequest},
    server::conn::http2,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use proto::saga::v1::barrier_service_server::BarrierServiceServer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tonic::{Request, Response, Status, body::Body, codegen::http, server::UnaryService};
use tonic_prost::ProstCodec;
use tower::Service;
use turmoil::net::{TcpListener, TcpStream};

use super::{
    line::Line,
    process::{Process, Task},
    remote::{Answer, Ask},
};
use crate::cqrs::Barrier;

/// Where every service listens.
pub(super) const PORT: u16 = 50_051;
/// What the paths of a barrier's methods begin with.
const BARRIER: &str = "/saga.v1.BarrierService/";
/// How long somebody waits for a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a connection may be silent, and then how long it may take to answer.
const ALIVE: Duration = Duration::from_secs(2);

/// Answers calls of any method. All messages are texts.
pub(super) trait Handler: Send + Sync + 'static {
    fn handle(&self, path: String, request: Request<String>) -> BoxFuture<'static, Result<Response<String>, Status>>;
}

/// A channel as services have it: a connection that is dead is noticed, and made anew. Clones share the connection.
#[derive(Clone)]
pub(super) struct Channel {
    host: &'static str,
    connection: Arc<tokio::sync::Mutex<Option<SendRequest<Body>>>>,
}

impl Channel {
    pub(super) fn new(host: &'static str) -> Self {
        Self { host, connection: Arc::default() }
    }

    async fn connected(&self) -> io::Result<SendRequest<Body>> {
        let mut connection = self.connection.lock().await;
        if let Some(open) = connection.as_ref().filter(|open| !open.is_closed()) {
            return Ok(open.clone());
        }
        let line = Line::new(timeout(CONNECT, TcpStream::connect((self.host, PORT))).await??)?;
        let (opened, running) = client::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(ALIVE)
            .keep_alive_timeout(ALIVE)
            .keep_alive_while_idle(true)
            // It would remember a call that was given up for a second of the real clock.
            .max_concurrent_reset_streams(0)
            .handshake(TokioIo::new(line))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(running);
        *connection = Some(opened.clone());
        Ok(opened)
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let channel = self.clone();
        Box::pin(async move {
            let broken = |error: &dyn std::error::Error| Status::unavailable(error.to_string());
            let mut connection = channel.connected().await.map_err(|error| broken(&error))?;
            let address = format!("http://{}{}", channel.host, request.uri().path());
            *request.uri_mut() = address.parse().map_err(|error: http::uri::InvalidUri| broken(&error))?;
            connection.send_request(request).await.map_err(|error| broken(&error))
        })
    }
}

/// Serves a process's calls, and of its barrier, if it has one, the real methods.
pub(super) async fn serve(
    process: Process,
    handler: Arc<dyn Handler>,
    barrier: Option<BarrierServiceServer<Barrier>>,
) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let line = Line::new(stream)?;
        let service = Served { process: process.clone(), handler: Arc::clone(&handler), barrier: barrier.clone() };
        // The kernel's and the network's part goes on while the process is stopped.
        tokio::spawn(async move {
            let mut server = http2::Builder::new(TokioExecutor::new());
            server.timer(TokioTimer::new()).auto_date_header(false);
            let service = TowerToHyperService::new(service);
            // A connection that breaks is its client's to make anew.
            let _ = server.serve_connection(TokioIo::new(line), service).await;
        });
    }
}

#[derive(Clone)]
struct Served {
    process: Process,
    handler: Arc<dyn Handler>,
    barrier: Option<BarrierServiceServer<Barrier>>,
}

impl Service<http::Request<Incoming>> for Served {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        if let Some(barrier) = self.barrier.as_mut().filter(|_| request.uri().path().starts_with(BARRIER)) {
            return Box::pin(self.process.task(barrier.call(request)));
        }
        let method = Method { served: self.clone(), path: request.uri().path().to_owned() };
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(grpc.unary(method, request).await)
        })
    }
}

struct Method {
    served: Served,
    path: String,
}

impl UnaryService<String> for Method {
    type Response = String;
    type Future = Task<BoxFuture<'static, Result<Response<String>, Status>>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let Served { process, handler, .. } = &self.served;
        process.task(handler.handle(self.path.clone(), request))
    }
}

/// What is on its way between the store and its clients. The network carries a parcel's number: whoever gets that, gets the parcel.
#[derive(Default)]
pub(super) struct Parcels {
    next: AtomicU64,
    parcels: Mutex<std::collections::BTreeMap<u64, Parcel>>,
}

/// What is carried.
pub(super) enum Parcel {
    Ask(Ask),
    Answer(Answer),
}

impl Parcels {
    /// Sends a parcel.
    pub(super) async fn send(&self, line: &mut Line, parcel: Parcel) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.parcels.lock().insert(number, parcel);
        line.write_all(&number.to_be_bytes()).await
    }

    /// Waits for a parcel.
    pub(super) async fn receive(&self, line: &mut Line) -> io::Result<Parcel> {
        let number = line.read_u64().await?;
        self.parcels.lock().remove(&number).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}
