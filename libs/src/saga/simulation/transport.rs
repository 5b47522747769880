//! The way from a coordinator to its participants: gRPC, and a network that loses answers and repeats requests, at once or late.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message as _;
use proto::saga::v1::StepState;
use rand::{RngExt as _, rngs::StdRng};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;
use tonic::{Status, metadata::MetadataMap};

use super::{mutant::Mutant, wire::Channel, world::World};
use crate::{
    rpc::verdict::{Op, SagaCall, Verdict},
    saga::{Attempt, Definition, Grpc, Transport},
};

type Answered = Result<(Bytes, MetadataMap), Status>;

/// gRPC to the participants, made worse.
pub(super) struct Unreliable {
    world: Arc<World>,
    host: &'static str,
    grpc: Arc<Grpc<Channel>>,
    chance: Mutex<StdRng>,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Fair,
    /// The answer is lost once it is there.
    LostReply,
    /// It comes a second time, so much later.
    Repeated(Duration),
}

impl Unreliable {
    pub(super) fn new(
        world: Arc<World>,
        host: &'static str,
        boots: u64,
        definitions: &[Arc<Definition>],
    ) -> turmoil::Result<Self> {
        // All of them call the same peers.
        let grpc = Arc::new(Grpc::connect(definitions, |peer| turmoil::Result::Ok(Channel::new(peer)))?);
        let chance = Mutex::new(world.chance(host, boots << 8 | 1));
        Ok(Self { world, host, grpc, chance })
    }

    fn fate(&self) -> Fate {
        let mut chance = self.chance.lock();
        let kept = u64::try_from(self.world.keep_answers.as_millis()).unwrap_or_default();
        match chance.random_range(0..100) {
            _ if !self.world.is_stormy() => Fate::Fair,
            0..10 => Fate::LostReply,
            10..16 => Fate::Repeated(Duration::from_millis(chance.random_range(0..500))),
            16..20 => Fate::Repeated(Duration::from_millis(chance.random_range(1_000..5_000))),
            // Its saga may have ended long ago by then, and be forgotten.
            20..24 => Fate::Repeated(Duration::from_millis(chance.random_range(kept..2 * kept))),
            _ => Fate::Fair,
        }
    }

    /// The log goes before the act: what leaves has been begun in what is stored.
    fn check(&self, call: &SagaCall) {
        let stored = self.world.store.saga(&call.saga_id);
        let step = stored.as_ref().and_then(|record| record.saga.steps.iter().find(|step| step.name == call.step));
        let state = step.map_or(StepState::Unspecified, |step| step.state());
        let begun = match call.op {
            // Another process may have turned the saga back since it was said.
            Op::Action => state != StepState::Unspecified,
            Op::Compensation => matches!(state, StepState::Compensating | StepState::Compensated),
        };
        if !begun {
            let (saga, step, op) = (&call.saga_id, &call.step, call.op.as_str());
            self.world.broken(format!(
                "the {op} of {step} of {saga} left before the log said so: the step is {}",
                state.as_str_name()
            ));
        }
    }
}

impl Transport for Unreliable {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Answered> {
        let fate = self.fate();
        let call = SagaCall::from_metadata(&attempt.metadata).ok().flatten();
        let what = call.as_ref().map_or_else(
            || format!("{}{}", attempt.peer, attempt.path),
            |call| format!("{} {} {} #{}", call.saga_id, call.step, call.op.as_str(), call.attempt),
        );
        self.world.note(format_args!("{} calls {what}, {fate:?}", self.host));
        self.world.count("calls");
        call.iter().for_each(|call| self.check(call));
        let again = call.filter(|call| call.attempt > 1 && Mutant::RebuiltOnRetry.is_left_out());
        let attempt = if let Some(call) = again { rebuilt(call, attempt) } else { attempt };
        let (world, host, grpc) = (Arc::clone(&self.world), self.host, Arc::clone(&self.grpc));
        if let Fate::Repeated(wait) = fate {
            world.count("repeated calls");
            let again = grpc.call(copy(&attempt));
            // On its way in the network: it comes whatever becomes of the one who sent it.
            tokio::spawn(async move {
                sleep(wait).await;
                let _ = again.await;
            });
        }
        Box::pin(async move {
            let mut answer = grpc.call(attempt).await;
            if fate == Fate::LostReply {
                world.count("lost answers");
                answer = Err(Status::unavailable("the answer was lost"));
            }
            if let Err(status) = &mut answer
                && Mutant::LostIsRefused.is_left_out()
                && Verdict::from_metadata(status.metadata()).is_none()
            {
                Verdict::Rejected.write_to(status.metadata_mut());
            }
            match &answer {
                Ok((_, metadata)) => {
                    let verdict = Verdict::from_metadata(metadata).map_or("none", Verdict::as_str);
                    world.note(format_args!("{host} hears of {what}: OK, {verdict}"));
                }
                Err(status) => {
                    let verdict = Verdict::from_metadata(status.metadata()).map_or("none", Verdict::as_str);
                    world.note(format_args!("{host} hears of {what}: {:?}, {verdict}", status.code()));
                }
            }
            answer
        })
    }
}

fn copy(attempt: &Attempt) -> Attempt {
    let Attempt { peer, path, request, metadata, timeout } = attempt;
    Attempt { peer, path, request: request.clone(), metadata: metadata.clone(), timeout: *timeout }
}

/// The same call with another request, and what it says of it.
fn rebuilt(call: SagaCall, attempt: Attempt) -> Attempt {
    let request = String::decode(attempt.request.clone()).unwrap_or_default();
    let request = format!("{request} again").encode_to_vec();
    let Attempt { mut metadata, .. } = attempt;
    SagaCall { request: Some(Sha256::digest(&request).into()), ..call }.write_to(&mut metadata);
    Attempt { request: request.into(), metadata, ..attempt }
}
