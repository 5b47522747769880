//! Participants that exist in memory: behind a barrier as real ones are, and as unreliable as the test wants them.

use std::{collections::HashMap, fmt, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message as _;
use tonic::{Status, metadata::MetadataMap};

use crate::{
    refusal::Refusal,
    rpc::verdict::{Op, SagaCall, Verdict},
    saga::{Attempt, Operation, Transport},
};

/// What happens to a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It arrives, and so does its answer.
    None,
    /// The participant refuses it, if it is new.
    Reject(Refusal),
    /// It never arrives.
    LoseRequest,
    /// It takes effect, and the answer is lost.
    LoseReply,
    /// It arrives twice.
    Repeat,
    /// It never arrives, and something on the way answers.
    Status(Status),
    /// It never arrives, and a server that is not the participant answers OK.
    Elsewhere,
    /// The participant isn't done with it yet.
    Pending,
    /// The participant knows the operation by another request.
    Conflict,
    /// Neither it nor an answer ever arrives.
    Hang,
}

/// Something that a participant did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// For which saga.
    pub saga_id: String,
    /// For which of its steps.
    pub step: String,
    /// Doing or undoing.
    pub op: Op,
}

/// A call, as it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which operation it was.
    pub call: SagaCall,
    /// The method.
    pub path: &'static str,
    /// The message's bytes.
    pub message: Bytes,
}

/// All the participants of a test's sagas. Clones share them, so they outlive a coordinator as real ones do.
#[derive(Clone, Default)]
pub struct Participants(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    answers: HashMap<&'static str, Answer>,
    faults: Option<Faults>,
    barrier: HashMap<String, (Bytes, Outcome)>,
    effects: Vec<Effect>,
    calls: Vec<Call>,
}

/// What a call comes back with.
type Answered = Result<(Bytes, MetadataMap), Status>;
type Answer = Arc<dyn Fn(Bytes) -> Result<Bytes, Refusal> + Send + Sync>;
type Faults = Box<dyn FnMut(&SagaCall) -> Fault + Send>;

#[derive(Clone)]
enum Outcome {
    Done(Bytes),
    Rejected(Refusal),
    Tombstone,
}

impl fmt::Debug for Participants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participants").field("effects", &self.0.lock().effects).finish_non_exhaustive()
    }
}

impl Participants {
    /// Participants that grant everything and answer default messages.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers an operation.
    #[must_use]
    pub fn answer<O: Operation>(
        self,
        answer: impl Fn(O::Request) -> Result<O::Reply, Refusal> + Send + Sync + 'static,
    ) -> Self {
        let answer = move |message: Bytes| {
            let request = O::Request::decode(message).map_err(|_| Refusal::invalid("request", "can't be read"))?;
            Ok(answer(request)?.encode_to_vec().into())
        };
        self.0.lock().answers.insert(O::PATH, Arc::new(answer));
        self
    }

    /// Decides what happens to each call from now on. What was done before stays done.
    pub fn on_call(&self, faults: impl FnMut(&SagaCall) -> Fault + Send + 'static) {
        self.0.lock().faults = Some(Box::new(faults));
    }

    /// What was done so far, in order.
    #[must_use]
    pub fn effects(&self) -> Vec<Effect> {
        self.0.lock().effects.clone()
    }

    /// What was done for one saga, as `step` for an action and `-step` for a compensation, in order.
    #[must_use]
    pub fn done_for(&self, saga_id: &str) -> Vec<String> {
        let inner = self.0.lock();
        let own = inner.effects.iter().filter(|effect| effect.saga_id == saga_id);
        let sign = |op| if op == Op::Action { "" } else { "-" };
        own.map(|effect| format!("{}{}", sign(effect.op), effect.step)).collect()
    }

    /// The calls that left so far, in order, those that were lost too.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.0.lock().calls.clone()
    }
}

