//! Where calls go: one address, or several in turn. Of several, one that keeps failing is passed over for a while.

use std::{
    fmt,
    ops::Deref,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use http::Request;
use parking_lot::RwLock;
use tokio::sync::Notify;
use tonic::transport::Channel;
use tower::util::Oneshot;

use super::place::Place;
use crate::breaker::{Breaker, Methods, Permit, State, layer::ResponseFuture};

type Body = tonic::body::Body;
/// A call to one address.
pub type EndpointFuture = ResponseFuture<Oneshot<Channel, Request<Body>>>;

/// The addresses of a peer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Endpoints(Arc<Shared>);

pub(super) struct Shared {
    all: RwLock<Arc<[Endpoint]>>,
    next: AtomicUsize,
    /// The generation of the peer's half-open circuit for which addresses were last woken.
    woken: AtomicU32,
    /// Told when an address is out: it may be gone, and others come.
    doubts: Notify,
}

/// One address.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) place: Place,
    pub(super) channel: Channel,
    /// What passes it over: one breaker, whatever the method. A single address's is never asked: the peer's is enough.
    pub(super) ejection: Methods,
}

impl Endpoints {
    pub(super) fn new(all: Vec<Endpoint>) -> Self {
        Self(Arc::new(Shared {
            all: RwLock::new(all.into()),
            next: AtomicUsize::new(0),
            woken: AtomicU32::new(0),
            doubts: Notify::new(),
        }))
    }

    /// What they share, for whoever keeps the addresses current.
    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Whether calls go to several now: those that are out are passed over.
    pub(super) fn are_several(&self) -> bool {
        self.0.all().iter().filter(|endpoint| !endpoint.is_out()).nth(1).is_some()
    }

    /// Calls the next one that is in, by the peer's permit. What ends badly at an address that is out counts against that one alone while
    /// another may answer.
    pub(super) fn call<B>(&self, request: Request<Body>, permit: &mut Permit<B>) -> EndpointFuture
    where
        B: Deref<Target = Breaker>,
    {
        let all = self.0.all();
        let turn = self.0.next.fetch_add(1, Ordering::Relaxed);
        let connect = |endpoint: &Endpoint, request| Oneshot::new(endpoint.channel.clone(), request);
        if let [only] = &*all {
            return ResponseFuture::unwatched(connect(only, request));
        }
        if all.iter().any(|endpoint| endpoint.is_out() && !endpoint.is_forced()) {
            self.0.doubts.notify_one();
        }
        if permit.is_probe() {
            self.0.wake(&all, permit.generation());
        }
        let mut request = Some(request);
        for endpoint in in_turn(&all, turn, |endpoint| !endpoint.is_out()) {
            let layer = request.as_ref().map(|request| endpoint.ejection.shared(request.uri().path()));
            let call = layer.and_then(|layer| layer.try_call(&mut request, |request| connect(endpoint, request)));
            if let Some(call) = call {
                excuse(permit, &all, endpoint);
                return call;
            }
        }
        let request = request.unwrap_or_default();
        // Nobody is in: everybody takes part who may.
        match in_turn(&all, turn, |endpoint| !endpoint.is_forced()).next() {
            Some(endpoint) => {
                excuse(permit, &all, endpoint);
                ResponseFuture::unwatched(connect(endpoint, request))
            }
            None => {
                let endpoint = &all[turn % all.len()];
                let layer = endpoint.ejection.shared(request.uri().path());
                layer.call(request, |request| connect(endpoint, request))
            }
        }
    }
}

impl Endpoint {
    /// Whether it is passed over.
    fn is_out(&self) -> bool {
        self.ejection.breaker().refuses_now()
    }

    /// Whether an operator keeps calls away from it.
    fn is_forced(&self) -> bool {
        self.ejection.breaker().is_forced_open()
    }

    /// Whether it may answer: it is not known to be out, or is asked just now.
    fn may_answer(&self) -> bool {
        let breaker = self.ejection.breaker();
        !self.is_forced() && (breaker.state() == State::HalfOpen || !breaker.refuses_now())
    }
}

/// Those of the addresses, each once, of which the one whose turn it is comes first.
fn in_turn<'a>(
    all: &'a [Endpoint],
    turn: usize,
    those: impl Fn(&Endpoint) -> bool + Clone + 'a,
) -> impl Iterator<Item = &'a Endpoint> {
    let those = all.iter().filter(move |endpoint| those(endpoint));
    let count = those.clone().count();
    those.cycle().skip(turn % count.max(1)).take(count)
}

