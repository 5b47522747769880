//! One saga as its coordinator keeps it.

mod encode;
mod new;
mod told;

use bytes::Bytes;
use prost::{DecodeError, Message as _, encoding::message};
use proto::saga::v1::{
    HistoryEntry, Operation, Reason, Saga, SagaPhase, SagaRecord, SagaTransition, Step, StepChange, StepState,
};
use tonic::Code;

pub(super) use self::told::STUCK;
use super::plan::Steps;
use crate::{
    refusal::Refusal,
    rpc::verdict::Op,
    time::{micros, timestamp},
};

/// The history's length in a saga: what found no room there is in the journal's events.
const MOST_HISTORY: usize = 64;
/// How many characters of what others say a saga keeps: all of what an operator may say.
const MOST_DETAIL: usize = 512;

/// How many bytes of requests and replies a saga keeps at the most before it starts one more step that it could do without: what is kept
/// is written with each transition.
pub(super) const MOST_BYTES: usize = 8 << 20;

/// One saga, decoded: what queries show, and what is kept beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Record {
    /// What queries show. Its steps are changed by [`Record::step_mut`], its history by [`Record::note`]. The history goes back
    /// to when this process took the saga up; all of it is in the log.
    pub(super) saga: Saga,
    /// The rest. Its own `saga` is always absent.
    pub(super) kept: SagaRecord,
    /// Steps whose operation has just begun: its first call is counted and has not left yet.
    pub(super) fresh: u64,
    /// True while the saga stands in the queue of its locks: it asks again when it is told to.
    pub(super) queued: bool,
    /// Steps that have just begun and whose sagas are stored with the next transition.
    pub(super) unborn: Steps,
    /// While what ends the saga is refused for now.
    pub(super) ending: Option<EndingWaits>,
    /// What changed since the record was last stored.
    unsaved: Unsaved,
}

/// What ends a saga waits until it is asked for again, in microseconds since 1970. A restart ends that wait as any other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct EndingWaits {
    /// When it was refused first.
    pub(super) since: i64,
    /// When it is asked for again.
    pub(super) until: i64,
}

/// A record at rest: the same, and a fraction of its size. A hundred thousand sagas that wait for a participant to come back fit so.
#[derive(Debug)]
pub(super) struct Packed {
    bytes: Bytes,
    // What has no place in the bytes.
    fresh: u64,
    queued: bool,
    unborn: Steps,
    ending: Option<EndingWaits>,
    unsaved: Unsaved,
}

impl Packed {
    /// The record as it was.
    ///
    /// # Errors
    /// Never, for what [`Record::pack`] has made.
    pub(super) fn unpack(self) -> Result<Record, RecordError> {
        let Self { bytes, fresh, queued, unborn, ending, unsaved } = self;
        let Record { saga, kept, .. } = Record::decode(bytes)?;
        Ok(Record { saga, kept, fresh, queued, unborn, ending, unsaved })
    }
}

/// What a transition changes of what queries show.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Unsaved {
    steps: Steps,
    /// How many lines at the history's end are new.
    lines: usize,
    replaces_last: bool,
    /// True if the record must be stored, whatever becomes of the work that was to be done with it.
    must: bool,
}

impl Record {
    /// Reads a stored record.
    pub(super) fn decode(bytes: Bytes) -> Result<Self, RecordError> {
        let mut kept = SagaRecord::decode(bytes)?;
        let saga = *kept.saga.take().ok_or(RecordError::Incomplete)?;
        if saga.steps.len() != kept.steps.len() {
            return Err(RecordError::Incomplete);
        }
        Ok(Self { saga, kept, ..Self::default() })
    }

    /// Takes the record, and leaves an empty one.
    pub(super) fn pack(&mut self) -> Packed {
        let Self { saga, kept, fresh, queued, unborn, ending, unsaved } = std::mem::take(self);
        // The length to the byte: a hundred thousand of them wait.
        let length = message::encoded_len(1, &saga) + kept.encoded_len();
        let mut bytes = Vec::with_capacity(length);
        message::encode(1, &saga, &mut bytes);
        // A Vec grows: encoding into it can't fail.
        let _ = kept.encode(&mut bytes);
        Packed { bytes: bytes.into(), fresh, queued, unborn, ending, unsaved }
    }

    /// What was encoded last is durable.
    pub(super) fn saved(&mut self) {
        self.unborn = 0;
        self.unsaved = Unsaved::default();
    }

    /// The record to go back to if the work that comes with a transition is refused, and whether it is to be stored all the same.
    pub(super) fn to_go_back_to(&self, must_be_saved: bool) -> Self {
        let mut record = self.clone();
        record.unsaved.must |= must_be_saved;
        record
    }

