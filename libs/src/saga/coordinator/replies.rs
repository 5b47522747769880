//! What every reply leads to: each code, with each verdict, wherever a saga may stand. The whole of it is `replies.txt`, so that a
//! change of any cell must be meant.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use bytes::Bytes;
use proto::saga::v1::{SagaPhase, StepState};
use tonic::{Code, Status, metadata::MetadataMap};

use super::call::judge;
use crate::{
    breaker::{CircuitOpen, Reason},
    refusal::{Refusal, code_name},
    rpc::verdict::{Op, Verdict},
    saga::{
        Definition,
        machine::{self, Attempt, Command, Due, Input, Moment, Moved, Wish},
        operation::operations,
        record::{Record, next_attempt},
        reply::{Ruling, TRUSTABLE},
    },
};

const EXPECTED: &str = include_str!("replies.txt");
/// When everything happens.
const NOW: i64 = 1_000_000_000;

operations! {
    Look;
    Do undone by Undo;
    Undo;
    Decide;
    Follow;
}

/// Where a saga stands when the reply comes, and under which heading that is.
struct Position {
    heading: &'static str,
    step: usize,
    op: Op,
    trusted: &'static [Code],
    /// Whether the compensatable step is `without_barrier`.
    plain: bool,
    /// Whether the saga has turned back since the call left.
    back: bool,
}

const POSITIONS: [Position; 9] = [
    Position { heading: "a check", step: 0, op: Op::Action, trusted: &[], plain: false, back: false },
    Position { heading: "a compensatable step", step: 1, op: Op::Action, trusted: &[], plain: false, back: false },
    Position {
        heading: "a compensatable step without a barrier",
        step: 1,
        op: Op::Action,
        trusted: &[],
        plain: true,
        back: false,
    },
    Position {
        heading: "a compensatable step whose author trusts every code that can be trusted",
        step: 1,
        op: Op::Action,
        trusted: &TRUSTABLE,
        plain: false,
        back: false,
    },
    Position { heading: "the pivot", step: 2, op: Op::Action, trusted: &[], plain: false, back: false },
    Position { heading: "a retriable step", step: 3, op: Op::Action, trusted: &[], plain: false, back: false },
    Position { heading: "a compensation", step: 1, op: Op::Compensation, trusted: &[], plain: false, back: false },
    Position {
        heading: "a compensation without a barrier",
        step: 1,
        op: Op::Compensation,
        trusted: &TRUSTABLE,
        plain: true,
        back: false,
    },
    Position {
        heading: "an action of a saga that has turned back since",
        step: 1,
        op: Op::Action,
        trusted: &TRUSTABLE,
        plain: false,
        back: true,
    },
];

const VERDICTS: [Option<Verdict>; 7] = [
    None,
    Some(Verdict::Applied),
    Some(Verdict::Replayed),
    Some(Verdict::Rejected),
    Some(Verdict::Pending),
    Some(Verdict::Cancelled),
    Some(Verdict::Conflict),
];

/// A step of each kind, in a row.
fn definition(Position { trusted, plain, .. }: &Position) -> std::sync::Arc<Definition> {
    let mut saga = Definition::builder::<i64>("one-of-each", 1);
    saga.check::<Look>("look", |_, _| Ok(1));
    saga.compensatable::<Do>("do", |_, _| Ok(2), |_| -2);
    saga.trusted_codes(trusted);
    if *plain {
        saga.without_barrier();
    }
    saga.pivot::<Decide>("decide", |_, _| Ok(3));
    saga.retriable::<Follow>("follow", |_, _| Ok(4));
    saga.build().expect("legal")
}

fn advance(definition: &Definition, record: &mut Record, input: Input) -> Moved {
    machine::advance(definition, record, input, Moment::at(NOW)).expect("nobody is refused")
}

/// A saga whose operation there has been called once, and waits for the reply.
fn called(definition: &Definition, position: &Position) -> Record {
    let end = |step, ruling| {
        let refusal = Refusal::precondition("TEST", "as the test says");
        let reply = Bytes::from_static(&[8, 1]);
        Input::Attempted(Attempt { step, op: Op::Action, ruling: Some(ruling), reply, refusal, roll: 0.0 })
    };
    let mut record = definition.plan.new_record("saga", Vec::new(), 0, 0);
    advance(definition, &mut record, Input::Tick);
    // What comes before it is done; a compensation is owed because the pivot was refused.
    let undoes = position.op == Op::Compensation;
    for step in 0..if undoes { 2 } else { position.step } {
        advance(definition, &mut record, end(step, Ruling::Done));
    }
    if undoes {
        advance(definition, &mut record, end(2, Ruling::Rejected));
    }
    let due = Due { step: position.step, op: position.op };
    assert_eq!(machine::due(&record, |_| false, NOW), [due], "{}", position.heading);
    assert_eq!(machine::leaves(&mut record, due), 1);
    if position.back {
        let cancel = Command { wish: Wish::Cancel, actor: "ann".to_owned(), reason: "as the test says".to_owned() };
        advance(definition, &mut record, Input::Operator(cancel));
        assert_eq!(record.saga.phase(), SagaPhase::Compensating);
    }
    record
}

