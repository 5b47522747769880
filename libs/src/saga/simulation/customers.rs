//! Those who place orders and change their minds. They ask again until they have an answer.

use std::{sync::Arc, time::Duration};

use rand::{RngExt as _, seq::IndexedRandom as _};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Status, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::{
    wire::Channel,
    world::{COORDINATORS, World},
};

/// How long a customer waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// What orders lock.
const LOCKS: [&str; 2] = ["a", "b"];
/// During which time orders are placed.
const DAY: u64 = 9_000;

/// Sends all customers on their way.
pub(super) async fn run(world: Arc<World>, orders: usize) -> turmoil::Result {
    let channels = COORDINATORS.map(Channel::new);
    for number in 0..orders {
        let customer = Customer { world: Arc::clone(&world), channels: channels.clone(), number };
        tokio::spawn(customer.shop());
    }
    std::future::pending().await
}

struct Customer {
    world: Arc<World>,
    channels: [Channel; 3],
    number: usize,
}

impl Customer {
    async fn shop(self) {
        let Self { world, channels, number } = self;
        let mut chance = world.chance("customer", number as u64);
        sleep(Duration::from_millis(chance.random_range(300..DAY))).await;
        let id = format!("o{number}");
        let kind = *["linear", "linear", "diamond", "diamond", "nested"].choose(&mut chance).expect("some");
        let refused = match chance.random_range(0..8) {
            0 => " refuse=reserve",
            1 => " refuse=charge",
            2 => " refuse=ship",
            3 => " refuse=screen",
            _ => "",
        };
        let mut order = format!("{id} {kind}{refused}");
        for key in LOCKS.into_iter().filter(|_| chance.random_bool(0.3)) {
            order += &format!(" lock={key}");
        }
        if chance.random_bool(0.3) {
            order += " blind";
        }
        let mut at = chance.random_range(0..channels.len());
        while let Err(status) = ask(&channels[at], "/order.v1.Order/Place", &order).await {
            world.note(format_args!("{id} is not placed: {:?}", status.code()));
            sleep(Duration::from_millis(chance.random_range(200..1_000))).await;
            at = (at + 1) % channels.len();
        }
        world.note(format_args!("{order} is placed"));
        world.count("sagas");
        world.promises.lock().placed.push(id.clone());
        if chance.random_bool(0.3) {
            sleep(Duration::from_millis(chance.random_range(0..2_500))).await;
            let whole = kind != "nested" || chance.random_bool(0.5);
            let saga = if whole { id } else { format!("{id}:pack") };
            for _ in 0..3 {
                at = chance.random_range(0..channels.len());
                let cancelled = ask(&channels[at], "/order.v1.Order/Cancel", &saga).await;
                world.note(format_args!("{saga} is to be cancelled: {:?}", cancelled.as_ref().map_err(Status::code)));
                match cancelled {
                    Ok(phase) if phase == "SAGA_PHASE_COMPENSATING" || phase == "SAGA_PHASE_COMPENSATED" => {
                        world.count("cancels");
                        world.promises.lock().cancelled.push(saga);
                        break;
                    }
                    Err(status) if status.code() == Code::FailedPrecondition => break,
                    _ => {}
                }
            }
        }
        world.promises.lock().waiting -= 1;
    }
}

async fn ask(channel: &Channel, path: &'static str, message: &str) -> Result<String, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    let asked = async {
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let request = Request::new(message.to_owned());
        let answered = client.unary(request, PathAndQuery::from_static(path), ProstCodec::<String, String>::default());
        answered.await.map(tonic::Response::into_inner)
    };
    timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
}
