//! `saga.v1`: shows and steers a coordinator's sagas over gRPC.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use proto::saga::v1::{
    self as pb, SagaPhase, SagaView, StepDefinition, saga_command_service_server::SagaCommandServiceServer,
    saga_query_service_server::SagaQueryServiceServer,
};
use tonic::{Request, Response, Status};

use super::{
    coordinator::{Coordinator, unknown},
    definition::Definition,
    definitions::Definitions,
    plan::{Retry, StepPlan, each},
    projection::SAGA_VIEWS,
    record::is_final,
    shape::{DefinitionError, LONGEST},
};
use crate::{
    cqrs::{Changes, Column, CommandSide, Outgoing, PageOrder, PageQuery, READ_POSITION, ReadSide},
    journal::sql::Value,
    refusal::{Refusal, Violations},
    rpc::{
        principal::Principal,
        verdict::{LONGEST_NAME, Op, is_name},
    },
};

/// The query side: sagas from the view, definitions as they are.
#[derive(Clone, Debug)]
pub struct SagaQueries {
    read: ReadSide,
    definitions: Arc<Definitions>,
    /// Of this process, if it drives sagas.
    coordinator: Option<Coordinator>,
}

impl SagaQueries {
    /// Queries over views that [`SagasView`](super::SagasView) keeps.
    ///
    /// # Errors
    /// [`Fault::Ambiguous`](super::Fault::Ambiguous) where two definitions of one name and version have other hashes.
    pub fn new(
        read: ReadSide,
        definitions: impl IntoIterator<Item = Arc<Definition>>,
    ) -> Result<Self, DefinitionError> {
        Ok(Self { read, definitions: Arc::new(Definitions::new(definitions)?), coordinator: None })
    }

    /// The same, which also tell of a saga that it is parked: with a coordinator of this process over the same sagas.
    #[must_use]
    pub fn beside(self, coordinator: Coordinator) -> Self {
        Self { coordinator: Some(coordinator), ..self }
    }

    /// The tonic server.
    #[must_use]
    pub fn into_server(self) -> SagaQueryServiceServer<Self> {
        SagaQueryServiceServer::new(self)
    }

    /// Waits until the views show that a saga has ended, and answers it; None if they close before. What was decided beside its end is
    /// then in every other view that is not parked, or about to be.
    ///
    /// # Errors
    /// UNAVAILABLE when the database can't be reached, or the view is parked before the caller's token; INTERNAL when the views can't be
    /// read.
    pub async fn ended(read: &ReadSide, saga_id: &str) -> Result<Option<pb::Saga>, Refusal> {
        let mut changes = pin!(read.follow::<SagaView>(&SAGA_VIEWS, vec![("id", saga_id.into())], 0));
        while let Some((_, view)) = changes.try_next().await? {
            if let Some(saga) = view.saga.filter(|saga| is_final(saga.phase())) {
                return Ok(Some(saga));
            }
        }
        Ok(None)
    }

    /// The transitions of all sagas, or of one until it has ended; and of all from now on, after which position that is.
    fn changes(
        read: &ReadSide,
        request: pb::WatchSagasRequest,
    ) -> Result<(Changes<pb::WatchSagasResponse>, Option<i64>), Refusal> {
        let pb::WatchSagasRequest { saga_id, after_position } = request;
        let mut violations = Violations::default();
        violations.require(after_position >= 0, "after_position", "must not be negative");
        if !saga_id.is_empty() {
            must_be_id(&saga_id, &mut violations);
        }
        violations.refuse()?;
        let read = read.clone();
        let response = |(position, view): (i64, SagaView)| pb::WatchSagasResponse { saga: view.saga, position };
        if saga_id.is_empty() {
            let now = (after_position == 0).then(|| read.position_of(&SAGA_VIEWS));
            let all = read.follow::<SagaView>(&SAGA_VIEWS, Vec::new(), now.unwrap_or(after_position));
            return Ok((all.map_ok(response).boxed(), now));
        }
        let one = async_stream::try_stream! {
            read.wait_for_position(after_position).await?;
            let view = read.document::<SagaView>(&SAGA_VIEWS, &saga_id).await?.ok_or_else(|| unknown(&saga_id))?;
            let has_ended = |view: &SagaView| view.saga.as_ref().is_some_and(|saga| is_final(saga.phase()));
            let mut ended = has_ended(&view) && view.position <= after_position;
            let mut changes = pin!(read.follow(&SAGA_VIEWS, vec![("id", saga_id.into())], after_position));
            while !ended {
                let Some((position, view)) = changes.try_next().await? else { break };
                ended = has_ended(&view);
                yield response((position, view));
            }
        };
        Ok((one.boxed(), None))
    }
}

