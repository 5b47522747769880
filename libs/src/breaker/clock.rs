//! Clocks that need more than the standard library.

use std::{
    io,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, Thread},
    time::Duration,
};

use super::{Clock, MonotonicClock};

/// Tokio's clock: the operating system's, or a test's that stands still.
#[derive(Debug)]
pub struct TokioClock(tokio::time::Instant);

impl TokioClock {
    /// A clock that starts at zero now.
    #[must_use]
    pub fn new() -> Self {
        Self(tokio::time::Instant::now())
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A clock that is read by loading a word, and right to 4 ms: a thread of the process's own keeps that word. Good for windows,
/// and for slow-call thresholds of 50 ms and more.
///
/// While nobody asks, nothing ticks: the thread rests, and who asks first reads the fine clock and wakes it.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoarseClock(());

/// The time as the ticker read it last, in even nanoseconds. Odd, and the reader is to say that it was here.
static LAST: AtomicU64 = AtomicU64::new(UNREAD);
const UNREAD: u64 = 1;
const TICK: Duration = Duration::from_millis(4);
/// Now and then, a second, the ticker asks whether anybody reads at all.
const TICKS_BETWEEN_QUESTIONS: u32 = 250;

static FINE: LazyLock<MonotonicClock> = LazyLock::new(MonotonicClock::new);
/// Where no thread can be had every reading is a fine one.
static TICKER: LazyLock<Option<Thread>> = LazyLock::new(|| {
    let spawned = thread::Builder::new().name("coarse-clock".to_owned()).spawn(tick);
    let told = |error: &io::Error| tracing::warn!(%error, "the coarse clock has no thread: it is read as the fine one");
    spawned.inspect_err(told).ok().map(|handle| handle.thread().clone())
});

impl CoarseClock {
    /// The process's coarse clock.
    #[must_use]
    pub const fn new() -> Self {
        Self(())
    }
}

impl Clock for CoarseClock {
    #[inline]
    fn now(&self) -> u64 {
        let last = LAST.load(Relaxed);
        if last & UNREAD == 0 { last } else { read_after_a_rest(&LAST, TICKER.as_ref()) }
    }
}

fn fine() -> u64 {
    FINE.now() & !UNREAD
}

#[cold]
fn read_after_a_rest(last: &AtomicU64, ticker: Option<&Thread>) -> u64 {
    let now = fine();
    let Some(ticker) = ticker else { return now };
    // The later time wins, so that no reader sees another's time go back.
    let last = last.fetch_max(now, Relaxed) & !UNREAD;
    ticker.unpark();
    now.max(last)
}

fn tick() {
    loop {
        for _ in 0..TICKS_BETWEEN_QUESTIONS {
            thread::sleep(TICK);
            LAST.fetch_max(fine(), Relaxed);
        }
        LAST.fetch_max(fine() | UNREAD, Relaxed);
        thread::sleep(TICK);
        // Who reads between this look and the rest has left a token that ends it at once.
        if LAST.load(Relaxed) & UNREAD != 0 {
            thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_coarse_clock_goes_on_and_never_back() {
        let read = || {
            let (clock, begun) = (CoarseClock::new(), Instant::now());
            let (mut last, mut steps) = (clock.now(), 0);
            // It may be late on a busy machine, so the wait is for steps and not for a time.
            while steps < 5 && begun.elapsed() < Duration::from_secs(60) {
                let now = clock.now();
                assert!(now >= last && now <= FINE.now(), "{last} {now}");
                steps += u32::from(now > last);
                last = now;
                thread::yield_now();
            }
            assert_eq!(steps, 5);
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(read))));
    }

    #[test]
    fn without_a_ticker_every_reading_is_a_fine_one() {
        let (last, before) = (AtomicU64::new(UNREAD), fine());
        assert!(read_after_a_rest(&last, None) >= before);
        assert_ne!(last.load(Relaxed) & UNREAD, 0, "nobody moves on what is left there to be read");
    }

    #[test]
    fn after_a_rest_the_first_reading_is_fine() {
        let clock = CoarseClock::new();
        let is_fine = || {
            clock.now();
            while LAST.load(Relaxed) & UNREAD == 0 {
                thread::sleep(TICK);
            }
            let before = fine();
            clock.now() >= before
        };
        // Another test may read it just then, and end the rest.
        assert!((0..10).any(|_| is_fine()));
    }
}
