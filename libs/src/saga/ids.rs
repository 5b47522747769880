//! The ids of sagas: how long they may be, and what those of the sagas below one are.

use std::iter;

use super::Definition;
use crate::rpc::verdict::LONGEST_NAME;

/// What stands between an id, the step whose saga is meant, and which one of that step's. No step's name holds either, so no two sagas
/// below one have the same id.
const STEP: char = ':';
const COUNT: char = '#';
/// The longest count, with what stands before it.
const LONGEST_COUNT: usize = "#4294967295".len();

/// The id of a step's saga; of the one after `before`, if the step began one before.
pub(super) fn next_below(parent: &str, step: &str, before: &str) -> String {
    let first = format!("{parent}{STEP}{step}");
    match before.strip_prefix(&*first) {
        None => first,
        Some(suffix) => {
            let count = suffix.strip_prefix(COUNT).and_then(|count| count.parse().ok()).unwrap_or(1_u32);
            format!("{first}{COUNT}{}", count.saturating_add(1))
        }
    }
}

/// The ids of the sagas below one that is yet to begin: of the first of each step, and of those below that.
pub(super) fn first_below(definition: &Definition, saga_id: &str) -> Vec<String> {
    let first = definition.sagas().flat_map(|(step, below)| {
        let id = next_below(saga_id, definition.plan.steps[step].name, "");
        let below = first_below(below, &id);
        iter::once(id).chain(below)
    });
    first.collect()
}

/// The id of the saga above one, if it is that of a step's saga.
pub(super) fn above(saga_id: &str) -> Option<&str> {
    saga_id.rsplit_once(STEP).map(|(above, _)| above)
}

/// Whether an id is one that the saga of a step could have, below some other saga.
pub(super) fn is_below(saga_id: &str, step: &str) -> bool {
    let Some((_, last)) = saga_id.rsplit_once(STEP) else { return false };
    let count = |rest: &str| rest.strip_prefix(COUNT).is_some_and(|count| count.parse::<u32>().is_ok());
    last.strip_prefix(step).is_some_and(|rest| rest.is_empty() || count(rest))
}

/// How long the id of a saga may be, so that those of the sagas below it have room.
pub(super) fn longest_above(definition: &Definition) -> usize {
    let below = definition
        .sagas()
        .map(|(step, below)| longest_above(below).saturating_sub(longer_below(definition.plan.steps[step].name)));
    below.min().unwrap_or(LONGEST_NAME)
}

/// How much longer than an id that of a step's saga may get.
pub(super) fn longer_below(step: &str) -> usize {
    STEP.len_utf8() + step.len() + LONGEST_COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saga_begun_anew_has_another_id() {
        assert_eq!(next_below("s", "pack", ""), "s:pack");
        assert_eq!(next_below("s", "pack", "s:pack"), "s:pack#2");
        assert_eq!(next_below("s", "pack", "s:pack#9"), "s:pack#10");
        let last = format!("s:pack#{}", u32::MAX);
        assert_eq!(last.len(), "s:pack".len() + LONGEST_COUNT);
        assert_eq!([&*last, "s:a:pack", "s"].map(above), [Some("s"), Some("s:a"), None]);
    }

    #[test]
    fn an_id_that_a_steps_saga_could_have_is_known() {
        for id in ["s:pack", "s:pack#2", "s:a:pack", ":pack"] {
            assert!(is_below(id, "pack"), "{id}");
        }
        for id in ["pack", "s:packs", "s:pack#", "s:pack#x", "s:pack:a", "s"] {
            assert!(!is_below(id, "pack"), "{id}");
        }
    }

    #[test]
    fn a_step_whose_name_is_a_number_shares_no_id_with_another_turn() {
        // The second saga of the step "a", and the one of step "2" of the first.
        assert_ne!(next_below("s", "a", "s:a"), next_below("s:a", "2", ""));
    }
}
