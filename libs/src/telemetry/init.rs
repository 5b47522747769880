//! Setting it up, once a process.

use std::{
    env,
    io::IsTerminal as _,
    panic::{self, PanicHookInfo},
    sync::atomic::{AtomicBool, Ordering},
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::ExporterBuildError;
use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, ParseError, filter_fn},
    fmt::format::{DefaultFields, JsonFields},
    layer::{Filter, SubscriberExt as _},
    util::{SubscriberInitExt as _, TryInitError},
};

use super::{Args, LogFormat, lines::Lines, otlp::Exporters};

static TRACES: AtomicBool = AtomicBool::new(false);
static METRICS: AtomicBool = AtomicBool::new(false);

/// Telemetry that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// RUST_LOG is a word, and no level.
    #[error("RUST_LOG: {0:?} is not off, error, warn, info, debug or trace; for a part of the program write {0}=info")]
    Level(String),
    /// RUST_LOG is wrong.
    #[error("RUST_LOG: {0}")]
    Filter(#[from] ParseError),
    /// An `OTEL_*` variable is wrong.
    #[error("OTEL_*: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// An `OTEL_*` variable asks for a protocol that is not spoken here.
    #[error(
        "{variable}: {protocol:?} is not spoken here: write grpc, and give the collector's port for that, which mostly is 4317"
    )]
    Protocol {
        /// The variable.
        variable: String,
        /// The protocol.
        protocol: String,
    },
    /// An `OTEL_*` variable gives an address that is not one of plain text.
    #[error(
        "{variable}: a collector is reached in plain text, and TLS is not built in: write http:// before its address"
    )]
    Endpoint {
        /// The variable.
        variable: String,
    },
    /// An `OTEL_*` variable asks for a compression.
    #[error("{variable}: {compression:?} is not built in: write none, or leave it out")]
    Compression {
        /// The variable.
        variable: String,
        /// The compression.
        compression: String,
    },
    /// An `OTEL_*` variable asks for a sampler that is not one.
    #[error(
        "{variable}: {value:?} is no sampler: write always_on, always_off or traceidratio, or one of them after parentbased_"
    )]
    Sampler {
        /// The variable.
        variable: &'static str,
        /// What it says.
        value: String,
    },
    /// An `OTEL_*` variable should say which part of the traces is taken.
    #[error("{variable}: {value:?} is no part of the traces: write a number from 0 to 1")]
    Part {
        /// The variable.
        variable: &'static str,
        /// What it says.
        value: String,
    },
    /// It was set up before.
    #[error("telemetry is set up already")]
    Twice(#[from] TryInitError),
}

impl TelemetryError {
    /// True if whoever set a variable has to mend it.
    #[must_use]
    pub const fn is_wrong_variable(&self) -> bool {
        match self {
            Self::Level(_)
            | Self::Filter(_)
            | Self::Protocol { .. }
            | Self::Endpoint { .. }
            | Self::Compression { .. }
            | Self::Sampler { .. }
            | Self::Part { .. } => true,
            Self::Exporter(error) => matches!(error, ExporterBuildError::InvalidConfiguration(_)),
            Self::Twice(_) => false,
        }
    }
}

/// Keeps telemetry going; what it holds back goes out when it is flushed.
#[derive(Debug)]
#[must_use = "what telemetry holds back is lost with this"]
pub struct Guard(Exporters);

/// Sets up logs for this process, and traces and metrics where the environment asks for them. Within a tokio runtime. The name and the
/// version are what traces and metrics come from, unless the environment says otherwise.
///
/// # Errors
/// When RUST_LOG or an `OTEL_*` variable is wrong, or when called twice.
pub fn init(service_name: &str, version: &str, args: &Args) -> Result<Guard, TelemetryError> {
    let filter = match env::var("RUST_LOG") {
        Ok(directives) if !directives.trim().is_empty() => filter(&directives)?,
        // The broker's client has a line for each attempt to reach it again. That it is out is told by ourselves, once.
        _ => EnvFilter::new("info,async_nats=warn"),
    };
    let exporters = Exporters::from_env(service_name, version)?;
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
    tracing_subscriber::registry().with(spans).with(lines.with_filter(told(filter))).try_init()?;
    TRACES.store(exporters.traces.is_some(), Ordering::Relaxed);
    METRICS.store(exporters.has_metrics(), Ordering::Relaxed);
    panic::set_hook(Box::new(log_panic));
    Ok(Guard(exporters))
}

/// What becomes a line. It passes the filter's own word on of what is not wanted at any level: else each of HTTP/2's spans would be made,
/// some hundred a call, for nobody to see.
fn told<S>(filter: EnvFilter) -> impl Filter<S> {
    let of_the_sdk = match filter.max_level_hint() {
        Some(most) => filter_fn(is_told as fn(&Metadata<'_>) -> bool).with_max_level_hint(most),
        None => filter_fn(is_told as fn(&Metadata<'_>) -> bool),
    };
    filter.and(of_the_sdk)
}

/// Of what the SDK says of itself, that spans come faster than they can be sent: once when that begins, and how many were lost at the end.
/// The rest is told by ourselves, and it would say it every few seconds or for each span.
fn is_told(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("opentelemetry") || metadata.name().starts_with("BatchSpanProcessor.Span")
}

fn filter(directives: &str) -> Result<EnvFilter, TelemetryError> {
    let text = directives.trim();
    let is_word = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    // It would be taken for the name of a part, and nothing else would be logged: not even that the level is misspelt.
    if is_word && text.parse::<LevelFilter>().is_err() {
        return Err(TelemetryError::Level(text.to_owned()));
    }
    Ok(EnvFilter::try_new(text)?)
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

#[cfg(test)]
mod tests {
    use tracing_subscriber::Registry;

    use super::*;

    #[test]
    fn what_nobody_wants_at_any_level_is_known_before_it_is_made() {
        let most = |directives| Filter::<Registry>::max_level_hint(&told(EnvFilter::new(directives)));
        assert_eq!(most("info"), Some(LevelFilter::INFO));
        assert_eq!(most("warn,libs=debug"), Some(LevelFilter::DEBUG));
    }

    #[test]
    fn a_word_that_is_no_level_is_no_filter() {
        for right in ["info", "WARN", " off ", "3", "libs=debug", "hyper=off,info", "libs::rpc", "[order]", "a,b"] {
            assert!(filter(right).is_ok(), "{right}");
        }
        for wrong in ["notalevel", "verbose", "6", "libs", "a=b=c", "libs=loud"] {
            let error = filter(wrong).expect_err(wrong);
            let line = error.to_string();
            assert!(
                error.is_wrong_variable() && line.starts_with("RUST_LOG") && !line.contains('\n'),
                "{wrong}: {line}"
            );
        }
    }
}
