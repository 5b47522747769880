//! One call of one operation: out with the frozen bytes, back with what the answer means.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use proto::saga::v1::CarriedEntry;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::{Code, Status, metadata::MetadataMap};
use tracing::{Instrument as _, Span};

use super::{Shared, apart::apart, looks::owner_unread, spans};
use crate::{
    breaker::{CircuitOpen, layer::Pushback},
    refusal::Refusal,
    rpc::{
        carried,
        verdict::{Op, SagaCall, Verdict},
    },
    saga::{
        Definition,
        machine::{Attempt, Due, later},
        plan::StepPlan,
        record::{Record, changed_at},
        reply::{Answers, Ruling, rule},
        transport,
    },
};

/// How long after its timeout a call is dropped here, should nothing below have ended it.
const GRACE: Duration = Duration::from_millis(100);
/// How long to wait where a participant asks for no more calls at all, and the longest that it may ask for, where the first wait isn't longer.
const NO_MORE: Duration = Duration::from_secs(60);
/// Why a call has not left.
const CROWDED: &str = "too many calls are under way in this process: a participant is slow";

/// What is known of whose a saga is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// How often its owner had changed when it was this process's; 0 where the database has one process.
    pub(super) since: u64,
    /// When that was last seen, in microseconds since 1970; 0 is never.
    pub(super) micros: i64,
}

/// A call about to leave.
pub(super) struct Call {
    shared: Arc<Shared>,
    program: Arc<Definition>,
    due: Due,
    known: Known,
    call: SagaCall,
    message: Bytes,
    carried: MetadataMap,
    /// When it was to leave.
    since: Instant,
}

impl Call {
    pub(super) fn new(
        shared: &Arc<Shared>,
        program: &Arc<Definition>,
        record: &Record,
        due: Due,
        attempt: u32,
        known: Known,
    ) -> Self {
        let Due { step, op } = due;
        let plan = &program.plan.steps[step];
        let kept = &record.kept.steps[step];
        let message = match op {
            Op::Action => &kept.request,
            Op::Compensation => &kept.compensation_request,
        };
        // Neither a compensation nor what comes after the pivot is ever too late.
        let bound = op == Op::Action && plan.kind != proto::saga::v1::StepKind::Retriable;
        let call = SagaCall {
            saga_id: record.saga.saga_id.clone(),
            saga_type: record.saga.r#type.clone(),
            step: plan.name.to_owned(),
            op,
            attempt,
            round: kept.refusals.saturating_add(1),
            deadline_micros: if bound { record.kept.deadline_micros } else { 0 },
            // As old as the last transition: the saga had not ended then, whoever may have gone on with it since.
            expires_micros: later(changed_at(&record.saga), shared.counts()),
            request: Some(Sha256::digest(message).into()),
        };
        // Room for what every call says: a map that grows is written anew each time.
        let mut carried = MetadataMap::with_capacity(16);
        let entries = record.kept.carried.iter().map(|CarriedEntry { key, value }| (&**key, &**value));
        carried::write(entries, &mut carried);
        // A call's own span takes its place where there is one.
        let traceparent = record.kept.traceparent.as_str();
        if !traceparent.is_empty() {
            carried::write([("traceparent", traceparent)], &mut carried);
        }
        let (shared, program) = (Arc::clone(shared), Arc::clone(program));
        Self { message: message.clone(), shared, program, due, known, call, carried, since: Instant::now() }
    }

