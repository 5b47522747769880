//! How long a socket waits for a client that takes nothing.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// Patience with a client that takes nothing, which begins anew with every byte, either way.
///
/// HTTP/2's own sign of life isn't enough: it is asked for in what the client doesn't take.
#[derive(Debug)]
pub(super) struct Stall {
    patience: Duration,
    is_waiting: bool,
    /// Made when it is first needed: mostly a socket has room for what is written.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(super) const fn new(patience: Duration) -> Self {
        Self { patience, is_waiting: false, timer: None }
    }

    /// Something was read or written. A timer that runs is left to: it is set anew when something next waits.
    pub(super) const fn moved(&mut self) {
        self.is_waiting = false;
    }

    /// Something waits to be written: ready once it has waited for too long.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        if !self.is_waiting {
            self.is_waiting = true;
            timer.as_mut().reset(Instant::now() + self.patience);
        }
        timer.as_mut().poll(cx)
    }

    /// Whether something has waited to be written since anything last moved.
    pub(super) const fn is_waiting(&self) -> bool {
        self.is_waiting
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(40);

    #[tokio::test(start_paused = true)]
    async fn patience_begins_with_what_waits_and_anew_with_every_byte() {
        let mut stall = Stall::new(PATIENCE);
        for _ in 0..3 {
            // Nothing waits.
            sleep(2 * PATIENCE).await;
            let mut later = || stall.poll_over(&mut Context::from_waker(Waker::noop()));
            assert!(later().is_pending());
            sleep(PATIENCE - Duration::from_millis(2)).await;
            assert!(later().is_pending());
            stall.moved();
            assert!(!stall.is_waiting());
        }
        let start = Instant::now();
        poll_fn(|cx| stall.poll_over(cx)).await;
        assert_eq!(start.elapsed().as_secs(), PATIENCE.as_secs());
        assert!(stall.is_waiting());
    }
}
