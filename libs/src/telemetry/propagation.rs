//! The trace that a call belongs to, carried from process to process as W3C `traceparent`.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{caller, init};

/// Writes the current span's trace into headers. Where nothing is traced, the trace of the call that is served, as it came.
pub fn inject(headers: &mut HeaderMap) {
    if init::traces() {
        TraceContextPropagator::new().inject_context(&Span::current().context(), &mut Headers(headers));
    } else {
        caller::pass_on(headers);
    }
}

/// The trace that headers tell of.
#[must_use]
pub fn extract(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Received(headers))
}

/// The `traceparent` that [`inject`] writes, to be kept beside an event or a saga.
#[must_use]
pub fn traceparent() -> Option<String> {
    let mut headers = HeaderMap::new();
    inject(&mut headers);
    headers.get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// True for what may be a W3C `traceparent`: version, trace, span and flags in hexadecimal, 55 characters. What a caller sends is kept as long
/// as what it is a part of, so nothing else is.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    text.len() == 55 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// True where spans are exported.
#[must_use]
pub fn is_on() -> bool {
    init::traces()
}

/// Has a span point to the trace that a kept `traceparent` tells of, without being part of it: for work taken up long after.
pub fn link(span: &Span, traceparent: &str) {
    if let (true, Ok(value)) = (init::traces(), HeaderValue::try_from(traceparent)) {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("traceparent"), value)]);
        let context = extract(&headers).span().span_context().clone();
        if context.is_valid() {
            span.add_link(context);
        }
    }
}

/// Makes a span part of the trace that a kept `traceparent` tells of.
pub fn resume(span: &Span, traceparent: &str) {
    if let (true, Ok(value)) = (init::traces(), HeaderValue::try_from(traceparent)) {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("traceparent"), value)]);
        join(span, extract(&headers));
    }
}

/// A span for serving a call, in the trace of its caller, by the name that its method goes by. None where nothing is traced.
#[must_use]
pub fn server_span<'a>(method: impl FnOnce() -> &'a str, headers: &HeaderMap) -> Span {
    if !init::traces() {
        return Span::none();
    }
    let span = span("server", method());
    join(&span, extract(headers));
    span
}

/// A span for calling a peer, in the one that is current. None where nothing is traced, or what asks belongs to no trace: a subscription
/// that is made again and again would be one trace after the other.
#[must_use]
pub fn client_span(method: &str) -> Span {
    if !init::traces() || Span::current().is_none() {
        return Span::none();
    }
    span("client", method)
}

fn span(kind: &'static str, method: &str) -> Span {
    tracing::info_span!(
        target: "libs::rpc",
        "call",
        otel.name = method,
        otel.kind = kind,
        otel.status_code = Empty,
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = Empty,
    )
}

/// Notes what became of the call.
pub fn end_span(span: &Span, code: &'static str, is_fault: bool) {
    span.record("rpc.response.status_code", code);
    if is_fault {
        span.record("otel.status_code", "ERROR");
    }
}

fn join(span: &Span, parent: Context) {
    if parent.span().span_context().is_valid() {
        // Fails for a span that is disabled or begun already: it then is a trace of its own.
        let _ = span.set_parent(parent);
    }
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

struct Received<'a>(&'a HeaderMap);

impl Extractor for Received<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?;
        // It goes on to every peer: a call that came within the limit on headers would leave beyond it.
        if key == "tracestate" && value.len() > caller::MOST_STATE {
            return None;
        }
        value.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_no_traceparent_is_not_kept() {
        assert!(is_traceparent(TRACEPARENT));
        for text in ["", &TRACEPARENT[1..], &format!("{TRACEPARENT}-{TRACEPARENT}"), &TRACEPARENT.replace('0', "x")] {
            assert!(!is_traceparent(text), "{text}");
        }
    }

    #[test]
    fn a_callers_trace_is_read_from_headers() {
        let headers =
            HeaderMap::from_iter([(HeaderName::from_static("traceparent"), HeaderValue::from_static(TRACEPARENT))]);
        let context = extract(&headers);
        assert_eq!(context.span().span_context().trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(context.span().span_context().is_remote());
    }

    #[test]
    fn a_state_that_is_too_long_to_be_passed_on_is_not_kept_and_its_trace_is() {
        let state_of = |members: usize| {
            let members: Vec<String> = (0..members).map(|at| format!("m{at:02}={}", "x".repeat(123))).collect();
            let headers = [("traceparent", TRACEPARENT.to_owned()), ("tracestate", members.join(","))];
            let named = |(name, value)| (HeaderName::from_static(name), HeaderValue::try_from(value).expect("ASCII"));
            let context = extract(&headers.map(named).into_iter().collect());
            assert!(context.span().span_context().is_valid());
            context.span().span_context().trace_state().header().len()
        };
        assert_eq!([1, 4, 5, 32].map(state_of), [127, caller::MOST_STATE - 1, 0, 0]);
    }

    #[test]
    fn garbage_is_no_trace() {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("traceparent"), HeaderValue::from_static("x"))]);
        assert!(!extract(&headers).span().span_context().is_valid());
        assert!(!extract(&HeaderMap::new()).span().span_context().is_valid());
    }

    #[test]
    fn nothing_is_written_where_nothing_is_traced() {
        let mut headers = HeaderMap::new();
        inject(&mut headers);
        assert!(headers.is_empty() && traceparent().is_none());
    }
}
