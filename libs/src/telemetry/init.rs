//! Setting it up, once a process.

use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::{Args, LogFormat};

/// Telemetry that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// RUST_LOG is wrong.
    #[error("RUST_LOG: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// It was set up before.
    #[error("telemetry is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Keeps telemetry going; what it holds back goes out when it is flushed.
#[derive(Debug)]
#[must_use = "telemetry ends when this goes"]
pub struct Guard(());

/// Sets up logs for this process.
///
/// # Errors
/// When RUST_LOG is wrong, or when called twice.
pub fn init(service_name: &str, args: &Args) -> Result<Guard, TelemetryError> {
    let _ = service_name;
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.trim().is_empty() => EnvFilter::try_new(directives)?,
        _ => EnvFilter::new("info"),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match args.format() {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    Ok(Guard(()))
}

impl Guard {
    /// Sends what is held back.
    #[expect(clippy::unused_async, reason = "exporters are asked to send here")]
    pub async fn flush(self) {}
}
