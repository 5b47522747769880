//! Cells for buckets, spread over cache lines so that threads do not fight over one.

use std::sync::OnceLock;

use super::super::core::sync::AtomicU64;

const CELLS: usize = 16;

/// Two cache lines: processors fetch them in pairs.
#[repr(align(128))]
#[derive(Debug)]
struct Line([AtomicU64; CELLS]);

impl Line {
    fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// One thread's share of a time window: a cell a bucket.
#[derive(Debug)]
pub(crate) struct Stripe {
    calls: Box<[Line]>,
    /// Slow calls, made when the first one comes.
    slow: OnceLock<Box<[Line]>>,
}

impl Stripe {
    pub(crate) fn new(buckets: usize) -> Self {
        Self { calls: Self::lines(buckets), slow: OnceLock::new() }
    }

    fn lines(buckets: usize) -> Box<[Line]> {
        (0..buckets.div_ceil(CELLS)).map(|_| Line::new()).collect()
    }

    #[inline]
    pub(crate) fn calls(&self, bucket: usize) -> &AtomicU64 {
        &self.calls[bucket / CELLS].0[bucket % CELLS]
    }

    pub(crate) fn slow(&self, bucket: usize) -> &AtomicU64 {
        let lines = self.slow.get_or_init(|| self.calls.iter().map(|_| Line::new()).collect());
        &lines[bucket / CELLS].0[bucket % CELLS]
    }

    pub(crate) fn slow_if_any(&self, bucket: usize) -> Option<&AtomicU64> {
        self.slow.get().map(|lines| &lines[bucket / CELLS].0[bucket % CELLS])
    }
}

/// A small number of this thread's own.
#[cfg(not(loom))]
pub(crate) fn thread_number() -> usize {
    use std::{
        cell::Cell,
        sync::atomic::{AtomicUsize, Ordering},
    };
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    std::thread_local! { static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) } }
    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

/// The model checker looks at one stripe.
#[cfg(loom)]
pub(crate) fn thread_number() -> usize {
    0
}