    /// Makes the call, within the saga's span.
    pub(super) fn run(self, stretch: &Span) -> BoxFuture<'static, Attempt> {
        let plan = &self.program.plan.steps[self.due.step];
        let span = spans::call(stretch, plan.path(self.due.op), &self.call);
        let ends_on_time = self.is_bounded() || self.shared.member.get().is_some();
        let answered = Box::pin(self.answered().instrument(span));
        // One that waits for a connection must end on time, though its saga is being stored: where others share the database, one of them
        // may have the saga by then, and counts on that.
        if ends_on_time { Box::pin(apart(answered)) } else { answered }
    }

    /// Where no barrier is, an action waits to leave no longer than for its answer: its undoing counts on nothing leaving later.
    fn is_bounded(&self) -> bool {
        self.due.op == Op::Action && self.program.plan.steps[self.due.step].options.plain
    }

    async fn answered(self) -> Attempt {
        let bounded = self.is_bounded();
        let Self { shared, program, due, known, call, message, carried: mut metadata, since } = self;
        let plan = &program.plan.steps[due.step];
        let timeout = plan.options.attempt_timeout;
        let most = if bounded { timeout } else { Duration::MAX };
        let mut turn = None;
        let may_leave = tokio::time::timeout(most, async {
            turn = shared.calls.acquire().await.ok();
            // One that is bounded doesn't leave after so long a wait.
            let waited = if bounded { Duration::ZERO } else { since.elapsed() };
            match shared.must_look(known.micros, waited, timeout) {
                true => shared.must_be_mine(&call.saga_id, known.since).await,
                false => Ok(()),
            }
        });
        let crowded = || Refusal::new(Code::ResourceExhausted, "TOO_MANY_CALLS", CROWDED.to_owned());
        let may_leave = match may_leave.await {
            // Who was held up finds both, the turn and that the time is up, and the turn first.
            Ok(Ok(())) if bounded && since.elapsed() > timeout => Err(crowded()),
            Ok(may_leave) => may_leave,
            Err(_) if turn.is_some() => Err(owner_unread()),
            Err(_) => Err(crowded()),
        };
        if let Err(refusal) = may_leave {
            spans::ended(&Span::current(), refusal.code);
            return not_sent(due, refusal, shared.roll());
        }
        call.write_to(&mut metadata);
        let begin = Instant::now();
        let sent =
            transport::Attempt { peer: plan.participant, path: plan.path(due.op), request: message, metadata, timeout };
        let answer = shared.transport.call(sent);
        let answer = tokio::time::timeout(timeout.saturating_add(GRACE), answer).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer within the attempt's timeout")));
        let attempt = judge(due, plan, answer, shared.roll());
        // An OK that is not its barrier's counts as what it is noted as, not as OK.
        let code = attempt.refusal.code;
        spans::ended(&Span::current(), code);
        // What a circuit held back was no call.
        if attempt.ruling.is_some() {
            shared.metrics.called(&call, code, begin.elapsed());
        }
        attempt
    }
}

/// A call that was held back. Its saga notes why, unless it finds itself taken.
fn not_sent(due: Due, refusal: Refusal, roll: f64) -> Attempt {
    let Due { step, op } = due;
    Attempt { step, op, ruling: None, reply: Bytes::new(), refusal, roll }
}

/// What an answer means.
pub(super) fn judge(due: Due, plan: &StepPlan, answer: Result<(Bytes, MetadataMap), Status>, roll: f64) -> Attempt {
    let Due { step, op } = due;
    let answers = Answers { with_verdict: plan.expects_verdicts(), trusted: &plan.options.trusted };
    match answer {
        Ok((reply, metadata)) => {
            let verdict = Verdict::from_metadata(&metadata);
            let ruling = rule(op, Code::Ok, verdict, answers);
            let refusal = match verdict {
                // Nobody reads it, and most calls end so.
                _ if ruling == Ruling::Done => Refusal::new(Code::Ok, "", String::new()),
                None => Refusal::new(
                    Code::Unknown,
                    "NO_VERDICT",
                    format!(
                        "{} answered OK, but not by its barrier: another server may have answered, or a proxy drops saga-verdict; of a \
                         participant that has none its step says `without_barrier`",
                        plan.participant
                    ),
                ),
                Some(verdict) => {
                    let message = format!("{} answered OK and the verdict {}", plan.participant, verdict.as_str());
                    Refusal::new(Code::Unknown, "VERDICT", message)
                }
            };
            Attempt { step, op, ruling: Some(ruling), reply, refusal, roll }
        }
        Err(status) => {
            // A participant may pass on that a circuit of its own is open: it was called all the same.
            let not_sent = CircuitOpen::from_status(&status).filter(|open| is_circuit_to(plan.participant, open));
            let ruling = rule(op, status.code(), Verdict::from_metadata(status.metadata()), answers);
            let mut refusal = Refusal::from_status(&status);
            let asked = match &not_sent {
                Some(open) => Some(open.retry_after),
                None => refusal.retry_after.or_else(|| pushback(&status)),
            };
            // Who asks to be called at once is called as soon as one who doesn't. A circuit's word may be a participant's, too.
            let first = plan.options.retry.initial.min(plan.options.retry.most);
            refusal.retry_after = asked.map(|asked| asked.min(NO_MORE).max(first));
            let ruling = not_sent.is_none().then_some(ruling);
            Attempt { step, op, ruling, reply: Bytes::new(), refusal, roll }
        }
    }
}

