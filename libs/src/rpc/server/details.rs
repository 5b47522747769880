//! Every error that leaves a server carries `google.rpc` details, also those that tonic makes by itself.

use http::{HeaderMap, HeaderValue, header::HeaderName};
use tonic::{Code, Status};

use super::methods;
use crate::{
    breaker::{CircuitOpen, layer::grpc_status},
    refusal::{Refusal, code_name},
};

const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// The most bytes that the log has of what went wrong inside.
const MOST_LOGGED: usize = 4 << 10;

/// Gives a bare error an ErrorInfo whose reason is the code's name, and answers the status of any error as the log may have it.
///
/// Nobody outside is told what went wrong inside: who says INTERNAL or UNKNOWN and nothing more had not meant the text for them. Nor is a
/// text repeated that may be as long as its caller likes, such as one of tonic's that names what was asked for: here or there, it is cut.
pub(super) fn complete(headers: &mut HeaderMap, service: &str, path: &str) -> Option<Status> {
    // Of an OK nothing is made only to be thrown away.
    grpc_status(headers).filter(|code| *code != Code::Ok)?;
    let status = Status::from_header_map(headers)?;
    if headers.contains_key(DETAILS) {
        // A breaker's refusal, passed on: whoever would try again here would come to the same open circuit.
        if CircuitOpen::from_status(&status).is_some() {
            headers.entry(PUSHBACK).or_insert(HeaderValue::from_static("-1"));
        }
        return Some(status);
    }
    let said = status.message();
    let message = match status.code() {
        code if is_inside(code) => "internal error".to_owned(),
        // Tonic says nothing about a path that nobody serves.
        Code::Unimplemented if said.is_empty() => format!("{} is not served here", methods::shown(path)),
        _ => methods::shown(said).to_owned(),
    };
    let complete = Refusal::new(status.code(), code_name(status.code()), message).into_status(service);
    // The metadata stands in the headers already.
    complete.add_header(headers).ok()?;
    // Of a chain of causes the last one matters.
    let whole = || Status::new(status.code(), &said[..said.floor_char_boundary(MOST_LOGGED)]);
    Some(if is_inside(status.code()) { whole() } else { complete })
}

const fn is_inside(code: Code) -> bool {
    matches!(code, Code::Internal | Code::Unknown)
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    fn headers(status: &Status) -> HeaderMap {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).expect("a status fits");
        headers
    }

    #[test]
    fn a_bare_error_gets_its_codes_name_as_reason() {
        let mut headers = headers(&Status::out_of_range("too far"));
        headers.insert("saga-verdict", http::HeaderValue::from_static("rejected"));
        complete(&mut headers, "tea", "/a/B");
        let status = Status::from_header_map(&headers).expect("a status");
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!((&*info.reason, &*info.domain, status.message()), ("OUT_OF_RANGE", "trellis.tea", "too far"));
        assert_eq!(status.metadata().get("saga-verdict").map(|value| value.as_bytes()), Some(&b"rejected"[..]));
    }

    #[test]
    fn what_went_wrong_inside_is_told_to_the_log_alone() {
        for code in [Code::Internal, Code::Unknown] {
            let mut headers = headers(&Status::new(code, format!("no such column: tea.secret{}", "!".repeat(8 << 10))));
            let logged = complete(&mut headers, "tea", "/a/B").expect("an error");
            assert!(logged.message().starts_with("no such column: tea.secret!"));
            assert_eq!(logged.message().len(), 4 << 10, "a line is no longer for it");
            let told = Status::from_header_map(&headers).expect("a status");
            assert_eq!((told.code(), told.message()), (code, "internal error"));
            assert_eq!(told.get_details_error_info().expect("an ErrorInfo").reason, code_name(code));
        }
    }

    #[test]
    fn details_that_are_there_stay() {
        let refusal = Refusal::precondition("INSUFFICIENT_STOCK", "only 3 left");
        let mut headers = headers(&refusal.clone().into_status("inventory"));
        complete(&mut headers, "tea", "/a/B");
        assert_eq!(Refusal::from_status(&Status::from_header_map(&headers).expect("a status")), refusal);
    }

    #[test]
    fn a_breakers_refusal_that_is_passed_on_says_not_to_try_again() {
        let open = CircuitOpen {
            breaker: "shipping".into(),
            reason: crate::breaker::Reason::Open,
            cause: None,
            retry_after: std::time::Duration::from_secs(1),
            generation: 1,
        };
        let mut refused = headers(&open.into_status());
        complete(&mut refused, "order", "/a/B");
        assert_eq!(refused.get(PUSHBACK).map(HeaderValue::as_bytes), Some(&b"-1"[..]));
        let mut own =
            headers(&Refusal::unavailable("DRAINING", "going", std::time::Duration::ZERO).into_status("order"));
        complete(&mut own, "order", "/a/B");
        assert_eq!(own.get(PUSHBACK), None);
    }

    #[test]
    fn an_ok_stays_bare() {
        let mut headers = headers(&Status::ok(""));
        let before = headers.clone();
        assert!(complete(&mut headers, "tea", "/a/B").is_none());
        assert_eq!(headers, before);
    }
}
