//! The life of one connection: served, aged, asked to leave, and at last cut.
//!
//! Each is a tonic server of its own with one connection to accept. Tonic's own limit on age is the same for all connections,
//! which then all come back at once, and with a grace it cuts calls off instead of asking the client to leave first.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use http::Request;
use rand::RngExt as _;
use tokio::{
    net::TcpStream,
    sync::{oneshot, watch},
    time::{sleep, timeout},
};
use tonic::{
    body::Body,
    service::Routes,
    transport::{
        Server,
        server::{TcpConnectInfo, TlsConnectInfo},
    },
};
use tower::util::MapRequestLayer;

use super::{
    greeting::Greeted,
    places::Place,
    socket::{Cord, Socket},
    tls::Entrance,
};
use crate::{
    rpc::{
        coalesce::Coalesced,
        in_flight::InFlight,
        server::{CatchLayer, DeadlineLayer, Ending, GuardLayer, MalformedLayer, Methods, ObserveLayer},
        shed::ShedLayer,
    },
    telemetry::ServerMetrics,
};

/// A client that has not begun to speak HTTP/2 after so long is none, by TLS as without.
const SILENCE: Duration = Duration::from_secs(10);

/// How long a connection on which nothing is in flight has to leave once it was told to. One that says nothing never hears of it.
const GOODBYE: Duration = Duration::from_secs(1);

/// How far the end of the process has come. It only moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serving,
    /// No new calls, and those in flight end.
    Draining,
    /// Whatever is still in flight is cut.
    Cut,
}

/// What all connections of a server share.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) service: &'static str,
    pub(super) server: Server,
    pub(super) entrance: Option<Entrance>,
    pub(super) routes: Routes,
    pub(super) phase: watch::Receiver<Phase>,
    /// How many calls were in flight where that was cut.
    pub(super) cut_off: Arc<AtomicUsize>,
    pub(super) metrics: Option<ServerMetrics>,
    pub(super) methods: Methods,
    /// The bound on calls, of all connections together.
    pub(super) shed: ShedLayer,
    pub(super) headers: GuardLayer,
    pub(super) guard: GuardLayer,
    pub(super) max_request_bytes: usize,
    pub(super) max_deadline: Duration,
    pub(super) max_age: Duration,
    /// How long an aged connection's calls may take to end, and then its streams. It isn't in the way of a server that stops.
    pub(super) grace: Duration,
    /// How long an answer may wait for its client, and at the most twice as long.
    pub(super) owed: Duration,
    /// How long a client may take nothing of what it is sent.
    pub(super) patience: Duration,
}

impl Connections {
    /// Serves a connection to its end, which leaves its place.
    pub(super) async fn serve(self, stream: TcpStream, client: SocketAddr, _place: Place) {
        let Self {
            service,
            server,
            entrance,
            routes,
            phase,
            cut_off,
            metrics,
            methods,
            shed,
            headers,
            guard,
            max_request_bytes,
            max_deadline,
            max_age,
            grace,
            owed,
            patience,
        } = self;
        // Small messages each way: waiting for more to send costs a round trip.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "connection lost before it was served");
            return;
        }
        let (socket, cord) = Socket::new(stream, patience);
        let (greet, greeted) = oneshot::channel();
        let (leave, left) = oneshot::channel::<()>();
        let left = async {
            // An error is a sender that is gone, which is an end as well.
            let _ = left.await;
        };
        let (end, ending) = watch::channel(Ending::NotYet);
        let calls = Arc::<InFlight>::default();
        let shed = shed.on(Arc::clone(&calls), methods.clone());
        let connection = Connection { service, client, calls: &calls, cut_off: &cut_off };
        let bounds = Bounds { age: jittered(max_age), grace, owed };
        let server = {
            let mut server = server
                // By TLS tonic has it within what it knows of that.
                .layer(MapRequestLayer::new(with_tcp_info as fn(Request<Body>) -> Request<Body>))
                // Outermost of what answers, so that whatever becomes of a call is seen.
                .layer(ObserveLayer::new(service, metrics, methods, ending))
                // Outside the deadline, whose own answer cannot panic; inside what logs the INTERNAL it makes.
                .layer(CatchLayer::new(service))
                .layer(headers)
                // What finds no place costs neither a timer nor a surface.
                .layer(shed)
                // What is left of the time is the surface's.
                .layer(DeadlineLayer::new(service, max_deadline))
                .layer(guard)
                // Innermost: it looks at what surfaces ask of the request.
                .layer(MalformedLayer::new(service, max_request_bytes));
            // What tells calls of the end is then held by them alone.
            server.add_routes(routes)
        };
        let served = async {
            match entrance {
                None => server.serve_with_incoming_shutdown(alone(socket, greet), left).await,
                Some(entrance) => match entrance.enter(socket, client).await {
                    None => Ok(()),
                    Some(stream) => server.serve_with_incoming_shutdown(alone(stream, greet), left).await,
                },
            }
        };
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::debug!(%error, "connection failed");
                }
            }
            () = live(phase, cord, greeted, connection, leave, &end, bounds) => {}
        }
        // Each call hears by itself that its connection is gone.
        end.closed().await;
    }
}

