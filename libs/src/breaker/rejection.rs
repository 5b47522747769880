//! What a caller gets when the circuit refuses: a status that programs can read, here and across a network.

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Breaker, Cause, Reason, Rejected};

/// The ErrorInfo domain of a breaker's refusals.
pub const DOMAIN: &str = "trellis.breaker";

/// The ErrorInfo reason by which a server that is about to stop ends streams, stable for ever.
pub(crate) const DRAINING: &str = "DRAINING";

/// The ErrorInfo reason of a query that asks for more than the views know, though they were waited for. Stable for ever.
pub(crate) const NOT_CAUGHT_UP: &str = "NOT_CAUGHT_UP";

/// The ErrorInfo reason of a saga that wants a lock for which too many wait. Stable for ever.
pub(crate) const LOCK_QUEUE_FULL: &str = "LOCK_QUEUE_FULL";

/// A call was refused by a circuit breaker and never sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("circuit open: {breaker}")]
pub struct CircuitOpen {
    /// The breaker's name.
    pub breaker: Arc<str>,
    /// Why.
    pub reason: Reason,
    /// Why the circuit last opened, if it did.
    pub cause: Option<Cause>,
    /// When asking again may help.
    pub retry_after: Duration,
    /// The breaker's generation.
    pub generation: u32,
}

impl Reason {
    const ALL: [Self; 5] = [Self::Open, Self::HalfOpenSaturated, Self::Recovering, Self::ForcedOpen, Self::Throttled];

    /// The ErrorInfo reason, stable for ever.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "CIRCUIT_OPEN",
            Self::HalfOpenSaturated => "HALF_OPEN_SATURATED",
            Self::Recovering => "RECOVERING",
            Self::ForcedOpen => "FORCED_OPEN",
            Self::Throttled => "THROTTLED",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

impl Cause {
    const ALL: [Self; 5] = [Self::Consecutive, Self::FailureRate, Self::SlowRate, Self::Probes, Self::ProbeTimeout];

    /// The cause as a constant for programs, stable for ever.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive => "CONSECUTIVE_FAILURES",
            Self::FailureRate => "FAILURE_RATE",
            Self::SlowRate => "SLOW_RATE",
            Self::Probes => "PROBES",
            Self::ProbeTimeout => "PROBE_TIMEOUT",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == text)
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
            cause: info.metadata.get("cause").and_then(|text| Cause::parse(text)),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay).unwrap_or_default(),
            generation: info.metadata.get("generation").and_then(|text| text.parse().ok()).unwrap_or_default(),
        })
    }

    /// The refusal as a status: UNAVAILABLE, with ErrorInfo, RetryInfo and itself as the source.
    #[must_use]
    pub fn into_status(self) -> Status {
        let mut metadata = HashMap::from([
            ("breaker".to_owned(), self.breaker.to_string()),
            ("generation".to_owned(), self.generation.to_string()),
        ]);
        metadata.extend(self.cause.map(|cause| ("cause".to_owned(), cause.as_str().to_owned())));
        let mut details = ErrorDetails::with_error_info(self.reason.as_str(), DOMAIN, metadata);
        details.set_retry_info(Some(self.retry_after));
        let mut status = Status::with_error_details(Code::Unavailable, self.to_string(), details);
        status.set_source(Arc::new(self));
        status
    }
}

/// Whether one of our breakers or bulkheads says this, here or further on: whoever was to be called was not asked.
pub(crate) fn is_our_refusal(status: &Status) -> bool {
    let ours = |status: &Status| status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN);
    match status.code() {
        Code::Unavailable => CircuitOpen::from_status(status).is_some(),
        Code::ResourceExhausted => ours(status),
        _ => false,
    }
}

/// Whether a server says this that ends its streams in order, to stop or to have them made anew: it works as it should.
pub(crate) fn is_draining(status: &Status) -> bool {
    says(status, Code::Unavailable, DRAINING)
}

/// Whether a server says this of a query that asks for more than its views know: waiting for them is no use there, and others have their
/// answers.
pub(crate) fn is_behind(status: &Status) -> bool {
    says(status, Code::Unavailable, NOT_CAUGHT_UP)
}

/// Whether a server that works as it should says this: it ends a stream in order, or what was asked for is at fault, and nothing else.
pub(crate) fn is_no_fault(status: &Status) -> bool {
    is_draining(status) || is_behind(status) || says(status, Code::ResourceExhausted, LOCK_QUEUE_FULL)
}

/// Whether one of our servers gives this reason.
fn says(status: &Status, code: Code, reason: &str) -> bool {
    status.code() == code
        && status
            .get_details_error_info()
            .is_some_and(|info| info.reason == reason && info.domain.starts_with("trellis."))
}

/// Makes statuses of refusals, and encodes each kind once: a circuit that refuses thousands says the same to all for a while.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<Option<(Rejected, Status)>>);

impl Refusals {
    /// Retry times are rounded up to this, so that they repeat.
    const STEP: u64 = 100_000_000;

    /// The status of what this breaker rejected.
    pub(crate) fn status(&self, breaker: &Breaker, mut rejected: Rejected) -> Status {
        let nanos = u64::try_from(rejected.retry_after.as_nanos()).unwrap_or(u64::MAX);
        rejected.retry_after = Duration::from_nanos(nanos.div_ceil(Self::STEP).saturating_mul(Self::STEP));
        let mut last = self.0.lock();
        if let Some((said, status)) = &*last
            && *said == rejected
        {
            return status.clone();
        }
        let Rejected { reason, retry_after, generation } = rejected;
        let (breaker, cause) = (Arc::clone(breaker.name()), breaker.last_cause());
        let status = CircuitOpen { breaker, reason, cause, retry_after, generation }.into_status();
        *last = Some((rejected, status.clone()));
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::{Class, Config};

    #[test]
    fn every_cause_is_read_back() {
        for cause in Cause::ALL {
            assert_eq!(Cause::parse(cause.as_str()), Some(cause));
        }
    }

    fn rejected(reason: Reason, millis: u64) -> Rejected {
        Rejected { reason, retry_after: Duration::from_millis(millis), generation: 3 }
    }

    #[test]
    fn a_refusal_is_read_back_here_and_across_the_wire() {
        let config = Config::builder().consecutive_failures(1).build().expect("makes sense");
        let (refusals, breaker) = (Refusals::default(), Breaker::new("payment", config));
        breaker.admit().expect("closed").finish(Class::Failure);
        for reason in Reason::ALL {
            let status = refusals.status(&breaker, rejected(reason, 4_950));
            let open = CircuitOpen {
                breaker: "payment".into(),
                reason,
                cause: Some(Cause::Consecutive),
                retry_after: Duration::from_secs(5),
                generation: 3,
            };
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
