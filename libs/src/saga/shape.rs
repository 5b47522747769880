//! Which steps may stand together in a definition, checked when it is built, and the hash by which its sagas know it.

use std::time::Duration;

use proto::saga::v1::{LockPolicy, StepKind};
use sha2::{Digest as _, Sha256};

use super::{
    Definition,
    definition::Types,
    ids,
    plan::{Plan, StepOptions, StepPlan, Steps, each},
    reply::TRUSTABLE,
};
use crate::refusal::Refusal;

/// The most steps a saga has: a set of steps is one word.
const MOST_STEPS: usize = 64;
/// The longest name.
pub(super) const LONGEST: usize = 64;

/// Why a definition can't be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("saga {saga}: {fault}")]
pub struct DefinitionError {
    /// The saga's type.
    pub saga: &'static str,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A name can't travel in metadata or stand in a key.
    #[error("the name {0:?} must be 1 to 64 of a-z, 0-9, '-' and '_'")]
    Name(&'static str),
    /// Version 0 asks for the newest.
    #[error("there is no version 0: the first is 1")]
    NoVersion,
    /// Nothing to do.
    #[error("has no steps")]
    Empty,
    /// A set of steps is one word.
    #[error("{0} is one step too many: 64 are the most")]
    TooMany(&'static str),
    /// Two steps of one name.
    #[error("{0} is there twice")]
    Twice(&'static str),
    /// A step waits for one that the saga doesn't have.
    #[error("{0} comes after {1}, which is not a step of it")]
    Stranger(&'static str, String),
    /// A step waits for itself, maybe through others.
    #[error("{0} comes after itself: the steps make a circle")]
    Cycle(&'static str),
    /// Two points of no return.
    #[error("{0} is a second pivot: there is one point of no return")]
    SecondPivot(&'static str),
    /// A Retriable where the saga may still turn back.
    #[error("{0} is retriable, and there is no pivot")]
    NoPivot(&'static str),
    /// A Retriable that may begin before the pivot is done.
    #[error("{0} is retriable and doesn't follow the pivot {1}")]
    NotAfterPivot(&'static str, &'static str),
    /// A step that may have to turn the saga back when it can't any more.
    #[error("{0} can turn the saga back and must come before the pivot {1}")]
    NotBeforePivot(&'static str, &'static str),
    /// A Compensatable that can't be undone.
    #[error("{0} is compensatable and has no compensation")]
    NoCompensation(&'static str),
    /// A Compensatable that another participant would undo, which remembers nothing of it.
    #[error("{0} is done by {1} and would be undone by {2}: its compensation must be one of {1} too")]
    OtherPeer(&'static str, &'static str, &'static str),
    /// Something that turns the saga back, on a step where it can't.
    #[error("{0} is {1} and never turns the saga back: {2} has no meaning there")]
    NeverGivesUp(&'static str, &'static str, &'static str),
    /// A code that transports make.
    #[error("{0} trusts {1:?}, which transports and proxies make too")]
    Untrustworthy(&'static str, tonic::Code),
    /// A saga that starts from another message, or answers another one.
    #[error("{0} runs {1}, which {2} another message")]
    OtherMessage(&'static str, &'static str, &'static str),
    /// A saga that can't be undone once it is done.
    #[error("{0} can be undone, and runs {1}, whose pivot {2} can't")]
    PivotInside(&'static str, &'static str, &'static str),
    /// A saga that would wait for locks while the one above it holds others.
    #[error("{0} runs {1}, which takes locks: take them in {2}, which holds them as long")]
    LocksInside(&'static str, &'static str, &'static str),
    /// Sagas so far below that their ids, which begin with those of all above them, would be too long.
    #[error(
        "{0} runs {1}, and the ids of the sagas below would be too long: take shorter names, or fewer sagas below each other"
    )]
    NoRoom(&'static str, &'static str),
    /// How to call what is not called.
    #[error("{0} is {1} and no call: how to call it has no meaning there")]
    NotCalled(&'static str, &'static str),
    /// An option of the step added last, where none is added yet.
    #[error("{0} is said before there is a step: it is said after the step that it is about")]
    Stray(&'static str),
    /// Something that would take the place of what was said before.
    #[error("{1} is said twice of {0}: say it once, or one of the two would be lost")]
    SaidTwice(&'static str, &'static str),
    /// Two definitions of one name and version, which sagas would be of by chance.
    #[error(
        "there are two of version {0}, with other steps, another end or another version of a saga below: raise the version of the newer one"
    )]
    Ambiguous(u32),
    /// A wait that is none.
    #[error("{0}: {1} must be longer than nothing")]
    NoTime(&'static str, &'static str),
    /// A step that is given up before it is called.
    #[error("{0} must be called once at the least: its retry allows no attempt")]
    NoAttempt(&'static str),
}

/// Checks the shape and fills in what follows from it.
pub(super) fn check(plan: &mut Plan, after: &[Option<Vec<String>>]) -> Result<(), DefinitionError> {
    let saga = plan.name;
    let faulty = |fault| DefinitionError { saga, fault };
    check_names(plan).map_err(faulty)?;
    if plan.version == 0 {
        return Err(faulty(Fault::NoVersion));
    }
    put_in_order(&mut plan.steps, after).map_err(faulty)?;
    let descendants = descendants(&plan.steps).map_err(faulty)?;
    check_kinds(&plan.steps, &descendants).map_err(faulty)?;
    plan.steps.iter().try_for_each(check_options).map_err(faulty)?;
    if plan.deadline.is_some_and(|deadline| deadline.is_zero()) {
        return Err(faulty(Fault::NoTime(saga, "its deadline")));
    }
    for (step, descendants) in plan.steps.iter_mut().zip(descendants) {
        step.descendants = descendants;
    }
    Ok(())
}

fn check_names(plan: &Plan) -> Result<(), Fault> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    for name in std::iter::once(plan.name).chain(plan.steps.iter().map(|step| step.name)) {
        if !(1..=LONGEST).contains(&name.len()) || !name.bytes().all(plain) {
            return Err(Fault::Name(name));
        }
    }
    if plan.steps.is_empty() {
        return Err(Fault::Empty);
    }
    if let Some(step) = plan.steps.get(MOST_STEPS) {
        return Err(Fault::TooMany(step.name));
    }
    let twice = |at: &usize| plan.steps[..*at].iter().any(|step| step.name == plan.steps[*at].name);
    match (0..plan.steps.len()).find(twice) {
        Some(at) => Err(Fault::Twice(plan.steps[at].name)),
        None => Ok(()),
    }
}

/// Which steps each one waits for: those it names, else the one added before it.
fn put_in_order(steps: &mut [StepPlan], after: &[Option<Vec<String>>]) -> Result<(), Fault> {
    let names: Vec<&'static str> = steps.iter().map(|step| step.name).collect();
    for (at, (step, after)) in steps.iter_mut().zip(after).enumerate() {
        let Some(after) = after else {
            step.after = at.checked_sub(1).map_or(0, |before| 1 << before);
            continue;
        };
        for before in after {
            let found = names.iter().position(|name| name == before);
            step.after |= 1 << found.ok_or_else(|| Fault::Stranger(step.name, before.clone()))?;
        }
    }
    Ok(())
}

/// All that comes after each step.
fn descendants(steps: &[StepPlan]) -> Result<Vec<Steps>, Fault> {
    let mut descendants = vec![0; steps.len()];
    let mut placed: Steps = 0;
    let mut order = Vec::with_capacity(steps.len());
    while order.len() < steps.len() {
        let next = (0..steps.len()).find(|at| placed & (1 << at) == 0 && steps[*at].after & !placed == 0);
        let Some(next) = next else {
            return Err(Fault::Cycle(steps[in_circle(steps, placed)].name));
        };
        placed |= 1 << next;
        order.push(next);
    }
    for at in order.into_iter().rev() {
        let below = descendants[at] | 1 << at;
        each(steps[at].after).for_each(|before| descendants[before] |= below);
    }
    Ok(descendants)
}

/// A step of a circle among the steps that can't be placed: walking backwards long enough ends in one.
fn in_circle(steps: &[StepPlan], placed: Steps) -> usize {
    let mut at = (0..steps.len()).find(|at| placed & (1 << at) == 0).unwrap_or_default();
    for _ in 0..steps.len() {
        at = each(steps[at].after & !placed).next().unwrap_or(at);
    }
    at
}

fn check_kinds(steps: &[StepPlan], descendants: &[Steps]) -> Result<(), Fault> {
    let mut pivots = steps.iter().enumerate().filter(|(_, step)| step.kind == StepKind::Pivot);
    let pivot = pivots.next();
    if let Some((_, second)) = pivots.next() {
        return Err(Fault::SecondPivot(second.name));
    }
    for (at, step) in steps.iter().enumerate() {
        let name = || step.name;
        if step.kind == StepKind::Compensatable && step.compensation.is_empty() && !step.is_saga() {
            return Err(Fault::NoCompensation(name()));
        }
        match (step.kind, pivot) {
            (StepKind::Retriable, None) => return Err(Fault::NoPivot(name())),
            (StepKind::Retriable, Some((pivot, named))) if descendants[pivot] & (1 << at) == 0 => {
                return Err(Fault::NotAfterPivot(name(), named.name));
            }
            (StepKind::Check | StepKind::Compensatable, Some((pivot, named)))
                if descendants[at] & (1 << pivot) == 0 =>
            {
                return Err(Fault::NotBeforePivot(name(), named.name));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_options(step: &StepPlan) -> Result<(), Fault> {
    let (name, options) = (|| step.name, &step.options);
    if step.is_saga() && StepOptions::default() != (StepOptions { deadline: None, ..options.clone() }) {
        return Err(Fault::NotCalled(name(), "a saga"));
    }
    if step.is_local() && StepOptions::default() != *options {
        return Err(Fault::NotCalled(name(), "work of the service's own"));
    }
    if !step.can_abort() {
        let kind = if step.kind == StepKind::Pivot { "the pivot" } else { "retriable" };
        let given = [
            (options.deadline.is_some(), "a deadline"),
            (options.retry.attempts.is_some(), "a limit of attempts"),
            (!options.trusted.is_empty(), "a trusted code"),
        ];
        if let Some((_, what)) = given.into_iter().find(|(given, _)| *given) {
            return Err(Fault::NeverGivesUp(name(), kind, what));
        }
    }
    if let Some(code) = options.trusted.iter().find(|code| !TRUSTABLE.contains(code)) {
        return Err(Fault::Untrustworthy(name(), *code));
    }
    if options.retry.attempts == Some(0) {
        return Err(Fault::NoAttempt(name()));
    }
    let times = [
        (options.deadline.unwrap_or(Duration::MAX), "its deadline"),
        (options.attempt_timeout, "its attempt timeout"),
        (options.retry.initial, "its first wait"),
        (options.retry.most, "its longest wait"),
    ];
    match times.into_iter().find(|(time, _)| time.is_zero()) {
        Some((_, what)) => Err(Fault::NoTime(name(), what)),
        None => Ok(()),
    }
}

/// The most keys that one saga locks, and the longest.
const MOST_KEYS: usize = 16;
const LONGEST_KEY: usize = 256;

/// Checks the business keys that a saga is to lock.
pub(super) fn check_keys(keys: &[String]) -> Result<(), Refusal> {
    let fits = |key: &String| (1..=LONGEST_KEY).contains(&key.len()) && !key.chars().any(char::is_control);
    if keys.len() <= MOST_KEYS && keys.iter().all(fits) {
        return Ok(());
    }
    Err(Refusal::invalid("lock_keys", "must be at most 16, each 1 to 256 bytes without control characters"))
}

/// Checks that a step may be this saga: `types` is what the step gives it and wants of it.
pub(super) fn check_saga(above: &Plan, step: &StepPlan, below: &Definition, types: Types) -> Result<(), Fault> {
    let (name, plan) = (step.name, &below.plan);
    if types.input != below.types.input {
        return Err(Fault::OtherMessage(name, plan.name, "starts from"));
    }
    if types.answer != below.types.answer {
        return Err(Fault::OtherMessage(name, plan.name, "answers"));
    }
    if plan.locks != LockPolicy::Unspecified {
        return Err(Fault::LocksInside(name, plan.name, above.name));
    }
    if ids::longest_above(below) <= ids::longer_below(name) {
        return Err(Fault::NoRoom(name, plan.name));
    }
    match irrevocable(below).filter(|_| step.kind == StepKind::Compensatable) {
        Some(pivot) => Err(Fault::PivotInside(name, plan.name, pivot)),
        None => Ok(()),
    }
}

/// A saga's point of no return, which may be in a saga below it.
fn irrevocable(definition: &Definition) -> Option<&'static str> {
    let own = definition.plan.pivot().map(|pivot| definition.plan.steps[pivot].name);
    own.or_else(|| definition.sagas().find_map(|(_, below)| irrevocable(below)))
}

/// A hash of all that an in-flight saga relies on.
pub(super) fn hash(plan: &Plan) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(format!("{} {} {}\n", plan.name, plan.version, plan.has_ending));
    for StepPlan { name, kind, after, participant, action, compensation, saga, .. } in &plan.steps {
        let kind = kind.as_str_name();
        hash.update(format!("{name} {kind} {after:x} {participant} {action} {compensation}\n"));
        if let Some(saga) = saga {
            hash.update(saga);
        }
    }
    hash.finalize().into()
}
