//! What every generated command surface does: key the request, submit the decision, answer with token and verdict.

use bytes::Bytes;
use prost::Message;
use sha2::{Digest as _, Sha256};
use std::{sync::Arc, time::Duration};
use tonic::{
    Code, Response, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};
use tonic_types::StatusExt as _;

use super::{
    Aggregate, Decision, State,
    token::{CONSISTENCY_TOKEN, Token},
};
use crate::{
    journal::{
        self, AggregateId, Cause, Committed, Decided, Entry, Journal, Loaded, Outcome, RefusedReads, RequestKey, Role,
        SubmitError, sql,
    },
    refusal::{Refusal, Violations},
    rpc::{
        carried::CarriedKeys,
        principal::Principal,
        verdict::{Op, SagaCall, Verdict},
    },
    telemetry::propagation,
};

/// A command method, as its contract declares it.
#[derive(Debug)]
pub struct Method {
    /// Its full name, such as `inventory.v1.InventoryCommandService/ReserveStock`.
    pub name: &'static str,
    /// True if it is declared to compensate another one.
    pub compensates: bool,
}

/// The command side of one service: all that a command surface is handed.
#[derive(Clone, Debug)]
pub struct CommandSide {
    service: &'static str,
    pub(super) journal: Journal,
    carried: CarriedKeys,
    is_for_clients_alone: bool,
    refused: Arc<RefusedReads>,
}

/// A request that may be decided.
#[derive(Debug)]
pub struct Accepted {
    key: Option<RequestKey>,
    cause: Cause,
    saga: Option<SagaCall>,
    size: usize,
    refused: Option<Refused>,
}

/// Why a request is refused where nothing was answered to it before.
#[derive(Debug)]
struct Refused {
    refusal: Refusal,
    is_kept: bool,
}

impl Accepted {
    /// True for what is refused already, such as a request that is wrong. It is to be submitted all the same; its aggregates are not
    /// looked at.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Has it refused where it is [submitted](CommandSide::submit), rather than decided: what it was answered before it is answered again,
    /// and a saga's call is told so by a verdict.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.refused = Some(Refused { refusal, is_kept: true });
    }
}

impl CommandSide {
    /// The side of `service`, by its bare name such as `inventory`.
    #[must_use]
    pub fn new(service: &'static str, journal: Journal) -> Self {
        let (carried, refused) = (CarriedKeys::default(), Arc::default());
        Self { service, journal, carried, is_for_clients_alone: false, refused }
    }

    /// Refuses what says that it is a saga's, for a service that no saga calls: what is answered to a saga's operation, a refusal too, is
    /// kept until that saga's coordinator has it forgotten, and where there is none, for ever. A contract can't say it, as any command that
    /// it declares may be a step.
    #[must_use]
    pub fn for_clients_alone(self) -> Self {
        Self { is_for_clients_alone: true, ..self }
    }

    /// Has this metadata of each request go on with the sagas that it begins.
    #[must_use]
    pub fn carrying(self, carried: CarriedKeys) -> Self {
        Self { carried, ..self }
    }

