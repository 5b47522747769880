//! Trying again, within bounds: a few attempts, a share of all calls, and only as long as trying helps.
//!
//! Retries are for calls that may be made twice. A saga's channel has none: the saga itself decides what is sent again.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tonic::Code;
use tower::retry::budget::{Budget as _, TpsBudget};

use crate::breaker::layer::Pushback;

/// How a call is tried again.
#[derive(Clone, Debug)]
#[must_use]
pub struct Retry {
    pub(super) attempts: u32,
    pub(super) codes: Vec<Code>,
    base: Duration,
    cap: Duration,
    pub(super) attempt_timeout: Option<Duration>,
    budget: Arc<Budget>,
}

/// What keeps retries from making an outage worse, shared by all calls of a channel.
struct Budget {
    /// gRPC's throttle (A6): thousandths of tokens. A failure takes one, a success gives a tenth back.
    tokens: AtomicU32,
    /// A fifth of the calls of the last ten seconds, and three a second at least.
    share: TpsBudget,
}

impl Budget {
    fn full() -> Self {
        Self { tokens: AtomicU32::new(Retry::TOKENS), share: TpsBudget::new(Duration::from_secs(10), 3, 0.2) }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Retry {
    const TOKENS: u32 = 10_000;
    const TOKEN: u32 = 1_000;
    const RETURNED: u32 = 100;
    /// More attempts than this are refused by gRPC's retry design (A6) too.
    const MOST_ATTEMPTS: u32 = 5;
    /// A request larger than this is sent once.
    pub(super) const MOST_BUFFERED: usize = 64 * 1024;

    /// Up to three attempts at what ended as UNAVAILABLE, 50 ms to 1 s apart, or as far as the server says.
    pub fn new() -> Self {
        Self {
            attempts: 3,
            codes: vec![Code::Unavailable],
            base: Duration::from_millis(50),
            cap: Duration::from_secs(1),
            attempt_timeout: None,
            budget: Arc::new(Budget::full()),
        }
    }

    /// The same with a budget that nobody has drawn on: what one peer fails at takes nothing from another.
    pub(super) fn of_its_own(&self) -> Self {
        Self { budget: Arc::new(Budget::full()), ..self.clone() }
    }

    /// Makes up to so many attempts in all, at least one and at most five.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.clamp(1, Self::MOST_ATTEMPTS);
        self
    }

    /// Tries again what ended with one of these.
    pub fn codes(mut self, codes: impl Into<Vec<Code>>) -> Self {
        self.codes = codes.into();
        self
    }

    /// Waits so long before the second attempt, twice as long before each further one, up to `cap`; each up to a fifth longer or shorter.
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        (self.base, self.cap) = (base, cap);
        self
    }

    /// Gives an attempt up if no answer has begun after so long, and tries again: of several addresses one may hang. `None`, the default,
    /// leaves it to the call's deadline. Not for methods that stream: to the server this is the time of the whole answer.
    pub fn attempt_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.attempt_timeout = timeout.into();
        self
    }

    /// Notes that a call begins: a share of calls may be tried again.
    pub(super) fn begin(&self) {
        self.budget.share.deposit();
    }

    /// Notes that a call went well.
    pub(super) fn succeeded(&self) {
        let give = |tokens: u32| (tokens < Self::TOKENS).then(|| (tokens + Self::RETURNED).min(Self::TOKENS));
        // A full bucket stays as it is.
        let _ = self.budget.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give);
    }

    /// Notes that attempt number `attempt` (from one) failed, and says after how long to try again, if at all; `left` is what the call has
    /// of its time. What is not tried again takes nothing of the share.
    pub(super) fn failed(&self, attempt: u32, pushback: Pushback, left: Option<Duration>) -> Option<Duration> {
        let take = |tokens: u32| Some(tokens.saturating_sub(Self::TOKEN));
        let held = self.budget.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or(0);
        let tokens_left = held.saturating_sub(Self::TOKEN);
        if attempt >= self.attempts || pushback == Pushback::Never || tokens_left <= Self::TOKENS / 2 {
            return None;
        }
        let pause = match pushback {
            Pushback::After(delay) => delay,
            _ => self.pause(attempt),
        };
        (left.is_none_or(|left| pause < left) && self.budget.share.withdraw()).then_some(pause)
    }

    /// How long to wait after so many attempts when nobody says.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        let grown = self.base.saturating_mul(1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX)).min(self.cap);
        let seconds = grown.as_secs_f64() * rand::random_range(0.8..1.2);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// When an attempt that begins now is given up, if it has a time of its own that ends at all.
    pub(super) fn attempt_ends(&self) -> Option<Instant> {
        self.attempt_timeout.and_then(|timeout| Instant::now().checked_add(timeout))
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_failures_in_a_row_stop_retries_until_calls_go_well_again() {
        let retry = Retry::new();
        (0..100).for_each(|_| retry.begin());
        let tried = (0..10).filter(|_| retry.failed(1, Pushback::None, None).is_some()).count();
        assert_eq!(tried, 4, "the fifth leaves half of the tokens");
        (0..70).for_each(|_| retry.succeeded());
        assert!(retry.failed(1, Pushback::None, None).is_some());
    }

    #[test]
    fn what_there_is_no_time_for_takes_no_ones_share() {
        let (retry, second) = (Retry::new(), Duration::from_secs(1));
        // Three a second, over ten seconds.
        for _ in 0..30 {
            assert_eq!(retry.failed(1, Pushback::After(second), Some(second)), None);
            (0..10).for_each(|_| retry.succeeded());
        }
        assert_eq!(retry.failed(1, Pushback::After(second), Some(second * 2)), Some(second));
    }

    #[test]
    fn the_server_says_when_and_whether() {
        let retry = Retry::new();
        assert_eq!(retry.failed(1, Pushback::After(Duration::from_secs(2)), None), Some(Duration::from_secs(2)));
        assert_eq!(retry.failed(1, Pushback::Never, None), None);
        assert_eq!(retry.failed(3, Pushback::None, None), None, "three attempts are enough");
    }

    #[test]
    fn whoever_waits_for_ever_doesnt_wait_for_longer_than_there_is() {
        let retry = Retry::new().backoff(Duration::MAX, Duration::MAX);
        // A fifth longer or shorter, by chance.
        for _ in 0..100 {
            assert!(retry.pause(1) >= Duration::MAX / 10 * 7);
        }
        assert_eq!(retry.attempt_timeout(Duration::MAX).attempt_ends(), None);
    }

    #[test]
    fn pauses_grow_to_the_cap() {
        let retry = Retry::new().backoff(Duration::from_millis(100), Duration::from_millis(300));
        for (attempt, millis) in [(1, 100), (2, 200), (3, 300), (4, 300)] {
            let pause = retry.pause(attempt).as_millis();
            assert!((millis * 8 / 10..=millis * 12 / 10).contains(&pause), "{attempt}: {pause}");
        }
    }
}
