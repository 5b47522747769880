//! Setting it up, once a process.

use std::{
    env,
    io::IsTerminal as _,
    panic::{self, PanicHookInfo},
    sync::atomic::{AtomicBool, Ordering},
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::ExporterBuildError;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::ParseError,
    fmt::format::{DefaultFields, JsonFields},
    layer::SubscriberExt as _,
    util::{SubscriberInitExt as _, TryInitError},
};

use super::{Args, LogFormat, lines::Lines, otlp::Exporters};

static TRACES: AtomicBool = AtomicBool::new(false);
static METRICS: AtomicBool = AtomicBool::new(false);

/// Telemetry that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// RUST_LOG is wrong.
    #[error("RUST_LOG: {0}")]
    Filter(#[from] ParseError),
    /// An `OTEL_*` variable is wrong.
    #[error("OTEL_*: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// It was set up before.
    #[error("telemetry is set up already")]
    Twice(#[from] TryInitError),
}

/// Keeps telemetry going; what it holds back goes out when it is flushed.
#[derive(Debug)]
#[must_use = "what telemetry holds back is lost with this"]
pub struct Guard(Exporters);

/// Sets up logs for this process, and traces and metrics where the environment asks for them. Within a tokio runtime.
///
/// # Errors
/// When RUST_LOG or an `OTEL_*` variable is wrong, or when called twice.
pub fn init(service_name: &str, args: &Args) -> Result<Guard, TelemetryError> {
    let filter = match env::var("RUST_LOG") {
        Ok(directives) if !directives.trim().is_empty() => EnvFilter::try_new(directives)?,
        _ => EnvFilter::new("info"),
    };
    let exporters = Exporters::from_env(service_name)?;
    let format = args.format();
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Text => lines.fmt_fields(DefaultFields::new()).event_format(Lines::new(format)).boxed(),
        LogFormat::Json => lines.fmt_fields(JsonFields::new()).event_format(Lines::new(format)).boxed(),
    };
    let spans = exporters.traces.as_ref().map(|traces| {
        tracing_opentelemetry::layer().with_tracer(traces.tracer("trellis")).with_filter(LevelFilter::INFO)
    });
    tracing_subscriber::registry().with(spans).with(lines.with_filter(filter)).try_init()?;
    TRACES.store(exporters.traces.is_some(), Ordering::Relaxed);
    METRICS.store(exporters.has_metrics(), Ordering::Relaxed);
    panic::set_hook(Box::new(log_panic));
    Ok(Guard(exporters))
}

/// True if spans are exported.
pub(super) fn traces() -> bool {
    TRACES.load(Ordering::Relaxed)
}

/// True if metrics are exported.
pub(super) fn collects_metrics() -> bool {
    METRICS.load(Ordering::Relaxed)
}

impl Guard {
    /// Sends what is held back.
    pub async fn flush(self) {
        // An error is a panic of the exporter's, which was logged.
        let _ = tokio::task::spawn_blocking(|| self.0.shut_down()).await;
    }
}

/// A panic is a line like any other, so that who reads logs as JSON sees it, and once.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let why = panic.payload_as_str().unwrap_or("no message");
    let location = panic.location().map(ToString::to_string);
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => Some(backtrace.to_string()),
        _ => None,
    };
    tracing::error!(why, location, backtrace, "panicked");
}
