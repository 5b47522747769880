//! `breaker.v1`: shows and steers a process's breakers over gRPC.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::Stream;
use proto::breaker::v1 as pb;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Breaker, Cause, Change, ChangeKind, Override, Registry, Rejections, State, Totals, Transition};

/// More than any breaker's name has.
const MOST_NAME: usize = 256;

/// Serves the breakers of a registry.
#[derive(Clone, Debug)]
pub struct BreakerService {
    registry: Registry,
    /// Of the errors' ErrorInfo.
    domain: Arc<str>,
}

impl BreakerService {
    /// A service over this registry, in the service of this bare name. It implements both [`pb::breaker_query_service_server::BreakerQueryService`] and
    /// [`pb::breaker_command_service_server::BreakerCommandService`].
    #[must_use]
    pub fn new(service: &str, registry: Registry) -> Self {
        Self { registry, domain: format!("trellis.{service}").into() }
    }

    /// The query side, ready to serve.
    #[must_use]
    pub fn queries(&self) -> pb::breaker_query_service_server::BreakerQueryServiceServer<Self> {
        pb::breaker_query_service_server::BreakerQueryServiceServer::new(self.clone())
    }

    /// The command side, ready to serve.
    #[must_use]
    pub fn commands(&self) -> pb::breaker_command_service_server::BreakerCommandServiceServer<Self> {
        pb::breaker_command_service_server::BreakerCommandServiceServer::new(self.clone())
    }

    fn find(&self, name: &str) -> Result<Arc<Breaker>, Status> {
        self.registry.get(name).ok_or_else(|| {
            // It would be repeated in an answer's headers, and in the log.
            if name.len() > MOST_NAME {
                return self.invalid(&[("name", "is longer than any breaker's")]);
            }
            let details = ErrorDetails::with_error_info("UNKNOWN_BREAKER", &*self.domain, HashMap::new());
            let known = self.registry.list("");
            let names: Vec<&str> = known.iter().take(20).map(|breaker| &**breaker.name()).collect();
            let message = format!("no breaker is named {name:?}; there are: {}", names.join(", "));
            Status::with_error_details(Code::NotFound, message, details)
        })
    }

    /// INVALID_ARGUMENT with everything that is wrong.
    fn invalid(&self, violations: &[Violation]) -> Status {
        let mut details = ErrorDetails::with_error_info("INVALID_REQUEST", &*self.domain, HashMap::new());
        for (field, description) in violations {
            details.add_bad_request_violation(*field, *description);
        }
        let said: Vec<String> =
            violations.iter().map(|(field, description)| format!("{field}: {description}")).collect();
        Status::with_error_details(Code::InvalidArgument, said.join("; "), details)
    }
}

#[tonic::async_trait]
impl pb::breaker_query_service_server::BreakerQueryService for BreakerService {
    async fn list_breakers(
        &self,
        request: Request<pb::ListBreakersRequest>,
    ) -> Result<Response<pb::ListBreakersResponse>, Status> {
        let breakers = self.registry.list(&request.get_ref().name_prefix);
        Ok(Response::new(pb::ListBreakersResponse { breakers: breakers.iter().map(|each| view(each)).collect() }))
    }

    type WatchBreakersStream = Pin<Box<dyn Stream<Item = Result<pb::WatchBreakersResponse, Status>> + Send>>;

