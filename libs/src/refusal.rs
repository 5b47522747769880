//! Why a request was not granted, as data: it travels through the journal and leaves as a `google.rpc.Status`.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A refusal that a caller can act on: a code for programs, a reason constant (AIP-193), a sentence for people.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// The reason, in `UPPER_SNAKE_CASE`, stable for ever: programs match on it.
    pub reason: Cow<'static, str>,
    /// What happened and what to do next, for people.
    pub message: String,
    /// What the reason is about, such as the SKU that ran out.
    pub metadata: HashMap<String, String>,
    /// The fields that are wrong, for INVALID_ARGUMENT.
    pub violations: Vec<Violation>,
    /// When to try again, where that helps.
    pub retry_after: Option<Duration>,
}

/// One field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the request, such as `items[0].quantity`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl Refusal {
    /// A refusal with a code, a reason and a sentence.
    pub fn new(code: Code, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            message: message.into(),
            metadata: HashMap::new(),
            violations: Vec::new(),
            retry_after: None,
        }
    }

    /// INVALID_ARGUMENT for one field.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        let mut violations = Violations::default();
        violations.add(field, description);
        violations.into_refusal()
    }

    /// FAILED_PRECONDITION: right in itself, but not in this state.
    pub fn precondition(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, reason, message)
    }

    /// OUT_OF_RANGE: more than can be.
    pub fn out_of_range(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::OutOfRange, reason, message)
    }

    /// NOT_FOUND.
    pub fn not_found(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, reason, message)
    }

    /// ALREADY_EXISTS.
    pub fn already_exists(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::AlreadyExists, reason, message)
    }

    /// RESOURCE_EXHAUSTED, with the time after which another try may fit.
    pub fn exhausted(reason: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(Code::ResourceExhausted, reason, message) }
    }

    /// UNAVAILABLE, with the time after which another try may fit.
    pub fn unavailable(reason: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(Code::Unavailable, reason, message) }
    }

    /// ABORTED, with the time after which to ask again: what is asked for waits for something else, such as somebody's approval. It is not
    /// kept, and nothing is written. A saga that calls counts no failure, and asks again until there is another answer.
    pub fn pending(reason: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(Code::Aborted, reason, message) }
    }

    /// INTERNAL, with nothing of the inside: log the cause where it is known.
    pub fn internal() -> Self {
        Self::new(Code::Internal, "INTERNAL", "internal error")
    }

    /// Adds what the reason is about.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The refusal as a status with `google.rpc` details. `service` is the bare name, such as `inventory`: the ErrorInfo's
    /// domain becomes `trellis.inventory`.
    #[must_use]
    pub fn into_status(self, service: &str) -> Status {
        let mut details =
            ErrorDetails::with_error_info(self.reason.into_owned(), format!("trellis.{service}"), self.metadata);
        for violation in self.violations {
            details.add_bad_request_violation(violation.field, violation.description);
        }
        if let Some(delay) = self.retry_after {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(self.code, self.message, details)
    }

    /// Reads a refusal back from a status. Without ErrorInfo the code's name stands in for the reason.
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let (reason, metadata) = match details.error_info() {
            Some(info) => (info.reason.clone(), info.metadata.clone()),
            None => (code_name(status.code()).to_owned(), HashMap::new()),
        };
        let violations = details.bad_request().map_or_else(Vec::new, |bad| {
            let violation = |v: &tonic_types::FieldViolation| Violation {
                field: v.field.clone(),
                description: v.description.clone(),
            };
            bad.field_violations.iter().map(violation).collect()
        });
        Self {
            code: status.code(),
            reason: reason.into(),
            message: status.message().to_owned(),
            metadata,
            violations,
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

/// Collects everything that is wrong with a request, so that a caller mends it in one go.
#[derive(Debug, Default)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// The most that one refusal lists.
    const MOST: usize = 20;

    /// Notes that a field is wrong.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.0.len() < Self::MOST {
            self.0.push(Violation { field: field.into(), description: description.into() });
        }
    }

    /// Notes that a field is wrong unless `holds`.
    pub fn require(&mut self, holds: bool, field: &str, description: &str) {
        if !holds {
            self.add(field, description);
        }
    }

    /// Checks an id chosen by a caller: 1 to 64 of letters, digits, `.`, `_` and `-`.
    pub fn id(&mut self, value: &str, field: &str) {
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !(1..=64).contains(&value.len()) || !value.bytes().all(letters) {
            self.add(field, "must be 1 to 64 characters of letters, digits, '.', '_' and '-'");
        }
    }

    /// Checks a request_id (AIP-155): empty, or up to 128 visible ASCII characters. True if it is that.
    pub fn request_id(&mut self, value: &str) -> bool {
        let is_one = value.len() <= 128 && value.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_one {
            self.add("request_id", "must be at most 128 visible ASCII characters; a UUID is best");
        }
        is_one
    }

    /// INVALID_ARGUMENT with every field that is wrong.
    ///
    /// # Errors
    /// When anything was noted.
    pub fn refuse(self) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(self.into_refusal()) }
    }

    fn into_refusal(self) -> Refusal {
        let first = self.0.first().map(|first| format!("{}: {}", first.field, first.description)).unwrap_or_default();
        let message = match self.0.len() {
            0 | 1 => first,
            more => format!("{first} (and {} more)", more - 1),
        };
        Refusal { violations: self.0, ..Refusal::new(Code::InvalidArgument, "INVALID_REQUEST", message) }
    }
}

/// A code's name in gRPC's specification, as a person reads it: `UNAVAILABLE`.
#[must_use]
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire() {
        let refusal = Refusal::precondition("INSUFFICIENT_STOCK", "only 3 of sku tea left").with("sku", "tea");
        let status = refusal.clone().into_status("inventory");
        assert_eq!(Refusal::from_status(&status), refusal);
        assert_eq!(status.get_details_error_info().map(|info| info.domain), Some("trellis.inventory".to_owned()));
    }

    #[test]
    fn a_bare_status_has_its_codes_name_for_a_reason() {
        for code in (0..=16).map(Code::from_i32) {
            let name = format!("{code:?}").to_uppercase();
            let refusal = Refusal::from_status(&Status::new(code, "why"));
            assert_eq!(refusal.reason.replace('_', ""), name);
        }
        assert_eq!(Refusal::from_status(&Status::failed_precondition("why")).reason, "FAILED_PRECONDITION");
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let mut violations = Violations::default();
        violations.id("", "sku");
        violations.require(false, "quantity", "must be positive");
        violations.request_id(&"x".repeat(1 << 20));
        let refusal = violations.refuse().expect_err("three are wrong");
        assert_eq!(refusal.code, Code::InvalidArgument);
        assert_eq!(refusal.violations.len(), 3);
    }
}
