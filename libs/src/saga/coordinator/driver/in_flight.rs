//! Which calls of a saga are on their way.

use crate::{
    rpc::verdict::Op,
    saga::{machine::Due, plan::Steps},
};

/// The calls that are on their way, a bit each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InFlight {
    actions: u64,
    compensations: u64,
}

impl InFlight {
    /// True if nothing is on its way but what these steps wait for.
    pub(super) fn is_empty(self, but: Steps) -> bool {
        (self.actions | self.compensations) & !but == 0
    }

    fn of(&mut self, op: Op) -> &mut u64 {
        match op {
            Op::Action => &mut self.actions,
            Op::Compensation => &mut self.compensations,
        }
    }

    pub(super) fn begin(&mut self, due: Due) {
        *self.of(due.op) |= 1 << due.step;
    }

    pub(super) fn end(&mut self, due: Due) {
        *self.of(due.op) &= !(1 << due.step);
    }

    pub(super) fn contains(mut self, due: Due) -> bool {
        *self.of(due.op) & (1 << due.step) != 0
    }
}