    /// The service's bare name.
    #[must_use]
    pub fn service(&self) -> &'static str {
        self.service
    }

    /// An aggregate's state as it is committed now; the default if nothing happened to it yet.
    ///
    /// # Errors
    /// UNAVAILABLE when the database can't be reached, INTERNAL when the state can't be read.
    pub async fn state<A: Aggregate>(&self, id: &str) -> Result<A::State, Refusal> {
        self.decoded::<A>(id, self.journal.aggregate(&AggregateId::new(A::KIND, id)).await)
    }

    /// The state of an aggregate as this process last left it, for somebody who asks just after that. Other processes may have changed it
    /// since. What this one has not written lately is read as it stands.
    ///
    /// # Errors
    /// Those of [`state`](Self::state).
    pub async fn own_state<A: Aggregate>(&self, id: &str) -> Result<A::State, Refusal> {
        self.decoded::<A>(id, self.journal.aggregate_as_written(&AggregateId::new(A::KIND, id)).await)
    }

    /// Writes the consistency token of all that is committed now into a reply, whichever process did it, and whether its committer has told
    /// of it yet or not: a state may have been read before that.
    ///
    /// # Errors
    /// UNAVAILABLE when the database can't be reached.
    pub async fn stamp(&self, metadata: &mut MetadataMap) -> Result<(), Refusal> {
        let position = journal::head(self.journal.reader()).await.map_err(|error| {
            self.refused.refusal("the log", &error, || tracing::error!(%error, "the log can't be read"))
        })?;
        self.write_token(position, metadata);
        Ok(())
    }

    /// Writes the consistency token of all that this process has committed into a reply.
    pub fn stamp_own(&self, metadata: &mut MetadataMap) {
        self.write_token(*self.journal.head().borrow(), metadata);
    }

    fn write_token(&self, position: i64, metadata: &mut MetadataMap) {
        let token = Token { service: self.service, position }.to_string();
        if let Ok(mut token) = AsciiMetadataValue::try_from(token) {
            // Never seen again: out of HPACK's table, where it would only push out what comes with every call.
            token.set_sensitive(true);
            metadata.insert(CONSISTENCY_TOKEN, token);
        }
    }

    /// Finds out under which key a request is answered. `violations` holds what is wrong with it.
    ///
    /// What is wrong and has a key is accepted, to be [submitted](Self::submit) and refused there: what it was answered before, when it
    /// was still right, it is answered again. A saga's call that is refused so is kept, since it must have no effect later either; a client
    /// may mend its request.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with every wrong field, where there is no key, and for a saga's request where [none is
    /// taken](Self::for_clients_alone).
    pub async fn accept<Q: Message>(
        &self,
        method: &Method,
        metadata: &MetadataMap,
        request: &Q,
        request_id: &str,
        mut violations: Violations,
    ) -> Result<Accepted, Status> {
        if let Some(key) = SagaCall::key_in(metadata).filter(|_| self.is_for_clients_alone) {
            let refusal = Refusal::invalid(key, format!("{} is no step of a saga", method.name));
            return Err(refusal.into_status(self.service));
        }
        let is_named = violations.request_id(request_id) && !request_id.is_empty();
        let saga = SagaCall::from_metadata(metadata).map_err(|refusal| refusal.into_status(self.service))?;
        if saga.as_ref().is_some_and(|call| call.op == Op::Compensation) && !method.compensates {
            let refusal = Refusal::invalid("saga-op", format!("{} compensates nothing", method.name));
            return Err(refusal.into_status(self.service));
        }
        let (key, role) = match &saga {
            Some(call) => {
                let role = match call.op {
                    Op::Action => Role::Action,
                    Op::Compensation => {
                        Role::Compensation { action: call.key(Op::Action), expires_micros: call.expires_micros }
                    }
                };
                (Some(call.key(call.op)), role)
            }
            None => (is_named.then(|| client_key(method.name, request_id)), Role::Action),
        };
        // This call's own span, where there is one; else the caller's word, which goes into every event.
        let sent = || metadata.get("traceparent").and_then(|value| value.to_str().ok());
        let sent = || sent().filter(|text| propagation::is_traceparent(text)).unwrap_or_default().to_owned();
        let carried = if self.carried.is_empty() { Ok(Vec::new()) } else { self.carried.take(metadata) };
        let carried = carried.unwrap_or_else(|(key, why)| {
            violations.add(key, why);
            Vec::new()
        });
        let cause = Cause {
            carried: carried.into(),
            traceparent: propagation::traceparent().unwrap_or_else(sent),
            request: key.clone().unwrap_or_else(|| method.name.to_owned()),
        };
        let encoded = request.encode_to_vec();
        let size = encoded.len();
        let key = key.map(|key| {
            let (hash, other_hash) = hashes(method.name, &encoded, saga.as_ref());
            RequestKey { key, hash, other_hash, role }
        });
        let accepted = Accepted { key, cause, saga, size, refused: None };
        match violations.refuse() {
            Ok(()) => Ok(accepted),
            Err(refusal) if accepted.key.is_some() => {
                let is_kept = accepted.saga.is_some();
                Ok(Accepted { refused: Some(Refused { refusal, is_kept }), ..accepted })
            }
            Err(refusal) => Err(refusal.into_status(self.service)),
        }
    }

    /// Has a command decided over these aggregates, and answers what came of it, durable.
    ///
    /// # Errors
    /// The refusal; INVALID_ARGUMENT for an aggregate that can't have its id; ALREADY_EXISTS for a key used with another request;
    /// RESOURCE_EXHAUSTED when too much waits; UNAVAILABLE while shutting down.
    pub async fn submit<R: Message + Default>(
        &self,
        accepted: Accepted,
        mut aggregates: Vec<AggregateId>,
        decide: impl FnOnce(&State<'_>) -> Result<Decision<R>, Refusal> + Send + 'static,
    ) -> Result<Response<R>, Status> {
        let Accepted { key, cause, saga, size, mut refused } = accepted;
        aggregates.dedup();
        // A server can look up none of the batch's rows where one can't be its: whoever is in it would be refused, each time.
        if let Err(refusal) = aggregates.iter().try_for_each(AggregateId::check) {
            refused.get_or_insert(Refused { refusal, is_kept: saga.is_some() });
            aggregates.clear();
        }
        let service = self.service;
        let action = saga.as_ref().filter(|call| call.op == Op::Action);
        let (deadline_micros, expires_micros) =
            action.map_or((0, 0), |call| (call.deadline_micros, call.expires_micros));
        let decide = move |loaded: &Loaded<'_>| {
            // Before everything that is kept: its saga may have ended since, and what was known of it may be forgotten.
            if expires_micros > 0 && loaded.now_micros() > expires_micros {
                return rejected(too_old(), service);
            }
            if deadline_micros > 0 && loaded.now_micros() > deadline_micros {
                let late = "the saga's deadline has passed: the action must not begin any more";
                return rejected(Refusal::precondition("SAGA_DEADLINE_PASSED", late), service);
            }
            if let Some(Refused { refusal, is_kept }) = refused {
                let rejected = rejected(refusal, service);
                return Decided { transient: rejected.transient || !is_kept, ..rejected };
            }
            let decided = decide(&State::new(loaded)).and_then(|decision| decision.into_decided(loaded));
            decided.unwrap_or_else(|refusal| rejected(refusal, service))
        };
        let entry = Entry { request: key, aggregates, cause, decide: Box::new(decide), size };
        let answer = match self.journal.submit(entry).await {
            Ok(committed) => self.answer(committed, saga.is_some()),
            Err(error) => return Err(not_submitted(error).into_status(service)),
        };
        match (answer, saga) {
            (Ok((mut response, verdict)), Some(_)) => {
                verdict.write_to(response.metadata_mut());
                Ok(response)
            }
            (Ok((response, _)), None) => Ok(response),
            (Err((mut status, Some(verdict))), Some(_)) => {
                verdict.write_to(status.metadata_mut());
                Err(status)
            }
            (Err((status, _)), _) => Err(status),
        }
    }

    fn answer<R: Message + Default>(
        &self,
        committed: Committed,
        is_of_saga: bool,
    ) -> Result<(Response<R>, Verdict), (Status, Option<Verdict>)> {
        let Committed { outcome, reply, position } = committed;
        let verdict = match outcome {
            Outcome::Done | Outcome::NothingToUndo => Verdict::Applied,
            Outcome::Replayed => Verdict::Replayed,
            Outcome::Rejected | Outcome::RejectedBefore => {
                let status = stored_status(reply);
                let verdict = refused_with(&status);
                return Err((status, verdict));
            }
            Outcome::TooOld => return Err((too_old().into_status(self.service), None)),
            Outcome::Cancelled => {
                let message = "the saga has turned back: this action was cancelled before it came";
                let status = Refusal::precondition("ACTION_CANCELLED", message).into_status(self.service);
                return Err((status, Some(Verdict::Cancelled)));
            }
            Outcome::Conflict => {
                let message = match is_of_saga {
                    true => "this step of the saga was called before with another request",
                    false => "the request_id was used before with another request: send a new one",
                };
                let status = Refusal::already_exists("REQUEST_ID_REUSED", message).into_status(self.service);
                return Err((status, Some(Verdict::Conflict)));
            }
        };
        let reply = R::decode(reply).map_err(|error| {
            tracing::error!(%error, "a stored reply can't be read");
            (Refusal::internal().into_status(self.service), None)
        })?;
        let mut response = Response::new(reply);
        self.write_token(position, response.metadata_mut());
        Ok((response, verdict))
    }

    fn decoded<A: Aggregate>(
        &self,
        id: &str,
        stored: Result<journal::Aggregate, sql::Error>,
    ) -> Result<A::State, Refusal> {
        let stored = stored.map_err(|error| {
            let tell = || tracing::error!(aggregate.kind = A::KIND, aggregate.id = id, %error, "state can't be read");
            self.refused.refusal(A::KIND, &error, tell)
        })?;
        A::State::decode(stored.state).map_err(|error| {
            tracing::error!(aggregate.kind = A::KIND, aggregate.id = id, %error, "stored state can't be read");
            Refusal::internal()
        })
    }
}