/// Whoever looks for a client's address finds it in one place, by TLS or not.
fn with_tcp_info(mut request: Request<Body>) -> Request<Body> {
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>().map(|info| info.get_ref().clone());
    if let Some(info) = info {
        request.extensions_mut().insert(info);
    }
    request
}

/// The one connection that a server has.
fn alone<S>(io: S, greet: oneshot::Sender<()>) -> impl Stream<Item = io::Result<Coalesced<Greeted<S>>>> {
    stream::iter([Ok(Coalesced::new(Greeted::new(io, greet), false))]).chain(stream::pending())
}

/// One of them, as it lives.
#[derive(Clone, Copy, Debug)]
struct Connection<'a> {
    service: &'static str,
    client: SocketAddr,
    calls: &'a InFlight,
    cut_off: &'a AtomicUsize,
}

/// How long things may take on a connection, as for all of them.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    age: Duration,
    grace: Duration,
    owed: Duration,
}

/// Resolves when the socket is gone by itself.
async fn live(
    phase: watch::Receiver<Phase>,
    cord: Cord,
    greeted: oneshot::Receiver<()>,
    connection: Connection<'_>,
    leave: oneshot::Sender<()>,
    ending: &watch::Sender<Ending>,
    bounds: Bounds,
) {
    let Cord { cut, gone } = cord;
    tokio::select! {
        _ = gone => return,
        () = end(phase, greeted, connection, leave, ending, bounds) => {}
        // It may go on answering pings for ever.
        () = connection.calls.owing(bounds.owed) => {
            let Connection { service, client, calls, .. } = connection;
            let calls = calls.now();
            tracing::info!(service, %client, calls, "a connection whose client doesn't take what it asked for is cut off");
        }
    }
    let _ = cut.send(());
    pending().await
}

/// Asks the client to leave when it is time to, and resolves when it has not.
async fn end(
    mut phase: watch::Receiver<Phase>,
    greeted: oneshot::Receiver<()>,
    Connection { calls, cut_off, .. }: Connection<'_>,
    leave: oneshot::Sender<()>,
    ending: &watch::Sender<Ending>,
    Bounds { age, grace, .. }: Bounds,
) {
    let (mut is_old, mut is_draining) = (false, false);
    tokio::select! {
        () = reached(&mut phase, Phase::Draining) => is_draining = true,
        () = silence(greeted) => {}
        () = sleep(age) => is_old = true,
    }
    let _ = leave.send(());
    if is_old {
        // New calls go over a new connection already; streams may go on a while.
        tokio::select! {
            () = reached(&mut phase, Phase::Draining) => {}
            () = sleep(grace) => {}
        }
    }
    ending.send_replace(Ending::Streams);
    tokio::select! {
        () = reached(&mut phase, Phase::Cut) => {
            // Who is dropped from now on has not left by itself.
            ending.send_replace(Ending::Cut);
            cut_off.fetch_add(calls.now(), Relaxed);
        }
        // Who greeted too late may call all the same, and never say that it has heard. A server that stops has its own time for that.
        () = sleep(grace), if !is_draining => {}
        () = calls.idle(GOODBYE) => {}
    }
}

/// Resolves when the client has said too little for too long.
async fn silence(greeted: oneshot::Receiver<()>) {
    if timeout(SILENCE, greeted).await.is_ok() {
        pending().await
    }
}

async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    // An error is a server that is gone without a word: then everything is over.
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

/// A tenth more or less, so that connections made together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(rand::rng().random_range(0.9..1.1))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    /// How long a connection lives on which this was said, in a server that goes on.
    async fn lives(greets: bool, works: bool, owes: bool) -> Duration {
        let (cut, was_cut) = oneshot::channel();
        let (_gone, gone) = oneshot::channel();
        let (greet, greeted) = oneshot::channel();
        let (leave, _left) = oneshot::channel();
        let (_phase, phase) = watch::channel(Phase::Serving);
        let (ending, _) = watch::channel(Ending::NotYet);
        let (start, age, in_flight) = (Instant::now(), Duration::from_secs(900), Arc::<InFlight>::default());
        let _call = works.then(|| {
            let mut call = in_flight.begin();
            if owes {
                call.owe();
            }
            call
        });
        // Not sent is not said; dropped, the socket would be gone.
        let _greet = if greets { greet.send(()).map(|()| None).expect("heard") } else { Some(greet) };
        let client = SocketAddr::from(([127, 0, 0, 1], 1));
        let (calls, cut_off) = (&*in_flight, &AtomicUsize::default());
        let connection = Connection { service: "tea", client, calls, cut_off };
        let (cord, bounds) = (Cord { cut, gone }, Bounds { age, grace: GRACE, owed: GRACE });
        tokio::select! {
            () = live(phase, cord, greeted, connection, leave, &ending, bounds) => {}
            _ = was_cut => {}
            () = sleep(4 * age) => {}
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_cut_off_and_one_that_speaks_lives_to_its_age() {
        assert_eq!(lives(false, false, false).await.as_secs(), 11);
        assert_eq!(lives(false, true, false).await.as_secs(), 40, "it greeted too late, and doesn't leave");
        assert_eq!(lives(true, false, false).await.as_secs(), 931);
        assert_eq!(lives(true, true, false).await.as_secs(), 960);
        assert_eq!(lives(true, true, true).await.as_secs(), 60, "it doesn't take its answer");
    }
}
