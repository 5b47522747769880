//! A service, being assembled and then run.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response, request::Parts};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{body::Body, server::NamedService, service::RoutesBuilder, transport::Server};
use tower::Service;

use super::{
    ServeError, StartError,
    connection::{Connections, Phase},
    descriptors,
    health::Health,
    places::Places,
    reflection,
    tasks::Tasks,
    tls::Entrance,
};
use crate::{
    cli::{BoxError, Limits, Serve},
    refusal::Refusal,
    rpc::{
        server::GuardLayer,
        shed::{ShedLayer, is_exempt},
    },
    telemetry::{self, ServerMetrics},
    told::Told,
};

/// The least time for putting one thing away, even where calls and others took all there was.
const PUT_AWAY: Duration = Duration::from_secs(5);

/// How long those stay away who find the service full.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(500);

/// How many streams a connection may have reset in its life before it ends: for what comes on them though they are over, as malformed, or
/// as more than it may have at a time. Each is in memory until its client has taken the reset: those of one that takes none are 3 MiB. Good
/// clients have some as well, where a call is refused while its request is on its way. Where nobody says how many, tonic has there be no
/// end to them.
const RESETS: usize = 4_096;

/// A service, being assembled and then run.
///
/// ```
/// # use libs::{cli::Serve, service::App};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let flags = Serve::new("127.0.0.1:0".parse()?, "sqlite:data/tea.db".parse()?);
/// # let (stop, stopped) = tokio::sync::oneshot::channel::<()>(); stop.send(()).ok();
/// let mut app = App::bind("tea", &flags).await?; // a taken port is told before anything is opened
/// // app.add(TeaCommandServiceServer::new(surface));
/// app.task("brewing", async { Ok::<_, std::io::Error>(()) }); // if it fails, the service ends
/// app.on_drain("kettle", async { /* what must not be lost */ });
/// app.run_until(async { stopped.await.ok(); }).await?;
/// # Ok(()) }
/// ```
pub struct App {
    name: &'static str,
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
    server: Server,
    entrance: Option<Entrance>,
    routes: RoutesBuilder,
    services: Vec<&'static str>,
    guard: GuardLayer,
    tasks: Tasks,
    hooks: Vec<(String, BoxFuture<'static, ()>)>,
    #[cfg(feature = "cqrs")]
    board: crate::cqrs::Board,
    #[cfg(feature = "cqrs")]
    jetstream: Option<crate::cqrs::JetStream>,
    /// Of the tables and projections that its stores have by now.
    #[cfg(feature = "cqrs")]
    pub(super) names: Option<crate::journal::Names>,
}

impl App {
    /// Takes the port, before anything else is opened. `name` is the service's bare name, such as `inventory`.
    ///
    /// # Errors
    /// When the port is taken, or TLS cannot be set up.
    pub async fn bind(name: &'static str, flags: &Serve) -> Result<Self, StartError> {
        let Limits { max_streams, max_header_bytes, keepalive, keepalive_timeout, .. } = flags.limits;
        let server = Server::builder()
            .max_concurrent_streams(max_streams)
            .http2_max_local_error_reset_streams(Some(RESETS))
            // What is refused below our layers is seen by nobody, and told without a gRPC status.
            .http2_max_header_list_size(max_header_bytes.saturating_mul(2))
            .http2_keepalive_interval(Some(keepalive))
            .http2_keepalive_timeout(Some(keepalive_timeout));
        let entrance = Entrance::new(&flags.tls)?;
        let failed = |source| StartError::Listen { address: flags.listen, source };
        let listener = TcpListener::bind(flags.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        #[cfg(feature = "cqrs")]
        let jetstream = match &flags.nats_url {
            Some(url) => {
                let connected = crate::cqrs::JetStream::connect(url.as_str(), name, flags.tls.tls_ca.clone()).await;
                Some(connected.map_err(StartError::Broker)?)
            }
            None => None,
        };
        Ok(Self {
            name,
            listener,
            address,
            limits: flags.limits.clone(),
            server,
            entrance,
            routes: RoutesBuilder::default(),
            services: Vec::new(),
            guard: GuardLayer::new(name, |_| Ok(())),
            tasks: Tasks::default(),
            hooks: Vec::new(),
            #[cfg(feature = "cqrs")]
            board: crate::cqrs::Board::default(),
            #[cfg(feature = "cqrs")]
            jetstream,
            #[cfg(feature = "cqrs")]
            names: None,
        })
    }

    /// The address taken; its port is real where 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves a service that tonic generated. Health and reflection are added by themselves.
    pub fn add<S>(&mut self, service: S) -> &mut Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.services.push(S::NAME);
        self.routes.add_service(service);
        self
    }

