//! An outage in virtual time: many clients, one server of limited capacity, ten seconds in which it answers nothing, or a third of what
//! it could. What reaches the server, how soon the circuits open, how soon all is well again, and that they stay closed then.
//!
//! Calls go through the circuits and the retries that a channel for queries has. Wishes and the circuits' jitter come from a seed; the
//! pauses between attempts are drawn anew.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    ops::Range,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::stream;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::Status;
use tower::{Layer as _, Service};

use super::{Retry, attempts::call};
use crate::breaker::{
    Breaker, BreakerLayer, Circuit, Config, Override, Rate, State, TokioClock,
    layer::{BoxError, grpc_status},
};

type Body = tonic::body::Body;

const TICK: Duration = Duration::from_millis(100);
const SECOND: usize = 10;
const CLIENTS: usize = 20;
/// What the server can answer in a tick: a third more than all ask, who have one or two wishes each.
const CAPACITY: usize = 40;
const OUTAGE: Range<usize> = 10 * SECOND..20 * SECOND;
/// The outage, and five seconds more.
const COUNTED: Range<usize> = OUTAGE.start..OUTAGE.end + 5 * SECOND;
const END: usize = 60 * SECOND;

/// What a client does about a failure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Policy {
    /// Two more attempts, as far apart as a channel's, whatever else fails.
    Alone,
    /// A channel's retries, without a circuit.
    Budget,
    /// A channel's retries behind a circuit, as it is by default.
    Breaker,
    /// The same behind a circuit that throttles instead of opening.
    Throttle,
}

impl Policy {
    fn config(self) -> Config {
        let builder = Config::builder();
        let builder = match self {
            Self::Throttle => builder.failure_rate(None).throttle(Rate::percent(200)),
            Self::Alone | Self::Budget | Self::Breaker => builder,
        };
        builder.build().expect("makes sense")
    }
}

/// Answers so many calls a tick, and the rest with UNAVAILABLE.
#[derive(Clone, Debug, Default)]
struct Server(Arc<Mutex<Load>>);

#[derive(Debug, Default)]
struct Load {
    capacity: usize,
    this_tick: usize,
    calls: usize,
}

impl Server {
    fn next_tick(&self, capacity: usize) {
        let mut load = self.0.lock();
        (load.capacity, load.this_tick) = (capacity, 0);
    }

    fn calls(&self) -> usize {
        self.0.lock().calls
    }

    fn answer(&self) -> Result<Response<Body>, Infallible> {
        let mut load = self.0.lock();
        load.this_tick += 1;
        load.calls += 1;
        if load.this_tick > load.capacity {
            return Ok(Status::unavailable("more than it can do").into_http());
        }
        let trailers = HeaderMap::from_iter([("grpc-status".parse().expect("a name"), "0".parse().expect("a value"))]);
        let frames = stream::iter([Ok::<_, Status>(Frame::trailers(trailers))]);
        Ok(Response::new(Body::new(StreamBody::new(frames))))
    }
}

impl Service<Request<Body>> for Server {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        ready(self.answer())
    }
}

#[derive(Clone)]
struct Client {
    policy: Policy,
    server: Server,
    circuit: Circuit<Server>,
    breaker: Arc<Breaker>,
    retry: Arc<Retry>,
}

impl Client {
    fn new(policy: Policy, server: &Server, seed: u64) -> Self {
        let clock = Arc::new(TokioClock::new());
        let breaker = Arc::new(Breaker::with_seed("peer", policy.config(), clock, seed));
        if policy == Policy::Budget {
            breaker.set_override(Override::ForcedClosed);
        }
        let circuit = BreakerLayer::new(Arc::clone(&breaker)).layer(server.clone());
        Self { policy, server: server.clone(), circuit, breaker, retry: Arc::new(Retry::new()) }
    }

    /// Asks once, in as many attempts as the policy has, and says whether it was answered well.
    async fn ask(self) -> bool {
        if self.policy == Policy::Alone {
            return self.insist().await;
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        let answer = call(self.circuit, self.retry, Request::new(Body::empty()), Some(deadline), false).await;
        is_well(answer).await
    }

    async fn insist(self) -> bool {
        for pause in [50, 100, 0] {
            if is_well(self.server.answer()).await {
                return true;
            }
            sleep(Duration::from_millis(pause)).await;
        }
        false
    }
}

/// Reads an answer to its end, as a generated client does: only then is it an answer.
async fn is_well<B, E>(answer: Result<Response<B>, E>) -> bool
where
    B: http_body::Body<Error: Into<BoxError>>,
{
    match answer {
        Ok(response) if grpc_status(response.headers()).is_none() => response.into_body().collect().await.is_ok(),
        _ => false,
    }
}

/// What came of a run.
#[derive(Debug, Default)]
struct Run {
    /// Requests, and calls that reached the server, while it was out and in the five seconds after.
    requests: usize,
    calls: usize,
    /// In which second of the outage the last circuit opened for the first time.
    all_open_in: Option<usize>,
    /// The first second after the outage in which at least 95 % of the requests were answered.
    well_in: Option<usize>,
    /// The most often that a circuit opened after the outage, from its end to the end of the run.
    openings_after: u64,
    /// Requests answered, by the second in which they were made.
    curve: Vec<usize>,
}

impl Run {
    fn amplification(&self) -> f64 {
        self.calls as f64 / self.requests as f64
    }