/// What a call is answered of which nothing is known any more, if it ever was. A saga that goes on calls again.
fn too_old() -> Refusal {
    let old = "the call is too old to begin anything: its saga may have ended since";
    Refusal::new(Code::Aborted, "SAGA_CALL_EXPIRED", old)
}

/// A refusal in the form the journal keeps: the `google.rpc.Status` that the caller gets.
fn rejected(refusal: Refusal, service: &str) -> Decided {
    let transient = is_transient(refusal.code);
    let status = refusal.into_status(service);
    Decided { rejected: true, transient, reply: Bytes::copy_from_slice(status.details()), ..Decided::default() }
}

/// What a refusal says of the operation. None where it says nothing of the request itself.
fn refused_with(status: &Status) -> Option<Verdict> {
    match status.code() {
        // As `Refusal::pending` makes it.
        tonic::Code::Aborted if status.get_details_retry_info().is_some() => Some(Verdict::Pending),
        code => (!is_transient(code)).then_some(Verdict::Rejected),
    }
}

/// Codes that say nothing about the request itself: no verdict, nothing kept, the caller may try again.
fn is_transient(code: tonic::Code) -> bool {
    use tonic::Code::{
        Aborted, Cancelled, DataLoss, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown,
    };
    matches!(
        code,
        Internal | Unknown | ResourceExhausted | Unavailable | Aborted | Cancelled | DeadlineExceeded | DataLoss
    )
}

