//! What all hosts of a simulation share although no network carries it: the seed, the trace, what was promised to customers.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{disk::Disk, process::Process, trace::Trace, wire::Parcels};

/// When the simulation begins, in microseconds since 1970.
const EPOCH: i64 = 1_700_000_000_000_000;
/// How far the store's clock may be off.
const SKEW: i64 = 3_000_000;
/// For how long after a saga's end its answers are kept, in milliseconds.
const KEPT: std::ops::Range<u64> = 4_000..8_000;
/// The part of that by which two other clocks may differ.
pub(super) const DIFFERS: u32 = 6;

/// The processes of the order service.
pub(super) const COORDINATORS: [&str; 3] = ["order-a", "order-b", "order-c"];
/// The services that they call.
pub(super) const PARTICIPANTS: [&str; 3] = ["inventory", "payment", "shipping"];
/// The coordinators' database.
pub(super) const STORE: &str = "store";

/// What all hosts share.
pub(super) struct World {
    pub(super) seed: u64,
    trace: Mutex<Trace>,
    /// What is wrong.
    broken: Mutex<Vec<String>>,
    /// True while things go wrong.
    pub(super) is_stormy: AtomicBool,
    pub(super) store: Disk,
    participants: BTreeMap<&'static str, Disk>,
    pub(super) parcels: Parcels,
    /// The process that runs on each host, and how many ran there before.
    processes: Mutex<BTreeMap<&'static str, (Process, u64)>>,
    /// Processes that have ended by themselves.
    pub(super) exits: Mutex<Vec<&'static str>>,
    pub(super) promises: Mutex<Promises>,
    places: AtomicU64,
    /// For how long after a saga's end its answers are kept.
    pub(super) keep_answers: Duration,
    /// The simulated time where no host runs, in milliseconds.
    pub(super) now: AtomicU64,
}

/// What customers were told, and what they still ask for.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Orders that were accepted.
    pub(super) placed: Vec<String>,
    /// Sagas that an operator was told are turning back.
    pub(super) cancelled: Vec<String>,
    /// Customers who wait for an answer.
    pub(super) waiting: usize,
}

impl World {
    pub(super) fn new(seed: u64, is_shown: bool, orders: usize) -> Arc<Self> {
        let keep_answers = Duration::from_millis(chance(seed, "answers", 0).random_range(KEPT));
        Arc::new(Self {
            seed,
            trace: Mutex::new(Trace::new(is_shown)),
            broken: Mutex::default(),
            is_stormy: AtomicBool::new(true),
            store: Disk::new(STORE, super::super::TABLES),
            participants: PARTICIPANTS.into_iter().map(|name| (name, Disk::new(name, &[]))).collect(),
            parcels: Parcels::default(),
            processes: Mutex::default(),
            exits: Mutex::default(),
            promises: Mutex::new(Promises { waiting: orders, ..Promises::default() }),
            places: AtomicU64::new(0),
            keep_answers,
            now: AtomicU64::new(0),
        })
    }

    /// Chance of its own for one purpose: what one draws doesn't change what another gets.
    pub(super) fn chance(&self, purpose: &str, number: u64) -> StdRng {
        chance(self.seed, purpose, number)
    }

    /// Notes that something happened.
    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        let now = turmoil::sim_elapsed();
        self.note_at(now.unwrap_or_else(|| Duration::from_millis(self.now.load(Ordering::Relaxed))), what);
    }

    pub(super) fn note_at(&self, at: Duration, what: fmt::Arguments<'_>) {
        self.trace.lock().note(at, what);
    }

    /// Counts something of which the summary tells.
    pub(super) fn count(&self, what: &'static str) {
        self.trace.lock().count(what);
    }

    /// Notes that a rule is broken.
    pub(super) fn broken(&self, why: String) {
        self.note(format_args!("BROKEN: {why}"));
        self.broken.lock().push(why);
    }

    pub(super) fn all_broken(&self) -> Vec<String> {
        self.broken.lock().clone()
    }

    pub(super) fn trace<T>(&self, look: impl FnOnce(&Trace) -> T) -> T {
        look(&self.trace.lock())
    }

    pub(super) fn is_stormy(&self) -> bool {
        self.is_stormy.load(Ordering::Relaxed)
    }

    /// A participant's disk.
    pub(super) fn participant(&self, name: &str) -> &Disk {
        &self.participants[name]
    }

    /// The place of the next transaction, over all databases.
    pub(super) fn next_place(&self) -> u64 {
        self.places.fetch_add(1, Ordering::Relaxed)
    }

    /// A host begins another process. Answers it, and how many ran there before.
    pub(super) fn boot(&self, host: &'static str) -> (Process, u64) {
        let mut processes = self.processes.lock();
        let boots = processes.get(host).map_or(0, |(_, boots)| boots + 1);
        let process = Process::default();
        processes.insert(host, (process.clone(), boots));
        drop(processes);
        self.note(format_args!("{host} starts, {boots} before"));
        (process, boots)
    }

    /// The process that runs on a host.
    pub(super) fn process(&self, host: &str) -> Option<Process> {
        self.processes.lock().get(host).map(|(process, _)| process.clone())
    }

    /// A host's clock.
    pub(super) fn clock(&self, host: &str) -> impl Fn() -> i64 + Send + Sync + use<> {
        let differs = i64::try_from((self.keep_answers / DIFFERS).as_micros()).unwrap_or(i64::MAX);
        let most = if host == STORE { SKEW } else { differs / 2 };
        let skew = self.chance("skew", host.bytes().map(u64::from).sum()).random_range(-most..=most);
        move || {
            let since = turmoil::sim_elapsed().unwrap_or_default();
            EPOCH + skew + i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        }
    }
}

/// How long ago a moment was that somebody's clock showed, by a clock that is right.
pub(super) fn since(micros: i64) -> Duration {
    let then = u64::try_from(micros - EPOCH).map(Duration::from_micros).unwrap_or_default();
    turmoil::sim_elapsed().unwrap_or_default().saturating_sub(then)
}

fn chance(seed: u64, purpose: &str, number: u64) -> StdRng {
    let bytes = format!("{seed}/{purpose}/{number}");
    // FNV-1a: anything that is the same everywhere.
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    StdRng::seed_from_u64(bytes.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
}
