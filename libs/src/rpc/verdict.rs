//! What a saga and its participants say to each other beside the messages: which operation this is, and what became of it.
//!
//! The verdict travels in metadata because a status code alone proves nothing: a proxy, a timeout or a dying connection makes
//! codes too. It stands in the headers of an OK and in the trailers of an error.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::metadata::MetadataMap;

use crate::refusal::{Refusal, Violations};

/// The reply's verdict.
static SAGA_VERDICT: HeaderName = HeaderName::from_static("saga-verdict");
pub(super) static SAGA_ID: HeaderName = HeaderName::from_static("saga-id");
static SAGA_TYPE: HeaderName = HeaderName::from_static("saga-type");
static SAGA_STEP: HeaderName = HeaderName::from_static("saga-step");
static SAGA_OP: HeaderName = HeaderName::from_static("saga-op");
static SAGA_ATTEMPT: HeaderName = HeaderName::from_static("saga-attempt");
static SAGA_ROUND: HeaderName = HeaderName::from_static("saga-round");
static SAGA_DEADLINE: HeaderName = HeaderName::from_static("saga-deadline");
static SAGA_EXPIRES: HeaderName = HeaderName::from_static("saga-expires");
static SAGA_REQUEST: HeaderName = HeaderName::from_static("saga-request");
/// Any of these makes a request a saga's.
static SAGA_CALL: [&HeaderName; 9] = [
    &SAGA_ID,
    &SAGA_TYPE,
    &SAGA_STEP,
    &SAGA_OP,
    &SAGA_ATTEMPT,
    &SAGA_ROUND,
    &SAGA_DEADLINE,
    &SAGA_EXPIRES,
    &SAGA_REQUEST,
];

/// The longest name of a saga, a step or a type.
pub(crate) const LONGEST_NAME: usize = 128;

/// True for a name of a saga, a step or a type: 1 to `longest` visible ASCII characters.
pub(crate) fn is_name(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The two operations of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Doing.
    Action,
    /// Undoing.
    Compensation,
}

impl Op {
    /// As it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Action => "action",
            Self::Compensation => "compensation",
        }
    }
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect just now, or there was nothing to undo.
    Applied,
    /// It took effect before; the first reply again.
    Replayed,
    /// It was refused and had no effect.
    Rejected,
    /// It is under way: ask again after the reply's RetryInfo.
    Pending,
    /// Its compensation came first: it had no effect and never will.
    Cancelled,
    /// The same operation was called with another request.
    Conflict,
}

impl Verdict {
    /// As it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Replayed => "replayed",
            Self::Rejected => "rejected",
            Self::Pending => "pending",
            Self::Cancelled => "cancelled",
            Self::Conflict => "conflict",
        }
    }

    /// Reads a reply's verdict. None where there is none, or none that this version knows.
    #[must_use]
    pub fn from_metadata(metadata: &MetadataMap) -> Option<Self> {
        let headers: &HeaderMap = metadata.as_ref();
        let text = headers.get(&SAGA_VERDICT)?.to_str().ok()?;
        let all = [Self::Applied, Self::Replayed, Self::Rejected, Self::Pending, Self::Cancelled, Self::Conflict];
        all.into_iter().find(|verdict| verdict.as_str() == text)
    }

    /// Writes the verdict into a reply.
    pub fn write_to(self, metadata: &mut MetadataMap) {
        metadata.as_mut().insert(SAGA_VERDICT.clone(), HeaderValue::from_static(self.as_str()));
    }
}

/// Which operation of which saga a call is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SagaCall {
    /// The saga.
    pub saga_id: String,
    /// Its definition's name.
    pub saga_type: String,
    /// The step.
    pub step: String,
    /// The operation.
    pub op: Op,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Which time the operation is asked for, from 1: an operator has it asked for anew once it was refused, and what was answered the
    /// last time is not the answer then.
    pub round: u32,
    /// After this the action must not begin, in microseconds since 1970; 0 is never.
    pub deadline_micros: i64,
    /// After this the call itself counts for nothing, in microseconds since 1970; 0 is never. Whoever still drives the saga calls again,
    /// and of a saga that has ended nothing may come to life.
    pub expires_micros: i64,
    /// The SHA-256 of the request's bytes as they were frozen, by which a participant knows it again. What it hashes itself is the message as
    /// far as it knows it, and its next version may know more. None of a coordinator that doesn't say.
    pub request: Option<[u8; 32]>,
}

