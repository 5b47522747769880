//! One simulation, from its seed to what is wrong with it.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use turmoil::Sim;

use super::{
    answers,
    check::check,
    customers,
    faults::{self, Event, MENDED},
    line,
    mutant::Mutant,
    orders, participants, process, remote,
    world::{COORDINATORS, DIFFERS, PARTICIPANTS, STORE, World},
};

/// By when everything must have ended once all is mended.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long after it may be forgotten what participants keep must be.
const FORGETTING: Duration = Duration::from_secs(9);
/// How long what is late may still come then.
const REST: Duration = Duration::from_secs(1);
/// How long it takes until a process that has ended is started again.
const RESTART: Duration = Duration::from_secs(1);
/// The steps of the simulated time.
const TICK: Duration = Duration::from_millis(20);
const CUSTOMERS: &str = "customers";

/// What became of a simulation.
pub(super) struct Outcome {
    pub(super) seed: u64,
    /// What is wrong.
    pub(super) broken: Vec<String>,
    /// Two simulations with one trace have the same.
    pub(super) digest: u64,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) lines: Vec<String>,
}

/// Simulates what comes of a seed. Each line of the trace is printed if it is `shown`.
pub(super) fn simulate(seed: u64, mutant: Mutant, is_shown: bool) -> Outcome {
    mutant.leave_out();
    let orders = 6 + usize::try_from(seed % 7).unwrap_or_default();
    let world = World::new(seed, is_shown, orders);
    let mut simulation = Simulation { sim: network(&world, orders), events: faults::plan(&world), world };
    match catch_unwind(AssertUnwindSafe(|| simulation.run())) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => simulation.world.broken(format!("the simulation stopped: {error}")),
        Err(_) => simulation.world.broken("the simulation panicked".to_owned()),
    }
    let world = Arc::clone(&simulation.world);
    for panic in process::panics() {
        world.broken(format!("a task panicked: {panic}"));
    }
    // Its tasks must go while the world that they know is there.
    drop(simulation);
    line::forget();
    Mutant::None.leave_out();
    Outcome {
        seed,
        broken: world.all_broken(),
        digest: world.trace(super::trace::Trace::digest),
        counts: world.trace(|trace| trace.counts().clone()),
        lines: world.trace(|trace| trace.lines().to_vec()),
    }
}

fn network(world: &Arc<World>, orders: usize) -> Sim<'static> {
    let mut sim = turmoil::Builder::new()
        .rng_seed(world.seed)
        .epoch(std::time::SystemTime::UNIX_EPOCH)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(3_600))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(60))
        .tcp_capacity(1_024)
        .enable_random_order()
        .build();
    let shared = Arc::clone(world);
    sim.host(STORE, move || remote::serve(Arc::clone(&shared)));
    for name in PARTICIPANTS {
        let shared = Arc::clone(world);
        sim.host(name, move || participants::run(Arc::clone(&shared), name));
    }
    for name in COORDINATORS {
        let shared = Arc::clone(world);
        sim.host(name, move || orders::run(Arc::clone(&shared), name));
    }
    let shared = Arc::clone(world);
    sim.host(CUSTOMERS, move || customers::run(Arc::clone(&shared), orders));
    sim
}

struct Simulation {
    sim: Sim<'static>,
    world: Arc<World>,
    /// What is still to happen, in order.
    events: Vec<(Duration, Event)>,
}

impl Simulation {
    fn run(&mut self) -> turmoil::Result {
        while self.sim.elapsed() < MENDED {
            self.step()?;
        }
        self.mend();
        while !self.is_settled() {
            if self.sim.elapsed() > MENDED + PATIENCE {
                self.world.broken("something never ends".to_owned());
                break;
            }
            self.step()?;
        }
        let kept = self.world.keep_answers;
        let end = self.sim.elapsed() + kept + kept / DIFFERS + FORGETTING;
        while self.sim.elapsed() < end && !answers::kept(&self.world).is_empty() {
            self.go_on_for(REST)?;
        }
        self.go_on_for(REST)?;
        check(&self.world);
        Ok(())
    }

    fn go_on_for(&mut self, time: Duration) -> turmoil::Result {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> turmoil::Result {
        let now = self.sim.elapsed();
        self.world.now.store(u64::try_from(now.as_millis()).unwrap_or_default(), Ordering::Relaxed);
        while self.events.first().is_some_and(|(at, _)| *at <= now) {
            let (_, event) = self.events.remove(0);
            self.happen(event);
        }
        self.sim.step()?;
        let exits = std::mem::take(&mut *self.world.exits.lock());
        for host in exits {
            self.power_off(host);
            let at = self.sim.elapsed() + RESTART;
            let place = self.events.partition_point(|(other, _)| *other <= at);
            self.events.insert(place, (at, Event::Start(host)));
        }
        Ok(())
    }

    fn power_off(&mut self, host: &'static str) {
        line::power_off(self.sim.lookup(host));
        self.sim.crash(host);
    }

    fn happen(&mut self, event: Event) {
        let now = self.sim.elapsed();
        self.world.note_at(now, format_args!("{event:?}"));
        if let Some(counted) = event.counted() {
            self.world.count(counted);
        }
        let of = |host| self.world.process(host).unwrap_or_default();
        match event {
            Event::Crash(host) if self.sim.is_host_running(host) => {
                self.power_off(host);
                let number = u64::try_from(now.as_millis()).unwrap_or_default();
                if host == STORE {
                    self.world.store.crash(&self.world, number);
                } else if PARTICIPANTS.contains(&host) {
                    self.world.participant(host).crash(&self.world, number);
                }
            }
            Event::Start(host) if !self.sim.is_host_running(host) => self.sim.bounce(host),
            Event::Crash(_) | Event::Start(_) => {}
            Event::Stop(host) => of(host).stop(),
            Event::GoOn(host) => of(host).go_on(),
            Event::Leave(host) => of(host).leave(),
            Event::Cut(a, b) => self.sim.partition(a, b),
            Event::CutOneWay(a, b) => self.sim.partition_oneway(a, b),
            Event::Hold(a, b) => self.sim.hold(a, b),
            Event::Mend(a, b) => self.sim.release(a, b),
        }
    }

    /// Mends everything. From now on nothing goes wrong.
    fn mend(&mut self) {
        self.events.retain(|(_, event)| matches!(event, Event::Start(_)));
        let hosts = || [STORE].into_iter().chain(PARTICIPANTS).chain(COORDINATORS);
        for a in hosts() {
            for b in hosts().filter(|b| *b > a) {
                self.sim.release(a, b);
            }
            self.happen(Event::Start(a));
            self.happen(Event::GoOn(a));
        }
        self.world.is_stormy.store(false, Ordering::Relaxed);
        self.world.note_at(self.sim.elapsed(), format_args!("all is mended"));
    }

    fn is_settled(&self) -> bool {
        self.world.promises.lock().waiting == 0 && self.world.store.is_settled()
    }
}
