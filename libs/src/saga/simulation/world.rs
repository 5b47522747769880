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
/// How far a host's clock may be from the others'.
const SKEW: i64 = 3_000_000;

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
            now: AtomicU64::new(0),
        })
    }

    /// Chance of its own for one purpose: what one draws doesn't change what another gets.
    pub(super) fn chance(&self, purpose: &str, number: u64) -> StdRng {
        let bytes = format!("{}/{purpose}/{number}", self.seed);
        // FNV-1a: anything that is the same everywhere.
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        StdRng::seed_from_u64(bytes.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
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
        let skew = self.chance("skew", host.bytes().map(u64::from).sum()).random_range(-SKEW..=SKEW);
        move || {
            let since = turmoil::sim_elapsed().unwrap_or_default();
            EPOCH + skew + i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        }
    }
}
