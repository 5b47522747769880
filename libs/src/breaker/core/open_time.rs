//! How long a circuit stays open: longer each time, forgotten bit by bit, never the same for two.

use super::{clock::nanos, config::Config};

/// How often it opened of late, and a source of jitter.
#[derive(Clone, Debug)]
pub(crate) struct OpenTime {
    level: u32,
    closed_since: u64,
    random: u64,
}

impl OpenTime {
    pub(crate) fn new(now: u64, seed: u64) -> Self {
        Self { level: 0, closed_since: now, random: seed }
    }

    /// Notes that the circuit closed.
    pub(crate) fn closed(&mut self, now: u64) {
        self.closed_since = now;
    }

    /// Forgets every trip.
    pub(crate) fn forget(&mut self) {
        self.level = 0;
    }

    /// The trips of a circuit, closed until now, that are not forgotten yet.
    pub(crate) fn remembered(&self, config: &Config, now: u64) -> u32 {
        let forgotten = now.saturating_sub(self.closed_since) / nanos(config.decay).max(1);
        self.level.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
    }

    /// The next open time, for a circuit that was closed until now or was not.
    pub(crate) fn next(&mut self, config: &Config, now: u64, was_closed: bool) -> u64 {
        if was_closed {
            self.level = self.remembered(config, now);
        }
        let cap = nanos(config.open_cap);
        let factor = u64::from(config.open_multiplier).saturating_pow(self.level);
        let grown = nanos(config.open_base).saturating_mul(factor).min(cap);
        // Past the cap more trips change nothing, and must not take longer to forget.
        if grown < cap {
            self.level = self.level.saturating_add(1);
        }
        self.jittered(grown, config.jitter.points())
    }

    /// The time times a factor drawn evenly from 1 − share to 1 + share.
    fn jittered(&mut self, time: u64, points: u32) -> u64 {
        let spread = u128::from(time) * u128::from(points) / 10_000;
        if spread == 0 {
            return time;
        }
        let drawn = u128::from(self.draw()) % (2 * spread + 1);
        u64::try_from(u128::from(time) - spread + drawn).unwrap_or(u64::MAX)
    }

    /// SplitMix64: small, and even enough for spreading callers.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::config::Rate;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn config(jitter: u32) -> Config {
        let second = Duration::from_secs(1);
        let builder = Config::builder().open_for(second * 5, 2, second * 60).decay(second * 60);
        builder.jitter(Rate::percent(jitter)).build().expect("makes sense")
    }

    #[test]
    fn it_grows_to_the_cap_and_is_forgotten_bit_by_bit() {
        let config = config(0);
        let mut time = OpenTime::new(0, 1);
        let grown: Vec<u64> = (0..6).map(|_| time.next(&config, 0, false) / SECOND).collect();
        assert_eq!(grown, [5, 10, 20, 40, 60, 60]);
        time.closed(0);
        assert_eq!(time.next(&config, 120 * SECOND, true) / SECOND, 20);
        time.closed(0);
        assert_eq!(time.next(&config, 86_400 * SECOND, true) / SECOND, 5);
    }

    #[test]
    fn jitter_stays_within_its_share() {
        let config = config(20);
        for seed in 0..1000 {
            let time = OpenTime::new(0, seed).next(&config, 0, true);
            assert!((4 * SECOND..=6 * SECOND).contains(&time), "{time}");
        }
    }
}
