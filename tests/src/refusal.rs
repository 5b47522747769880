//! A refusal as a test expects it.

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What of a status a caller acts on.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// The code.
    pub code: Code,
    /// ErrorInfo's reason.
    pub reason: String,
    /// ErrorInfo's domain.
    pub domain: String,
    /// The fields of BadRequest.
    pub fields: Vec<String>,
}

impl Refused {
    /// The refusal that a test expects of a service.
    #[must_use]
    pub fn by(service: &str, code: Code, reason: &str, fields: &[&str]) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            domain: format!("trellis.{service}"),
            fields: fields.iter().map(ToString::to_string).collect(),
        }
    }

    /// INVALID_ARGUMENT with these fields wrong.
    #[must_use]
    pub fn invalid(service: &str, fields: &[&str]) -> Self {
        Self::by(service, Code::InvalidArgument, "INVALID_REQUEST", fields)
    }

    /// What a call was answered.
    ///
    /// # Panics
    /// When it was granted.
    #[track_caller]
    pub fn of<T>(answer: Result<T, Status>) -> Self {
        let Err(status) = answer else { panic!("the call was granted") };
        let details = status.get_error_details();
        let info = details.error_info();
        let bad = details.bad_request();
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            domain: info.map(|info| info.domain.clone()).unwrap_or_default(),
            fields: bad.map_or_else(Vec::new, |bad| bad.field_violations.iter().map(|v| v.field.clone()).collect()),
        }
    }
}
