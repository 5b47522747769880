//! What a participant's reply means. Only a verdict proves anything; a status code alone may have been made on the way.

use std::time::Duration;

use bytes::Bytes;
use proto::saga::v1::{Reason, StepKind};
use tonic::{Code, Status, metadata::MetadataMap};

use super::machine::{End, reason_of};
use crate::{
    refusal::Refusal,
    rpc::verdict::{Op, Verdict},
};

/// How often to ask again where the participant doesn't say.
const POLL: Duration = Duration::from_millis(500);
/// How long to wait before trying again what only a person can mend.
const SLOW: Duration = Duration::from_secs(10);

/// What follows from one attempt.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Next {
    /// The operation has come to an end.
    End(End),
    /// Another attempt, after the step's own backoff or at least this long.
    Retry { error: String, at_least: Duration, alert: bool },
    /// The participant is at it: ask again after this long. No failure.
    Poll(Duration),
}

/// The position of a step that a reply is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position<'a> {
    pub(super) step: &'a str,
    pub(super) kind: StepKind,
    pub(super) op: Op,
    pub(super) trusted_codes: &'a [Code],
}

/// Judges a reply.
pub(super) fn judge(position: Position<'_>, reply: Result<(Bytes, MetadataMap), Status>) -> Next {
    let Position { step, kind, op, trusted_codes } = position;
    let (verdict, status) = match reply {
        Ok((reply, metadata)) => match Verdict::from_metadata(&metadata) {
            // An OK without a verdict comes from a participant without the barrier: it did what it was asked.
            None | Some(Verdict::Applied | Verdict::Replayed) => return Next::End(End::Done(reply)),
            Some(verdict) => (Some(verdict), Status::unknown("an OK with a verdict that contradicts it")),
        },
        Err(status) => (Verdict::from_metadata(status.metadata()), status),
    };
    let refusal = Refusal::from_status(&status);
    let retry_after = pushback(&status).or(refusal.retry_after).unwrap_or_default();
    let reason = |name: &str| Reason { code: status.code().into(), ..reason_of(step, name, status.message()) };
    match verdict {
        Some(Verdict::Rejected) => return Next::End(End::Rejected(reason(&refusal.reason))),
        Some(Verdict::Pending) => {
            return Next::Poll(if retry_after.is_zero() { POLL } else { retry_after });
        }
        Some(Verdict::Cancelled) => {
            let message = "the participant met this action's compensation first";
            return Next::End(End::Puzzled(reason_of(step, "ACTION_CANCELLED", message)));
        }
        Some(Verdict::Conflict) => return Next::End(End::Puzzled(reason("REQUEST_CONFLICT"))),
        Some(Verdict::Applied | Verdict::Replayed) | None => {}
    }
    let code = status.code();
    if op == Op::Action && trusted_codes.contains(&code) {
        // Said without a barrier, so the effect is unknown: the step is undone with the others.
        return match kind {
            StepKind::Check | StepKind::Compensatable => Next::End(End::GivenUp(reason(&refusal.reason))),
            _ => Next::End(End::Rejected(reason(&refusal.reason))),
        };
    }
    let alert = matches!(code, Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied);
    let at_least = if alert { SLOW.max(retry_after) } else { retry_after };
    Next::Retry { error: format!("{code:?}: {}", status.message()), at_least, alert }
}

/// gRPC's own word (A6) for how long to stay away.
fn pushback(status: &Status) -> Option<Duration> {
    let text = status.metadata().get("grpc-retry-pushback-ms")?.to_str().ok()?;
    text.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Code; 16] = [
        Code::Cancelled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    fn at(kind: StepKind, op: Op, trusted_codes: &[Code]) -> Position<'_> {
        Position { step: "charge", kind, op, trusted_codes }
    }

    fn status(code: Code, verdict: Option<Verdict>) -> Result<(Bytes, MetadataMap), Status> {
        let mut status = Status::new(code, "said");
        if let Some(verdict) = verdict {
            verdict.write_to(status.metadata_mut());
        }
        Err(status)
    }

    #[test]
    fn no_code_alone_ends_an_operation() {
        for kind in [StepKind::Check, StepKind::Compensatable, StepKind::Pivot, StepKind::Retriable] {
            for op in [Op::Action, Op::Compensation] {
                for code in ALL {
                    let next = judge(at(kind, op, &[]), status(code, None));
                    assert!(matches!(next, Next::Retry { .. }), "{kind:?} {op:?} {code:?}: {next:?}");
                }
            }
        }
    }

    #[test]
    fn a_rejection_is_one_whatever_its_code() {
        for code in ALL {
            let next = judge(at(StepKind::Pivot, Op::Action, &[]), status(code, Some(Verdict::Rejected)));
            assert!(matches!(next, Next::End(End::Rejected(_))), "{code:?}: {next:?}");
        }
    }

    #[test]
    fn a_tombstone_or_a_conflict_is_for_a_person() {
        for verdict in [Verdict::Cancelled, Verdict::Conflict] {
            let next = judge(at(StepKind::Compensatable, Op::Action, &[]), status(Code::Aborted, Some(verdict)));
            assert!(matches!(next, Next::End(End::Puzzled(_))), "{next:?}");
        }
    }

    #[test]
    fn pending_polls_and_counts_no_failure() {
        let next = judge(at(StepKind::Pivot, Op::Action, &[]), status(Code::Unavailable, Some(Verdict::Pending)));
        assert_eq!(next, Next::Poll(POLL));
    }

    #[test]
    fn a_trusted_code_turns_the_saga_back_and_undoes_the_step_too() {
        let trusted = [Code::NotFound];
        let next = judge(at(StepKind::Compensatable, Op::Action, &trusted), status(Code::NotFound, None));
        assert!(matches!(next, Next::End(End::GivenUp(_))), "{next:?}");
        let next = judge(at(StepKind::Compensatable, Op::Compensation, &trusted), status(Code::NotFound, None));
        assert!(matches!(next, Next::Retry { .. }), "a compensation is never given up: {next:?}");
    }

    #[test]
    fn pushback_is_honoured() {
        let mut status = Status::resource_exhausted("busy");
        status.metadata_mut().insert("grpc-retry-pushback-ms", "1500".parse().expect("ascii"));
        let next = judge(at(StepKind::Pivot, Op::Action, &[]), Err(status));
        assert!(matches!(next, Next::Retry { at_least, .. } if at_least == Duration::from_millis(1500)), "{next:?}");
    }

    #[test]
    fn what_only_a_person_can_mend_is_tried_slowly_and_told() {
        for code in [Code::Unimplemented, Code::Unauthenticated, Code::PermissionDenied] {
            let next = judge(at(StepKind::Compensatable, Op::Action, &[]), status(code, None));
            assert!(matches!(next, Next::Retry { at_least: SLOW, alert: true, .. }), "{next:?}");
        }
    }
}
