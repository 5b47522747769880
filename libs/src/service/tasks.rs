//! What goes on beside the calls: committers, projections, sagas. None may end unseen.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use tokio::task::JoinSet;

use super::ServeError;
use crate::cli::BoxError;

/// Named futures that run until the service ends.
#[derive(Debug, Default)]
pub(super) struct Tasks(JoinSet<(String, Result<(), BoxError>)>);

impl Tasks {
    pub(super) fn spawn<E: Into<BoxError>>(
        &mut self,
        name: String,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.0.spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            let ended = match ended {
                Ok(result) => result.map_err(Into::into),
                Err(_) => Err("panicked".into()),
            };
            (name, ended)
        });
    }

    /// Resolves when a task has failed. One that ends well is done and forgotten.
    ///
    /// # Cancel safety
    /// What is dropped before it resolves has lost nothing.
    pub(super) async fn failed(&mut self) -> ServeError {
        while let Some(joined) = self.0.join_next().await {
            if let Ok((task, Err(why))) = joined {
                return ServeError::Task { task, why };
            }
        }
        std::future::pending().await
    }
}