    /// True if it is what was gone back to, and is not stored yet.
    pub(super) fn must_be_saved(&self) -> bool {
        self.unsaved.must
    }

    /// A step, to be changed.
    pub(super) fn step_mut(&mut self, step: usize) -> &mut Step {
        self.unsaved.steps |= 1 << step;
        &mut self.saga.steps[step]
    }

    /// How many bytes of messages it keeps.
    pub(super) fn message_bytes(&self) -> usize {
        let steps = self.kept.steps.iter();
        let steps = steps.map(|step| step.request.len() + step.reply.len() + step.compensation_request.len());
        self.kept.input.len() + steps.sum::<usize>()
    }

    /// Why the saga turned back. While it is STUCK on its way, what queries show is why it is that.
    pub(super) fn why_back(&self) -> Reason {
        self.kept.turned_back_for.as_ref().or(self.saga.reason.as_ref()).cloned().unwrap_or_default()
    }

    /// Ends every wait between calls, but for an undoing that waits until an action can't come any more.
    pub(super) fn call_at_once(&mut self, now: i64) {
        self.ending = self.ending.map(|ending| EndingWaits { since: ending.since.min(now), until: now });
        for step in 0..self.saga.steps.len() {
            let shown = &self.saga.steps[step];
            if shown.next_attempt_time.is_some() {
                let undoing = shown.state() == StepState::Compensating;
                let not_before = self.kept.steps[step].compensation_not_before_micros;
                let waits = undoing && not_before > now;
                self.step_mut(step).next_attempt_time = waits.then(|| timestamp(not_before));
            }
        }
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
            Some(last) => {
                *last = entry;
                if self.unsaved.lines == 0 {
                    self.unsaved.lines = 1;
                    self.unsaved.replaces_last = true;
                }
            }
            None => {
                // A Vec makes room for four at once, and most sagas that wait have fewer lines.
                history.reserve_exact(1);
                history.push(entry);
                self.unsaved.lines += 1;
                if let Some(gone) = limit(history) {
                    let is_new = gone + self.unsaved.lines > history.len();
                    self.unsaved.lines -= usize::from(is_new);
                }
            }
        }
    }
}

/// Takes a saga, as queries show it, over a transition. From [`Saga::default`] over all of them it is the saga; where its id was used
/// before, it is the last one of that id.
pub fn fold(saga: &mut Saga, transition: SagaTransition) {
    if transition.saga.as_ref().is_some_and(|saga| saga.version <= 1) {
        *saga = Saga::default();
    }
    let (mut steps, mut history) = (std::mem::take(&mut saga.steps), std::mem::take(&mut saga.history));
    for StepChange { index, step } in transition.steps {
        let (at, step) = (index as usize, step.unwrap_or_default());
        match steps.get_mut(at) {
            Some(before) => *before = step,
            None => steps.push(step),
        }
    }
    if transition.replaces_last {
        history.pop();
    }
    for line in transition.history {
        history.push(line);
        limit(&mut history);
    }
    *saga = Saga { steps, history, ..transition.saga.unwrap_or_default() };
}

/// Makes room for the line that came last, and answers the place of the one that went: the first call that was made again, of which there
/// may be any number, else the first that is nobody's word.
fn limit(history: &mut Vec<HistoryEntry>) -> Option<usize> {
    let before = history.len().checked_sub(1).filter(|before| *before >= MOST_HISTORY)?;
    let nobodys = |line: &HistoryEntry| line.actor.is_empty();
    let again = history[..before].iter().position(|line| nobodys(line) && line.attempt > 1);
    let gone = again.or_else(|| history[..before].iter().position(nobodys)).unwrap_or(0);
    history.remove(gone);
    Some(gone)
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
        reason: shorten(&refusal.reason),
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
    step.next_attempt_time.as_ref().map_or(0, micros)
}

/// When a saga last changed, by the clock of whoever drove it.
pub(super) fn changed_at(saga: &Saga) -> i64 {
    saga.update_time.as_ref().map_or(0, micros)
}

pub(super) const fn operation(op: Op) -> Operation {
    match op {
        Op::Action => Operation::Action,
        Op::Compensation => Operation::Compensation,
    }
}