    /// Has every call looked at before its message is read, whichever service it is for; health and reflection are anybody's. This is
    /// the place to tell who calls, by a token or by the certificate of the connection, and what they may call, by the path. Only
    /// the last one given looks.
    ///
    /// Who it leaves in the call's extensions, as a [`Principal`](crate::rpc::principal::Principal), is known to what is done for the
    /// call until its answer begins: a `request_id` is that one's own then, so that nobody else gets the answer to it (and once a guard
    /// says who calls, what was asked before it did is another request), and the history of a saga that it steers has that name, whatever
    /// `actor` says. What else a call may see or do isn't looked at: that is for the service itself to ask of `Principal::current()`.
    ///
    /// A service that takes part in sagas keeps what it answers to a call with the metadata `saga-…` until the saga's coordinator says that
    /// it has ended. So these are for coordinators alone: who is none, and may call, had better be refused where it sends any. A service
    /// that no saga calls refuses them by itself where its command side is `for_clients_alone`.
    ///
    /// ```
    /// # use libs::{cli::Serve, refusal::Refusal, rpc::principal::Principal, service::App};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let flags = Serve::new("127.0.0.1:0".parse()?, "sqlite:data/tea.db".parse()?);
    /// # let mut app = App::bind("tea", &flags).await?;
    /// app.guard(|call| match call.headers.get("authorization") {
    ///     Some(token) if token == "Bearer sesame" => {
    ///         call.extensions.insert(Principal::new("ali-baba").expect("a name"));
    ///         Ok(())
    ///     }
    ///     _ => Err(Refusal::new(tonic::Code::Unauthenticated, "NO_TOKEN", "send a bearer token")),
    /// });
    /// # use proto::breaker::v1::{ListBreakersRequest, breaker_query_service_client::BreakerQueryServiceClient};
    /// # app.add(libs::breaker::service::BreakerService::new("tea", libs::breaker::Registry::new()).queries());
    /// # let address = format!("http://{}", app.local_addr());
    /// # tokio::spawn(app.run_until(std::future::pending()));
    /// let mut client = BreakerQueryServiceClient::connect(address).await?;
    /// let refused = client.list_breakers(ListBreakersRequest::default()).await.expect_err("no token");
    /// assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    ///
    /// let mut call = tonic::Request::new(ListBreakersRequest::default());
    /// call.metadata_mut().insert("authorization", "Bearer sesame".parse()?);
    /// client.list_breakers(call).await?;
    /// # Ok(()) }
    /// ```
    pub fn guard(&mut self, guard: impl Fn(&mut Parts) -> Result<(), Refusal> + Send + Sync + 'static) -> &mut Self {
        self.guard =
            GuardLayer::new(self.name, move |call| if is_exempt(call.uri.path()) { Ok(()) } else { guard(call) });
        self
    }

    /// The projections of this process.
    #[cfg(feature = "cqrs")]
    #[must_use]
    pub const fn board(&self) -> &crate::cqrs::Board {
        &self.board
    }

    /// The broker that carries events between services, where there is one.
    #[cfg(feature = "cqrs")]
    #[must_use]
    pub const fn jetstream(&self) -> Option<&crate::cqrs::JetStream> {
        self.jetstream.as_ref()
    }

    /// Starts what goes on beside the calls. If it fails or panics, the service ends rather than serve without it; it may end
    /// well, and is dropped once the service is put away.
    pub fn task<E: Into<BoxError>>(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) -> &mut Self {
        self.tasks.spawn(name.into(), task);
        self
    }

    /// The same, for what must come to its own end: `close` tells it to when it is put away, as by [`on_drain`](Self::on_drain), and
    /// what it then fails at is the service's failure.
    pub fn task_until_drained<E: Into<BoxError>>(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
        close: impl FnOnce() + Send + 'static,
    ) -> &mut Self {
        let name = name.into();
        let ended = self.tasks.spawn(name.clone(), task);
        self.on_drain(name, async move {
            close();
            // Its end is told by nobody saying anything.
            let _ = ended.await;
        })
    }

    /// Puts something away once no call is in flight: what was asked for last comes first, so that nothing loses what it stands on. So it is
    /// for what was asked for by then where a program is told to stop while it assembles its service.
    pub fn on_drain(&mut self, name: impl Into<String>, hook: impl Future<Output = ()> + Send + 'static) -> &mut Self {
        self.hooks.push((name.into(), Box::pin(hook)));
        self
    }