/// Keeps what is asked of an address that is not in from counting against the peer: calls go to others. The peer's own probes look for
/// one that answers, and so fail by none while another is left to ask.
fn excuse<B: Deref<Target = Breaker>>(permit: &mut Permit<B>, all: &[Endpoint], called: &Endpoint) {
    let probes = permit.is_probe();
    let well = |other: &Endpoint| if probes { other.may_answer() } else { other.ejection.breaker().trusts() };
    if !called.ejection.breaker().trusts() && all.iter().any(|other| !ptr::eq(other, called) && well(other)) {
        permit.excuse();
    }
}

impl Shared {
    /// Ends the rest of all addresses as the peer's circuit lets its probes out, if none is in: while it was open nobody asked them, and
    /// its probes would find the one that is well by chance only.
    fn wake(&self, all: &[Endpoint], generation: u32) {
        let first = self.woken.swap(generation, Ordering::Relaxed) != generation;
        if first && !all.iter().any(|endpoint| endpoint.ejection.breaker().trusts()) {
            all.iter().for_each(|endpoint| endpoint.ejection.breaker().end_rest());
        }
    }

    /// The addresses as they are now.
    pub(super) fn all(&self) -> Arc<[Endpoint]> {
        Arc::clone(&self.all.read())
    }

    /// Sends calls to these from now on, of which there is at least one. Calls under way stay where they are.
    pub(super) fn replace(&self, all: Vec<Endpoint>) {
        if !all.is_empty() {
            *self.all.write() = all.into();
        }
    }

    /// Resolves when an address was found to be out.
    pub(super) async fn doubted(&self) {
        self.doubts.notified().await;
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.all().iter().map(|endpoint| &endpoint.place)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use hyper_util::rt::TokioIo;
    use tokio::{
        io::DuplexStream,
        time::{sleep, timeout},
    };
    use tonic::transport::{self, Server};

    use super::*;
    use crate::breaker::{BreakerLayer, Class, Config, Registry, TokioClock, service::BreakerService};

    const SECOND: Duration = Duration::from_secs(1);

    /// An address to which so many connections never come about, and every further one does.
    fn endpoint(hang: usize) -> Endpoint {
        let connects = Arc::new(AtomicUsize::new(0));
        let connector = tower::service_fn(move |_: http::Uri| {
            let hangs = connects.fetch_add(1, Ordering::Relaxed) < hang;
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                let (ours, theirs) = tokio::io::duplex(4096);
                let service = BreakerService::new("order", Registry::new()).queries();
                let incoming = tokio_stream::once(Ok::<DuplexStream, io::Error>(theirs));
                tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
                Ok::<_, io::Error>(TokioIo::new(ours))
            }
        });
        let transport = transport::Endpoint::from_static("http://pod:1").connect_timeout(2 * SECOND);
        let config = super::super::PeerOptions::saga().ejection;
        let breaker = Breaker::with_clock("pod", config, Arc::new(TokioClock::new()));
        let layer = BreakerLayer::new(Arc::new(breaker));
        Endpoint {
            place: Place::typed("http://pod:1".parse().expect("a URI")),
            channel: transport.connect_with_connector_lazy(connector),
            ejection: Methods::new(Registry::new(), layer, 0, []),
        }
    }

    async fn call(endpoints: &Endpoints) {
        let peer = Breaker::new("peer", Config::default());
        let path = "/breaker.v1.BreakerQueryService/ListBreakers";
        let body = http_body_util::Full::new(bytes::Bytes::from_static(b"\0\0\0\0\0"));
        let request = Request::post(path).body(Body::new(body)).expect("a request");
        let mut permit = peer.admit().expect("closed");
        if let Ok(answer) = endpoints.call(request, &mut permit).await {
            drop(http_body_util::BodyExt::collect(answer.into_body()).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_back_though_a_connection_to_it_was_left_before_it_came_about() {
        let (away, well) = (endpoint(1), endpoint(0));
        let ejection = Arc::clone(away.ejection.breaker());
        let endpoints = Endpoints::new(vec![away, well]);
        // Its caller waits for less than connecting takes.
        timeout(SECOND / 2, call(&endpoints)).await.expect_err("nobody answers");
        (0..3).for_each(|_| ejection.admit().expect("closed").finish(Class::Failure));
        sleep(6 * SECOND).await;
        for _ in 0..4 {
            call(&endpoints).await;
        }
        assert_eq!((ejection.state(), ejection.snapshot().totals.opened), (State::Closed, 1));
    }
}
