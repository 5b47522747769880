//! Log lines: text for people, JSON for programs, and in each the trace and the request it belongs to.

use std::fmt;

use opentelemetry::trace::TraceContextExt as _;
use tracing::{Event, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Full, Json, Writer},
    },
    registry::LookupSpan,
};

use super::{LogFormat, caller, init};

/// How lines are written.
#[derive(Debug)]
pub(super) enum Lines {
    Text(Format<Full>),
    Json(Format<Json>),
}

impl Lines {
    pub(super) fn new(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text(Format::default()),
            LogFormat::Json => Self::Json(Format::default().json().flatten_event(true).with_span_list(false)),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, cx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (trace_id, request_id) = (trace_id(), caller::request_id());
        match self {
            Self::Text(format) => {
                if let Some(trace_id) = trace_id {
                    write!(out, "{trace_id} ")?;
                }
                if let Some(request_id) = request_id {
                    write!(out, "{request_id:?} ")?;
                }
                format.format_event(cx, out, event)
            }
            Self::Json(format) => {
                if trace_id.is_none() && request_id.is_none() {
                    return format.format_event(cx, out, event);
                }
                let mut line = String::new();
                format.format_event(cx, Writer::new(&mut line), event)?;
                write!(out, "{{")?;
                // Both are visible ASCII, which Rust writes between quotes as JSON does.
                for (key, id) in [("trace_id", trace_id), ("request_id", request_id)] {
                    if let Some(id) = id {
                        write!(out, "\"{key}\":{id:?},")?;
                    }
                }
                // An object is never empty here: it has a time, a level and a target.
                writeln!(out, "{}", line.trim_start_matches('{').trim_end())
            }
        }
    }
}

/// The trace of the span that is current, or what the caller says where nothing is traced.
fn trace_id() -> Option<String> {
    if !init::traces() {
        return caller::trace_id();
    }
    let context = tracing::Span::current().context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| span.trace_id().to_string())
}
