//! What time it is, where a clock that was set must not make anything older than it is.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// The wall's clock, and one that nobody sets. Where the wall's was set ahead, what was stored before that looks older than it is, until it
/// is gone.
pub(super) struct Clocks {
    begun: Instant,
    /// What the wall's showed at the beginning as it was set one time and another, and since when it was set so, until the next: only those
    /// that all later ones are ahead of.
    settings: VecDeque<(SystemTime, Instant)>,
}

impl Clocks {
    /// How far the wall's may be ahead without having been set.
    const SLACK: Duration = Duration::from_secs(60);

    pub(super) fn new(wall: SystemTime, now: Instant) -> Self {
        Self { begun: now, settings: [(wall, now)].into() }
    }

    /// The time by the wall's clock as it was furthest behind while anything was stored that is not gone yet. What it shows between two
    /// looks nobody knows.
    pub(super) fn now(&mut self, wall: SystemTime, now: Instant, keep: Duration) -> SystemTime {
        let counted = now.duration_since(self.begun);
        let (setting, mut since) = (wall - counted, now);
        // What was stored while it was ahead of this one is no older than it looks.
        while let Some((_, ahead_since)) = self.settings.pop_back_if(|(ahead, _)| *ahead >= setting) {
            since = ahead_since;
        }
        if self.settings.back().is_none_or(|(behind, _)| *behind + Self::SLACK < setting) {
            self.settings.push_back((setting, since));
        }
        while self.settings.get(1).is_some_and(|(_, since)| now.duration_since(*since) >= keep) {
            self.settings.pop_front();
        }
        self.settings.front().map_or(wall, |(furthest_behind, _)| *furthest_behind + counted)
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

    #[test]
    fn what_was_stored_while_a_clock_was_set_back_is_no_older_once_it_is_right_again() {
        let (keep, begin) = (Duration::from_secs(100), Instant::now());
        let later = |seconds| begin + Duration::from_secs(seconds);
        let mut clocks = Clocks::new(at(10_000), begin);
        assert_eq!(clocks.now(at(9_000), later(10), keep), at(9_000));
        assert_eq!(clocks.now(at(10_020), later(20), keep), at(9_010));
        assert_eq!(clocks.now(at(10_119), later(119), keep), at(9_109));
        assert_eq!(clocks.now(at(10_120), later(120), keep), at(10_120));
    }

    #[test]
    fn a_clock_that_was_set_more_than_once_is_believed_only_as_far_as_all_is_gone_of_before() {
        let (keep, begin) = (Duration::from_secs(100), Instant::now());
        let later = |seconds| begin + Duration::from_secs(seconds);
        let mut clocks = Clocks::new(at(1_000), begin);
        assert_eq!(clocks.now(at(2_010), later(10), keep), at(1_010));
        assert_eq!(clocks.now(at(3_060), later(60), keep), at(1_060));
        // It is put back in part: what was stored while it was so is as much too old by the next time.
        assert_eq!(clocks.now(at(2_570), later(70), keep), at(1_070));
        assert_eq!(clocks.now(at(3_080), later(80), keep), at(1_080));
        // Each was so until the next one began.
        assert_eq!(clocks.now(at(3_109), later(109), keep), at(1_109));
        assert_eq!(clocks.now(at(3_110), later(110), keep), at(2_110));
        assert_eq!(clocks.now(at(3_160), later(160), keep), at(2_660));
        assert_eq!(clocks.now(at(3_180), later(180), keep), at(3_180));
    }

    #[test]
    fn a_machine_that_is_suspended_each_day_forgets_all_the_same() {
        let (keep, begin, day) = (Duration::from_secs(7 * 86_400), Instant::now(), 86_400);
        let mut clocks = Clocks::new(at(0), begin);
        for days in 1..100 {
            // Half of a day is slept through, and nobody counts that.
            let now = clocks.now(at(days * day), begin + Duration::from_secs(days * day / 2), keep);
            assert!(now >= at((days * day).saturating_sub(7 * day)), "{now:?} on day {days}");
        }
    }

    #[test]
    fn clocks_that_differ_a_little_more_each_time_take_no_room() {
        let (keep, begin) = (Duration::from_secs(1_000_000), Instant::now());
        let mut clocks = Clocks::new(at(0), begin);
        for minutes in 0..10_000_u64 {
            let jitter = Duration::from_millis(minutes * 7 % 13);
            let wall = at(minutes * 60) + Duration::from_millis(minutes) + jitter;
            let now = clocks.now(wall, begin + Duration::from_secs(minutes * 60), keep);
            assert!(now <= wall && now + Clocks::SLACK >= wall);
        }
        assert_eq!(clocks.settings.len(), 1);
    }
}
