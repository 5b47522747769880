//! Every world that a saga can come into by so many mishaps, tried: two processes that take it from each other, crashes between any two
//! effects, calls and answers that are lost, come twice, late or to somebody who is gone. In each world the same must hold.
//!
//! The machine is the real one, the rest is a model of it: a store that checks who owns the saga, participants with their barrier, and
//! a network that keeps what it was given. Models with one rule left out, the mutants, are found out.

mod locks;
mod random;
mod rules;
mod world;

use std::collections::{HashSet, VecDeque};

use self::{
    rules::check,
    world::{Budget, Mutant, World},
};
use super::{Definition, LocalWork, operation::operations};

/// Looks at every world that can be reached, and answers how many there are, or the way to the first that is wrong.
fn explore(definition: &Definition, budget: Budget, mutant: Mutant) -> Result<usize, String> {
    let first = World::first(definition, budget, mutant);
    let mut seen = HashSet::from([first.key()]);
    // What led where: each move with the one before it.
    let mut moves: Vec<(usize, String)> = vec![(0, "it begins".to_owned())];
    let mut next = VecDeque::from([(first, 0)]);
    while let Some((world, from)) = next.pop_front() {
        for (what, after) in world.moves(definition) {
            if let Err(why) = check(definition, &world, &after) {
                moves.push((from, what));
                return Err(format!("{why}{}", way(&moves)));
            }
            if seen.insert(after.key()) {
                moves.push((from, what));
                next.push_back((after, moves.len() - 1));
            }
        }
    }
    Ok(seen.len())
}

/// The moves that led to the last one.
fn way(moves: &[(usize, String)]) -> String {
    let (mut at, mut way) = (moves.len() - 1, Vec::new());
    while at > 0 {
        way.push(moves[at].1.as_str());
        at = moves[at].0;
    }
    way.into_iter().rev().map(|what| format!("\n  {what}")).collect()
}

operations! {
    Do undone by Undo;
    Undo;
    Decide;
    Follow;
}

/// Two that can be undone, the pivot, and work of our own: the order's shape.
fn linear() -> Definition {
    let mut saga = Definition::builder::<i64>("linear", 1);
    saga.compensatable::<Do>("reserve", |_, _| Ok(1), |_| -1);
    saga.compensatable::<Do>("charge", |_, _| Ok(2), |_| -2);
    saga.pivot::<Decide>("ship", |_, _| Ok(3));
    saga.retriable_local("complete", |_, _| Ok(LocalWork::nothing()));
    owned(saga.build())
}

/// Two side by side that can be undone, the pivot after both, and one that must follow.
fn diamond() -> Definition {
    let mut saga = Definition::builder::<i64>("diamond", 1);
    saga.compensatable::<Do>("left", |_, _| Ok(1), |_| -1);
    saga.compensatable::<Do>("right", |_, _| Ok(2), |_| -2);
    saga.after(&[]);
    saga.pivot::<Decide>("decide", |_, _| Ok(3));
    saga.after(&["left", "right"]);
    saga.retriable::<Follow>("follow", |_, _| Ok(4));
    owned(saga.build())
}

fn owned(built: Result<std::sync::Arc<Definition>, super::DefinitionError>) -> Definition {
    let built = built.expect("legal");
    std::sync::Arc::into_inner(built).expect("nobody else has it")
}

/// `./just explore` prints how many worlds that are.
#[test]
fn no_world_breaks_a_rule() {
    let mut worlds = 0;
    let budget = |takeovers, crashes, losses, repeats, cancels| Budget { takeovers, crashes, losses, repeats, cancels };
    for (definition, budget) in [
        (linear(), budget(1, 1, 1, 0, 0)),
        (linear(), budget(1, 1, 0, 0, 1)),
        (linear(), budget(1, 0, 1, 1, 1)),
        (diamond(), budget(1, 1, 0, 0, 0)),
        (diamond(), budget(1, 0, 1, 0, 0)),
        (diamond(), budget(0, 1, 0, 1, 0)),
        (diamond(), budget(0, 1, 0, 0, 1)),
        (diamond(), budget(1, 0, 0, 1, 0)),
        (diamond(), budget(1, 0, 0, 0, 1)),
        (diamond(), budget(0, 1, 1, 0, 0)),
        (diamond(), budget(0, 0, 1, 1, 1)),
    ] {
        match explore(&definition, budget, Mutant::None) {
            Ok(found) => {
                println!("{found:>8} worlds of {}: {budget}", definition.name());
                worlds += found;
            }
            Err(why) => panic!("{why}\nin a world of {}: {budget}", definition.name()),
        }
    }
    println!("{worlds:>8} worlds of one saga in all");
    assert!(worlds > 10_000, "only {worlds}: the exploration has lost its way");
}

/// What each rule is there for: without it there is a world that is wrong. `./just mutants` prints the table.
#[test]
fn without_any_of_its_rules_some_world_is_wrong() {
    let budget = Budget { takeovers: 1, crashes: 1, losses: 1, repeats: 1, cancels: 1 };
    for (mutant, found) in [
        (Mutant::NoFence, "changed by a process that does not own it"),
        (Mutant::NoTombstone, "took effect and was never undone"),
        (Mutant::ActBeforeCommit, "left before the log said so"),
        (Mutant::AckBeforeCommit, "was not done"),
        (Mutant::LostIsRefused, "took effect and was never undone"),
        (Mutant::AbortNotDurable, "left before the log said so"),
        (Mutant::RebuiltOnRetry, "it is STUCK"),
        (Mutant::DecidedTwice, "took effect twice"),
    ] {
        let why = explore(&linear(), budget, mutant).expect_err(&format!("{mutant:?} is found out"));
        assert!(why.contains(found), "{mutant:?}: {why}");
        let mut lines = why.lines();
        let rule = lines.next().unwrap_or_default();
        println!("{:<16} after {} moves: {rule}", format!("{mutant:?}"), lines.count());
    }
}
