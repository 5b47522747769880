//! One saga as its coordinator keeps it.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::{
    DecodeError, Message as _,
    encoding::{WireType, encode_key, encode_varint},
};
use prost_types::Timestamp;
use proto::saga::v1::{HistoryEntry, Operation, Reason, Saga, SagaPhase, SagaRecord, Step};

use tonic::Code;

use crate::{refusal::Refusal, rpc::verdict::Op, time::timestamp};

/// The history's length in a saga: what is older is in the journal's events.
const MOST_HISTORY: usize = 64;
/// The longest detail that a history keeps.
const MOST_DETAIL: usize = 512;

/// One saga, decoded: what queries show, and what is kept beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Record {
    /// What queries show.
    pub(super) saga: Saga,
    /// The rest. Its own `saga` is always absent.
    pub(super) kept: SagaRecord,
    /// Steps whose operation has just begun: its first call is counted and has not left yet.
    pub(super) fresh: u64,
}

impl Record {
    /// Reads a stored record.
    pub(super) fn decode(bytes: Bytes) -> Result<Self, RecordError> {
        let mut kept = SagaRecord::decode(bytes)?;
        let saga = kept.saga.take().ok_or(RecordError::Incomplete)?;
        if saga.steps.len() != kept.steps.len() {
            return Err(RecordError::Incomplete);
        }
        Ok(Self { saga, kept, fresh: 0 })
    }

    /// Encodes what queries show, and with it, encoded only once, the whole record.
    pub(super) fn encode(&self) -> (Bytes, Vec<u8>) {
        let saga = Bytes::from(self.saga.encode_to_vec());
        let mut record = BytesMut::with_capacity(saga.len() + self.kept.encoded_len() + 8);
        encode_key(1, WireType::LengthDelimited, &mut record);
        encode_varint(saga.len() as u64, &mut record);
        record.put_slice(&saga);
        // A BytesMut grows: encoding into it can't fail.
        let _ = self.kept.encode(&mut record);
        (saga, record.into())
    }

    /// Adds a line to the history. Of the same thing again and again, such as a failing call, the last one stays.
    pub(super) fn note(&mut self, now: i64, line: Line<'_>) {
        let Line { what, step, op, attempt, detail, actor } = line;
        let step = step.map(|step| self.saga.steps[step].name.clone()).unwrap_or_default();
        let entry = HistoryEntry {
            time: Some(timestamp(now)),
            version: self.saga.version + 1,
            what: what.to_owned(),
            step,
            operation: op.map_or(Operation::Unspecified, operation).into(),
            attempt,
            detail: shorten(detail),
            actor: actor.to_owned(),
        };
        let history = &mut self.saga.history;
        let again = |last: &&mut HistoryEntry| {
            attempt > 1 && last.what == what && last.step == entry.step && last.operation == entry.operation
        };
        match history.last_mut().filter(again) {
            Some(last) => *last = entry,
            None => {
                if history.len() >= MOST_HISTORY {
                    history.remove(0);
                }
                history.push(entry);
            }
        }
    }
}

/// A line of the history about to be written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Line<'a> {
    pub(super) what: &'a str,
    pub(super) step: Option<usize>,
    pub(super) op: Option<Op>,
    pub(super) attempt: u32,
    pub(super) detail: &'a str,
    pub(super) actor: &'a str,
}

/// A stored record can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    /// Not what was written.
    #[error("the record can't be read: {0}")]
    Decode(#[from] DecodeError),
    /// A part is missing.
    #[error("the record is incomplete")]
    Incomplete,
}

/// True once nothing can happen to a saga any more.
pub(super) const fn is_final(phase: SagaPhase) -> bool {
    matches!(phase, SagaPhase::Completed | SagaPhase::Compensated | SagaPhase::ForceClosed)
}

pub(super) fn reason(step: &str, refusal: &Refusal) -> Reason {
    Reason {
        step: step.to_owned(),
        reason: refusal.reason.to_string(),
        message: shorten(&refusal.message),
        code: refusal.code.into(),
    }
}

/// Why a saga turns back that an operator cancels.
pub(super) fn cancelled(why: &str) -> Reason {
    reason("", &Refusal::new(Code::Cancelled, "CANCELLED", why))
}

/// A deadline has passed.
pub(super) fn too_late(reason: &'static str, message: &str) -> Refusal {
    Refusal::new(Code::DeadlineExceeded, reason, message)
}

/// When a step's next attempt leaves; 0 is now.
pub(super) fn next_attempt(step: &Step) -> i64 {
    let micros = |time: &Timestamp| time.seconds.saturating_mul(1_000_000) + i64::from(time.nanos) / 1_000;
    step.next_attempt_time.as_ref().map_or(0, micros)
}

pub(super) const fn operation(op: Op) -> Operation {
    match op {
        Op::Action => Operation::Action,
        Op::Compensation => Operation::Compensation,
    }
}

fn shorten(text: &str) -> String {
    let end = text.char_indices().map(|(at, _)| at).find(|at| *at >= MOST_DETAIL).unwrap_or(text.len());
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use proto::saga::v1::StepRecord;

    use super::*;

    fn record() -> Record {
        let step = Step { name: "charge".to_owned(), ..Step::default() };
        let saga = Saga { saga_id: "s".to_owned(), steps: vec![step], version: 7, ..Saga::default() };
        let kept = StepRecord { request: Bytes::from_static(b"request"), ..StepRecord::default() };
        let kept = SagaRecord { input: Bytes::from_static(b"input"), steps: vec![kept], ..SagaRecord::default() };
        Record { saga, kept, fresh: 0 }
    }

    #[test]
    fn a_record_survives_the_store_and_shows_the_same_saga() {
        let (saga, stored) = record().encode();
        assert_eq!(Saga::decode(saga).ok(), Some(record().saga));
        let whole = SagaRecord { saga: Some(record().saga), ..record().kept };
        assert_eq!(SagaRecord::decode(stored.as_slice()).ok(), Some(whole));
        assert_eq!(Record::decode(stored.into()).ok(), Some(record()));
    }

    #[test]
    fn half_a_record_is_refused() {
        assert!(Record::decode(Bytes::new()).is_err());
        let more = SagaRecord { saga: Some(Saga::default()), ..record().kept };
        assert!(Record::decode(more.encode_to_vec().into()).is_err());
    }

    #[test]
    fn the_history_is_bounded_and_a_repeated_failure_is_one_line() {
        let mut record = record();
        let line = Line { what: "action failed", step: Some(0), op: Some(Op::Action), ..Line::default() };
        for attempt in 1..=100 {
            record.note(attempt.into(), Line { attempt, ..line });
        }
        assert_eq!(record.saga.history.len(), 1);
        assert_eq!((record.saga.history[0].attempt, record.saga.history[0].version), (100, 8));
        for now in 0..200 {
            record.note(now, Line { what: "paused", ..Line::default() });
        }
        assert_eq!(record.saga.history.len(), MOST_HISTORY);
    }

    #[test]
    fn a_detail_is_cut_between_characters() {
        assert_eq!(shorten(&"é".repeat(1000)).len(), MOST_DETAIL);
    }
}
