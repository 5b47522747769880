//! What a caller gets when the circuit refuses: a status that programs can read, here and across a network.

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Reason, Rejected};

/// The ErrorInfo domain of a breaker's refusals.
pub const DOMAIN: &str = "trellis.breaker";

/// A call was refused by a circuit breaker and never sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("circuit open: {breaker}")]
pub struct CircuitOpen {
    /// The breaker's name.
    pub breaker: Arc<str>,
    /// Why.
    pub reason: Reason,
    /// When asking again may help.
    pub retry_after: Duration,
    /// The breaker's generation.
    pub generation: u32,
}

impl Reason {
    const ALL: [Self; 4] = [Self::Open, Self::HalfOpenSaturated, Self::Recovering, Self::ForcedOpen];

    /// The ErrorInfo reason, stable for ever.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "CIRCUIT_OPEN",
            Self::HalfOpenSaturated => "HALF_OPEN_SATURATED",
            Self::Recovering => "RECOVERING",
            Self::ForcedOpen => "FORCED_OPEN",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

impl CircuitOpen {
    /// Reads the refusal out of a status: from its source in the process that refused, from its details elsewhere.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        let mut next = status.source();
        while let Some(error) = next {
            if let Some(open) = error.downcast_ref::<Self>() {
                return Some(open.clone());
            }
            next = error.source();
        }
        if status.code() != Code::Unavailable {
            return None;
        }
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
        Some(Self {
            breaker: info.metadata.get("breaker")?.as_str().into(),
            reason: Reason::parse(&info.reason)?,
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay).unwrap_or_default(),
            generation: info.metadata.get("generation").and_then(|text| text.parse().ok()).unwrap_or_default(),
        })
    }

    /// The refusal as a status: UNAVAILABLE, with ErrorInfo, RetryInfo and itself as the source.
    #[must_use]
    pub fn into_status(self) -> Status {
        let metadata = HashMap::from([
            ("breaker".to_owned(), self.breaker.to_string()),
            ("generation".to_owned(), self.generation.to_string()),
        ]);
        let mut details = ErrorDetails::with_error_info(self.reason.as_str(), DOMAIN, metadata);
        details.set_retry_info(Some(self.retry_after));
        let mut status = Status::with_error_details(Code::Unavailable, self.to_string(), details);
        status.set_source(Arc::new(self));
        status
    }
}

/// Makes statuses of refusals, and encodes each kind once: a circuit that refuses thousands says the same to all for a while.
#[derive(Debug)]
pub(crate) struct Refusals {
    breaker: Arc<str>,
    last: Mutex<Option<(Rejected, Status)>>,
}

impl Refusals {
    /// Retry times are rounded up to this, so that they repeat.
    const STEP: u64 = 100_000_000;

    pub(crate) fn new(breaker: Arc<str>) -> Self {
        Self { breaker, last: Mutex::new(None) }
    }

    pub(crate) fn status(&self, mut rejected: Rejected) -> Status {
        let nanos = u64::try_from(rejected.retry_after.as_nanos()).unwrap_or(u64::MAX);
        rejected.retry_after = Duration::from_nanos(nanos.div_ceil(Self::STEP).saturating_mul(Self::STEP));
        let mut last = self.last.lock();
        if let Some((said, status)) = &*last
            && *said == rejected
        {
            return status.clone();
        }
        let Rejected { reason, retry_after, generation } = rejected;
        let status = CircuitOpen { breaker: Arc::clone(&self.breaker), reason, retry_after, generation }.into_status();
        *last = Some((rejected, status.clone()));
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(reason: Reason, millis: u64) -> Rejected {
        Rejected { reason, retry_after: Duration::from_millis(millis), generation: 3 }
    }

    #[test]
    fn a_refusal_is_read_back_here_and_across_the_wire() {
        let refusals = Refusals::new("payment".into());
        for reason in Reason::ALL {
            let status = refusals.status(rejected(reason, 4_950));
            let open =
                CircuitOpen { breaker: "payment".into(), reason, retry_after: Duration::from_secs(5), generation: 3 };
            assert_eq!(CircuitOpen::from_status(&status).as_ref(), Some(&open));

            let headers = status.into_http::<()>().into_parts().0.headers;
            let received = Status::from_header_map(&headers).expect("a status");
            assert!(received.source().is_none());
            assert_eq!(received.code(), Code::Unavailable);
            assert_eq!(CircuitOpen::from_status(&received), Some(open));
        }
    }

    #[test]
    fn others_who_are_unavailable_are_not_taken_for_a_breaker() {
        assert_eq!(CircuitOpen::from_status(&Status::unavailable("away")), None);
        let foreign = ErrorDetails::with_error_info("CIRCUIT_OPEN", "example.org", HashMap::new());
        let foreign = Status::with_error_details(Code::Unavailable, "", foreign);
        assert_eq!(CircuitOpen::from_status(&foreign), None);
    }
}
