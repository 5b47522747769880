//! What time it is, where a clock that was set must not make anything older than it is.

use std::time::{Duration, Instant, SystemTime};

/// The wall's clock, and one that nobody sets. Where the wall's was set right since they were compared, what was stored before that looks
/// older than it is, until it is gone.
pub(super) struct Clocks {
    /// The wall's time when they were compared, and that moment by the other.
    compared: (SystemTime, Instant),
    /// Since when the wall's is ahead of what the other one has counted.
    ahead: Option<Instant>,
}

impl Clocks {
    /// How far the wall's may be ahead without having been set.
    const SLACK: Duration = Duration::from_secs(60);

    pub(super) const fn new(wall: SystemTime, now: Instant) -> Self {
        Self { compared: (wall, now), ahead: None }
    }

    /// The time by the one that is behind. Once all is gone that was stored before the wall's was set, that one is believed again.
    pub(super) fn now(&mut self, wall: SystemTime, now: Instant, keep: Duration) -> SystemTime {
        let (then, since) = self.compared;
        let counted = then + now.duration_since(since);
        if wall <= counted + Self::SLACK {
            self.ahead = None;
        } else if now.duration_since(*self.ahead.get_or_insert(now)) >= keep {
            *self = Self::new(wall, now);
            return wall;
        }
        wall.min(counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_clock_that_was_set_makes_nothing_older_until_all_of_before_is_gone() {
        let (keep, begin) = (Duration::from_secs(100), Instant::now());
        let later = |seconds| begin + Duration::from_secs(seconds);
        let mut clocks = Clocks::new(at(1_000), begin);
        assert_eq!(clocks.now(at(1_010), later(10), keep), at(1_010));
        // It was far behind until a moment ago.
        assert_eq!(clocks.now(at(1_000_020), later(20), keep), at(1_020));
        assert_eq!(clocks.now(at(1_000_119), later(119), keep), at(1_119));
        assert_eq!(clocks.now(at(1_000_120), later(120), keep), at(1_000_120));
        assert_eq!(clocks.now(at(1_000_130), later(130), keep), at(1_000_130));
        // It is set back.
        assert_eq!(clocks.now(at(2_000), later(140), keep), at(2_000));
    }
}
