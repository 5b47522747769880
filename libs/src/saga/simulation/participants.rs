//! The services that the sagas call: the real barrier and command side, each over a ledger of what it did.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::{RngExt as _, rngs::StdRng};
use tokio::time::sleep;
use tonic::{Code, Request, Response, Status};

use super::{
    local::Local,
    mutant::Mutant,
    process::spawn,
    wire::{Handler, serve},
    world::World,
};
use crate::{
    cqrs::{Aggregate, Barrier, CommandSide, Decision, Method, State},
    journal::{AggregateId, Journal},
    refusal::{Refusal, Violations},
    rpc::verdict::{Op, SagaCall},
};

/// How many of everything there are: whoever comes late is refused.
const CAPACITY: i64 = 12;
/// There is one ledger a service.
const ALL: &str = "all";

/// What a service did, and how many are taken.
pub(super) struct Ledger;

impl Aggregate for Ledger {
    const KIND: &'static str = "ledger";
    type State = i64;
    /// Which operation of which step of which saga, and how many it took or gave back.
    type Event = String;

    fn evolve(taken: &mut i64, event: &String) {
        let change: i64 = event.rsplit(' ').next().and_then(|change| change.parse().ok()).unwrap_or_default();
        *taken += change;
    }

    fn event_name(_: &String) -> &'static str {
        "Noted"
    }
}

/// One service's commands.
struct Participant {
    world: Arc<World>,
    side: CommandSide,
    chance: Mutex<StdRng>,
}

/// Runs a service until its host crashes.
pub(super) async fn run(world: Arc<World>, host: &'static str) -> turmoil::Result {
    let (process, boots) = world.boot(host);
    let running = {
        let process = process.clone();
        async move {
            let database = Arc::new(Local::new(Arc::clone(&world), host, boots));
            let (journal, committer) = Journal::simulated(database).await?;
            spawn(committer);
            let chance = Mutex::new(world.chance("handler", boots << 8 | u64::from(host.as_bytes()[0])));
            let barrier = Barrier::new(host, journal.clone()).into_server();
            let side = CommandSide::new(host, journal);
            serve(process, Arc::new(Participant { world, side, chance }), Some(barrier)).await?;
            Ok(())
        }
    };
    process.task(running).await
}

impl Handler for Participant {
    fn handle(&self, path: String, request: Request<String>) -> BoxFuture<'static, Result<Response<String>, Status>> {
        let slow = if self.world.is_stormy() && self.chance.lock().random_bool(0.05) { 4_000 } else { 40 };
        let wait = Duration::from_millis(self.chance.lock().random_range(0..slow));
        let (world, side) = (Arc::clone(&self.world), self.side.clone());
        Box::pin(async move {
            sleep(wait).await;
            let decided = decide(&side, &path, request).await;
            if decided.as_ref().is_err_and(|status| status.code() == Code::Aborted) {
                world.count("calls too old");
            }
            decided
        })
    }
}

async fn decide(side: &CommandSide, path: &str, request: Request<String>) -> Result<Response<String>, Status> {
    let (mut metadata, _, order) = request.into_parts();
    if Mutant::NeverTooOld.is_left_out() {
        metadata.remove("saga-expires");
    }
    let call = SagaCall::from_metadata(&metadata).ok().flatten();
    let call = call.ok_or_else(|| Status::internal("a saga's call says which saga it is"))?;
    let method = Method { name: name_of(path), compensates: call.op == Op::Compensation };
    let accepted = side.accept(&method, &metadata, &order, "", Violations::default()).await?;
    let wanted = order.split(' ').any(|word| word == format!("refuse={}", call.step));
    let decide = move |state: &State<'_>| {
        let taken = state.get::<Ledger>(ALL)?;
        let change = match call.op {
            Op::Action if wanted => return Err(Refusal::precondition("NOT_TODAY", "refused")),
            Op::Action if taken >= CAPACITY && call.step == "reserve" => {
                return Err(Refusal::precondition("SOLD_OUT", "there is nothing left"));
            }
            Op::Action => 1,
            Op::Compensation => -1,
        };
        let what = format!("{} {} {} {change}", call.saga_id, call.step, call.op.as_str());
        Ok(Decision::reply(format!("{} of {order}", call.step)).event::<Ledger>(ALL, &what))
    };
    side.submit(accepted, vec![AggregateId::new(Ledger::KIND, ALL)], decide).await
}

fn name_of(path: &str) -> &'static str {
    let names = ["Reserve", "Release", "Charge", "Refund", "Ship", "Screen", "Notify"];
    names.into_iter().find(|name| path.ends_with(name)).unwrap_or("Unknown")
}
