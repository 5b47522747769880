//! One call, from its arrival to its last byte: what is known of it, and what is said of it in the end.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request, uri::PathAndQuery};
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Status};
use tracing::Span;

use super::{Methods, details, methods};
use crate::{
    refusal::code_name,
    telemetry::{Caller, ServerMetrics, propagation},
};

/// The header that names a request, chosen by the client or here.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What all calls of one connection share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) service: &'static str,
    pub(super) metrics: Option<ServerMetrics>,
    pub(super) methods: Methods,
    pub(super) ending: watch::Receiver<Ending>,
}

/// How far the end of a connection has come. It only moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// It is not ending, for all that calls must know.
    NotYet,
    /// Streams that have no end of their own must end.
    Streams,
    /// The server stops, and cuts off whatever is still in flight.
    Cut,
}

/// Why the end of a call is worth no line of its own, though it has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quiet {
    /// It was refused with many others, which is told of for all of them together.
    Shed,
    /// A stream that has no end of its own was ended in order: nothing has failed.
    Drained,
}

/// A call under way. Dropped before it is finished, it was cancelled by its client, unless the server stops and has cut
/// its connection.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    pub(super) span: Span,
    pub(super) caller: Option<Arc<Caller>>,
    path: Option<PathAndQuery>,
    start: Instant,
    pub(super) quiet: Option<Quiet>,
    finished: bool,
}

impl Call {
    pub(super) fn new<B>(shared: Arc<Shared>, request: &Request<B>) -> Self {
        let path = request.uri().path_and_query().cloned();
        let request_id = request.headers().get(REQUEST_ID).filter(|id| is_name(id)).cloned();
        let caller = Caller::new(request.headers(), request_id);
        let span = propagation::server_span(|| shared.methods.label(method(path.as_ref())), request.headers());
        Self { shared, span, caller, path, start: Instant::now(), quiet: None, finished: false }
    }

    /// Ends the call with the status in headers or trailers, which it completes.
    pub(super) fn finish(mut self, headers: &mut HeaderMap) {
        let path = self.path.as_ref().map_or("", PathAndQuery::path);
        let Some(status) = details::complete(headers, self.shared.service, path) else {
            return self.told(Code::Ok, "");
        };
        // Whoever looks for the call in the log needs its name; a call that went well leaves no line there.
        headers.insert(REQUEST_ID, Caller::name(&mut self.caller, generated));
        self.told(status.code(), status.message());
    }

    /// Ends the call with an error made here, as trailers.
    pub(super) fn fail(self, status: &Status) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        // Fails only for messages that no header can hold; the code stands even then.
        let _ = status.add_header(&mut trailers);
        self.finish(&mut trailers);
        trailers
    }

    fn told(&mut self, code: Code, why: &str) {
        self.finished = true;
        let method = method(self.path.as_ref());
        let elapsed = self.start.elapsed();
        let name = code_name(code);
        if let Some(metrics) = &self.shared.metrics {
            // A call may end before anybody has looked whether its path is served.
            metrics.record(self.shared.methods.label(method), name, elapsed);
        }
        let method = methods::shown(method);
        propagation::end_span(&self.span, name, is_fault(code) && self.quiet != Some(Quiet::Drained));
        let service = self.shared.service;
        let elapsed_ms = elapsed.as_secs_f64() * 1_000.0;
        self.scope(|| match code {
            Code::Ok | Code::Cancelled => {
                tracing::debug!(service, method, code = name, elapsed_ms, "answered")
            }
            _ if self.quiet == Some(Quiet::Shed) => {
                tracing::debug!(service, method, code = name, elapsed_ms, "shed")
            }
            _ if self.quiet == Some(Quiet::Drained) => {
                tracing::debug!(service, method, code = name, elapsed_ms, "drained")
            }
            code if is_fault(code) => {
                tracing::warn!(service, method, code = name, elapsed_ms, why, "failed")
            }
            _ => tracing::info!(service, method, code = name, elapsed_ms, why, "refused"),
        });
    }

    /// Does something that belongs to this call: its lines say so, and the calls made for it carry its trace.
    pub(super) fn scope<T>(&self, does: impl FnOnce() -> T) -> T {
        self.span.in_scope(|| Caller::scope(self.caller.as_ref(), does))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let ending = *self.shared.ending.borrow();
        match ending {
            Ending::Cut => self.told(Code::Unavailable, "cut off: it had not ended when the server did"),
            Ending::NotYet | Ending::Streams => self.told(Code::Cancelled, ""),
        }
    }
}

/// The method as the specification writes it: `package.Service/Method`.
fn method(path: Option<&PathAndQuery>) -> &str {
    path.map_or("", |path| path.path().trim_start_matches('/'))
}

/// Whether the log can show a request by this name.
fn is_name(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.to_str().is_ok()
}

/// True if the server is to blame, not the request.
const fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn generated() -> HeaderValue {
    let text = format!("{:032x}", rand::random::<u128>());
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("unnamed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_called_by_what_the_log_can_show() {
        let named = |id: &[u8]| is_name(&HeaderValue::from_bytes(id).expect("a header"));
        assert!(named(b"say \"tea\"") && named(&[b'a'; 128]));
        assert!(!named(b"") && !named(&[b'a'; 129]) && !named(b"a\xff"));
    }
}