/// Whether a circuit is one to this participant, or to a part of it, such as one of its addresses.
fn is_circuit_to(participant: &str, open: &CircuitOpen) -> bool {
    let rest = open.breaker.strip_prefix(participant);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn pushback(status: &Status) -> Option<Duration> {
    match Pushback::of(status.metadata().as_ref()) {
        Pushback::None => None,
        Pushback::After(wait) => Some(wait),
        Pushback::Never => Some(NO_MORE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        breaker::Reason,
        saga::{Definition, Operation, Retry},
    };

    struct Pay;

    impl Operation for Pay {
        const PEER: &'static str = "payment";
        const PATH: &'static str = "/pay";
        type Request = i64;
        type Reply = i64;
    }

    fn judged(status: Status) -> Attempt {
        judged_by(Retry::default(), status)
    }

    fn judged_by(retry: Retry, status: Status) -> Attempt {
        let mut saga = Definition::builder::<i64>("test", 1);
        saga.pivot::<Pay>("pay", |input, _| Ok(*input));
        saga.retry(retry);
        let definition = saga.build().expect("a definition");
        judge(Due { step: 0, op: Op::Action }, &definition.plan.steps[0], Err(status), 0.5)
    }

    #[test]
    fn only_a_circuit_on_the_way_to_the_participant_says_that_it_was_not_called() {
        let open = |breaker: &str| {
            let retry_after = Duration::from_secs(86_400);
            CircuitOpen { breaker: breaker.into(), reason: Reason::Open, retry_after, cause: None, generation: 1 }
        };
        for ours in ["payment", "payment/10.0.0.1:50052"] {
            assert_eq!(judged(open(ours).into_status()).ruling, None, "{ours}");
        }
        for its in ["bank", "payments"] {
            let attempt = judged(open(its).into_status());
            assert_eq!((attempt.ruling, attempt.refusal.retry_after), (Some(Ruling::Retry), Some(NO_MORE)), "{its}");
        }
    }

    /// A participant may say that it is a circuit to itself, and whatever time it likes.
    #[test]
    fn what_a_circuit_asks_for_is_bounded_as_what_a_participant_does() {
        let asking = |seconds| {
            let retry_after = Duration::from_secs(seconds);
            let open = CircuitOpen {
                breaker: "payment".into(),
                reason: Reason::Open,
                retry_after,
                cause: None,
                generation: 1,
            };
            let headers = open.into_status().into_http::<()>().into_parts().0.headers;
            let attempt = judged(Status::from_header_map(&headers).expect("a status"));
            (attempt.ruling, attempt.refusal.retry_after)
        };
        assert_eq!(asking(0), (None, Some(Duration::from_millis(100))));
        assert_eq!(asking(5), (None, Some(Duration::from_secs(5))));
        assert_eq!(asking(86_400), (None, Some(NO_MORE)));
    }

    #[test]
    fn who_asks_to_be_called_at_once_or_never_is_called_in_time() {
        let asking = |wait| {
            let status = Refusal::unavailable("BUSY", "not now", wait).into_status("payment");
            judged(status).refusal.retry_after
        };
        assert_eq!(asking(Duration::ZERO), Some(Duration::from_millis(100)));
        assert_eq!(asking(Duration::from_secs(5)), Some(Duration::from_secs(5)));
        assert_eq!(asking(Duration::from_secs(86_400)), Some(NO_MORE));
        let pushing = |told: &'static str| {
            let mut status = Status::unavailable("not now");
            status.metadata_mut().insert("grpc-retry-pushback-ms", told.parse().expect("ASCII"));
            judged(status).refusal.retry_after
        };
        assert_eq!(pushing("5000"), Some(Duration::from_secs(5)));
        for never in ["-1", "soon", "+5", "2147483648"] {
            assert_eq!(pushing(never), Some(NO_MORE), "{never}");
        }
    }

    #[test]
    fn who_is_to_be_called_rarely_is_called_no_sooner_for_asking_for_it() {
        let wait = Duration::from_secs(300);
        let retry = Retry { initial: wait, most: wait, ..Retry::default() };
        for asked in [1, 300, 86_400] {
            let status = Refusal::unavailable("BUSY", "not now", Duration::from_secs(asked)).into_status("payment");
            assert_eq!(judged_by(retry, status).refusal.retry_after, Some(wait), "{asked}");
        }
        // Whose longest wait is shorter waits no longer at first either.
        let retry = Retry { initial: wait, ..Retry::default() };
        let status = Refusal::unavailable("BUSY", "not now", Duration::from_secs(1)).into_status("payment");
        assert_eq!(judged_by(retry, status).refusal.retry_after, Some(retry.most));
    }
}
