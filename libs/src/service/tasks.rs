//! What goes on beside the calls: committers, projections, sagas. None may end unseen.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::ServeError;
use crate::cli::BoxError;

/// Named futures that run until the service ends.
#[derive(Debug)]
pub(super) struct Tasks {
    running: JoinSet<()>,
    failures: mpsc::UnboundedReceiver<ServeError>,
    fail: mpsc::UnboundedSender<ServeError>,
}

impl Default for Tasks {
    fn default() -> Self {
        let (fail, failures) = mpsc::unbounded_channel();
        Self { running: JoinSet::new(), failures, fail }
    }
}

impl Tasks {
    /// Starts one. What is answered resolves, with an error, when it has ended: how it failed is known by then.
    pub(super) fn spawn<E: Into<BoxError>>(
        &mut self,
        name: String,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) -> oneshot::Receiver<()> {
        let (over, ended) = oneshot::channel();
        let fail = self.fail.clone();
        self.running.spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            let ended = match ended {
                Ok(result) => result.map_err(Into::into),
                Err(_) => Err("panicked".into()),
            };
            if let Err(why) = ended {
                // Nobody hears of it once the service is gone.
                let _ = fail.send(ServeError::Task { task: name, why });
            }
            drop(over);
        });
        ended
    }

    /// Resolves when a task has failed. One that ends well is done and forgotten.
    ///
    /// # Cancel safety
    /// What is dropped before it resolves has lost nothing.
    pub(super) async fn failed(&mut self) -> ServeError {
        match self.failures.recv().await {
            Some(failure) => failure,
            // It can't be: a sender is here.
            None => std::future::pending().await,
        }
    }
}
