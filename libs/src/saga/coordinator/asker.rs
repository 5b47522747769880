//! An operator who waits for a saga's task to do something. Until the task begins with it they may leave, or hear that the database is out;
//! then nobody does it any more, for they may decide otherwise.

use std::time::Duration;

use proto::saga::v1::Saga;
use tokio::sync::oneshot;

use crate::{cqrs::not_submitted, journal::SubmitError, refusal::Refusal};

/// How long a task may take to begin. What it does before is a moment's, unless it waits for its database. From then on it may take as long
/// as a command does, and those who ask have 30 s in all.
const BEGINS_WITHIN: Duration = Duration::from_secs(5);

/// Who asks, as the task has them.
#[derive(Debug)]
pub(super) struct Asker {
    /// None once it has begun.
    begun: Option<oneshot::Sender<()>>,
    answer: oneshot::Sender<Result<Saga, Refusal>>,
}

/// Who asks, while they wait.
#[derive(Debug)]
pub(super) struct Asking {
    begun: oneshot::Receiver<()>,
    answered: oneshot::Receiver<Result<Saga, Refusal>>,
}

impl Asker {
    /// Both ends.
    pub(super) fn new() -> (Self, Asking) {
        let ((begin, begun), (answer, answered)) = (oneshot::channel(), oneshot::channel());
        (Self { begun: Some(begin), answer }, Asking { begun, answered })
    }

    /// Begins with what is asked for. False if nobody asks for it any more: it is not to be done then.
    pub(super) fn begin(&mut self) -> bool {
        self.begun.take().is_none_or(|begun| begun.send(()).is_ok())
    }

    pub(super) fn answer(self, answer: Result<Saga, Refusal>) {
        // They may have left.
        let _ = self.answer.send(answer);
    }
}

impl Asking {
    /// The answer; None if the task is gone without one.
    pub(super) async fn answered(self) -> Option<Result<Saga, Refusal>> {
        let Self { mut begun, answered } = self;
        if tokio::time::timeout(BEGINS_WITHIN, &mut begun).await.is_err() {
            // From here on it can't begin, and it may have just before.
            begun.close();
            if begun.try_recv().is_err() {
                return Some(Err(not_submitted(SubmitError::Unavailable)));
            }
        }
        answered.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(answer: Option<Result<Saga, Refusal>>) -> String {
        answer.unwrap().unwrap_err().reason.into_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_begun_in_time_is_not_begun_any_more() {
        let (mut asker, asking) = Asker::new();
        assert_eq!(reason(asking.answered().await), "DATABASE_UNAVAILABLE");
        assert!(!asker.begin());
        let (mut asker, asking) = Asker::new();
        drop(asking);
        assert!(!asker.begin(), "they have left");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_begun_is_waited_for() {
        let (mut asker, asking) = Asker::new();
        assert!(asker.begin());
        let answered = tokio::spawn(asking.answered());
        tokio::time::sleep(10 * BEGINS_WITHIN).await;
        assert!(asker.begin(), "it is put off, and begun still");
        asker.answer(Err(Refusal::internal()));
        assert_eq!(reason(answered.await.unwrap()), "INTERNAL");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_task_leaves_is_answered_without_being_begun() {
        let (asker, asking) = Asker::new();
        asker.answer(Err(Refusal::internal()));
        assert_eq!(reason(asking.answered().await), "INTERNAL");
        let (asker, asking) = Asker::new();
        drop(asker);
        assert!(asking.answered().await.is_none());
    }
}