    /// Serves until `shutdown`, then ends in order: NOT_SERVING, a grace in which balancers look elsewhere, no new calls, those
    /// in flight end, everything is put away.
    ///
    /// # Errors
    /// When a task fails. Then nothing is drained, unless it was being put away already: what it was needed for is gone. Calls in flight are
    /// cut off.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self {
            name,
            listener,
            address,
            limits,
            server,
            entrance,
            mut routes,
            services,
            guard,
            mut tasks,
            hooks,
            ..
        } = self;
        let health = Health::new(&services);
        routes.add_service(health.server());
        reflection::add(&mut routes, &services)?;
        let (phase, phases) = watch::channel(Phase::Serving);
        let cut_off = Arc::<AtomicUsize>::default();
        let shared = Connections {
            service: name,
            server,
            entrance,
            routes: routes.routes().prepare(),
            phase: phases,
            cut_off: Arc::clone(&cut_off),
            metrics: ServerMetrics::new(name),
            methods: reflection::methods(&services)?,
            shed: ShedLayer::new(name, usize::try_from(limits.max_calls).unwrap_or(usize::MAX), OVERLOAD_PAUSE),
            headers: GuardLayer::of_headers(name, limits.max_header_bytes),
            guard,
            max_request_bytes: limits.max_request_bytes,
            max_deadline: limits.max_deadline,
            max_age: limits.max_connection_age,
            grace: limits.drain_timeout.max(limits.max_deadline),
            owed: limits.max_deadline.max(limits.keepalive_timeout),
            patience: limits.keepalive.saturating_add(limits.keepalive_timeout),
        };
        let places = Places::new(name, usize::try_from(limits.max_connections).unwrap_or(usize::MAX));
        if let Some(meter) = telemetry::meter(name) {
            places.observe(&meter);
        }
        descriptors::check(name, limits.max_connections);
        health.serving().await;
        tracing::info!(service = name, %address, "serving");

        let mut connections = JoinSet::new();
        let stop = async {
            shutdown.await;
            health.not_serving().await;
            tracing::info!(service = name, "draining");
            sleep(limits.drain_grace).await;
        };
        let accepted = tokio::select! {
            never = accept(&listener, &shared, &places, &mut connections) => match never {},
            () = stop => Ok(()),
            failure = tasks.failed() => Err(failure),
        };
        drop(listener);
        let deadline = Instant::now() + limits.drain_timeout;
        let ended = match accepted {
            Ok(()) => tokio::select! {
                () = drain(name, &phase, &cut_off, &mut connections, deadline) => Ok(()),
                failure = tasks.failed() => Err(failure),
            },
            failed => failed,
        };
        if let Err(failure) = ended {
            health.not_serving().await;
            let (left, calls) = cut(&phase, &cut_off, &mut connections).await;
            if calls > 0 {
                let service = name;
                tracing::warn!(service, connections = left, calls, "a task has failed: what was in flight was cut off");
            }
            return Err(failure);
        }
        put_away(name, hooks, tasks, deadline).await
    }

    /// Puts away what there is of a service that is told to stop while it is assembled. It has answered nobody, but others may count on it
    /// by now, as those do with whom it shares the sagas.
    ///
    /// # Errors
    /// When a task has failed.
    pub(crate) async fn end_unserved(self) -> Result<(), ServeError> {
        let Self { name, limits, hooks, tasks, .. } = self;
        put_away(name, hooks, tasks, Instant::now() + limits.drain_timeout).await
    }
}

async fn accept(
    listener: &TcpListener,
    shared: &Connections,
    places: &Places,
    connections: &mut JoinSet<()>,
) -> Infallible {
    let told = Told::default();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                // What has no place is closed as it is dropped.
                if let Some(place) = places.enter(client.ip()) {
                    connections.spawn(shared.clone().serve(stream, client, place));
                }
            }
            Err(error) => {
                // Mostly too many open files: asking again at once would only burn the processor.
                if told.is_due() {
                    tracing::warn!(%error, "can't accept a connection");
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn drain(
    service: &'static str,
    phase: &watch::Sender<Phase>,
    cut_off: &AtomicUsize,
    connections: &mut JoinSet<()>,
    deadline: Instant,
) {
    phase.send_replace(Phase::Draining);
    if timeout_at(deadline, all_ended(connections)).await.is_ok() {
        return;
    }
    let (left, calls) = cut(phase, cut_off, connections).await;
    tracing::warn!(service, connections = left, calls, "what had not ended after --drain-timeout was cut off");
}

/// Cuts off whatever is in flight, and answers how many connections there were and how many calls on them.
async fn cut(phase: &watch::Sender<Phase>, cut_off: &AtomicUsize, connections: &mut JoinSet<()>) -> (usize, usize) {
    let left = connections.len();
    phase.send_replace(Phase::Cut);
    // A cut connection ends as soon as it is next polled, and then its calls do.
    let _ = timeout(Duration::from_secs(1), all_ended(connections)).await;
    (left, cut_off.load(Relaxed))
}

async fn all_ended(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

async fn put_away(
    service: &'static str,
    hooks: Vec<(String, BoxFuture<'static, ()>)>,
    mut tasks: Tasks,
    deadline: Instant,
) -> Result<(), ServeError> {
    for (name, hook) in hooks.into_iter().rev() {
        if timeout_at(deadline.max(Instant::now() + PUT_AWAY), hook).await.is_err() {
            tracing::warn!(name, "took too long to put away");
        }
    }
    // What failed meanwhile, such as the last commit, has failed all the same.
    if let Some(failure) = tasks.failed().now_or_never() {
        return Err(failure);
    }
    tracing::info!(service, "stopped");
    Ok(())
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}