/// What a reply leads to, in a word or two.
fn consequence(position: &Position, answer: Result<(Bytes, MetadataMap), Status>) -> String {
    let definition = definition(position);
    let mut record = called(&definition, position);
    let Position { step, op, .. } = *position;
    let (before, stood) = (record.saga.phase(), record.clone());
    let attempt = judge(Due { step, op }, &definition.plan.steps[step], answer, 0.0);
    let moved = advance(&definition, &mut record, Input::Attempted(attempt));

    let (phase, shown) = (record.saga.phase(), &record.saga.steps[step]);
    let turned = before == SagaPhase::Forward && matches!(phase, SagaPhase::Compensating | SagaPhase::Compensated);
    let calls = if op == Op::Action { shown.attempts } else { shown.compensation_attempts };
    let wait = Duration::from_micros(u64::try_from(next_attempt(shown) - NOW).unwrap_or_default());
    let what = match shown.state() {
        _ if (&record.saga, &record.kept) == (&stood.saga, &stood.kept) => "ignored",
        _ if phase == SagaPhase::Stuck => "STUCK",
        StepState::Done => "done",
        StepState::Compensated => "undone",
        StepState::Rejected if turned => "turns back",
        // It may have happened, and is undone too.
        StepState::Abandoned | StepState::Compensating if turned => "gives up",
        StepState::Started | StepState::Compensating if calls == 0 => "asks again",
        StepState::Started | StepState::Compensating if wait > Duration::from_secs(1) => "slowly",
        StepState::Started | StepState::Compensating if wait > Duration::ZERO => "retries",
        state => panic!("{}: {} in {}", position.heading, state.as_str_name(), phase.as_str_name()),
    };
    format!("{what}{}", if moved.alert.is_some() { "!" } else { "" })
}

fn answer(code: Code, verdict: Option<Verdict>) -> Result<(Bytes, MetadataMap), Status> {
    let mut metadata = MetadataMap::new();
    if let Some(verdict) = verdict {
        verdict.write_to(&mut metadata);
    }
    match code {
        Code::Ok => Ok((Bytes::from_static(&[8, 1]), metadata)),
        code => Err(Status::with_metadata(code, "as the test says", metadata)),
    }
}

/// What a call comes to that a breaker doesn't let through.
fn held_back() -> Status {
    let retry_after = Duration::from_secs(1);
    CircuitOpen { breaker: "peer".into(), reason: Reason::Open, retry_after, cause: None, generation: 1 }.into_status()
}

fn row(text: &mut String, first: &str, cells: impl Iterator<Item = String>) {
    let mut line = format!("{first:<20}");
    cells.for_each(|cell| line.push_str(&format!("{cell:<12}")));
    text.push_str(line.trim_end());
    text.push('\n');
}

fn table() -> String {
    let mut text = String::new();
    for position in POSITIONS {
        writeln!(text, "The reply to {}", position.heading).expect("a text grows");
        let verdicts = VERDICTS.map(|verdict| verdict.map_or("no verdict", Verdict::as_str).to_owned());
        row(&mut text, "", verdicts.into_iter());
        for code in (0..=16).map(Code::from) {
            let cells = VERDICTS.map(|verdict| consequence(&position, answer(code, verdict)));
            row(&mut text, code_name(code), cells.into_iter());
        }
        row(&mut text, "(breaker is open)", [consequence(&position, Err(held_back()))].into_iter());
        text.push('\n');
    }
    text
}

#[test]
fn every_reply_leads_to_what_is_written_down() {
    let (expected, table) = (EXPECTED.split_once("\n\n").map_or(EXPECTED, |(_, table)| table), table());
    let differs = |(expected, found): (&str, &str)| (expected != found).then(|| format!("-{expected}\n+{found}\n"));
    let differences: String = expected.lines().zip(table.lines()).filter_map(differs).collect();
    assert!(expected == table, "{differences}\nreplies.txt would be:\n\n{table}");
}

#[test]
fn no_code_alone_turns_a_saga_back() {
    let untrusting = POSITIONS.iter().filter(|position| position.trusted.is_empty());
    let all =
        untrusting.flat_map(|position| (1..=16).map(|code| consequence(position, answer(Code::from(code), None))));
    assert_eq!(all.collect::<BTreeSet<_>>(), BTreeSet::from(["retries".to_owned(), "slowly!".to_owned()]));
}
