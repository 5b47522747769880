//! The two ways a process is asked to end.

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

use super::BoxError;

/// Resolves at the first SIGTERM or SIGINT. From then on a second one ends the process at once, whether or not anybody has
/// looked at the first. Call it inside a tokio runtime.
///
/// # Errors
/// When the process cannot listen for signals.
pub fn shutdown() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut signals =
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    let (tell, told) = oneshot::channel();
    // In a task, not when first polled: nobody may come to that while a service still starts.
    tokio::spawn(async move {
        signals.next().await;
        tracing::info!("told to stop; once more ends it at once");
        // Whoever is to be told may have ended by itself.
        let _ = tell.send(());
        signals.next().await;
        end();
    });
    Ok(async move {
        // An error is a runtime that is going down, which is an end as well.
        let _ = told.await;
    })
}

/// Does something unless the process is asked to end before it is done: the first process of a container is ended by no signal that it
/// doesn't listen for.
///
/// What was begun is left as by a crash, so it must be safe to begin again. Tables that are there are not made anew, and views that are
/// made anew are beside the old ones until they are whole.
pub(super) async fn unless_told_to_stop(
    word: &str,
    work: impl Future<Output = Result<(), BoxError>>,
) -> Result<(), BoxError> {
    let stop = shutdown()?;
    tokio::select! {
        biased;
        done = work => done,
        () = stop => Err(format!("told to stop before {word} was done: run it again").into()),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[expect(clippy::exit, reason = "an operator who asks twice does not want to wait for anything")]
fn end() {
    std::process::exit(130);
}
