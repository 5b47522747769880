//! How calls end, and what that says: the one place that knows where gRPC, HTTP and tonic put it.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use tonic::{Code, Status, TimeoutExpired, metadata::MetadataMap};
use tonic_types::StatusExt as _;

use super::super::{
    Class, Classes,
    rejection::{is_draining, is_no_fault, is_our_refusal},
};
use super::{
    pushback::Pushback,
    watch::{Watch, rules},
};

static STATUS: HeaderName = HeaderName::from_static("grpc-status");
static DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// What a judge is told of a deadline that was kept here.
const LATE: &str = "the deadline passed before the call was done";

/// The code that headers or trailers carry, if they carry one. A number nobody knows is UNKNOWN.
#[inline]
#[must_use]
pub fn grpc_status(headers: &HeaderMap) -> Option<Code> {
    headers.get(&STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

/// Takes details away that are not base64: tonic, reading the status later, would panic on them.
#[inline]
pub fn drop_unreadable_details(headers: &mut HeaderMap) {
    if headers.contains_key(&DETAILS) && details(headers).is_none() {
        headers.remove(&DETAILS);
    }
}

/// Ends a call by a code in headers or trailers.
#[inline]
pub(super) fn by_code(watch: Watch, code: Code, headers: &HeaderMap) {
    if code == Code::Ok {
        let class = rules(&watch).classes.of(code);
        watch.finish(class);
    } else {
        by_error_code(watch, code, headers);
    }
}

#[cold]
fn by_error_code(watch: Watch, code: Code, headers: &HeaderMap) {
    if was_refused_on_the_way(code, headers) {
        // Those are the peer's own words: asked whether it is there, it has answered.
        let class = if watch.is_probe() { Class::Success } else { Class::Neutral };
        return watch.finish(class);
    }
    match rules(&watch).judged(|| whole_status(headers)) {
        Some(class) => finish_as(watch, class, || pause(headers)),
        None if is_nobodys_fault(code, headers) => {
            // Asked whether it is there, who says what is wrong with a request has answered; who leaves may not be there long.
            let answered = watch.is_probe() && !status_with_details(headers).is_some_and(|status| is_draining(&status));
            watch.finish(if answered { Class::Success } else { Class::Neutral });
        }
        None => finish(watch, code, || pause(headers)),
    }
}

fn finish(watch: Watch, code: Code, pause: impl FnOnce() -> Option<Duration>) {
    let class = rules(&watch).classes.of(code);
    let usual = Classes::default().of(code) == class;
    match code {
        Code::Cancelled | Code::DeadlineExceeded if usual && overslept(&watch) => watch.finish(Class::Neutral),
        // Somebody's deadline, whoever's clock it was.
        Code::Cancelled if usual && watch.is_late() => late(watch),
        Code::Cancelled if usual => watch.finish_cancelled(),
        Code::DeadlineExceeded if usual => watch.finish_late(),
        _ => finish_as(watch, class, pause),
    }
}

fn finish_as(watch: Watch, class: Class, pause: impl FnOnce() -> Option<Duration>) {
    match if matches!(class, Class::Overload | Class::Failure) { pause() } else { None } {
        Some(pause) => watch.finish_with_pause(class, pause),
        None => watch.finish(class),
    }
}

/// Ends a call by an HTTP status without a gRPC one: a proxy spoke, or nobody who knows gRPC.
#[cold]
pub(super) fn by_http(watch: Watch, status: StatusCode) {
    // UNIMPLEMENTED from a peer is an answer; a path that leads to no peer is not.
    if status == StatusCode::NOT_FOUND {
        return watch.finish(Class::Failure);
    }
    finish(watch, code_of_http(status), || None);
}

/// The code that an HTTP status other than 200 stands for, as gRPC's `http-grpc-status-mapping.md` says.
#[must_use]
pub fn code_of_http(status: StatusCode) -> Code {
    match status {
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// Ends a call by an error of the transport, or of a layer between this one and it.
#[cold]
pub(super) fn by_error(watch: Watch, error: &(dyn Error + 'static)) {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<TimeoutExpired>() {
            return late(watch);
        }
        if let Some(status) = error.downcast_ref::<Status>() {
            if is_our_refusal(status) {
                return watch.finish(Class::Neutral);
            }
            // tonic wraps what the transport reports into a status: what it wraps says more.
            if status.source().is_none() {
                return match rules(&watch).judged(|| Some(status.clone())) {
                    Some(class) => finish_as(watch, class, || pause_of(status)),
                    None if is_no_fault(status) => watch.finish(Class::Neutral),
                    None => finish(watch, status.code(), || pause_of(status)),
                };
            }
        }
        next = error.source();
    }
    cut_off(watch);
}

/// Ends a call whose stream ended as if well, but without a status: it was cut short.
#[cold]
pub(super) fn truncated(watch: Watch) {
    cut_off(watch);
}

/// Ends a call that nobody waits for any more. Unless something else is known its permit, which is dropped, judges it.
#[cold]
pub(super) fn abandoned(watch: Watch) {
    drop(by_deadline(watch));
}

/// Ends a call whose caller left when an answer had begun.
#[cold]
pub(super) fn left(watch: Watch) {
    by_deadline(watch).into_iter().for_each(Watch::finish_left);
}

/// Ends a call that its caller dropped if that says something of its deadline, and gives it back otherwise.
fn by_deadline(watch: Watch) -> Option<Watch> {
    // A judge that panics would end the process.
    if std::thread::panicking() {
        return Some(watch);
    }
    match if watch.is_late() { missed(&watch) } else { None } {
        None => Some(watch),
        Some(class) => {
            watch.finish(class);
            None
        }
    }
}

/// Ends a call whose deadline came, by whoever's clock.
fn late(watch: Watch) {
    match missed(&watch) {
        Some(class) => watch.finish(class),
        None => watch.finish_late(),
    }
}

/// What a deadline that was missed says, if that is not the usual: the rules are asked about DEADLINE_EXCEEDED whoever kept the time.
fn missed(watch: &Watch) -> Option<Class> {
    if overslept(watch) {
        return Some(Class::Neutral);
    }
    let rules = rules(watch);
    let class = rules.classes.of(Code::DeadlineExceeded);
    let changed = class != Classes::default().of(Code::DeadlineExceeded);
    rules.judged(|| Some(Status::deadline_exceeded(LATE))).or(changed.then_some(class))
}

fn cut_off(watch: Watch) {
    let class = if overslept(&watch) { Class::Neutral } else { Class::Failure };
    watch.finish(class);
}

/// Whether this process was stopped until long after the call's deadline: what it finds then was not waited for, and nobody is to blame.
fn overslept(watch: &Watch) -> bool {
    rules(watch).punctual && watch.is_overslept()
}

/// The pause that the peer asks for.
fn pause(headers: &HeaderMap) -> Option<Duration> {
    match Pushback::of(headers) {
        Pushback::After(pause) => Some(pause),
        // "Not at all" says nothing of when.
        Pushback::None | Pushback::Never => pause_of(&status_with_details(headers)?),
    }
}

fn pause_of(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|retry| retry.retry_delay).filter(|delay| !delay.is_zero())
}

/// Whether a breaker or a bulkhead further on refused: an answer about somebody behind the peer, not about the peer.
pub(crate) fn was_refused_on_the_way(code: Code, headers: &HeaderMap) -> bool {
    matches!(code, Code::Unavailable | Code::ResourceExhausted)
        && status_with_details(headers).is_some_and(|status| is_our_refusal(&status))
}

/// Whether the server works as it should, whatever its code says.
fn is_nobodys_fault(code: Code, headers: &HeaderMap) -> bool {
    matches!(code, Code::Unavailable | Code::ResourceExhausted)
        && status_with_details(headers).is_some_and(|status| is_no_fault(&status))
}

/// Whether a server has waited for its views as long as it may, for a query that asks for more than they know.
#[cfg(feature = "rpc")]
pub(crate) fn has_waited(code: Code, headers: &HeaderMap) -> bool {
    code == Code::Unavailable
        && status_with_details(headers).is_some_and(|status| crate::breaker::rejection::is_behind(&status))
}

/// The least time after which the server says that trying again may help, by RetryInfo.
#[cfg(feature = "rpc")]
pub(crate) fn retry_info(headers: &HeaderMap) -> Option<Duration> {
    pause_of(&status_with_details(headers)?)
}

/// The status with all it says.
fn whole_status(headers: &HeaderMap) -> Option<Status> {
    let mut headers = headers.clone();
    drop_unreadable_details(&mut headers);
    Status::from_header_map(&headers)
}

/// The status with its details. `Status::from_header_map` would panic on details that are not base64.
fn status_with_details(headers: &HeaderMap) -> Option<Status> {
    Some(Status::with_details(grpc_status(headers)?, "", details(headers)?))
}

fn details(headers: &HeaderMap) -> Option<Bytes> {
    let value = headers.get(&DETAILS)?.clone();
    let only = MetadataMap::from_headers(HeaderMap::from_iter([(DETAILS.clone(), value)]));
    only.get_bin(DETAILS.as_str())?.to_bytes().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::Arc,
    };

    use futures::FutureExt as _;
    use http::{HeaderValue, Request, Response};
    use http_body_util::Empty;
    use proptest::prelude::*;
    use tonic::TimeoutExpired;

    use super::{
        super::{BoxError, BreakerLayer},
        *,
    };
    use crate::breaker::{Breaker, Config, ManualClock, State};

    type Answer = Result<Response<Empty<Bytes>>, BoxError>;

    fn answered(status: Option<&'static str>) -> Response<Empty<Bytes>> {
        let mut answer = Response::new(Empty::new());
        answer.headers_mut().extend(status.map(|status| (STATUS.clone(), HeaderValue::from_static(status))));
        answer
    }

    /// How a breaker stands after twenty calls with five seconds each, which ended so once they had slept for that long.
    fn after(slept: u64, punctual: bool, end: fn() -> Option<Answer>) -> State {
        let clock = Arc::new(ManualClock::default());
        let breaker = Arc::new(Breaker::with_clock("peer", Config::default(), clock.clone()));
        let layer = BreakerLayer::new(Arc::clone(&breaker));
        let layer = if punctual { layer.punctual() } else { layer };
        let call = |_| {
            let request = Request::builder().header("grpc-timeout", "5S").body(()).expect("a request");
            layer.call(request, |_| async move {
                match end() {
                    Some(answer) => ready(answer).await,
                    None => pending().await,
                }
            })
        };
        let calls: Vec<_> = (0..20).map(call).collect();
        clock.advance(Duration::from_secs(slept));
        // What is answered is dropped: a body before its end.
        calls.into_iter().for_each(|call| drop(call.now_or_never()));
        breaker.state()
    }

    #[test]
    fn a_process_that_was_stopped_itself_does_not_blame_its_peer() {
        let ends: [fn() -> Option<Answer>; 6] = [
            || None,
            || Some(Err("gone".into())),
            || Some(Err(TimeoutExpired(()).into())),
            || Some(Ok(answered(Some("1")))),
            || Some(Ok(answered(Some("4")))),
            || Some(Ok(answered(None))),
        ];
        for (number, end) in ends.into_iter().enumerate() {
            assert_eq!(after(600, true, end), State::Closed, "{number}");
            assert_eq!(after(9, true, end), State::Open, "{number}: late, as what hangs is");
            assert_eq!(after(600, false, end), State::Open, "{number}: whoever gave it up may have waited for so long");
        }
    }

    proptest! {
        #[test]
        fn any_status_is_read_as_a_number_that_is_known_or_as_unknown(
            value in prop_oneof![prop::collection::vec(any::<u8>(), 0..4), "0?[0-9]{1,2}".prop_map(String::into_bytes)],
        ) {
            let Ok(header) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let plain = (0..=16).find(|code: &i32| code.to_string().as_bytes() == value).unwrap_or(2);
            let headers = HeaderMap::from_iter([(STATUS.clone(), header)]);
            prop_assert_eq!(grpc_status(&headers), Some(Code::from_i32(plain)));
        }

        #[test]
        fn whatever_a_server_sends_its_status_and_its_details_are_read_without_a_panic(
            code in "[0-9]{1,2}",
            details in prop::collection::vec(any::<u8>(), 0..40),
            pushback in prop::collection::vec(any::<u8>(), 0..12),
        ) {
            let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).unwrap_or(HeaderValue::from_static("="));
            let mut headers = HeaderMap::from_iter([
                (STATUS.clone(), value(code.as_bytes())),
                (DETAILS.clone(), value(&details)),
                (HeaderName::from_static("grpc-retry-pushback-ms"), value(&pushback)),
            ]);
            was_refused_on_the_way(Code::Unavailable, &headers);
            if let Pushback::After(told) = Pushback::of(&headers) {
                prop_assert_eq!(pause(&headers), Some(told));
            }
            drop_unreadable_details(&mut headers);
            Status::from_header_map(&headers);
        }
    }

    #[test]
    fn a_pushback_that_is_no_time_lengthens_nothing() {
        for (told, millis) in [("250", Some(250)), ("-1", None), ("+5", None), ("2147483648", None)] {
            let name = HeaderName::from_static("grpc-retry-pushback-ms");
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_static(told))]);
            assert_eq!(pause(&headers), millis.map(Duration::from_millis), "{told}");
        }
    }
}
