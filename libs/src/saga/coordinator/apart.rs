//! What goes on whoever looks after it is doing.

use std::panic::resume_unwind;

use futures::future::BoxFuture;
use tokio::task::JoinHandle;

use super::spawn;

/// A task that ends with the one who waits for it.
struct Bound<T>(JoinHandle<T>);

impl<T> Drop for Bound<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Begins work that goes on while the answered future rests, and is dropped with it. Who has a session, or stands in line for one, must go
/// on: it is kept from all others, and whoever doesn't wait for this work just now may be waiting for one of them.
pub(super) fn apart<T: Send + 'static>(work: BoxFuture<'static, T>) -> impl Future<Output = T> + Send {
    let mut task = Bound(spawn(work));
    async move {
        match (&mut task.0).await {
            Ok(done) => done,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The process goes down.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{panic::AssertUnwindSafe, time::Duration};

    use futures::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;
    use crate::rpc::cause::of_panic;

    #[tokio::test]
    async fn it_goes_on_while_nobody_looks_and_ends_with_whoever_could() {
        let (tell, told) = oneshot::channel();
        let (mut kept, gone) = oneshot::channel::<()>();
        let work = apart(Box::pin(async move {
            let _ = tell.send(());
            let _gone = gone;
            std::future::pending::<()>().await;
        }));
        told.await.unwrap();
        drop(work);
        tokio::time::timeout(Duration::from_secs(60), kept.closed()).await.expect("it goes on");
    }

    #[tokio::test]
    async fn its_panic_is_that_of_whoever_waits_for_it() {
        let work = apart::<()>(Box::pin(async { panic!("a bug") }));
        let ended = AssertUnwindSafe(work).catch_unwind().await;
        assert_eq!(of_panic(&*ended.unwrap_err()), "a bug");
    }
}