impl SagaCall {
    /// The first key by which a request says that it is a saga's. None if it doesn't.
    #[must_use]
    pub fn key_in(metadata: &MetadataMap) -> Option<&'static str> {
        let headers: &HeaderMap = metadata.as_ref();
        SAGA_CALL.iter().find(|key| headers.contains_key(**key)).map(|key| key.as_str())
    }

    /// Reads it from a request. None if the request is no saga's.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming the keys that are missing or wrong.
    pub fn from_metadata(metadata: &MetadataMap) -> Result<Option<Self>, Refusal> {
        let headers: &HeaderMap = metadata.as_ref();
        // What has lost its saga-id on the way is no client's: it would be decided under a key that no saga asks for again.
        if Self::key_in(metadata).is_none() {
            return Ok(None);
        }
        let mut violations = Violations::default();
        let mut text = |key: &'static HeaderName| {
            let value = headers.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
            // As narrow as where it is forgotten: what is kept under a key with a space in it would stay for ever.
            violations.require(is_name(value, LONGEST_NAME), key.as_str(), "must be 1 to 128 visible ASCII characters");
            value
        };
        let (saga_id, saga_type, step, op) = (text(&SAGA_ID), text(&SAGA_TYPE), text(&SAGA_STEP), text(&SAGA_OP));
        // Else what is asked for by one name could be another operation's in a key.
        violations.require(!step.contains(['/', '#']), SAGA_STEP.as_str(), "must have no / and no #");
        let known = matches!(op, "action" | "compensation");
        violations.require(known, SAGA_OP.as_str(), "must be action or compensation");
        let mut number = |key: &'static HeaderName| {
            let Some(value) = headers.get(key) else { return 0 };
            let value = value.to_str().ok().and_then(|value| value.parse::<i64>().ok()).filter(|value| *value >= 0);
            violations.require(value.is_some(), key.as_str(), "must be a number that is not negative");
            value.unwrap_or_default()
        };
        let (attempt, round) = (number(&SAGA_ATTEMPT), number(&SAGA_ROUND));
        let (deadline_micros, expires_micros) = (number(&SAGA_DEADLINE), number(&SAGA_EXPIRES));
        let request = headers.get(&SAGA_REQUEST).map(|digits| from_hex(digits.as_bytes()));
        violations.require(request != Some(None), SAGA_REQUEST.as_str(), "must be a SHA-256, 64 hexadecimal digits");
        violations.refuse()?;
        let op = if op == "action" { Op::Action } else { Op::Compensation };
        let (saga_id, saga_type, step) = (saga_id.to_owned(), saga_type.to_owned(), step.to_owned());
        let [attempt, round] = [attempt, round.max(1)].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        let request = request.flatten();
        Ok(Some(Self { saga_id, saga_type, step, op, attempt, round, deadline_micros, expires_micros, request }))
    }

    /// Writes it into a request. Text that can't stand in metadata is left out, and the participant refuses the call.
    pub fn write_to(&self, metadata: &mut MetadataMap) {
        let headers = metadata.as_mut();
        for (key, text) in [(&SAGA_ID, &self.saga_id), (&SAGA_TYPE, &self.saga_type), (&SAGA_STEP, &self.step)] {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(key.clone(), value);
            }
        }
        headers.insert(SAGA_OP.clone(), HeaderValue::from_static(self.op.as_str()));
        headers.insert(SAGA_ATTEMPT.clone(), self.attempt.into());
        if self.round > 1 {
            headers.insert(SAGA_ROUND.clone(), self.round.into());
        }
        headers.insert(SAGA_DEADLINE.clone(), self.deadline_micros.into());
        headers.insert(SAGA_EXPIRES.clone(), self.expires_micros.into());
        if let Some(Ok(value)) = self.request.map(|hash| HeaderValue::from_bytes(&to_hex(hash))) {
            headers.insert(SAGA_REQUEST.clone(), value);
        }
        // Never seen again: out of HPACK's table, where they would only push out what comes with every call.
        for key in [&SAGA_ID, &SAGA_DEADLINE, &SAGA_EXPIRES, &SAGA_REQUEST] {
            if let Some(value) = headers.get_mut(key) {
                value.set_sensitive(true);
            }
        }
    }

    /// The key under which a participant keeps what became of one of the step's operations. The other operation of the step than the call's
    /// own was asked for once: of what was refused and is asked for anew nothing is undone, and nothing is undone twice.
    #[must_use]
    pub fn key(&self, op: Op) -> String {
        let round = if op == self.op { self.round } else { 1 };
        operation_key(&self.saga_id, &step_of_round(&self.step, round), op)
    }
}

