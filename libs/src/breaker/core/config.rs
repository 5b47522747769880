//! What a breaker is told to do, checked when it is built.

use std::time::Duration;

/// Which calls a rate is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The last so many calls, exactly.
    Count {
        /// How many.
        calls: u32,
    },
    /// The last stretch of time, in buckets of equal width: the newest one is under way, so it covers between
    /// `width × (buckets − 1)` and `width × buckets`.
    Time {
        /// How long the window is.
        length: Duration,
        /// How many buckets it is cut into.
        buckets: u32,
    },
}

/// A share of calls, in hundredths of a per cent, so that comparing is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u32);

impl Rate {
    /// So many per cent.
    #[must_use]
    pub const fn percent(percent: u32) -> Self {
        Self(percent.saturating_mul(100))
    }

    /// In hundredths of a per cent.
    #[must_use]
    pub const fn points(self) -> u32 {
        self.0
    }
}

/// Calls count as slow from a threshold on, and too many of them open the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowCalls {
    /// From here on a call is slow.
    pub threshold: Duration,
    /// The share of slow calls that opens the circuit.
    pub rate: Rate,
}

/// What a probe whose lease ran out counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeTimeout {
    /// The peer hangs: open again.
    Failure,
    /// Says nothing: the lease goes to another.
    Neutral,
}

/// What becomes of a half-open circuit whose probes keep saying nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// Close if at least one probe succeeded and none failed, else open.
    CloseOnSuccess,
    /// Open.
    Open,
}

/// What a breaker is told to do. Built by [`Config::builder`]; [`Config::default`] suits a service among services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub(crate) window: Window,
    pub(crate) min_calls: u32,
    pub(crate) failure_rate: Option<Rate>,
    pub(crate) consecutive_failures: Option<u32>,
    pub(crate) slow_calls: Option<SlowCalls>,
    pub(crate) throttle: Option<Rate>,
    pub(crate) open_base: Duration,
    pub(crate) open_multiplier: u32,
    pub(crate) open_cap: Duration,
    pub(crate) jitter: Rate,
    pub(crate) decay: Duration,
    pub(crate) permits: u32,
    pub(crate) required: u32,
    pub(crate) probe_timeout: Duration,
    pub(crate) on_probe_timeout: ProbeTimeout,
    pub(crate) on_undecided: Undecided,
    pub(crate) ramp: Duration,
    pub(crate) abandon_after: Duration,
    pub(crate) min_blame: Duration,
}

impl Config {
    /// Starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder { config: Self::default(), probe_timeout: None, abandon_after: None }
    }

    /// Which calls the rates are taken over.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window: Window::Time { length: Duration::from_secs(10), buckets: 10 },
            min_calls: 20,
            failure_rate: Some(Rate::percent(50)),
            consecutive_failures: None,
            slow_calls: None,
            throttle: None,
            open_base: Duration::from_secs(5),
            open_multiplier: 2,
            open_cap: Duration::from_secs(60),
            jitter: Rate::percent(20),
            decay: Duration::from_secs(60),
            permits: 5,
            required: 4,
            probe_timeout: Duration::from_secs(10),
            on_probe_timeout: ProbeTimeout::Failure,
            on_undecided: Undecided::CloseOnSuccess,
            ramp: Duration::ZERO,
            abandon_after: Duration::from_secs(1),
            min_blame: Duration::from_millis(10),
        }
    }
}

/// Says what a breaker shall do; [`ConfigBuilder::build`] checks it.
#[derive(Clone, Debug)]
#[must_use]
pub struct ConfigBuilder {
    config: Config,
    probe_timeout: Option<Duration>,
    abandon_after: Option<Duration>,
}

impl ConfigBuilder {
    /// Takes rates over the last so many calls.
    pub fn count_window(mut self, calls: u32) -> Self {
        self.config.window = Window::Count { calls };
        self
    }

    /// Takes rates over the last stretch of time.
    pub fn time_window(mut self, length: Duration, buckets: u32) -> Self {
        self.config.window = Window::Time { length, buckets };
        self
    }