    /// Requests answered that were made in these ticks.
    fn answered(&self, ticks: Range<usize>) -> usize {
        self.curve[ticks.start / SECOND..ticks.end / SECOND].iter().sum()
    }
}

/// `left` is what the server can answer in a tick of the outage.
async fn run(policy: Policy, left: usize, seed: u64) -> Run {
    let mut random = StdRng::seed_from_u64(seed);
    let server = Server::default();
    let clients: Vec<_> = (0..CLIENTS).map(|at| Client::new(policy, &server, seed + at as u64)).collect();
    let (mut run, mut wishes) = (Run::default(), JoinSet::new());
    let (mut asked, mut opened_before) = (vec![0; END / SECOND], Vec::new());
    let mut has_opened = [false; CLIENTS];
    for tick in 0..END {
        server.next_tick(if OUTAGE.contains(&tick) { left } else { CAPACITY });
        if tick == COUNTED.start {
            run.calls = server.calls();
        } else if tick == COUNTED.end {
            run.calls = server.calls() - run.calls;
        }
        if tick == OUTAGE.end {
            opened_before = opened(&clients);
        }
        // Whoever comes first is answered: nobody shall always be first.
        let first = random.random_range(0..CLIENTS);
        for at in 0..CLIENTS {
            for _ in 0..random.random_range(1..=2) {
                let client = clients[(first + at) % CLIENTS].clone();
                wishes.spawn(async move { (tick, client.ask().await) });
                asked[tick / SECOND] += 1;
                run.requests += usize::from(COUNTED.contains(&tick));
            }
        }
        sleep(TICK).await;
        for (client, has_opened) in clients.iter().zip(&mut has_opened) {
            *has_opened |= client.breaker.state() == State::Open;
        }
        if OUTAGE.contains(&tick) && has_opened.iter().all(|opened| *opened) && run.all_open_in.is_none() {
            run.all_open_in = Some((tick - OUTAGE.start) / SECOND);
        }
    }
    run.curve = vec![0; END / SECOND];
    while let Some(ended) = wishes.join_next().await {
        let (tick, well) = ended.expect("no panic");
        run.curve[tick / SECOND] += usize::from(well);
    }
    let after = OUTAGE.end / SECOND..END / SECOND;
    run.well_in =
        after.clone().find(|second| run.curve[*second] * 100 >= asked[*second] * 95).map(|at| at - after.start);
    run.openings_after = opened(&clients).iter().zip(&opened_before).map(|(end, then)| end - then).max().unwrap_or(0);
    run
}

fn opened(clients: &[Client]) -> Vec<u64> {
    clients.iter().map(|client| client.breaker.snapshot().totals.opened).collect()
}

fn publish(name: &str, run: &Run) {
    let Run { all_open_in, well_in, openings_after, curve, .. } = run;
    println!(
        "{name}: {:.2} calls a request in the outage and 5 s after; all had opened in second {all_open_in:?}, well again in second \
         {well_in:?}, opened {openings_after} times after; answered a second: {curve:?}",
        run.amplification()
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_amplified_ends_when_it_ends_and_does_not_come_back() {
    for seed in 0..3 {
        let alone = run(Policy::Alone, 0, seed).await;
        let budget = run(Policy::Budget, 0, seed).await;
        let guarded = run(Policy::Breaker, 0, seed).await;
        if seed == 0 {
            publish("retries alone", &alone);
            publish("with their budget", &budget);
            publish("and a breaker", &guarded);
        }
        assert!(alone.amplification() > 2.0, "seed {seed}: the scenario amplifies nothing: {alone:?}");
        assert!(budget.amplification() <= 1.1, "seed {seed}: {budget:?}");
        assert!(guarded.amplification() <= 0.6, "seed {seed}: {guarded:?}");
        // The default's window is ten seconds, and half of what is in it must have failed.
        assert!(guarded.all_open_in.is_some_and(|second| second <= 5), "seed {seed}: {guarded:?}");
        // A circuit that opened for five seconds in the outage, and for ten when its probes failed, with a fifth of jitter.
        assert!(guarded.well_in.is_some_and(|second| second <= 12), "seed {seed}: {guarded:?}");
        // Probes that were under way when it ended may have failed. What opens twice goes to and fro.
        assert!(guarded.openings_after <= 1, "seed {seed}: {guarded:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_peer_that_can_do_a_third_a_throttle_keeps_more_than_a_circuit_that_opens() {
    for seed in 0..3 {
        let left = CAPACITY / 3;
        let alone = run(Policy::Alone, left, seed).await;
        let opens = run(Policy::Breaker, left, seed).await;
        let throttles = run(Policy::Throttle, left, seed).await;
        let possible = left * OUTAGE.len();
        if seed == 0 {
            for (name, run) in [("retries alone", &alone), ("breaker", &opens), ("throttle", &throttles)] {
                publish(name, run);
                let share = run.answered(OUTAGE) * 100 / possible;
                println!("{share} % of what the server could do; answered until 5 s after: {}", run.answered(COUNTED));
            }
        }
        assert!(alone.amplification() > 1.5, "seed {seed}: the scenario amplifies nothing: {alone:?}");
        assert!(throttles.amplification() <= 1.1, "seed {seed}: {throttles:?}");
        assert!(throttles.answered(OUTAGE) * 20 >= possible * 19, "seed {seed}: {throttles:?}");
        // A circuit that opened late in the outage is open after it.
        let (kept, more) = (opens.answered(COUNTED), throttles.answered(COUNTED));
        assert!(more * 10 >= kept * 11, "seed {seed}: {more} with a throttle, {kept} with a circuit");
        assert!(throttles.well_in.is_some_and(|second| second <= 3), "seed {seed}: {throttles:?}");
        assert!(opens.openings_after <= 1 && throttles.openings_after == 0, "seed {seed}: {opens:?}");
    }
}
