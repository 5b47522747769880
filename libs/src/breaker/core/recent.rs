//! The windows a breaker has had: one in use, and those it may be told to use again.

use std::sync::OnceLock;

use super::{
    super::window::{CountWindow, Mark, Place, TimeWindow},
    clock::nanos,
    config::{ConfigError, Window},
    rules::Counts,
};

/// A window, one kind or the other.
#[derive(Debug)]
pub(super) enum Recent {
    Count(CountWindow),
    /// The calls recorded, and those that a throttle refused, once it did.
    Time(TimeWindow, OnceLock<Box<TimeWindow>>),
}

impl Recent {
    fn new(shape: Window, generation: u32) -> Self {
        match shape {
            Window::Count { calls } => Self::Count(CountWindow::new(calls, generation)),
            Window::Time { length, buckets } => {
                Self::Time(TimeWindow::new(nanos(length) / u64::from(buckets.max(1)), buckets), OnceLock::new())
            }
        }
    }

    /// Records that a throttle refused a request.
    pub(super) fn record_refused(&self, generation: u32, now: u64) {
        if let Self::Time(window, refused) = self {
            // Too late for its generation, it changes nothing.
            let _ = refused.get_or_init(|| Box::new(window.alike())).record(generation, now, Mark::CLEAN);
        }
    }

    /// Requests, refused ones included, and those among them that were accepted; none while all were.
    pub(super) fn requests(&self, generation: u32, now: u64) -> Option<(u64, u64)> {
        let Self::Time(window, refused) = self else { return None };
        let refused = refused.get();
        if refused.is_none() && !window.suspect_now(generation, now) {
            return None;
        }
        let (calls, failed, _) = window.sum_now(generation, now);
        let refused = refused.map_or(0, |refused| refused.sum_now(generation, now).0);
        Some((calls + refused, calls - failed.min(calls)))
    }

    /// Begins a generation, after a while of disuse or not.
    pub(super) fn begin(&self, generation: u32, disused: bool) {
        match self {
            Self::Count(window) => window.begin(generation),
            Self::Time(window, refused) => {
                window.begin(generation, disused);
                if let Some(refused) = refused.get() {
                    refused.begin(generation, disused);
                }
            }
        }
    }

    /// Whether it asks what time it is.
    #[inline]
    pub(super) const fn is_timed(&self) -> bool {
        matches!(self, Self::Time(..))
    }

    #[inline]
    pub(super) fn record(&self, generation: u32, now: u64, mark: Mark) -> Option<Place> {
        match self {
            Self::Count(window) => window.record(generation, mark),
            Self::Time(window, _) => window.record(generation, now, mark),
        }
    }

    /// Whether it may hold anything but clean calls.
    #[inline]
    pub(super) fn suspect(&self, generation: u32, place: Place) -> bool {
        match self {
            Self::Count(window) => window.suspect(generation),
            Self::Time(window, _) => window.suspect(generation, place.epoch),
        }
    }

    /// What it holds, as the record that went to this place sees it.
    pub(super) fn counts_at(&self, generation: u32, place: Place) -> Counts {
        match self {
            Self::Count(window) => {
                let (failures, slow) = window.marks(generation);
                Counts { total: place.total, failures, slow }
            }
            Self::Time(window, _) => window.sum(generation, place.epoch).into(),
        }
    }

    /// What it holds now.
    pub(super) fn counts_now(&self, generation: u32, now: u64) -> Counts {
        match self {
            Self::Count(window) => {
                let (failures, slow) = window.marks(generation);
                Counts { total: window.total(generation), failures, slow }
            }
            Self::Time(window, _) => window.sum_now(generation, now).into(),
        }
    }

    fn successes(&self) -> u64 {
        match self {
            Self::Count(window) => window.successes(),
            Self::Time(window, _) => window.successes(),
        }
    }
}

/// Every shape of window that a breaker has had, up to a few. Calls find the one in use without a lock, by the number in the
/// breaker's word; none is ever freed, so a call that is late finds its window too.
#[derive(Debug)]
pub(super) struct Windows {
    /// The one it was made with: for most the only one, so it is where calls look first.
    first: (Window, Recent),
    others: [OnceLock<Box<(Window, Recent)>>; Windows::MOST - 1],
}

impl Windows {
    pub(super) const MOST: usize = 8;

    pub(super) fn new(shape: Window) -> Self {
        Self { first: (shape, Recent::new(shape, 0)), others: std::array::from_fn(|_| OnceLock::new()) }
    }

    /// The number of the window of this shape, made if it is new.
    pub(super) fn number(&self, shape: Window, generation: u32) -> Result<u8, ConfigError> {
        if self.first.0 == shape {
            return Ok(0);
        }
        for (number, window) in (1..).zip(&self.others) {
            let held = window.get_or_init(|| Box::new((shape, Recent::new(shape, generation))));
            if held.0 == shape {
                return Ok(number);
            }
        }
        Err(ConfigError::TooManyShapes(Self::MOST))
    }

    #[inline]
    pub(super) fn get(&self, number: u8) -> &Recent {
        if number == 0 {
            return &self.first.1;
        }
        // Numbers come from `number`, so it is there.
        self.others.get(usize::from(number) - 1).and_then(OnceLock::get).map_or(&self.first.1, |window| &window.1)
    }

    /// Calls ever recorded in any of them that did not fail.
    pub(super) fn successes(&self) -> u64 {
        let others = self.others.iter().filter_map(OnceLock::get).map(|window| window.1.successes());
        self.first.1.successes() + others.sum::<u64>()
    }
}
