//! The order's saga through everything that can happen to it: placed by the real command surface on a real journal, with participants
//! in memory. This is how to test a saga of one's own.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use libs::{
    cqrs::CommandSide,
    journal::Journal,
    refusal::Refusal,
    rpc::verdict::Op,
    saga::{
        Coordinator, Options, TABLES,
        testing::{Begun, Fault, Participants, Rig, crash_every_point, fail_every_step, repeat_every_operation},
    },
};
use order::{
    completion::Completion,
    sagas::place_order,
    steps::{inventory::ReserveStock, payment::ChargeCustomer, shipping::CreateShipment},
};
use prost::Message as _;
use proto::{
    google::r#type::{Money, PostalAddress},
    inventory::v1::ReserveStockResponse,
    order::v1::{
        Order, OrderItem, OrderState, PlaceOrderRequest, order_command_service_server::OrderCommandService as _,
    },
    payment::v1::ChargeCustomerResponse,
    saga::v1::SagaPhase,
    shipping::v1::CreateShipmentResponse,
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tonic::Request;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the saga asks of others on its way there, a call a step: reserve, charge, ship.
const ACTIONS: usize = 3;

/// What undoes them on its way back, once the last one is refused: refund, release.
const UNDOINGS: usize = 2;

/// Serves every test here, those of other orders too. One that asserts what only one order asks for is never answered elsewhere, and that
/// test runs out of patience.
fn participants() -> Participants {
    let price = || Some(Money { currency_code: "EUR".to_owned(), units: 25, nanos: 0 });
    Participants::new()
        .answer::<ReserveStock>(move |request| {
            Ok(ReserveStockResponse { reservation_id: request.reservation_id, total: price() })
        })
        .answer::<ChargeCustomer>(|request| {
            // What was reserved is what is charged.
            assert_eq!(request.amount.as_ref().map(|amount| amount.units), Some(25));
            Ok(ChargeCustomerResponse { charge_id: request.charge_id, balance: request.amount })
        })
        .answer::<CreateShipment>(|request| Ok(CreateShipmentResponse { shipment_id: request.shipment_id }))
}

async fn place(journal: Journal, coordinator: Coordinator) -> Begun {
    let surface = Completion::new(CommandSide::new("order", journal), coordinator);
    let placed = surface.place_order(Request::new(request(false))).await?;
    Ok(placed.into_inner().order.map(|order| order.order_id).unwrap_or_default())
}

fn request(wait_for_completion: bool) -> PlaceOrderRequest {
    PlaceOrderRequest {
        request_id: "order-1".to_owned(),
        order_id: "order-1".to_owned(),
        customer_id: "ada".to_owned(),
        items: vec![OrderItem { sku: "tea".to_owned(), quantity: 2 }],
        address: Some(PostalAddress {
            region_code: "CH".to_owned(),
            address_lines: vec!["1 Market Square".to_owned()],
            ..PostalAddress::default()
        }),
        wait_for_completion,
    }
}

fn rig(folder: &TempDir) -> Rig {
    Rig::new(folder.path(), place_order::definition().unwrap(), Order::default(), participants).begin_by(place)
}

#[tokio::test]
async fn it_comes_through_a_refusal_of_every_step() {
    let folder = TempDir::new().unwrap();
    let report = fail_every_step(&rig(&folder)).await.unwrap();
    assert_eq!(report.runs().len(), ACTIONS, "{report}");
}

#[tokio::test]
async fn it_comes_through_every_lost_and_repeated_call() {
    let folder = TempDir::new().unwrap();
    let report = repeat_every_operation(&rig(&folder)).await.unwrap();
    // Three faults of each call on the way there, of each but the one refused on the way back, and the lost request of that one.
    assert_eq!(report.runs().len(), 3 * ACTIONS + 3 * (ACTIONS - 1 + UNDOINGS) + 1, "{report}");
}

#[tokio::test]
async fn it_comes_through_a_crash_at_every_point() {
    let folder = TempDir::new().unwrap();
    let report = crash_every_point(&rig(&folder)).await.unwrap();
    // Before and after each call on the way there, and each on the way back.
    assert_eq!(report.runs().len(), 2 * ACTIONS + 2 * (ACTIONS + UNDOINGS), "{report}");
}

/// A client's connection that is cut drops what waits for its answer here.
#[tokio::test]
async fn it_goes_on_when_whoever_waits_for_its_end_has_left() {
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(&folder.path().join("order.db"), TABLES).await.unwrap();
    let (participants, has_left) = (participants(), Arc::new(AtomicBool::new(false)));
    let left = Arc::clone(&has_left);
    participants.on_call(move |_| if left.load(Ordering::SeqCst) { Fault::None } else { Fault::Pending });
    let definitions = [place_order::definition().unwrap()];
    let coordinator = Coordinator::new(journal.clone(), definitions, participants.clone(), Options::default()).unwrap();
    let surface = Completion::new(CommandSide::new("order", journal), coordinator.clone());
    let waiting = surface.place_order(Request::new(request(true)));
    // By the third call it waits.
    let called = async {
        while participants.calls().len() < 3 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        answer = waiting => panic!("it has not ended: {answer:?}"),
        called = timeout(PATIENCE, called) => called.expect("it is called again"),
    }
    has_left.store(true, Ordering::SeqCst);
    let ended = timeout(PATIENCE, coordinator.finished("order-1")).await.expect("it ends").unwrap();
    assert_eq!(ended.phase(), SagaPhase::Completed);
    let order = surface.place_order(Request::new(request(true))).await.unwrap().into_inner().order.unwrap();
    assert_eq!(order.state(), OrderState::Completed);
}

/// Sagas that begin while inventory is out and turn back while it is out once more keep what they may keep by then.
#[tokio::test]
async fn large_orders_that_are_accepted_find_room_for_all_that_they_come_to_keep() {
    const PLACES: usize = 16;
    let folder = TempDir::new().unwrap();
    let journal = Journal::open(&folder.path().join("order.db"), TABLES).await.unwrap();
    let (participants, is_back) = (participants(), Arc::new(AtomicBool::new(false)));
    let back = Arc::clone(&is_back);
    participants.on_call(move |call| match (&*call.step, call.op) {
        ("reserve_inventory", Op::Action) if back.load(Ordering::SeqCst) => Fault::None,
        ("reserve_inventory", _) => Fault::Pending,
        ("ship_order", _) => Fault::Reject(Refusal::precondition("ADDRESS", "nobody ships there")),
        _ => Fault::None,
    });
    let definitions = [place_order::definition().unwrap()];
    let options = Options { most_live: PLACES, ..Options::default() };
    let coordinator = Coordinator::new(journal.clone(), definitions, participants.clone(), options).unwrap();
    let surface = Completion::new(CommandSide::new("order", journal), coordinator);
    let item = |at| OrderItem { sku: format!("leaves-of-green-tea-from-uji-{at:02}"), quantity: 2 };
    let mut inputs = Vec::new();
    let refused = loop {
        let id = format!("order-{}", inputs.len());
        let items = (0..100).map(item).collect();
        let request = PlaceOrderRequest { request_id: id.clone(), order_id: id, items, ..request(false) };
        match surface.place_order(Request::new(request)).await {
            Ok(placed) => inputs.push(placed.into_inner().order.unwrap().encoded_len()),
            Err(refused) => break Refusal::from_status(&refused),
        }
    };
    assert_eq!(refused.reason, "TOO_MANY_SAGAS");
    is_back.store(true, Ordering::SeqCst);
    let requests = || {
        let calls = participants.calls().into_iter();
        calls.map(|call| (call.call.key(call.call.op), call.message)).collect::<HashMap<_, _>>()
    };
    let turned_back = async {
        while requests().len() < (ACTIONS + UNDOINGS) * inputs.len() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, turned_back).await.expect("all are to release what they have reserved");
    let bytes = inputs.iter().sum::<usize>() + requests().values().map(|message| message.len()).sum::<usize>();
    // The last one is taken where any room is left.
    let most = PLACES * (8 << 10) + bytes / inputs.len();
    assert!(bytes <= most, "{} keep {bytes} bytes, and may keep {most}", inputs.len());
}