    /// Judges no rate before the window holds so many calls.
    pub fn min_calls(mut self, calls: u32) -> Self {
        self.config.min_calls = calls;
        self
    }

    /// Opens when this share of the window failed. `None` never does.
    pub fn failure_rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.config.failure_rate = rate.into();
        self
    }

    /// Opens after so many failures in a row. `None` never does.
    pub fn consecutive_failures(mut self, failures: impl Into<Option<u32>>) -> Self {
        self.config.consecutive_failures = failures.into();
        self
    }

    /// Opens when this share of the window took this long. `None` never does.
    pub fn slow_calls(mut self, slow: impl Into<Option<SlowCalls>>) -> Self {
        self.config.slow_calls = slow.into();
        self
    }

    /// Lets about so many requests through for each one that the peer accepts, and refuses the rest one by one: 200 % is the K = 2 of
    /// Google's SRE book. While closed; from the minimum of calls on; over a time window, refused requests included. `None`, the
    /// default, refuses nothing before a rule opens the circuit. In the place of a failure rate it keeps what a peer under overload
    /// can still do.
    pub fn throttle(mut self, requests_per_accepted: impl Into<Option<Rate>>) -> Self {
        self.config.throttle = requests_per_accepted.into();
        self
    }

    /// Stays open so long the first time, so many times longer each further time, up to `cap`; then [spread](Self::jitter).
    pub fn open_for(mut self, base: Duration, multiplier: u32, cap: Duration) -> Self {
        (self.config.open_base, self.config.open_multiplier, self.config.open_cap) = (base, multiplier, cap);
        self
    }

    /// Spreads the open time by up to this share each way, so that many callers do not come back at once.
    pub fn jitter(mut self, share: Rate) -> Self {
        self.config.jitter = share;
        self
    }

    /// Forgets one earlier trip for each such stretch that it was closed.
    pub fn decay(mut self, closed_for: Duration) -> Self {
        self.config.decay = closed_for;
        self
    }

    /// Lets so many probes out when half-open and closes when so many of them succeed.
    pub fn probes(mut self, permits: u32, required: u32) -> Self {
        (self.config.permits, self.config.required) = (permits, required);
        self
    }

    /// Takes a probe's permit back after so long, or soon after its call's deadline where that is earlier. By default the base open
    /// time, at least 10 s.
    pub fn probe_timeout(mut self, timeout: Duration) -> Self {
        self.probe_timeout = Some(timeout);
        self
    }

    /// What a probe that never came back counts as.
    pub fn on_probe_timeout(mut self, verdict: ProbeTimeout) -> Self {
        self.config.on_probe_timeout = verdict;
        self
    }

    /// What becomes of a half-open circuit whose probes say nothing, after three times as many as it has permits.
    pub fn on_undecided(mut self, verdict: Undecided) -> Self {
        self.config.on_undecided = verdict;
        self
    }

    /// Lets calls back in over so long after the probes succeeded, rather than all at once.
    pub fn ramp(mut self, ramp: Duration) -> Self {
        self.config.ramp = ramp;
        self
    }

    /// Counts an abandoned call as failed from so long on. By default the slow threshold, else 1 s.
    pub fn abandon_after(mut self, elapsed: Duration) -> Self {
        self.abandon_after = Some(elapsed);
        self
    }

    /// Blames no peer for missing a deadline that was closer than this when the call left.
    pub fn min_blame(mut self, budget: Duration) -> Self {
        self.config.min_blame = budget;
        self
    }

    /// Checks it.
    ///
    /// # Errors
    /// The first thing that makes no sense.
    pub fn build(self) -> Result<Config, ConfigError> {
        let mut config = self.config;
        config.probe_timeout = self.probe_timeout.unwrap_or_else(|| config.open_base.max(Duration::from_secs(10)));
        config.abandon_after = self
            .abandon_after
            .unwrap_or_else(|| config.slow_calls.map_or(Duration::from_secs(1), |slow| slow.threshold));
        config.check()?;
        Ok(config)
    }
}

