//! What one answer of a participant means for the call that it ends: its ruling. Only a verdict proves that an operation was refused; a
//! status code alone proves nothing: a proxy, a timer or a dying connection makes codes too.

use tonic::Code;

use crate::rpc::verdict::{Op, Verdict};

/// What an answer means for its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// It took effect.
    Done,
    /// It was refused and had no effect.
    Rejected,
    /// It is under way: ask again, and count no failure.
    Pending,
    /// Its compensation was there first: it had no effect and never will.
    Cancelled,
    /// The participant knows the operation by another request.
    Conflict,
    /// Nobody knows: call again.
    Retry,
    /// Nobody knows, and somebody must mend something: tell at once, call again slowly.
    RetrySlowly,
    /// Nobody knows, and the step's author trusts this code to be final: turn back, and undo the step too.
    GiveUp,
}

/// What a step's author says of the participant's answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answers<'d> {
    /// They have a verdict: it has our barrier, and the operation an effect.
    pub(super) with_verdict: bool,
    /// Codes that are final without one. They count for actions only.
    pub(super) trusted: &'d [Code],
}

/// The table.
#[must_use]
pub(super) fn rule(op: Op, code: Code, verdict: Option<Verdict>, answers: Answers<'_>) -> Ruling {
    match (verdict, code) {
        (Some(Verdict::Rejected), _) => Ruling::Rejected,
        (Some(Verdict::Pending), _) => Ruling::Pending,
        (Some(Verdict::Conflict), _) => Ruling::Conflict,
        (Some(Verdict::Cancelled), _) if op == Op::Action => Ruling::Cancelled,
        (Some(Verdict::Applied | Verdict::Replayed), Code::Ok) => Ruling::Done,
        // Somebody else has answered, or something on the way has taken the verdict: nothing says that it was done.
        (None, Code::Ok) if answers.with_verdict => Ruling::RetrySlowly,
        // A participant without verdicts that answers OK has done what it was asked.
        (None, Code::Ok) => Ruling::Done,
        // An error that says it took effect, or a compensation that was compensated: ask again, the answer will be kept.
        (Some(_), _) => Ruling::Retry,
        (None, code) if op == Op::Action && answers.trusted.contains(&code) => Ruling::GiveUp,
        (None, Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied) => Ruling::RetrySlowly,
        (None, _) => Ruling::Retry,
    }
}

/// The codes that a step's author may trust: what handlers answer on purpose. The others are made by transports, too.
pub(super) const TRUSTABLE: [Code; 5] =
    [Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound, Code::OutOfRange, Code::AlreadyExists];

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    fn codes() -> impl Iterator<Item = Code> {
        (0..=16).map(Code::from)
    }

    /// Every code, every verdict, both operations, trusted or not, as one text: a change of any cell must be meant.
    #[test]
    fn the_table_is_as_it_is_written_down() {
        use Verdict::{Applied, Cancelled, Conflict, Pending, Rejected, Replayed};
        let verdicts =
            [None, Some(Applied), Some(Replayed), Some(Rejected), Some(Pending), Some(Cancelled), Some(Conflict)];
        let letter = |ruling| match ruling {
            Ruling::Done => 'D',
            Ruling::Rejected => 'X',
            Ruling::Pending => 'P',
            Ruling::Cancelled => 'T',
            Ruling::Conflict => 'C',
            Ruling::Retry => 'r',
            Ruling::RetrySlowly => 's',
            Ruling::GiveUp => 'G',
        };
        let row = |op, verdict, with_verdict, trusted: &[Code]| {
            codes().map(|code| letter(rule(op, code, verdict, Answers { with_verdict, trusted }))).collect::<String>()
        };
        // From OK to UNAUTHENTICATED, in the order of their numbers.
        let expected = [
            // without a verdict: action, action whose author trusts what can be trusted, compensation
            ["Drrrrrrsrrrrsrrrs", "DrrGrGGsrGrGsrrrs", "Drrrrrrsrrrrsrrrs"],
            // without one where there must be one, then with each
            ["srrrrrrsrrrrsrrrs", "srrGrGGsrGrGsrrrs", "srrrrrrsrrrrsrrrs"],
            ["Drrrrrrrrrrrrrrrr", "Drrrrrrrrrrrrrrrr", "Drrrrrrrrrrrrrrrr"],
            ["Drrrrrrrrrrrrrrrr", "Drrrrrrrrrrrrrrrr", "Drrrrrrrrrrrrrrrr"],
            ["XXXXXXXXXXXXXXXXX", "XXXXXXXXXXXXXXXXX", "XXXXXXXXXXXXXXXXX"],
            ["PPPPPPPPPPPPPPPPP", "PPPPPPPPPPPPPPPPP", "PPPPPPPPPPPPPPPPP"],
            ["TTTTTTTTTTTTTTTTT", "TTTTTTTTTTTTTTTTT", "rrrrrrrrrrrrrrrrr"],
            ["CCCCCCCCCCCCCCCCC", "CCCCCCCCCCCCCCCCC", "CCCCCCCCCCCCCCCCC"],
        ];
        let rows = |verdict, with_verdict| {
            [
                row(Op::Action, verdict, with_verdict, &[]),
                row(Op::Action, verdict, with_verdict, &TRUSTABLE),
                row(Op::Compensation, verdict, with_verdict, &TRUSTABLE),
            ]
        };
        let actual: Vec<_> =
            iter::once(rows(None, false)).chain(verdicts.into_iter().map(|verdict| rows(verdict, true))).collect();
        assert_eq!(actual, expected);
    }

    #[test]
    fn no_code_alone_refuses_an_operation() {
        for (code, with_verdict) in codes().flat_map(|code| [(code, false), (code, true)]) {
            let answers = Answers { with_verdict, trusted: &TRUSTABLE };
            assert_ne!(rule(Op::Action, code, None, answers), Ruling::Rejected);
        }
    }
}
