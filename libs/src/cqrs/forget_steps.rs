//! `saga.v1.BarrierService`: lets go of what a participant keeps of sagas that have ended.

use proto::saga::v1::{
    EndedStep, ForgetStepsRequest, ForgetStepsResponse,
    barrier_service_server::{BarrierService, BarrierServiceServer},
};
use tonic::{Request, Response, Status};

use super::not_submitted;
use crate::{
    journal::{Forgotten, Journal},
    refusal::{Refusal, Violations},
    rpc::verdict::{LONGEST_NAME, Op, is_name, operation_key},
};

/// The most steps that one call names.
const MOST_STEPS: usize = 1_000;
/// How many of them go with one batch: commands that come meanwhile wait for no more than these.
const STEPS: usize = 125;

/// A participant's memory of sagas' operations, as their coordinators reach it.
#[derive(Clone, Debug)]
pub struct Barrier {
    service: &'static str,
    journal: Journal,
}

impl Barrier {
    /// The barrier of `service`, by its bare name, for the domain of its errors.
    #[must_use]
    pub fn new(service: &'static str, journal: Journal) -> Self {
        Self { service, journal }
    }

    /// The tonic server.
    #[must_use]
    pub fn into_server(self) -> BarrierServiceServer<Self> {
        BarrierServiceServer::new(self)
    }

    async fn forget(&self, steps: &[EndedStep]) -> Result<(), Refusal> {
        let mut violations = Violations::default();
        violations.require((1..=MOST_STEPS).contains(&steps.len()), "steps", "must be 1 to 1,000");
        for (at, EndedStep { saga_id, step }) in steps.iter().take(MOST_STEPS).enumerate() {
            for (name, text) in [("saga_id", saga_id), ("step", step)] {
                if !is_name(text, LONGEST_NAME) {
                    violations.add(format!("steps[{at}].{name}"), "must be 1 to 128 visible ASCII characters");
                }
            }
            // Such a key is that of another saga's step. A # there may be: before a round.
            if step.contains('/') {
                violations.add(format!("steps[{at}].step"), "must have no /");
            }
        }
        violations.refuse()?;
        for steps in steps.chunks(STEPS) {
            let both = |EndedStep { saga_id, step }: &EndedStep| {
                [Op::Action, Op::Compensation].map(|op| operation_key(saga_id, step, op))
            };
            let keys = steps.iter().flat_map(both).collect();
            // However young: whose saga has ended is the coordinator's to know.
            let forgotten = Forgotten { keys, stored_before_micros: i64::MAX };
            self.journal.forget(forgotten).await.map_err(not_submitted)?;
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl BarrierService for Barrier {
    async fn forget_steps(
        &self,
        request: Request<ForgetStepsRequest>,
    ) -> Result<Response<ForgetStepsResponse>, Status> {
        let forgotten = self.forget(&request.into_inner().steps).await;
        forgotten.map_err(|refusal| refusal.into_status(self.service))?;
        Ok(Response::new(ForgetStepsResponse {}))
    }
}