/// What a step is called among the keys of a participant when its operation is asked for anew. No step's own name has such an end.
#[must_use]
pub fn step_of_round(step: &str, round: u32) -> Cow<'_, str> {
    if round > 1 { format!("{step}#{round}").into() } else { step.into() }
}

/// What the keys of sagas' operations begin with. No client's command has such a key: those begin with a method's full name.
pub const OPERATION_KEYS: &str = "saga/";

/// The key under which a participant keeps what became of an operation.
#[must_use]
pub fn operation_key(saga_id: &str, step: &str, op: Op) -> String {
    format!("{OPERATION_KEYS}{saga_id}/{step}/{}", op.as_str())
}

fn to_hex(hash: [u8; 32]) -> [u8; 64] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; 64];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(hash) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    digits
}

fn from_hex(digits: &[u8]) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = digits.try_into().ok()?;
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            *byte = *byte << 4 | u8::try_from(char::from(*digit).to_digit(16)?).ok()?;
        }
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> SagaCall {
        SagaCall {
            saga_id: "o-1".to_owned(),
            saga_type: "place-order".to_owned(),
            step: "charge_customer".to_owned(),
            op: Op::Compensation,
            attempt: 3,
            round: 2,
            deadline_micros: 1_700_000_000_000_000,
            expires_micros: 1_700_000_000_000_001,
            request: Some(std::array::from_fn(|at| u8::try_from(at * 8).unwrap_or_default())),
        }
    }

    #[test]
    fn a_call_survives_the_wire() {
        let mut metadata = MetadataMap::new();
        call().write_to(&mut metadata);
        assert_eq!(SagaCall::from_metadata(&metadata), Ok(Some(call())));
    }

    #[test]
    fn what_is_asked_for_anew_has_a_key_of_its_own_and_undoes_what_was_done_once() {
        let again = call();
        assert_eq!(again.key(Op::Compensation), "saga/o-1/charge_customer#2/compensation");
        assert_eq!(again.key(Op::Action), "saga/o-1/charge_customer/action");
        let first = SagaCall { round: 1, ..call() };
        assert_eq!(first.key(Op::Compensation), "saga/o-1/charge_customer/compensation");
        let mut metadata = MetadataMap::new();
        first.write_to(&mut metadata);
        assert!(!metadata.contains_key(SAGA_ROUND.as_str()), "most calls have no need of it");
        assert_eq!(SagaCall::from_metadata(&metadata), Ok(Some(first)));
    }

    #[test]
    fn a_request_without_a_saga_is_nobodys_operation() {
        assert_eq!(SagaCall::from_metadata(&MetadataMap::new()), Ok(None));
    }

    #[test]
    fn half_a_call_is_refused_by_every_key_that_is_wrong() {
        let mut metadata = MetadataMap::new();
        call().write_to(&mut metadata);
        let headers = metadata.as_mut();
        headers.remove(&SAGA_STEP);
        headers.insert(&SAGA_OP, HeaderValue::from_static("undo"));
        headers.insert(&SAGA_ATTEMPT, HeaderValue::from_static("-1"));
        let refusal = SagaCall::from_metadata(&metadata).expect_err("three are wrong");
        let fields: Vec<_> = refusal.violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, [SAGA_STEP.as_str(), SAGA_OP.as_str(), SAGA_ATTEMPT.as_str()]);
    }

    #[test]
    fn half_a_call_without_its_saga_is_not_a_clients() {
        for key in SAGA_CALL.into_iter().filter(|key| *key != SAGA_ID) {
            let mut metadata = MetadataMap::new();
            call().write_to(&mut metadata);
            let value = metadata.as_mut().remove(key).expect("written");
            let mut alone = MetadataMap::new();
            alone.as_mut().insert(key.clone(), value);
            let refusal = SagaCall::from_metadata(&alone).expect_err(key.as_str());
            assert_eq!(refusal.violations[0].field, SAGA_ID.as_str(), "{key}");
        }
    }

    #[test]
    fn what_is_no_hash_of_a_request_is_refused_and_none_is_none() {
        let mut metadata = MetadataMap::new();
        SagaCall { request: None, ..call() }.write_to(&mut metadata);
        assert!(!metadata.contains_key(SAGA_REQUEST.as_str()));
        assert_eq!(SagaCall::from_metadata(&metadata), Ok(Some(SagaCall { request: None, ..call() })));
        for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"+0".repeat(32)] {
            let value = HeaderValue::from_str(text).expect("visible");
            metadata.as_mut().insert(&SAGA_REQUEST, value);
            let refusal = SagaCall::from_metadata(&metadata).expect_err(text);
            assert_eq!(refusal.violations[0].field, SAGA_REQUEST.as_str(), "{text}");
        }
        metadata.as_mut().insert(&SAGA_REQUEST, HeaderValue::from_str(&"aF".repeat(32)).expect("visible"));
        let read = SagaCall::from_metadata(&metadata).expect("right").and_then(|call| call.request);
        assert_eq!(read, Some([0xaf; 32]));
    }

    #[test]
    fn two_operations_never_share_a_key() {
        for step in ["b/s", "b#2", "/", "#"] {
            let mut metadata = MetadataMap::new();
            SagaCall { step: step.to_owned(), ..call() }.write_to(&mut metadata);
            let refusal = SagaCall::from_metadata(&metadata).expect_err(step);
            assert_eq!(refusal.violations[0].field, SAGA_STEP.as_str(), "{step}");
        }
        let mut metadata = MetadataMap::new();
        SagaCall { saga_id: "a/b#2".to_owned(), ..call() }.write_to(&mut metadata);
        assert!(SagaCall::from_metadata(&metadata).is_ok(), "what follows it in a key has neither");
    }

    #[test]
    fn what_could_not_be_forgotten_is_refused() {
        for (key, text) in [(&SAGA_ID, "o 1"), (&SAGA_STEP, "charge\tcustomer"), (&SAGA_ID, " ")] {
            let mut metadata = MetadataMap::new();
            call().write_to(&mut metadata);
            metadata.as_mut().insert(key.clone(), HeaderValue::from_static(text));
            let refusal = SagaCall::from_metadata(&metadata).expect_err(text);
            assert_eq!(refusal.violations[0].field, key.as_str());
        }
    }

    #[test]
    fn every_verdict_survives_the_wire() {
        for verdict in [
            Verdict::Applied,
            Verdict::Replayed,
            Verdict::Rejected,
            Verdict::Pending,
            Verdict::Cancelled,
            Verdict::Conflict,
        ] {
            let mut metadata = MetadataMap::new();
            verdict.write_to(&mut metadata);
            assert_eq!(Verdict::from_metadata(&metadata), Some(verdict));
        }
        assert_eq!(Verdict::from_metadata(&MetadataMap::new()), None);
    }
}
