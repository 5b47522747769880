//! Three coordinators, their store and their participants in one thread, on a network, disks and a clock that are simulated.
//!
//! All of it comes from a seed: hosts crash and lose what they had not synced, processes stop past their lease and go on, the network
//! cuts hosts off, keeps messages back, loses answers and repeats calls, participants refuse and operators cancel. Sagas share locks and are
//! steps of others. Then all is mended, and when everything has ended and is forgotten it is checked. The coordinators, the machine, the
//! barrier, the decisions, SQL and gRPC are the real ones; the store is a model of PostgreSQL's turns, commits and crashes. The same seed
//! gives the same trace.

mod answers;
mod check;
mod customers;
mod disk;
mod family;
mod faults;
mod line;
mod local;
mod locks;
mod mutant;
mod orders;
mod participants;
pub(super) mod process;
mod remote;
mod run;
mod sagas;
mod summary;
mod trace;
mod transport;
mod wire;
mod world;

pub(super) use self::{locks::is_at_work, mutant::Mutant};
use self::{run::simulate, summary::Summary};

/// How many simulations the tests run.
const SEEDS: u64 = 500;

/// What goes wrong and how sagas end in so many simulations, whatever the seeds: one that is never met is not simulated any more.
const MET: [&str; 16] = [
    "crashes",
    "pauses",
    "partitions",
    "holds",
    "shutdowns",
    "takeovers",
    "waits for locks",
    "cancels",
    "repeated calls",
    "lost answers",
    "calls too old",
    "answers forgotten",
    "unsynced writes lost",
    "sagas that are steps",
    "COMPLETED",
    "COMPENSATED",
];

/// Numbers from the environment, for `./just simulate`.
fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name} must be a number: {text}")),
        _ => default,
    }
}

/// `SIMULATE_SEEDS` and `SIMULATE_FIRST` say which; of a single one the whole trace is printed. See `./just simulate`. Only what is said in
/// these `SIMULATE_WORDS` is wrong, if there are any. Names that nobody else has: with fewer seeds or such words less is proved.
#[test]
fn whatever_goes_wrong_every_saga_ends_as_it_must() {
    let (first, seeds) = (number("SIMULATE_FIRST", 1), number("SIMULATE_SEEDS", SEEDS));
    let words = std::env::var("SIMULATE_WORDS").unwrap_or_default();
    let summary = Summary::of(first..first + seeds, Mutant::None, &words);
    println!("{summary}");
    if let Some(failed) = &summary.failed {
        panic!("{}", failed.report());
    }
    let never: Vec<_> = MET.into_iter().filter(|what| seeds >= SEEDS && summary.count(what) == 0).collect();
    assert!(never.is_empty(), "never met: {never:?}");
}

#[test]
fn a_seed_gives_the_same_trace_again() {
    for seed in 1..=8 {
        // Side by side, as the tests run them: what one thread does must not be seen in the other's trace.
        let again = std::thread::spawn(move || simulate(seed, Mutant::None, false));
        let (one, two) = (simulate(seed, Mutant::None, false), again.join().expect("it ends"));
        let differs = one.lines.iter().zip(&two.lines).find(|(one, two)| one != two);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((one.digest, one.lines.len()), (two.digest, two.lines.len()), "seed {seed}");
    }
}

/// What the simulation is worth: without any of the rules it finds a seed that is wrong. `./just mutants` prints the table.
#[test]
fn without_any_of_its_rules_some_seed_is_wrong() {
    for (mutant, found) in [
        (Mutant::NoFence, "changed by a process that does not own it"),
        (Mutant::NoTombstone, "took effect and was never undone"),
        (Mutant::LogNotDurable, "is lost"),
        (Mutant::AckBeforeCommit, "was not done"),
        (Mutant::RebuiltOnRetry, "STUCK"),
        (Mutant::LostIsRefused, "took effect and was never undone"),
        (Mutant::AbortNotDurable, "left before the log said so"),
        (Mutant::DecidedTwice, "took effect 2 times"),
        (Mutant::LostCommitIsAborted, "went from version"),
        (Mutant::LockNotChecked, "are at work under"),
        (Mutant::StepNotBound, "STUCK"),
        (Mutant::StepNotUndone, ":pack is FORWARD"),
        (Mutant::SweptAtOnce, "took effect 2 times"),
        (Mutant::NeverTooOld, "took effect 2 times"),
    ] {
        let summary = Summary::of(1..1 + SEEDS, mutant, found);
        let failed = summary.failed.unwrap_or_else(|| panic!("{mutant:?} is found out"));
        let why = failed.broken.iter().find(|why| why.contains(found));
        println!("{:<20} SEED={:<4} {}", format!("{mutant:?}"), failed.seed, why.cloned().unwrap_or_default());
    }
}