impl Config {
    /// The most calls a count window holds.
    pub const MOST_CALLS: u32 = 1 << 16;
    /// The most buckets a time window has.
    pub const MOST_BUCKETS: u32 = 128;
    /// The most probes that may be out at once.
    pub const MOST_PERMITS: u32 = 4096;

    fn check(&self) -> Result<(), ConfigError> {
        let require = |holds: bool, error| if holds { Ok(()) } else { Err(error) };
        let share = |rate: Rate| (1..=10_000).contains(&rate.0);
        match self.window {
            Window::Count { calls } => {
                require((1..=Self::MOST_CALLS).contains(&calls), ConfigError::CountWindow(calls))?;
                require(self.min_calls <= calls, ConfigError::MinCallsBeyondWindow(self.min_calls, calls))?;
            }
            Window::Time { length, buckets } => {
                require((1..=Self::MOST_BUCKETS).contains(&buckets), ConfigError::Buckets(buckets))?;
                require(length.as_nanos() >= u128::from(buckets), ConfigError::WindowTooShort)?;
            }
        }
        require(self.min_calls > 0, ConfigError::NoMinCalls)?;
        require(self.failure_rate.is_none_or(share), ConfigError::FailureRate)?;
        require(self.consecutive_failures != Some(0), ConfigError::NoConsecutive)?;
        if let Some(slow) = self.slow_calls {
            require(share(slow.rate), ConfigError::SlowRate)?;
            require(!slow.threshold.is_zero(), ConfigError::SlowThreshold)?;
        }
        if let Some(rate) = self.throttle {
            require((10_000..=100_000).contains(&rate.0), ConfigError::Throttle)?;
            require(matches!(self.window, Window::Time { .. }), ConfigError::ThrottleWindow)?;
        }
        let armed = self.failure_rate.is_some()
            || self.consecutive_failures.is_some()
            || self.slow_calls.is_some()
            || self.throttle.is_some();
        require(armed, ConfigError::NoRule)?;
        require(!self.open_base.is_zero(), ConfigError::NoOpenTime)?;
        require(self.open_cap >= self.open_base, ConfigError::CapBelowBase)?;
        require(self.open_multiplier >= 1, ConfigError::Multiplier)?;
        require(self.jitter.0 <= 10_000, ConfigError::Jitter)?;
        require(!self.decay.is_zero(), ConfigError::NoDecay)?;
        require((1..=Self::MOST_PERMITS).contains(&self.permits), ConfigError::Permits(self.permits))?;
        require((1..=self.permits).contains(&self.required), ConfigError::Required(self.required, self.permits))?;
        require(!self.probe_timeout.is_zero(), ConfigError::NoProbeTimeout)?;
        require(!self.abandon_after.is_zero(), ConfigError::NoAbandonTime)
    }
}