    async fn watch_breakers(
        &self,
        request: Request<pb::WatchBreakersRequest>,
    ) -> Result<Response<Self::WatchBreakersStream>, Status> {
        let prefix = request.into_inner().name_prefix;
        let registry = self.registry.clone();
        // Listen before looking: a change between the two would be missed.
        let mut changes = registry.changes();
        let stream = async_stream::stream! {
            for breaker in registry.list(&prefix) {
                yield Ok(shown(&breaker, None, 0));
            }
            loop {
                match changes.recv().await {
                    Ok(Change { breaker, kind }) if breaker.starts_with(&prefix) => match (kind, registry.get(&breaker)) {
                        (ChangeKind::Gone, _) => yield Ok(gone(&breaker)),
                        (ChangeKind::New, Some(breaker)) => yield Ok(shown(&breaker, None, 0)),
                        (ChangeKind::Changed(transition), Some(breaker)) => yield Ok(shown(&breaker, Some(transition), 0)),
                        // That it is gone comes next.
                        (_, None) => {}
                    },
                    Ok(_) => {}
                    // Too slow to see each change: see where all stand now, and how many were not seen. Those that are kept are
                    // among them: after what is shown now they would lead back.
                    Err(RecvError::Lagged(mut skipped)) => {
                        for _ in 0..changes.len() {
                            skipped += match changes.try_recv() {
                                Ok(_) => 1,
                                Err(TryRecvError::Lagged(more)) => more,
                                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                            };
                        }
                        // As all stand now, also where the one who watches takes its time over them.
                        let mut all = Vec::new();
                        for breaker in registry.list(&prefix) {
                            all.push(shown(&breaker, None, std::mem::take(&mut skipped)));
                        }
                        for breaker in all {
                            yield Ok(breaker);
                        }
                        // None is left to say it with.
                        if skipped > 0 {
                            yield Ok(pb::WatchBreakersResponse { skipped_changes: skipped, ..Default::default() });
                        }
                    }
                    Err(RecvError::Closed) => break,
                }
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }
}

#[tonic::async_trait]
impl pb::breaker_command_service_server::BreakerCommandService for BreakerService {
    async fn set_override(
        &self,
        request: Request<pb::SetOverrideRequest>,
    ) -> Result<Response<pb::SetOverrideResponse>, Status> {
        let request = request.into_inner();
        let over = pb::Override::try_from(request.r#override);
        let over = match (over, unnamed(&request.name)) {
            (Ok(over), None) => wanted(over),
            (Ok(_), Some(unnamed)) => return Err(self.invalid(&[unnamed])),
            (Err(_), unnamed) => {
                let unknown = ("override", "must be one of the enum's values");
                return Err(self.invalid(&unnamed.into_iter().chain([unknown]).collect::<Vec<_>>()));
            }
        };
        let breaker = self.find(&request.name)?;
        tracing::warn!(breaker = %breaker.name(), ?over, "override set");
        breaker.set_override(over);
        Ok(Response::new(pb::SetOverrideResponse { breaker: Some(view(&breaker)) }))
    }

    async fn reset_breaker(
        &self,
        request: Request<pb::ResetBreakerRequest>,
    ) -> Result<Response<pb::ResetBreakerResponse>, Status> {
        let name = &request.get_ref().name;
        if let Some(unnamed) = unnamed(name) {
            return Err(self.invalid(&[unnamed]));
        }
        let breaker = self.find(name)?;
        tracing::warn!(breaker = %breaker.name(), "breaker reset");
        breaker.reset();
        Ok(Response::new(pb::ResetBreakerResponse { breaker: Some(view(&breaker)) }))
    }
}

/// A field and what is wrong with it.
type Violation = (&'static str, &'static str);

fn unnamed(name: &str) -> Option<Violation> {
    name.is_empty().then_some(("name", "must be the name of a breaker, such as ListBreakers answers"))
}

const fn wanted(over: pb::Override) -> Override {
    match over {
        pb::Override::Unspecified => Override::None,
        pb::Override::ForcedOpen => Override::ForcedOpen,
        pb::Override::ForcedClosed => Override::ForcedClosed,
        pb::Override::MetricsOnly => Override::MetricsOnly,
        pb::Override::Shadow => Override::Shadow,
    }
}

fn shown(breaker: &Breaker, transition: Option<Transition>, skipped_changes: u64) -> pb::WatchBreakersResponse {
    let transition = transition.map(|Transition { from, to, generation, cause, over }| pb::Transition {
        from: state(from).into(),
        to: state(to).into(),
        generation,
        cause: open_cause(cause).into(),
        r#override: in_force(over).into(),
    });
    pb::WatchBreakersResponse { breaker: Some(view(breaker)), transition, skipped_changes, gone: false }
}

/// A breaker that was forgotten: its name is all there is.
fn gone(name: &str) -> pb::WatchBreakersResponse {
    let breaker = pb::Breaker { name: name.to_owned(), ..pb::Breaker::default() };
    pb::WatchBreakersResponse { breaker: Some(breaker), gone: true, ..pb::WatchBreakersResponse::default() }
}

/// A breaker as it stands, in the contract's words.
fn view(breaker: &Breaker) -> pb::Breaker {
    let shown = breaker.snapshot();
    pb::Breaker {
        name: breaker.name().to_string(),
        state: state(shown.state).into(),
        r#override: in_force(shown.over).into(),
        generation: shown.generation,
        window_total: shown.window_total,
        window_failures: shown.window_failures,
        window_slow: shown.window_slow,
        consecutive_failures: shown.consecutive_failures,
        retry_after: shown.retry_after.and_then(|left| prost_types::Duration::try_from(left).ok()),
        totals: Some(counted(shown.totals)),
        transition_time: Some(moment(shown.since_change)),
        last_open_cause: open_cause(shown.last_cause).into(),
    }
}

const fn state(state: State) -> pb::CircuitState {
    match state {
        State::Closed => pb::CircuitState::Closed,
        State::Open => pb::CircuitState::Open,
        State::HalfOpen => pb::CircuitState::HalfOpen,
        State::Recovering => pb::CircuitState::Recovering,
    }
}

const fn in_force(over: Override) -> pb::Override {
    match over {
        Override::None => pb::Override::Unspecified,
        Override::ForcedOpen => pb::Override::ForcedOpen,
        Override::ForcedClosed => pb::Override::ForcedClosed,
        Override::MetricsOnly => pb::Override::MetricsOnly,
        Override::Shadow => pb::Override::Shadow,
    }
}

const fn open_cause(cause: Option<Cause>) -> pb::OpenCause {
    match cause {
        None => pb::OpenCause::Unspecified,
        Some(Cause::Consecutive) => pb::OpenCause::ConsecutiveFailures,
        Some(Cause::FailureRate) => pb::OpenCause::FailureRate,
        Some(Cause::SlowRate) => pb::OpenCause::SlowRate,
        Some(Cause::Probes) => pb::OpenCause::Probes,
        Some(Cause::ProbeTimeout) => pb::OpenCause::ProbeTimeout,
    }
}

fn counted(totals: Totals) -> pb::Totals {
    let Rejections { open, half_open_saturated, recovering, forced_open, throttled } = totals.rejected;
    pb::Totals {
        success: totals.success,
        failure: totals.failure,
        overload: totals.overload,
        neutral: totals.neutral,
        rejected: totals.rejected.sum(),
        stale: totals.stale,
        opened: totals.opened,
        probe_timeouts: totals.probe_timeouts,
        would_reject: totals.would_reject,
        abandoned_failure: totals.abandoned_failure,
        abandoned_neutral: totals.abandoned_neutral,
        rejections: (totals.rejected.sum() > 0).then_some(pb::Rejections {
            open,
            half_open_saturated,
            recovering,
            forced_open,
            throttled,
        }),
        open_time: Some(totals.open_time).filter(|time| !time.is_zero()).and_then(|time| time.try_into().ok()),
    }
}

fn moment(ago: Duration) -> prost_types::Timestamp {
    let then = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
    then.into()
}
