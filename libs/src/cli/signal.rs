//! The two ways a process is asked to end.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Resolves at the first SIGTERM or SIGINT. From then on a second one ends the process at once.
///
/// # Errors
/// When the process cannot listen for signals.
pub fn shutdown() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    // Listening begins here, not when first polled: a signal during the start is not lost.
    let mut signals =
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    Ok(async move {
        signals.next().await;
        tracing::info!("told to stop; once more ends it at once");
        tokio::spawn(async move {
            signals.next().await;
            end();
        });
    })
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
