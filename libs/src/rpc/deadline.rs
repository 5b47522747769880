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
const ANSWERING: Duration = Duration::from_millis(20);

/// Until when to wait for what can be done without: a little before the deadline in force, if there is one, or until half of the time is
/// over where that is little.
#[must_use]
pub fn while_there_is_time_to_answer() -> Option<Instant> {
    let (deadline, now) = (current()?, Instant::now());
    let left = deadline.saturating_duration_since(now);
    now.checked_add(left - ANSWERING.min(left / 2))
}

/// Runs a future under a deadline [that leaves time to answer](while_there_is_time_to_answer) without what it waits for.
pub async fn with_time_to_answer<F: Future>(future: F) -> F::Output {
    match while_there_is_time_to_answer() {
        Some(deadline) => scope(deadline, future).await,
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
