//! A saga in traces: a span for each stretch of it that a process drives, and in it one for each call.
//!
//! The first stretch belongs to the trace of the request that started the saga. A later one, after a restart or a takeover, may come
//! days after that trace has ended, so it is a trace of its own with a link to the first.

use tonic::Code;
use tracing::{Span, field::Empty, info_span};

use crate::{refusal::code_name, rpc::verdict::SagaCall, saga::record::Record, telemetry::propagation};

/// The stretch that begins now. None where nothing is traced.
pub(super) fn stretch(record: &Record, again: bool) -> Span {
    if !propagation::is_on() {
        return Span::none();
    }
    let saga = &record.saga;
    let span = info_span!(
        target: "libs::saga",
        parent: None,
        "saga",
        otel.name = format!("saga {}", saga.r#type),
        saga.id = saga.saga_id,
        saga.version = saga.version,
        saga.resumed = again,
    );
    match again {
        false => propagation::resume(&span, &record.kept.traceparent),
        true => propagation::link(&span, &record.kept.traceparent),
    }
    span
}

/// A call within a stretch. What is called continues its trace.
pub(super) fn call(stretch: &Span, path: &str, call: &SagaCall) -> Span {
    if stretch.is_none() {
        return Span::none();
    }
    info_span!(
        target: "libs::saga",
        parent: stretch,
        "call",
        otel.name = path.trim_start_matches('/'),
        otel.kind = "client",
        otel.status_code = Empty,
        saga.step = call.step,
        saga.operation = call.op.as_str(),
        saga.attempt = call.attempt,
        rpc.response.status_code = Empty,
    )
}

/// Notes what a call was answered.
pub(super) fn answered(call: &Span, code: Code) {
    propagation::end_span(call, code_name(code), code != Code::Ok);
}
