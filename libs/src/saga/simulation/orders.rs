//! The order service: the command that starts a saga, and an operator's word.

use std::{io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use super::{
    process::{Process, spawn},
    remote::Remote,
    sagas::definitions,
    transport::Unreliable,
    wire::{Handler, serve},
    world::World,
};
use crate::{
    cqrs::{Aggregate, CommandSide, Decision, Method, State},
    journal::{AggregateId, Journal},
    refusal::{Refusal, Violations},
    saga::{Coordinator, LocalWork, Options},
};

/// How long to leave a store alone that is out of reach.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two sweeps: as often as suits so short a time, the store would do little else.
const SWEEP: Duration = Duration::from_secs(4);

/// An order: what became of it.
pub(super) struct Order;

impl Aggregate for Order {
    const KIND: &'static str = "order";
    type State = String;
    type Event = String;

    fn evolve(state: &mut String, event: &String) {
        state.clone_from(event);
    }

    fn event_name(_: &String) -> &'static str {
        "Became"
    }
}

pub(super) fn note(what: &'static str, order: &str) -> LocalWork {
    let id = id_of(order).to_owned();
    LocalWork::new([AggregateId::new(Order::KIND, id.as_str())], move |state| match state.get::<Order>(&id)?.as_str() {
        "Placed" => Ok(Decision::reply(()).event::<Order>(&id, &what.to_owned())),
        other => Err(Refusal::precondition("CLOSED", format!("order {id} is {other}"))),
    })
}

/// An order's text begins with its id.
fn id_of(order: &str) -> &str {
    order.split(' ').next().unwrap_or_default()
}

/// Runs a process of the order service until its host crashes, or it ends by itself.
pub(super) async fn run(world: Arc<World>, host: &'static str) -> turmoil::Result {
    let (process, boots) = world.boot(host);
    let running = process.task(drive(Arc::clone(&world), process.clone(), host, boots));
    if let Err(why) = running.await {
        world.note(format_args!("{host} ends: {why}"));
    }
    world.exits.lock().push(host);
    // Its tasks are gone once the host is started anew.
    process.stop();
    std::future::pending().await
}

async fn drive(world: Arc<World>, process: Process, host: &'static str, boots: u64) -> turmoil::Result {
    let (journal, committer) = loop {
        match Journal::simulated(Arc::new(Remote::new(Arc::clone(&world), host, boots))).await {
            Ok(opened) => break opened,
            Err(_) => sleep(PAUSE).await,
        }
    };
    let committer = spawn(committer);
    let definitions = definitions();
    let transport = Unreliable::new(Arc::clone(&world), host, boots, &definitions)?;
    let seed = Some(world.seed ^ boots << 8 ^ u64::from(host.as_bytes()[host.len() - 1]));
    let options = Options { seed, keep_answers: world.keep_answers, ..Options::default() };
    let clock = Arc::new(world.clock(host));
    let coordinator = Coordinator::with_clock(journal.clone(), definitions, transport, options, clock)?;
    while coordinator.recover().await.is_err() {
        sleep(PAUSE).await;
    }
    spawn(coordinator.clone().share());
    spawn(sweep(coordinator.clone()));
    let surface = Surface { side: CommandSide::new("order", journal.clone()), coordinator: coordinator.clone() };
    let leave = process.clone();
    tokio::select! {
        biased;
        ended = committer => Ok(ended??),
        served = serve(process, Arc::new(surface), None) => Ok(served?),
        () = leave.asked_to_leave() => {
            world.count("shutdowns");
            coordinator.drain(Duration::from_secs(2)).await;
            coordinator.leave().await;
            journal.close();
            Err(io::Error::other("it was asked to leave").into())
        }
    }
}

async fn sweep(coordinator: Coordinator) {
    loop {
        sleep(SWEEP).await;
        coordinator.forget_ended().await;
    }
}

/// What customers and operators may ask.
struct Surface {
    side: CommandSide,
    coordinator: Coordinator,
}

impl Handler for Surface {
    fn handle(&self, path: String, request: Request<String>) -> BoxFuture<'static, Result<Response<String>, Status>> {
        let (side, coordinator) = (self.side.clone(), self.coordinator.clone());
        Box::pin(async move {
            match path.as_str() {
                "/order.v1.Order/Place" => place(&side, coordinator, &request).await,
                "/order.v1.Order/Cancel" => {
                    let cancelled = coordinator.cancel(request.get_ref(), "ada", "changed my mind").await;
                    let saga = cancelled.map_err(|refusal| refusal.into_status("order"))?;
                    Ok(Response::new(saga.phase().as_str_name().to_owned()))
                }
                _ => Err(Status::unimplemented(path)),
            }
        })
    }
}

/// `ID KIND …`; the same one again gives the same answer. One that is `blind` starts its saga without a look at the locks.
async fn place(
    side: &CommandSide,
    coordinator: Coordinator,
    request: &Request<String>,
) -> Result<Response<String>, Status> {
    let method = Method { name: "order.v1.Order/Place", compensates: false };
    let order = request.get_ref().clone();
    let id = id_of(&order).to_owned();
    let mut accepted = side.accept(&method, request.metadata(), &order, &id, Violations::default()).await?;
    let kind = order.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut names = vec![AggregateId::new(Order::KIND, id.as_str())];
    if !order.contains("blind") {
        match coordinator.locks(&kind, &order) {
            Ok(locks) => names.extend(locks),
            Err(refusal) => accepted.refuse(refusal),
        }
    }
    let decide = move |state: &State<'_>| {
        let saga = coordinator.start(&kind, &id, &order, state.loaded())?;
        Ok(Decision::reply(id.clone()).event::<Order>(&id, &"Placed".to_owned()).beside(saga))
    };
    side.submit(accepted, names, decide).await
}