/// The ids that a saga may have: its own service may have chosen more freely than callers choose other ids.
fn must_be_id(saga_id: &str, violations: &mut Violations) {
    violations.require(is_name(saga_id, LONGEST_NAME), "saga_id", "must be 1 to 128 visible ASCII characters");
}

async fn get(read: &ReadSide, saga_id: &str, here: Option<&Coordinator>) -> Result<pb::GetSagaResponse, Refusal> {
    let mut violations = Violations::default();
    must_be_id(saga_id, &mut violations);
    violations.refuse()?;
    let view = read.document::<SagaView>(&SAGA_VIEWS, saga_id).await?;
    let saga = view.and_then(|view| view.saga).ok_or_else(|| unknown(saga_id))?;
    let parked = here.and_then(|coordinator| coordinator.parked_as(saga_id));
    Ok(pb::GetSagaResponse { saga: Some(saga), parked })
}

async fn list(read: &ReadSide, request: pb::ListSagasRequest) -> Result<pb::ListSagasResponse, Refusal> {
    let pb::ListSagasRequest { mut phases, r#type, page_size, page_token } = request;
    let mut violations = Violations::default();
    violations.require(phases.len() <= 16, "phases", "must be at most 16");
    let known = phases.iter().all(|phase| SagaPhase::try_from(*phase).is_ok());
    violations.require(known, "phases", "must be of SagaPhase");
    let fits = r#type.len() <= 64 && r#type.bytes().all(|byte| byte.is_ascii_graphic());
    violations.require(fits, "type", "must be at most 64 visible ASCII characters");
    violations.refuse()?;
    // However they are written down it is one listing, and a token of its next page is one of each.
    phases.sort_unstable();
    phases.dedup();
    let mut filter: Vec<(&'static str, Value)> = phases.into_iter().map(|phase| ("phase", phase.into())).collect();
    if !r#type.is_empty() {
        filter.push(("type", r#type.into()));
    }
    let order = PageOrder::Descending(Column::Int("started"));
    let query = PageQuery { page_size, page_token: &page_token, filter, order };
    let page = read.page::<SagaView>(&SAGA_VIEWS, query).await?;
    let sagas = page.items.into_iter().filter_map(|view| view.saga).collect();
    Ok(pb::ListSagasResponse { sagas, next_page_token: page.next_page_token })
}

#[tonic::async_trait]
impl pb::saga_query_service_server::SagaQueryService for SagaQueries {
    async fn get_saga(&self, request: Request<pb::GetSagaRequest>) -> Result<Response<pb::GetSagaResponse>, Status> {
        let here = self.coordinator.as_ref();
        self.read.answer(request, |read, request| async move { get(&read, &request.saga_id, here).await }).await
    }

    async fn list_sagas(
        &self,
        request: Request<pb::ListSagasRequest>,
    ) -> Result<Response<pb::ListSagasResponse>, Status> {
        self.read.answer(request, |read, request| async move { list(&read, request).await }).await
    }

    type WatchSagasStream = Outgoing<pb::WatchSagasResponse>;

    async fn watch_sagas(
        &self,
        request: Request<pb::WatchSagasRequest>,
    ) -> Result<Response<Self::WatchSagasStream>, Status> {
        let mut now = None;
        let changes = |read: &ReadSide, request| {
            let (changes, after) = Self::changes(read, request)?;
            now = after;
            Ok(changes)
        };
        let mut response = self.read.stream(request, changes).await?;
        if let Some(position) = now {
            // Of a view that stands still this is less than what the others have come to.
            response.metadata_mut().insert(READ_POSITION, position.into());
        }
        Ok(response)
    }

    async fn describe_saga(
        &self,
        request: Request<pb::DescribeSagaRequest>,
    ) -> Result<Response<pb::DescribeSagaResponse>, Status> {
        let pb::DescribeSagaRequest { r#type, version } = request.into_inner();
        let found = self.definitions.find(&r#type, version).map_err(|refusal| refusal.into_status(self.read.service()));
        Ok(Response::new(describe(found?)))
    }
}

fn describe(definition: &Definition) -> pb::DescribeSagaResponse {
    let plan = &definition.plan;
    let duration = |duration: Duration| prost_types::Duration::try_from(duration).ok();
    let retry = |retry: &Retry| pb::RetryPolicy {
        initial: duration(retry.initial),
        most: duration(retry.most),
        factor: retry.factor,
        jitter: retry.jitter,
        attempts: retry.attempts.unwrap_or_default(),
    };
    let step = |step: &StepPlan| StepDefinition {
        name: step.name.to_owned(),
        kind: step.kind.into(),
        after: each(step.after).map(|before| plan.steps[before].name.to_owned()).collect(),
        participant: step.participant.to_owned(),
        action: step.action.to_owned(),
        compensation: step.compensation.to_owned(),
        attempt_timeout: duration(step.options.attempt_timeout),
        retry: Some(retry(&step.options.retry)),
        deadline: step.options.deadline.and_then(duration),
        trusted_codes: step.options.trusted.iter().map(|code| i32::from(*code)).collect(),
        without_barrier: step.options.plain,
    };
    pb::DescribeSagaResponse {
        r#type: plan.name.to_owned(),
        version: plan.version,
        definition_hash: plan.hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        steps: plan.steps.iter().map(step).collect(),
        lock_policy: plan.locks.into(),
        deadline: plan.deadline.and_then(duration),
        on_compensated: plan.has_ending,
    }
}

/// The command side: an operator's words to a coordinator. Each goes into the saga's own history, and is answered with a consistency token.
#[derive(Clone, Debug)]
pub struct SagaCommands {
    side: CommandSide,
    coordinator: Coordinator,
}

impl SagaCommands {
    /// Commands to a coordinator, beside those of the service that it is part of.
    #[must_use]
    pub fn new(side: CommandSide, coordinator: Coordinator) -> Self {
        Self { side, coordinator }
    }

    /// The tonic server.
    #[must_use]
    pub fn into_server(self) -> SagaCommandServiceServer<Self> {
        SagaCommandServiceServer::new(self)
    }

    /// Checks who asks and why, then has it done. Whoever sends the reply's token to a query sees what was done.
    async fn obeyed<R>(
        &self,
        saga_id: &str,
        actor: &str,
        reason: &str,
        mut violations: Violations,
        ordered: impl Future<Output = Result<pb::Saga, Refusal>> + Send,
        reply: impl FnOnce(Option<pb::Saga>) -> R + Send,
    ) -> Result<Response<R>, Status> {
        must_be_id(saga_id, &mut violations);
        let mut text = |text: &str, most: usize, field, what| {
            violations.require(!text.is_empty() && text.chars().count() <= most, field, what);
        };
        text(actor, 128, "actor", "must be 1 to 128 characters: who asks");
        text(reason, 512, "reason", "must be 1 to 512 characters: why");
        let obeyed = match violations.refuse() {
            Ok(()) => ordered.await,
            Err(refusal) => Err(refusal),
        };
        let saga = obeyed.map_err(|refusal| refusal.into_status(self.side.service()))?;
        let mut response = Response::new(reply(Some(saga)));
        // It was done in this process. Nothing that fails after that may make a refusal of it.
        self.side.stamp_own(response.metadata_mut());
        Ok(response)
    }
}

/// Who acts, for the saga's history: whom the server's guard has found, and otherwise who the caller says it is.
fn acting(said: String) -> String {
    Principal::current().map_or(said, |principal| principal.name().to_owned())
}

#[tonic::async_trait]
impl pb::saga_command_service_server::SagaCommandService for SagaCommands {
    async fn cancel_saga(
        &self,
        request: Request<pb::CancelSagaRequest>,
    ) -> Result<Response<pb::CancelSagaResponse>, Status> {
        let pb::CancelSagaRequest { saga_id, actor, reason } = request.into_inner();
        let actor = acting(actor);
        let ordered = self.coordinator.cancel(&saga_id, &actor, &reason);
        self.obeyed(&saga_id, &actor, &reason, Violations::default(), ordered, |saga| pb::CancelSagaResponse { saga })
            .await
    }

    async fn retry_saga(
        &self,
        request: Request<pb::RetrySagaRequest>,
    ) -> Result<Response<pb::RetrySagaResponse>, Status> {
        let pb::RetrySagaRequest { saga_id, actor, reason } = request.into_inner();
        let actor = acting(actor);
        let ordered = self.coordinator.retry(&saga_id, &actor, &reason);
        self.obeyed(&saga_id, &actor, &reason, Violations::default(), ordered, |saga| pb::RetrySagaResponse { saga })
            .await
    }

    async fn force_close_saga(
        &self,
        request: Request<pb::ForceCloseSagaRequest>,
    ) -> Result<Response<pb::ForceCloseSagaResponse>, Status> {
        let pb::ForceCloseSagaRequest { saga_id, actor, reason } = request.into_inner();
        let actor = acting(actor);
        let ordered = self.coordinator.force_close(&saga_id, &actor, &reason);
        self.obeyed(&saga_id, &actor, &reason, Violations::default(), ordered, |saga| pb::ForceCloseSagaResponse {
            saga,
        })
        .await
    }

    async fn pause_saga(
        &self,
        request: Request<pb::PauseSagaRequest>,
    ) -> Result<Response<pb::PauseSagaResponse>, Status> {
        let pb::PauseSagaRequest { saga_id, actor, reason } = request.into_inner();
        let actor = acting(actor);
        let ordered = self.coordinator.pause(&saga_id, &actor, &reason);
        self.obeyed(&saga_id, &actor, &reason, Violations::default(), ordered, |saga| pb::PauseSagaResponse { saga })
            .await
    }

    async fn resume_saga(
        &self,
        request: Request<pb::ResumeSagaRequest>,
    ) -> Result<Response<pb::ResumeSagaResponse>, Status> {
        let pb::ResumeSagaRequest { saga_id, actor, reason } = request.into_inner();
        let actor = acting(actor);
        let ordered = self.coordinator.resume(&saga_id, &actor, &reason);
        self.obeyed(&saga_id, &actor, &reason, Violations::default(), ordered, |saga| pb::ResumeSagaResponse { saga })
            .await
    }

    async fn skip_step(&self, request: Request<pb::SkipStepRequest>) -> Result<Response<pb::SkipStepResponse>, Status> {
        let request = request.into_inner();
        let (saga_id, actor, reason) = (&request.saga_id, &acting(request.actor.clone()), &request.reason);
        let (operation, outcome) = (request.operation(), request.outcome());
        let mut violations = Violations::default();
        violations.require((1..=LONGEST).contains(&request.step.len()), "step", "must be 1 to 64 characters");
        let is_known = operation != pb::Operation::Unspecified;
        violations.require(is_known, "operation", "must be ACTION or COMPENSATION");
        violations.require(outcome != pb::SkipOutcome::Unspecified, "outcome", "must be DONE or REJECTED");
        let op = if operation == pb::Operation::Compensation { Op::Compensation } else { Op::Action };
        let done = outcome == pb::SkipOutcome::Done;
        let ordered = self.coordinator.skip(saga_id, &request.step, op, done, actor, reason);
        self.obeyed(saga_id, actor, reason, violations, ordered, |saga| pb::SkipStepResponse { saga }).await
    }
}
