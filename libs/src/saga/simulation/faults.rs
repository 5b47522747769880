//! What goes wrong in a simulation, and when: drawn from its seed before it begins.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};

use super::world::{COORDINATORS, PARTICIPANTS, STORE, World};

/// When the first thing goes wrong, the last one, and when all is mended, in milliseconds.
const FIRST: u64 = 500;
const LAST: u64 = 9_000;
pub(super) const MENDED: Duration = Duration::from_secs(20);

type Host = &'static str;

/// Something that goes wrong, or is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The host loses its power.
    Crash(Host),
    /// It is started again.
    Start(Host),
    /// Its process is stopped.
    Stop(Host),
    /// The process goes on.
    GoOn(Host),
    /// The process is asked to end.
    Leave(Host),
    /// What they send each other is lost.
    Cut(Host, Host),
    /// What the first sends to the second is lost.
    CutOneWay(Host, Host),
    /// What they send each other is kept back.
    Hold(Host, Host),
    /// It comes again, and what was kept back comes now.
    Mend(Host, Host),
}

impl Event {
    /// As the summary counts it.
    pub(super) const fn counted(self) -> Option<&'static str> {
        match self {
            Self::Crash(_) => Some("crashes"),
            Self::Stop(_) => Some("pauses"),
            Self::Cut(..) | Self::CutOneWay(..) => Some("partitions"),
            Self::Hold(..) => Some("holds"),
            Self::Start(_) | Self::GoOn(_) | Self::Leave(_) | Self::Mend(..) => None,
        }
    }
}

/// What happens in this world, in order.
pub(super) fn plan(world: &World) -> Vec<(Duration, Event)> {
    let mut chance = world.chance("faults", 0);
    let mut events = Vec::new();
    for _ in 0..chance.random_range(3..=9) {
        let at = chance.random_range(FIRST..LAST);
        let (begins, ends, lasts) = fault(&mut chance);
        events.push((Duration::from_millis(at), begins));
        events.extend(ends.map(|ends| (Duration::from_millis(at + lasts), ends)));
    }
    events.sort_by_key(|(at, _)| *at);
    events
}

/// What begins, what ends it, and after how many milliseconds.
fn fault(chance: &mut StdRng) -> (Event, Option<Event>, u64) {
    let coordinator = *COORDINATORS.choose(chance).expect("some");
    let participant = *PARTICIPANTS.choose(chance).expect("some");
    let (a, b) = match chance.random_range(0..3) {
        0 => (coordinator, STORE),
        1 => (STORE, coordinator),
        _ => (coordinator, participant),
    };
    let short = chance.random_range(100..6_000);
    match chance.random_range(0..16) {
        0..3 => (Event::Crash(coordinator), Some(Event::Start(coordinator)), short),
        3..5 => (Event::Crash(STORE), Some(Event::Start(STORE)), short / 2),
        5..7 => (Event::Crash(participant), Some(Event::Start(participant)), short),
        7..10 => (Event::Stop(coordinator), Some(Event::GoOn(coordinator)), chance.random_range(1_000..16_000)),
        10 => (Event::Stop(STORE), Some(Event::GoOn(STORE)), short),
        11 => (Event::Stop(participant), Some(Event::GoOn(participant)), short),
        12 => (Event::Leave(coordinator), None, 0),
        13 => (Event::Cut(a, b), Some(Event::Mend(a, b)), chance.random_range(500..15_000)),
        14 => (Event::CutOneWay(a, b), Some(Event::Mend(a, b)), chance.random_range(500..15_000)),
        _ => (Event::Hold(a, b), Some(Event::Mend(a, b)), chance.random_range(500..15_000)),
    }
}
