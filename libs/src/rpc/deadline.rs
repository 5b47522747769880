//! The moment by which an answer is needed, handed from the call being served to every call made for it.

use std::{future::Future, time::Duration};

use tokio::{task::futures::TaskLocalFuture, time::Instant};

pub use crate::breaker::layer::{GRPC_TIMEOUT, format_grpc_timeout, grpc_timeout};

tokio::task_local! {
    static DEADLINE: Instant;
}

/// A future under a deadline.
pub type Scoped<F> = TaskLocalFuture<Instant, F>;

/// Runs a future under a deadline: calls made within inherit it. An earlier one already in force stays.
///
/// What is spawned within is a task of its own and inherits nothing.
pub fn scope<F: Future>(deadline: Instant, future: F) -> Scoped<F> {
    DEADLINE.scope(earliest(Some(deadline), current()).unwrap_or(deadline), future)
}

/// What is left of a caller's time for the answer that what was waited for has not come.
pub const ANSWERING: Duration = Duration::from_millis(20);

/// Runs a future under a deadline that comes [`ANSWERING`] before the one in force, if there is one, and at half of the time where that is
/// little: what it waits for in vain can still be done without.
pub async fn with_time_to_answer<F: Future>(future: F) -> F::Output {
    match current() {
        Some(deadline) => {
            let kept_back = ANSWERING.min(deadline.saturating_duration_since(Instant::now()) / 2);
            scope(deadline.checked_sub(kept_back).unwrap_or(deadline), future).await
        }
        None => future.await,
    }
}

/// The deadline in force here, if there is one.
#[must_use]
pub fn current() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).ok()
}

/// The earlier of two deadlines that may not be.
#[must_use]
pub fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_earliest_deadline_is_inherited() {
        let soon = Instant::now() + Duration::from_secs(1);
        let late = soon + Duration::from_secs(1);
        assert_eq!(current(), None);
        scope(soon, async {
            assert_eq!(current(), Some(soon));
            scope(late, async { assert_eq!(current(), Some(soon)) }).await;
        })
        .await;
        scope(late, scope(soon, async { assert_eq!(current(), Some(soon)) })).await;
        with_time_to_answer(async { assert_eq!(current(), None) }).await;
        scope(late, with_time_to_answer(async { assert_eq!(current(), Some(late - ANSWERING)) })).await;
        let at_once = Instant::now() + ANSWERING;
        scope(at_once, with_time_to_answer(async { assert_eq!(current(), Some(at_once - ANSWERING / 2)) })).await;
        assert_eq!(current(), None);
    }
}