/// What makes no sense in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A count window of no or too many calls.
    #[error("a count window holds 1 to 65536 calls, not {0}")]
    CountWindow(u32),
    /// A time window of no or too many buckets.
    #[error("a time window has 1 to 128 buckets, not {0}")]
    Buckets(u32),
    /// A time window without time.
    #[error("a time window needs a length")]
    WindowTooShort,
    /// Rates would be judged on nothing.
    #[error("the minimum of calls is at least 1")]
    NoMinCalls,
    /// The minimum would never be reached.
    #[error("a minimum of {0} calls never fits a window of {1}")]
    MinCallsBeyondWindow(u32, u32),
    /// A failure rate outside 0.01 to 100 %.
    #[error("a failure rate is above 0 and at most 100 %")]
    FailureRate,
    /// A slow rate outside 0.01 to 100 %.
    #[error("a slow-call rate is above 0 and at most 100 %")]
    SlowRate,
    /// Everything would be slow.
    #[error("the slow-call threshold is above zero")]
    SlowThreshold,
    /// It would open at once.
    #[error("consecutive failures are at least 1")]
    NoConsecutive,
    /// It would never open.
    #[error("arm at least one of failure rate, consecutive failures, slow calls and throttle")]
    NoRule,
    /// It would refuse what the peer accepts, or nothing at all.
    #[error("a throttle lets through 100 to 1000 % of what the peer accepts")]
    Throttle,
    /// Refused requests are counted by time.
    #[error("a throttle needs a time window")]
    ThrottleWindow,
    /// It would not stay open.
    #[error("the open time is above zero")]
    NoOpenTime,
    /// The longest open time is shorter than the first.
    #[error("the open time's cap is below its base")]
    CapBelowBase,
    /// The open time would shrink.
    #[error("the open time's multiplier is at least 1")]
    Multiplier,
    /// Open times would be negative.
    #[error("jitter is at most 100 %")]
    Jitter,
    /// Trips would be forgotten at once.
    #[error("the decay is above zero")]
    NoDecay,
    /// No probe could ever leave, or a flood would.
    #[error("half-open permits are 1 to 4096, not {0}")]
    Permits(u32),
    /// It would close untested, or never.
    #[error("{0} successes cannot be required of {1} probes")]
    Required(u32, u32),
    /// Every probe would be late.
    #[error("the probe timeout is above zero")]
    NoProbeTimeout,
    /// A breaker was given one shape of window after another.
    #[error("a breaker can change between {0} shapes of window, and this would be one more")]
    TooManyShapes(usize),
    /// Every abandoned call would be a failure.
    #[error("the time after which an abandoned call counts is above zero")]
    NoAbandonTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense() {
        assert_eq!(Config::builder().build(), Ok(Config::default()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let builder = Config::builder;
        let second = Duration::from_secs(1);
        let wrong = [
            (builder().count_window(0), ConfigError::CountWindow(0)),
            (builder().count_window(10), ConfigError::MinCallsBeyondWindow(20, 10)),
            (builder().time_window(second, 0), ConfigError::Buckets(0)),
            (builder().time_window(Duration::ZERO, 10), ConfigError::WindowTooShort),
            (builder().min_calls(0), ConfigError::NoMinCalls),
            (builder().failure_rate(Rate::percent(101)), ConfigError::FailureRate),
            (builder().failure_rate(Rate::percent(0)), ConfigError::FailureRate),
            (builder().failure_rate(None), ConfigError::NoRule),
            (builder().consecutive_failures(0), ConfigError::NoConsecutive),
            (builder().throttle(Rate::percent(99)), ConfigError::Throttle),
            (builder().throttle(Rate::percent(1001)), ConfigError::Throttle),
            (builder().count_window(100).throttle(Rate::percent(200)), ConfigError::ThrottleWindow),
            (builder().probes(0, 0), ConfigError::Permits(0)),
            (builder().probes(2, 3), ConfigError::Required(3, 2)),
            (builder().probes(2, 0), ConfigError::Required(0, 2)),
            (builder().open_for(second, 0, second), ConfigError::Multiplier),
            (builder().open_for(second * 2, 2, second), ConfigError::CapBelowBase),
            (builder().open_for(Duration::ZERO, 2, second), ConfigError::NoOpenTime),
            (builder().jitter(Rate::percent(101)), ConfigError::Jitter),
            (builder().decay(Duration::ZERO), ConfigError::NoDecay),
            (builder().probe_timeout(Duration::ZERO), ConfigError::NoProbeTimeout),
            (builder().abandon_after(Duration::ZERO), ConfigError::NoAbandonTime),
            (builder().slow_calls(SlowCalls { threshold: second, rate: Rate::percent(0) }), ConfigError::SlowRate),
            (
                builder().slow_calls(SlowCalls { threshold: Duration::ZERO, rate: Rate::percent(1) }),
                ConfigError::SlowThreshold,
            ),
        ];
        for (builder, error) in wrong {
            assert_eq!(builder.build(), Err(error));
        }
    }
}
