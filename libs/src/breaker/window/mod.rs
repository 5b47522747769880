//! What was recorded of late, exactly and without a lock: by count or by time.
//!
//! Both windows carry the generation in their cells, so that beginning anew touches nothing, and a writer that comes late with
//! a result of an older generation finds out and leaves.

mod count;
mod stripe;
mod time;

pub(crate) use self::{count::CountWindow, time::TimeWindow};

/// What one result adds: nothing but a call, or a failure, or slowness, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) failed: bool,
    pub(crate) slow: bool,
}

impl Mark {
    /// Nothing but a call.
    pub(crate) const CLEAN: Self = Self { failed: false, slow: false };

    /// Neither failed nor slow.
    pub(crate) const fn is_clean(self) -> bool {
        !self.failed && !self.slow
    }
}

/// Where a record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The bucket, or zero in a count window.
    pub(crate) epoch: u64,
    /// The calls in a count window with this one.
    pub(crate) total: u64,
    /// The call's place in the order of all, for the model checker.
    #[cfg(loom)]
    pub(crate) order: u64,
}

impl Place {
    /// In a bucket of a time window.
    const fn in_bucket(epoch: u64) -> Self {
        Self {
            epoch,
            total: 0,
            #[cfg(loom)]
            order: 0,
        }
    }
}

/// Whether generation `a` is newer than `b`, both cut to their low `bits` bits.
pub(crate) const fn newer(a: u64, b: u64, bits: u32) -> bool {
    let shift = 64 - bits;
    ((a.wrapping_sub(b) << shift) as i64) > 0
}