impl Transport for Participants {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Answered> {
        let answered = self.0.lock().arrive(attempt);
        Box::pin(async move {
            match answered {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }
}

impl Inner {
    fn arrive(&mut self, attempt: Attempt) -> Option<Answered> {
        let Attempt { path, request: message, metadata, .. } = attempt;
        let call = match SagaCall::from_metadata(&metadata) {
            Ok(Some(call)) => call,
            Ok(None) => return Some(Err(Status::internal("a saga's call says which saga it is"))),
            Err(refusal) => return Some(Err(refusal.into_status("test"))),
        };
        self.calls.push(Call { call: call.clone(), path, message: message.clone() });
        let fault = self.faults.as_mut().map_or(Fault::None, |faults| faults(&call));
        let lost = || Err(Status::unavailable("the connection broke"));
        Some(match fault {
            Fault::None => self.handle(path, &call, message, None),
            Fault::Reject(refusal) => self.handle(path, &call, message, Some(refusal)),
            Fault::LoseRequest => lost(),
            Fault::LoseReply => {
                let _ = self.handle(path, &call, message, None);
                lost()
            }
            Fault::Repeat => {
                let _ = self.handle(path, &call, message.clone(), None);
                self.handle(path, &call, message, None)
            }
            Fault::Status(status) => Err(status),
            Fault::Elsewhere => Ok((Bytes::new(), MetadataMap::new())),
            Fault::Pending => {
                let wait = std::time::Duration::from_millis(200);
                let refusal = Refusal::unavailable("UNDER_WAY", "not done yet", wait);
                Err(with_verdict(refusal, Verdict::Pending))
            }
            Fault::Conflict => {
                let refusal = Refusal::already_exists("REQUEST_ID_REUSED", "it was another request before");
                Err(with_verdict(refusal, Verdict::Conflict))
            }
            Fault::Hang => return None,
        })
    }

    /// The barrier, as in the journal: once decided, always the same.
    fn handle(&mut self, path: &'static str, call: &SagaCall, message: Bytes, refusal: Option<Refusal>) -> Answered {
        let key = call.key(call.op);
        if let Some((before, outcome)) = self.barrier.get(&key).cloned() {
            return match outcome {
                Outcome::Tombstone => {
                    Err(with_verdict(Refusal::precondition("ACTION_CANCELLED", "it came too late"), Verdict::Cancelled))
                }
                _ if before != message => {
                    let refusal = Refusal::already_exists("REQUEST_ID_REUSED", "it was another request before");
                    Err(with_verdict(refusal, Verdict::Conflict))
                }
                Outcome::Done(reply) => Ok(ok(reply, Verdict::Replayed)),
                Outcome::Rejected(refusal) => Err(with_verdict(refusal, Verdict::Rejected)),
            };
        }
        let action = call.key(Op::Action);
        let effective = match (call.op, self.barrier.get(&action)) {
            (Op::Action, _) | (Op::Compensation, Some((_, Outcome::Done(_)))) => true,
            (Op::Compensation, Some(_)) => false,
            (Op::Compensation, None) => {
                self.barrier.insert(action, (Bytes::new(), Outcome::Tombstone));
                false
            }
        };
        if !effective {
            self.barrier.insert(key, (message, Outcome::Done(Bytes::new())));
            return Ok(ok(Bytes::new(), Verdict::Applied));
        }
        let decided = match (refusal, self.answers.get(path)) {
            (Some(refusal), _) => Err(refusal),
            (None, Some(answer)) => answer(message.clone()),
            (None, None) => Ok(Bytes::new()),
        };
        match decided {
            Ok(reply) => {
                let SagaCall { saga_id, step, op, .. } = call.clone();
                self.effects.push(Effect { saga_id, step, op });
                self.barrier.insert(key, (message, Outcome::Done(reply.clone())));
                Ok(ok(reply, Verdict::Applied))
            }
            Err(refusal) => {
                self.barrier.insert(key, (message, Outcome::Rejected(refusal.clone())));
                Err(with_verdict(refusal, Verdict::Rejected))
            }
        }
    }
}

fn ok(reply: Bytes, verdict: Verdict) -> (Bytes, MetadataMap) {
    let mut metadata = MetadataMap::new();
    verdict.write_to(&mut metadata);
    (reply, metadata)
}

fn with_verdict(refusal: Refusal, verdict: Verdict) -> Status {
    let mut status = refusal.into_status("test");
    verdict.write_to(status.metadata_mut());
    status
}
