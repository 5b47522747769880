//! What is in flight on one connection: calls that are worked on, and answers that their client has still to take.
//!
//! HTTP/2 keeps an answer until its client has room for it, and asks for no more of it meanwhile, so nothing within it can notice how
//! long that takes. Whoever lives as long as the connection can.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::sleep;

/// The calls of one connection.
#[derive(Debug, Default)]
pub struct InFlight {
    begun: AtomicU64,
    now: AtomicUsize,
    /// The number of a stretch of time, as long as an answer may be owed.
    stretch: AtomicUsize,
    /// The answers owed since this stretch and since the one before, by whether its number is even.
    owed: [AtomicUsize; 2],
}

impl InFlight {
    /// A call is in flight until what is answered is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Flight {
        self.begun.fetch_add(1, Relaxed);
        self.now.fetch_add(1, Relaxed);
        Flight { of: Arc::clone(self), owed: None }
    }

    /// How many there are now.
    #[must_use]
    pub fn now(&self) -> usize {
        self.now.load(Relaxed)
    }

    /// Resolves once nothing has been in flight for this long.
    pub async fn idle(&self, long: Duration) {
        let idle = || (self.now() == 0).then(|| self.begun.load(Relaxed));
        loop {
            let before = idle();
            sleep(long).await;
            if before.is_some() && before == idle() {
                return;
            }
        }
    }

    /// Resolves once an answer has been owed for this long, and before it has been for twice as long.
    pub async fn owing(&self, long: Duration) {
        loop {
            sleep(long).await;
            let next = self.stretch.load(Relaxed).wrapping_add(1);
            // What is owed since the stretch before this has been for all of this one. Else its place is free for the next.
            if self.owed[next % 2].load(Relaxed) > 0 {
                return;
            }
            self.stretch.store(next, Relaxed);
        }
    }
}

/// A call in flight.
#[derive(Debug)]
pub struct Flight {
    of: Arc<InFlight>,
    /// Where its answer is counted.
    owed: Option<usize>,
}

impl Flight {
    /// The answer is there, all of it, and owed from now on.
    pub fn owe(&mut self) {
        if self.owed.is_none() {
            let place = self.of.stretch.load(Relaxed) % 2;
            self.of.owed[place].fetch_add(1, Relaxed);
            self.owed = Some(place);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(place) = self.owed {
            self.of.owed[place].fetch_sub(1, Relaxed);
        }
        self.of.now.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_owed_for_long_whenever_it_began() {
        for begins in [0, 1, 29, 30, 31, 59, 61, 89] {
            let calls = Arc::<InFlight>::default();
            let owed = async {
                sleep(Duration::from_secs(begins)).await;
                let mut call = calls.begin();
                sleep(SECOND / 2).await;
                call.owe();
                (call, Instant::now())
            };
            let ((_call, since), ended) = tokio::join!(owed, async {
                calls.owing(LONG).await;
                Instant::now()
            });
            let took = ended - since;
            assert!(LONG <= took && took <= 2 * LONG, "{took:?} of an answer after {begins} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_are_taken_in_time_are_owed_however_many_there_are() {
        let calls = Arc::<InFlight>::default();
        let one_after_the_other = async |first| {
            sleep(first).await;
            for _ in 0..100 {
                let mut call = calls.begin();
                call.owe();
                call.owe();
                sleep(LONG - SECOND).await;
            }
        };
        let working = calls.begin();
        let patience = async { tokio::join!(one_after_the_other(Duration::ZERO), one_after_the_other(LONG / 2)) };
        tokio::select! {
            _ = patience => {}
            () = calls.owing(LONG) => panic!("none was owed for so long"),
        }
        drop(working);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_in_flight_once_that_has_been_so_for_a_while() {
        let calls = Arc::<InFlight>::default();
        let start = Instant::now();
        let busy = async {
            let call = calls.begin();
            sleep(5 * SECOND).await;
            drop(call);
            for _ in 0..10 {
                // Between two looks.
                sleep(SECOND / 2).await;
                drop(calls.begin());
                advance(SECOND / 4).await;
            }
        };
        tokio::join!(busy, calls.idle(SECOND));
        assert!(start.elapsed() >= 12 * SECOND && start.elapsed() <= 15 * SECOND, "{:?}", start.elapsed());
    }
}
