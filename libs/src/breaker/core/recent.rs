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
    Time(TimeWindow),
}

impl Recent {
    fn new(shape: Window, generation: u32) -> Self {
        match shape {
            Window::Count { calls } => Self::Count(CountWindow::new(calls, generation)),
            Window::Time { length, buckets } => {
                Self::Time(TimeWindow::new(nanos(length) / u64::from(buckets.max(1)), buckets))
            }
        }
    }

    /// Begins a generation, after a while of disuse or not.
    pub(super) fn begin(&self, generation: u32, disused: bool) {
        match self {
            Self::Count(window) => window.begin(generation),
            Self::Time(window) => window.begin(generation, disused),
        }
    }

    /// Whether it asks what time it is.
    #[inline]
    pub(super) const fn is_timed(&self) -> bool {
        matches!(self, Self::Time(_))
    }

    #[inline]
    pub(super) fn record(&self, generation: u32, now: u64, mark: Mark) -> Option<Place> {
        match self {
            Self::Count(window) => window.record(generation, mark),
            Self::Time(window) => window.record(generation, now, mark),
        }
    }

    /// Whether it may hold anything but clean calls.
    #[inline]
    pub(super) fn suspect(&self, generation: u32, place: Place) -> bool {
        match self {
            Self::Count(window) => window.suspect(generation),
            Self::Time(window) => window.suspect(generation, place.epoch),
        }
    }

    /// What it holds, as the record that went to this place sees it.
    pub(super) fn counts_at(&self, generation: u32, place: Place) -> Counts {
        match self {
            Self::Count(window) => {
                let (failures, slow) = window.marks(generation);
                Counts { total: place.total, failures, slow }
            }
            Self::Time(window) => window.sum(generation, place.epoch).into(),
        }
    }

    /// What it holds now.
    pub(super) fn counts_now(&self, generation: u32, now: u64) -> Counts {
        match self {
            Self::Count(window) => {
                let (failures, slow) = window.marks(generation);
                Counts { total: window.total(generation), failures, slow }
            }
            Self::Time(window) => window.sum_now(generation, now).into(),
        }
    }

    fn successes(&self) -> u64 {
        match self {
            Self::Count(window) => window.successes(),
            Self::Time(window) => window.successes(),
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