fn stored_status(details: Bytes) -> Status {
    match tonic_types::pb::Status::decode(details.clone()) {
        Ok(stored) => Status::with_details(tonic::Code::from(stored.code), stored.message, details),
        Err(error) => {
            tracing::error!(%error, "a stored refusal can't be read");
            Status::internal("internal error")
        }
    }
}

/// The key of a client's command. An id is its caller's own where it is known who that is: another one that comes to know it has no answer
/// by it. No method's name has an @.
fn client_key(method: &str, request_id: &str) -> String {
    match Principal::current() {
        Some(principal) => format!("{method}@{}/{request_id}", principal.name()),
        None => format!("{method}/{request_id}"),
    }
}

/// What makes two requests the same: the method, and the hash that a saga's call says its message has; else the message, as this version
/// encodes it. The other one of a saga's call is for what was answered to a version, or asked by one, of before that was said.
fn hashes(method: &str, message: &[u8], saga: Option<&SagaCall>) -> ([u8; 32], Option<[u8; 32]>) {
    let known = hash(method, message);
    match saga.map(|call| call.request) {
        Some(Some(said)) => (hash(method, &said), Some(known)),
        Some(None) => (known, Some(hash(method, &Sha256::digest(message)))),
        None => (known, None),
    }
}

fn hash(method: &str, message: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(method);
    hash.update([0]);
    hash.update(message);
    hash.finalize().into()
}

/// Why the journal took nothing, in a caller's words. Nothing was written.
#[must_use]
pub fn not_submitted(error: SubmitError) -> Refusal {
    match error {
        SubmitError::Full => {
            let message = "too many commands are waiting: try again";
            Refusal::exhausted("COMMAND_QUEUE_FULL", message, Duration::from_millis(250))
        }
        SubmitError::TooLarge => Refusal::new(
            tonic::Code::InvalidArgument,
            "COMMAND_TOO_LARGE",
            "the command is too large: send less at once",
        ),
        SubmitError::Unavailable => {
            let message = "the database can't be reached or didn't take it, and nothing was written: try again";
            Refusal::unavailable("DATABASE_UNAVAILABLE", message, Duration::from_secs(1))
        }
        SubmitError::Panicked | SubmitError::Unreadable | SubmitError::Unwritable => Refusal::internal(),
        SubmitError::Closed => {
            let message = "the service is shutting down: try again, another one answers";
            Refusal::unavailable("SHUTTING_DOWN", message, Duration::from_secs(1))
        }
    }
}
