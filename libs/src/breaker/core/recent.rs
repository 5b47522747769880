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
pub(super) struct Windows([OnceLock<(Window, Recent)>; Windows::MOST]);

impl Windows {
    pub(super) const MOST: usize = 8;

    pub(super) fn new(shape: Window) -> Self {
        let windows = Self(std::array::from_fn(|_| OnceLock::new()));
        windows.0[0].get_or_init(|| (shape, Recent::new(shape, 0)));
        windows
    }

    /// The number of the window of this shape, made if it is new.
    pub(super) fn number(&self, shape: Window, generation: u32) -> Result<u8, ConfigError> {
        for (number, window) in (0..).zip(&self.0) {
            let (held, _) = window.get_or_init(|| (shape, Recent::new(shape, generation)));
            if *held == shape {
                return Ok(number);
            }
        }
        Err(ConfigError::TooManyShapes(Self::MOST))
    }

    #[inline]
    pub(super) fn get(&self, number: u8) -> &Recent {
        let window = self.0[usize::from(number) % Self::MOST].get();
        // Numbers come from `number`, so the window is there; the first one always is.
        let (_, recent) = window.or_else(|| self.0[0].get()).expect("the first window is made with the breaker");
        recent
    }

    /// Calls ever recorded in any of them that did not fail.
    pub(super) fn successes(&self) -> u64 {
        self.0.iter().filter_map(OnceLock::get).map(|(_, recent)| recent.successes()).sum()
    }
}
