//! What a caller says of its call, known to all that is done while it is served.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::propagation::is_traceparent;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// As much of the trace's state as W3C wants to be passed on.
pub(super) const MOST_STATE: usize = 512;

tokio::task_local! {
    static CALLER: Arc<Caller>;
}

/// What a caller says of its call: for the log, and to be passed on as it came where nothing is traced. A trace then goes on through
/// a service that exports none.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    request_id: Option<HeaderValue>,
    traceparent: Option<HeaderValue>,
    tracestate: Option<HeaderValue>,
}

impl Caller {
    /// What headers and the request's id say; none if that is nothing, so that nothing is spent on it.
    #[must_use]
    pub fn new(headers: &HeaderMap, request_id: Option<HeaderValue>) -> Option<Arc<Self>> {
        let traceparent = headers.get(TRACEPARENT).filter(|value| value.to_str().is_ok_and(is_traceparent));
        if traceparent.is_none() && request_id.is_none() {
            return None;
        }
        let tracestate = traceparent.and_then(|_| headers.get(TRACESTATE)).filter(|state| state.len() <= MOST_STATE);
        Some(Arc::new(Self { request_id, traceparent: traceparent.cloned(), tracestate: tracestate.cloned() }))
    }

    /// The name of the request, which was given one here if it had none.
    pub fn name(caller: &mut Option<Arc<Self>>, otherwise: impl FnOnce() -> HeaderValue) -> HeaderValue {
        let caller = Arc::make_mut(caller.get_or_insert_default());
        caller.request_id.get_or_insert_with(otherwise).clone()
    }

    /// Does something while this is known. What is spawned within is a task of its own and knows nothing of it.
    pub fn scope<T>(caller: Option<&Arc<Self>>, does: impl FnOnce() -> T) -> T {
        match caller {
            None => does(),
            Some(caller) => CALLER.sync_scope(Arc::clone(caller), does),
        }
    }
}

/// Writes the caller's trace into headers, as it came.
pub(super) fn pass_on(headers: &mut HeaderMap) {
    let _none_is_known = CALLER.try_with(|caller| {
        let Some(traceparent) = caller.traceparent.clone() else { return };
        headers.insert(TRACEPARENT, traceparent);
        if let Some(tracestate) = caller.tracestate.clone() {
            headers.insert(TRACESTATE, tracestate);
        }
    });
}

/// The trace that the caller says its call belongs to.
pub(super) fn trace_id() -> Option<String> {
    let text = CALLER.try_with(|caller| Some(caller.traceparent.as_ref()?.to_str().ok()?.get(3..35)?.to_owned()));
    text.ok().flatten()
}

/// The name of the request that is served.
pub(super) fn request_id() -> Option<String> {
    CALLER.try_with(|caller| Some(caller.request_id.as_ref()?.to_str().ok()?.to_owned())).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(entries: &[(&'static str, &str)]) -> HeaderMap {
        let entry = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::try_from(*value).expect("ASCII"))
        };
        entries.iter().map(entry).collect()
    }

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_is_passed_on_as_it_came_while_its_call_is_served() {
        let came = headers(&[("traceparent", PARENT), ("tracestate", "a=1"), ("other", "x")]);
        let caller = Caller::new(&came, None);
        let mut sent = HeaderMap::new();
        pass_on(&mut sent);
        assert!(sent.is_empty() && trace_id().is_none(), "no call is served");
        Caller::scope(caller.as_ref(), || {
            pass_on(&mut sent);
            assert_eq!(trace_id().as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
        });
        assert_eq!(sent, headers(&[("traceparent", PARENT), ("tracestate", "a=1")]));
    }

    #[test]
    fn what_is_no_trace_is_not_passed_on_and_nothing_is_kept_for_it() {
        assert!(Caller::new(&headers(&[("traceparent", "x"), ("tracestate", "a=1")]), None).is_none());
        let long = "x".repeat(MOST_STATE + 1);
        let caller = Caller::new(&headers(&[("traceparent", PARENT), ("tracestate", &long)]), None);
        let mut sent = HeaderMap::new();
        Caller::scope(caller.as_ref(), || pass_on(&mut sent));
        assert_eq!(sent, headers(&[("traceparent", PARENT)]));
    }

    #[test]
    fn a_request_keeps_its_name_or_gets_one() {
        let name = || HeaderValue::from_static("made");
        let mut unnamed = None;
        assert_eq!(Caller::name(&mut unnamed, name), "made");
        assert_eq!(Caller::scope(unnamed.as_ref(), request_id).as_deref(), Some("made"));
        let mut named = Caller::new(&HeaderMap::new(), Some(HeaderValue::from_static("given")));
        assert_eq!(Caller::name(&mut named, name), "given");
    }
}
