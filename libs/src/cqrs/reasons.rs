//! Why no events come of another service, or come another way: each reason is told once.

use std::time::Duration;

use tokio::time::Instant;

/// What has not been so for this long is news again.
const LAPSE: Duration = Duration::from_secs(60);

/// What was told last of why nothing comes or goes, as long as that is so.
#[derive(Debug, Default)]
pub(super) struct ToldReason(Option<String>);

impl ToldReason {
    /// True if this is to be told: it was not what was told last. How far a log is by now makes no other reason of it.
    pub(super) fn is_news(&mut self, why: &str) -> bool {
        let why = Some(why.replace(|letter: char| letter.is_ascii_digit(), ""));
        let is_news = self.0 != why;
        self.0 = why;
        is_news
    }

    /// True if something was told.
    pub(super) const fn is_out(&self) -> bool {
        self.0.is_some()
    }

    /// It is over. True if anything was told.
    pub(super) fn take(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// Tells that it is over, if anything was told.
    pub(super) fn over(&mut self, source: &str) {
        if self.take() {
            tracing::info!(source, "events come again");
        }
    }
}

/// What was told of what may be so again and again, with other things in between.
#[derive(Debug, Default)]
pub(super) struct Recurring(Vec<(String, Instant)>);

impl Recurring {
    /// True if this is to be told: it was not so of late.
    pub(super) fn is_news(&mut self, what: &str) -> bool {
        self.0.retain(|(_, seen)| seen.elapsed() < LAPSE);
        let now = Instant::now();
        match self.0.iter_mut().find(|(told, _)| told == what) {
            Some((_, seen)) => {
                *seen = now;
                false
            }
            None => {
                self.0.push((what.to_owned(), now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_so_again_and_again_is_told_once_a_stretch_of_it() {
        let mut told = Recurring::default();
        for _ in 0..3 {
            assert_eq!((told.is_news("a"), told.is_news("b")), (true, true));
            for _ in 0..10 {
                advance(LAPSE / 2).await;
                assert_eq!((told.is_news("a"), told.is_news("b")), (false, false));
            }
            advance(LAPSE).await;
        }
    }
}