/// A text as long as a saga keeps it at the most, so that many have room and a page of them is a message: 2 KiB in the widest script.
pub(super) fn shorten(text: &str) -> String {
    let end = text.char_indices().nth(MOST_DETAIL).map_or(text.len(), |(at, _)| at);
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
        Record { saga, kept, ..Record::default() }
    }

    /// What queries show after these transitions.
    fn shown(transitions: &[Bytes]) -> Saga {
        let mut saga = Saga::default();
        for transition in transitions {
            fold(&mut saga, SagaTransition::decode(transition.clone()).expect("a transition"));
        }
        saga
    }

    /// Whoever folds events takes one of which it knows less than there is for a newer version's, and tells a person.
    #[test]
    fn a_transition_is_no_longer_than_what_is_known_of_it() {
        let mut record = record();
        record.saga.steps.push(Step { name: "ship".to_owned(), ..Step::default() });
        record.kept.steps.push(StepRecord::default());
        record.tell_all_steps();
        record.note(1, Line { what: "paused", ..Line::default() });
        let (told, _) = record.encode();
        let known = SagaTransition::decode(told.clone()).expect("a transition");
        assert_eq!(known.encoded_len(), told.len());
        assert_eq!(known.steps.iter().map(|change| change.index).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_record_survives_the_store_but_for_its_history() {
        let mut record = record();
        record.note(1, Line { what: "paused", ..Line::default() });
        let (_, stored) = record.encode();
        let read = Record::decode(stored).expect("what was stored");
        assert_eq!(read.saga, Saga { history: Vec::new(), ..record.saga });
        assert_eq!(read.kept, record.kept);
    }

    #[test]
    fn a_record_that_was_packed_is_as_it_was() {
        let mut record = record();
        record.note(1, Line { what: "paused", ..Line::default() });
        record.step_mut(0).attempts = 3;
        (record.fresh, record.queued, record.unborn) = (1, true, 1);
        record.ending = Some(EndingWaits { since: 1, until: 2 });
        let before = record.clone();
        let packed = record.pack();
        assert_eq!(record, Record::default());
        assert_eq!(packed.unpack().expect("what was packed"), before);
    }

    #[test]
    fn the_transitions_folded_are_the_saga() {
        let mut record = record();
        record.step_mut(0).attempts = 1;
        let mut transitions = vec![record.encode().0];
        record.saved();
        let failed = Line { what: "action failed", step: Some(0), op: Some(Op::Action), ..Line::default() };
        for attempt in 1..=5 {
            record.saga.version += 1;
            record.step_mut(0).attempts = attempt;
            // The line of a repeated failure is replaced, whether it was stored before or is still new.
            record.note(attempt.into(), Line { attempt, ..failed });
            record.note(attempt.into(), Line { attempt, detail: "again", ..failed });
            transitions.push(record.encode().0);
            record.saved();
            assert_eq!(shown(&transitions), record.saga);
        }
        for now in 0..100 {
            record.note(now, Line { what: "paused", ..Line::default() });
            transitions.push(record.encode().0);
            record.saved();
        }
        assert_eq!(shown(&transitions), record.saga);
        assert_eq!(record.saga.history.len(), MOST_HISTORY);
    }

    #[test]
    fn half_a_record_is_refused() {
        assert!(Record::decode(Bytes::new()).is_err());
        let more = SagaRecord { saga: Some(Box::default()), ..record().kept };
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
    fn what_somebody_said_outlives_calls_that_fail_in_turns() {
        let mut record = record();
        record.saga.steps.push(Step { name: "ship".to_owned(), ..Step::default() });
        record.kept.steps.push(StepRecord::default());
        let mut transitions = Vec::new();
        record.note(0, Line { what: "begun", ..Line::default() });
        record.note(0, Line { what: "paused", actor: "ann", ..Line::default() });
        for attempt in 1..=100 {
            for step in [0, 1] {
                let line = Line { what: "action failed", step: Some(step), op: Some(Op::Action), ..Line::default() };
                record.note(attempt.into(), Line { attempt, ..line });
            }
            if attempt % 40 == 0 {
                record.note(attempt.into(), Line { what: "retry asked", actor: "bob", ..Line::default() });
            }
            transitions.push(record.encode().0);
            record.saved();
            assert_eq!(shown(&transitions).history, record.saga.history);
        }
        let history = &record.saga.history;
        assert_eq!(history.len(), MOST_HISTORY);
        assert_eq!([&history[0].what, &history[1].what], ["begun", "paused"]);
        assert_eq!(history.iter().filter(|line| line.actor == "bob").count(), 2);
        // And one more than there is room for loses the first of them.
        for now in 0..100 {
            record.note(now, Line { what: "paused", actor: "ann", ..Line::default() });
            record.note(now, Line { what: "action done", ..Line::default() });
            transitions.push(record.encode().0);
            record.saved();
        }
        assert_eq!(shown(&transitions).history, record.saga.history);
        assert_eq!(record.saga.history.len(), MOST_HISTORY);
    }

    #[test]
    fn a_detail_is_as_long_as_a_reason_may_be_in_whatever_script_it_is() {
        for letter in ["x", "ü", "字"] {
            let reason = letter.repeat(400);
            assert_eq!(shorten(&reason), reason);
            assert_eq!(shorten(&letter.repeat(1000)), letter.repeat(MOST_DETAIL));
        }
        assert_eq!(shorten(""), "");
    }
}
