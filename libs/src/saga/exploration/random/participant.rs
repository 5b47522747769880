//! The participants of a drawn saga.

use bytes::Bytes;

use super::world::SECOND;
use crate::{
    rpc::verdict::Op,
    saga::{
        exploration::world::{Cell, Known},
        machine::Due,
        plan::StepPlan,
        reply::Ruling,
    },
};

/// How long a call may be on its way to a participant without our barrier, as `without_barrier` says.
const LONGEST_WAY: i64 = 15 * SECOND;

/// A call that has left.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) due: Due,
    pub(super) request: Bytes,
    pub(super) left: i64,
}

/// A step's participant: what it remembers and did of the action and of the compensation.
#[derive(Clone, Debug, Default)]
pub(super) struct Participant {
    pub(super) cells: [Cell; 2],
    requests: [Option<Bytes>; 2],
    /// True if an operator took an operation for settled, right or wrong.
    pub(super) is_settled: bool,
}

impl Participant {
    /// A call arrives: the barrier, and behind it the decision. A participant without one does what it is told, an action once until it is
    /// undone.
    pub(super) fn arrive(&mut self, plan: &StepPlan, call: &Call, refuses: bool, now: i64) -> Result<Ruling, String> {
        if plan.options.plain && now >= call.left + LONGEST_WAY {
            return Ok(Ruling::Retry);
        }
        let Participant { cells: [action, compensation], requests, .. } = self;
        let undo = call.due.op == Op::Compensation;
        if requests[usize::from(undo)].get_or_insert_with(|| call.request.clone()) != &call.request {
            return Err(format!("{} was called with another request than before", plan.name));
        }
        let decides = !undo || action.known == Known::Done;
        let cell = if undo { &mut *compensation } else { &mut *action };
        match cell.known {
            Known::Done => return Ok(Ruling::Done),
            Known::Rejected => return Ok(Ruling::Rejected),
            Known::Tombstone => return Ok(Ruling::Cancelled),
            Known::Nothing if refuses && decides => {
                cell.known = Known::Rejected;
                return Ok(Ruling::Rejected);
            }
            Known::Nothing => {}
        }
        if !undo {
            (action.known, action.effects) = (Known::Done, action.effects + 1);
            return Ok(Ruling::Done);
        }
        match (action.known, plan.options.plain) {
            (Known::Done, true) => {
                compensation.effects += 1;
                action.known = Known::Nothing;
                return Ok(Ruling::Done);
            }
            (Known::Nothing, true) => return Ok(Ruling::Done),
            (Known::Done, false) => compensation.effects += 1,
            (Known::Nothing, false) => action.known = Known::Tombstone,
            (Known::Rejected | Known::Tombstone, _) => {}
        }
        compensation.known = Known::Done;
        Ok(Ruling::Done)
    }
}
