//! Any saga, and anything that may happen to it, in any order: what holds of one that was drawn holds of all, as far as one can tell.
//!
//! The exploration beside this tries all that can happen to two small sagas in one moment. This one draws: a definition of up to six
//! steps with all their kinds and options, then answers of every sort, waits, operators' wishes, work of our own that is refused, shutdowns
//! and restarts. What is found is shrunk to the least that shows it.

mod ending;
mod participant;
mod rules;
mod shape;
mod world;

use proptest::prelude::*;
use proto::saga::v1::SagaPhase;

use self::{
    shape::{MOST, Shape, shape},
    world::{Fate, Refuses, SECOND, World},
};
use crate::{
    rpc::verdict::Op,
    saga::machine::{Input, Settled, Wish},
};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    Wait(i64),
    /// One of the calls in flight comes to this end.
    Answer(usize, Fate),
    /// One that nobody waits for any more arrives.
    Arrive(usize),
    UndoneByHand(usize),
    Ask(Ask),
    Woken,
    /// The saga above ended well, or was undone.
    ParentEnded(bool),
    Drain,
    Restart,
}

/// What an operator asks for.
#[derive(Clone, Debug)]
enum Ask {
    Cancel,
    Withdraw,
    Retry,
    /// An operation that is open, if there is one.
    Skip(usize, Settled),
    SkipAny(usize, Op, Settled),
    ForceClose,
    Pause,
    Resume,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        8 => Just(Fate::Accepted),
        2 => Just(Fate::Refused),
        1 => Just(Fate::RequestLost),
        1 => Just(Fate::AnswerLost),
        2 => Just(Fate::Late),
        1 => Just(Fate::Twice),
        1 => Just(Fate::Pending),
        1 => Just(Fate::Forbidden),
        1 => Just(Fate::NotSent),
        1 => Just(Fate::Conflict),
        1 => Just(Fate::Trusted),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let op = prop_oneof![Just(Op::Action), Just(Op::Compensation)];
    let settled = || prop_oneof![Just(Settled::Done), Just(Settled::Rejected)];
    prop_oneof![
        1 => Just(Ask::Cancel),
        1 => Just(Ask::Withdraw),
        3 => Just(Ask::Retry),
        6 => (any::<usize>(), settled()).prop_map(|(which, settled)| Ask::Skip(which, settled)),
        1 => (0..MOST, op, settled()).prop_map(|(step, op, settled)| Ask::SkipAny(step, op, settled)),
        1 => Just(Ask::ForceClose),
        2 => Just(Ask::Pause),
        2 => Just(Ask::Resume),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let wait = prop_oneof![0..SECOND, 0..20 * SECOND];
    prop_oneof![
        4 => wait.prop_map(Event::Wait),
        14 => (any::<usize>(), fate()).prop_map(|(which, fate)| Event::Answer(which, fate)),
        2 => any::<usize>().prop_map(Event::Arrive),
        1 => (0..MOST).prop_map(Event::UndoneByHand),
        4 => ask().prop_map(Event::Ask),
        1 => Just(Event::Woken),
        1 => any::<bool>().prop_map(Event::ParentEnded),
        1 => Just(Event::Drain),
        1 => Just(Event::Restart),
    ]
}

fn refuses() -> impl Strategy<Value = Refuses> {
    prop_oneof![
        6 => Just(Refuses::Nothing),
        1 => Just(Refuses::Locks),
        1 => Just(Refuses::All),
        2 => Just(Refuses::ForNow),
    ]
}

fn happens(world: &mut World<'_>, event: Event) -> Result<(), String> {
    match event {
        Event::Wait(micros) => world.wait(micros),
        Event::Answer(which, fate) => world.answer(which, fate),
        Event::Arrive(which) => world.arrive_late(which),
        Event::UndoneByHand(step) => {
            world.undo_by_hand(step);
            Ok(())
        }
        Event::Ask(ask) => world.ask(wish(world, &ask)),
        Event::Woken => world.hear(Input::Woken),
        Event::ParentEnded(well) => {
            let phase = if well { SagaPhase::Completed } else { SagaPhase::Compensated };
            world.hear(Input::ParentEnded(phase))
        }
        Event::Drain => {
            world.drain();
            Ok(())
        }
        Event::Restart => world.restart(),
    }
}

fn wish(world: &World<'_>, ask: &Ask) -> Wish {
    let steps = &world.definition.plan.steps;
    match *ask {
        Ask::Cancel => Wish::Cancel,
        Ask::Withdraw => Wish::Withdraw,
        Ask::Retry => Wish::Retry,
        Ask::Skip(which, settled) => world.skipping(which, settled),
        Ask::SkipAny(step, op, settled) => Wish::Skip { step: steps[step % steps.len()].name.to_owned(), op, settled },
        Ask::ForceClose => Wish::ForceClose,
        Ask::Pause => Wish::Pause,
        Ask::Resume => Wish::Resume,
    }
}

fn run(shape: &Shape, events: Vec<(Event, Refuses)>) -> Result<(), String> {
    let definition = shape.definition();
    let mut world = World::first(shape, &definition)?;
    for (event, refuses) in events {
        world.refuses = refuses;
        happens(&mut world, event)?;
    }
    world.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_rule_is_broken(
        shape in shape(),
        events in prop::collection::vec((event(), refuses()), 0..50),
    ) {
        if let Err(why) = run(&shape, events) {
            return Err(TestCaseError::fail(why));
        }
    }
}
