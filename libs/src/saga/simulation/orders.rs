//! The order service: two kinds of sagas, the command that starts one, and an operator's word.

use std::{io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use super::{
    process::{Process, spawn},
    remote::Remote,
    transport::Unreliable,
    wire::{Handler, serve},
    world::World,
};
use crate::{
    cqrs::{Aggregate, CommandSide, Decision, Method, State},
    journal::{AggregateId, Journal},
    refusal::{Refusal, Violations},
    saga::{Compensated, Coordinator, Definition, LocalWork, Operation, Options, Retry},
};

/// How long to leave a store alone that is out of reach.
const PAUSE: Duration = Duration::from_millis(500);

macro_rules! operations {
    ($($name:ident at $peer:literal)*) => { $(
        struct $name;
        impl Operation for $name {
            const PEER: &'static str = $peer;
            const PATH: &'static str = concat!("/simulated.v1.Service/", stringify!($name));
            type Request = String;
            type Reply = String;
        }
    )* };
}

operations!(
    Reserve at "inventory" Release at "inventory" Notify at "inventory"
    Charge at "payment" Refund at "payment" Screen at "payment"
    Ship at "shipping"
);

impl Compensated for Reserve {
    type Compensation = Release;
}

impl Compensated for Charge {
    type Compensation = Refund;
}

/// One after the other: two that can be undone, the pivot, work of our own.
pub(super) fn linear() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("linear", 1);
    let reserve = saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.attempt_timeout(Duration::from_secs(2));
    saga.compensatable::<Charge>(
        "charge",
        move |order, replies| Ok(format!("{order} after {}", replies.get(reserve)?)),
        |undo| undo.request,
    );
    saga.attempt_timeout(Duration::from_secs(2)).retry(Retry { attempts: Some(6), ..Retry::default() });
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.attempt_timeout(Duration::from_secs(2));
    saga.retriable_local("complete", |order, _| Ok(note("Completed", order)));
    saga.on_compensated(|order, _| Ok(note("Rejected", order)));
    saga.deadline(Duration::from_secs(40));
    saga.build().expect("a legal shape")
}

/// A check, two side by side that can be undone, the pivot after both, one that must follow.
pub(super) fn diamond() -> Arc<Definition> {
    let mut saga = Definition::builder::<String>("diamond", 1);
    saga.check::<Screen>("screen", |order, _| Ok(order.clone()));
    saga.compensatable::<Reserve>("reserve", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.step_deadline(Duration::from_secs(15));
    saga.compensatable::<Charge>("charge", |order, _| Ok(order.clone()), |undo| undo.request);
    saga.after(&["screen"]).attempt_timeout(Duration::from_secs(2));
    saga.pivot::<Ship>("ship", |order, _| Ok(order.clone()));
    saga.after(&["reserve", "charge"]);
    saga.retriable::<Notify>("notify", |order, _| Ok(order.clone()));
    saga.retriable_local("complete", |order, _| Ok(note("Completed", order)));
    saga.on_compensated(|order, _| Ok(note("Rejected", order)));
    saga.build().expect("a legal shape")
}

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

fn note(what: &'static str, order: &str) -> LocalWork {
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
    let definitions = [linear(), diamond()];
    let transport = Unreliable::new(Arc::clone(&world), host, boots, &definitions)?;
    let seed = Some(world.seed ^ boots << 8 ^ u64::from(host.as_bytes()[host.len() - 1]));
    let options = Options { seed, ..Options::default() };
    let clock = Arc::new(world.clock(host));
    let coordinator = Coordinator::with_clock(journal.clone(), definitions, transport, options, clock);
    while coordinator.recover().await.is_err() {
        sleep(PAUSE).await;
    }
    spawn(coordinator.clone().share());
    let surface = Surface { side: CommandSide::new("order", journal.clone()), coordinator: coordinator.clone() };
    let leave = process.clone();
    tokio::select! {
        biased;
        ended = committer => Ok(ended??),
        served = serve(process, Arc::new(surface)) => Ok(served?),
        () = leave.asked_to_leave() => {
            world.count("shutdowns");
            coordinator.drain(Duration::from_secs(2)).await;
            journal.close();
            Err(io::Error::other("it was asked to leave").into())
        }
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

/// `ID linear …` or `ID diamond …`; the same one again gives the same answer.
async fn place(
    side: &CommandSide,
    coordinator: Coordinator,
    request: &Request<String>,
) -> Result<Response<String>, Status> {
    let method = Method { name: "order.v1.Order/Place", compensates: false };
    let order = request.get_ref().clone();
    let id = id_of(&order).to_owned();
    let accepted = side.accept(&method, request.metadata(), &order, &id, Violations::default()).await?;
    let kind = if order.contains("diamond") { "diamond" } else { "linear" };
    let names = vec![AggregateId::new(Order::KIND, id.as_str())];
    let decide = move |state: &State<'_>| {
        let saga = coordinator.start(kind, &id, &order, state.loaded())?;
        Ok(Decision::reply(id.clone()).event::<Order>(&id, &"Placed".to_owned()).beside(saga))
    };
    side.submit(accepted, names, decide).await
}
