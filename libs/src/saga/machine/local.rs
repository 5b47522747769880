//! Work of our own that is refused for now: it waits, and is asked for again.

use std::time::Duration;

use proto::saga::v1::StepState;

use super::{Line, Turn, attempt::is_long, later};
use crate::{
    refusal::Refusal,
    saga::record::{EndingWaits, next_attempt, shorten},
};

/// The shortest wait, and the longest, that such a refusal may ask for.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// What a history says of an ending that waits.
const ENDING_WAITS: &str = "ending refused for now";

/// As long as a refusal asks for, and a little more, so that not all come back at once whom one saga or one shortage holds up.
pub(super) fn spread(asked: Duration, roll: f64) -> Duration {
    asked.clamp(WAITS.0, WAITS.1).mul_f64(1.0 + roll / 10.0)
}

impl Turn<'_> {
    /// Written down once for each reason, not each time: thousands may wait for the same room. A shutdown is none to write down.
    pub(super) fn step_waits(&mut self, step: usize, wait: Duration, refusal: &Refusal) {
        let begun = &mut self.record.kept.steps[step].started_micros;
        if *begun == 0 {
            *begun = self.moment.now;
        }
        let begun = *begun;
        let is_news = self.wait(step, wait, &refusal.message);
        self.moved.changed |= is_news && !self.moment.draining;
        self.tell_of_refusals(begun, wait, Some(step), refusal);
    }

    /// Likewise.
    pub(super) fn ending_waits(&mut self, wait: Duration, refusal: &Refusal) {
        let since = self.record.ending.map_or(self.moment.now, |ending| ending.since);
        self.record.ending = Some(EndingWaits { since, until: later(self.moment.now, wait) });
        let last = self.record.saga.history.last();
        let known = last.is_some_and(|last| last.what == ENDING_WAITS && last.detail == shorten(&refusal.message));
        if !known && !self.moment.draining {
            self.note(Line { what: ENDING_WAITS, detail: &refusal.message, ..Line::default() });
        }
        self.tell_of_refusals(since, wait, None, refusal);
    }

    fn tell_of_refusals(&mut self, since: i64, wait: Duration, step: Option<usize>, refusal: &Refusal) {
        if is_long(since, self.moment.now, wait) {
            let what = "a saga's work of our own is refused for long: see why, the saga goes on asking";
            self.alert(what, step, refusal);
        }
    }

    /// True while a step of our own that was refused for now is not to be asked for.
    pub(super) fn is_put_off(&self, step: usize) -> bool {
        next_attempt(&self.record.saga.steps[step]) > self.moment.asked
    }

    /// True for a step of our own that was refused for now and is still to be done.
    pub(super) fn was_put_off(&self, step: usize) -> bool {
        let begun = self.record.kept.steps[step].started_micros > 0;
        begun && self.plan.steps[step].is_local() && self.state(step) == StepState::Unspecified
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::saga::v1::SagaPhase;

    use super::*;
    use crate::saga::{
        Definition, LocalWork,
        machine::{Input, Local, Moment, advance, next_wake},
        operation::operations,
        record::Record,
    };

    operations! { Note; }

    fn definition() -> Arc<Definition> {
        let mut saga = Definition::builder::<i64>("test", 1);
        saga.pivot::<Note>("note", |input, _| Ok(*input));
        saga.retriable_local("file", |_, _| Ok(LocalWork::nothing()));
        saga.on_compensated(|_, _| Ok(LocalWork::nothing()));
        saga.build().expect("a definition")
    }

    /// Where its work is refused at 0, which waits for a second: when it is asked for again.
    fn asked_again(mut record: Record, definition: &Definition, local: Local, roll: f64) -> i64 {
        let refusal = Refusal::exhausted("FULL", "the desk is full", Duration::from_secs(1));
        let moment = Moment::at(0);
        advance(definition, &mut record, Input::LocalRefused { local, refusal, roll }, moment).expect("it waits");
        next_wake(&definition.plan, &record, |_| false).expect("a wait")
    }

    /// Thousands may be held up by one lock: each asks by a transaction.
    #[test]
    fn those_whose_own_work_is_refused_at_once_do_not_all_come_back_at_once() {
        let definition = definition();
        let mut record = definition.plan.new_record("s", Vec::new(), 0, 0);
        record.saga.set_phase(SagaPhase::Forward);
        record.step_mut(0).set_state(StepState::Done);
        let file = [0.0, 0.5, 1.0].map(|roll| asked_again(record.clone(), &definition, Local::Step(1), roll));
        record.saga.set_phase(SagaPhase::Compensating);
        let ending = [0.0, 0.5, 1.0].map(|roll| asked_again(record.clone(), &definition, Local::Ending, roll));
        assert_eq!((file, ending), ([1_000_000, 1_050_000, 1_100_000], [1_000_000, 1_050_000, 1_100_000]));
    }

    /// It takes longer to ask than the first has to wait.
    #[test]
    fn who_was_refused_in_one_go_is_not_asked_again_in_it_and_what_is_begun_beside_begins_now() {
        let mut saga = Definition::builder::<i64>("test", 1);
        saga.pivot::<Note>("note", |input, _| Ok(*input));
        for step in ["file", "copy"] {
            saga.retriable_local(step, |_, _| Ok(LocalWork::nothing()));
            saga.after(&["note"]);
        }
        saga.retriable::<Note>("tell", |input, _| Ok(*input));
        saga.after(&["note"]);
        let definition = saga.build().expect("a definition");
        let mut record = definition.plan.new_record("s", Vec::new(), 0, 0);
        record.saga.set_phase(SagaPhase::Forward);
        record.step_mut(0).set_state(StepState::Done);
        let refused = |record: &mut Record, step, now| {
            let refusal = Refusal::exhausted("FULL", "the desk is full", Duration::from_secs(1));
            let input = Input::LocalRefused { local: Local::Step(step), refusal, roll: 0.0 };
            advance(&definition, record, input, Moment { asked: 0, ..Moment::at(now) }).expect("it waits").local
        };
        record = *refused(&mut record, 1, 2_000_000).expect("copy is asked for").1;
        let local = refused(&mut record, 2, 4_000_000);
        assert!(local.is_none(), "{local:?}");
        assert_eq!(record.saga.steps[3].state(), StepState::Started);
        assert_eq!(record.kept.steps[3].started_micros, 4_000_000);
    }

    #[test]
    fn why_a_steps_own_work_is_refused_is_written_down_once_however_long_it_is() {
        let definition = definition();
        let mut record = definition.plan.new_record("s", Vec::new(), 0, 0);
        record.saga.set_phase(SagaPhase::Forward);
        record.step_mut(0).set_state(StepState::Done);
        let written = [0, 1].map(|now| {
            let refusal = Refusal::exhausted("FULL", "x".repeat(10_000), Duration::from_secs(1));
            let input = Input::LocalRefused { local: Local::Step(1), refusal, roll: 0.0 };
            advance(&definition, &mut record, input, Moment::at(now)).expect("it waits").changed
        });
        assert_eq!(written, [true, false]);
        assert_eq!(record.saga.steps[1].last_error, "x".repeat(512));
    }
}
