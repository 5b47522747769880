//! Orders as their callers see them: the real server, a real client, and all whom it calls out. What a whole saga does is in
//! `place_order.rs` with participants in memory, and over the wire in the workspace's `tests`.

mod support;

use std::time::Duration;

use libs::{
    cli::Limits,
    testing::{after, refused, wrong_fields},
};
use prost::Message as _;
use proto::{
    google::r#type::PostalAddress,
    order::v1::{
        CancelOrderRequest, GetOrderRequest, ListOrdersRequest, Order, OrderItem, OrderState, PlaceOrderRequest,
        WatchOrderRequest,
    },
};
use support::TestApp;
use tokio::{net::TcpListener, time::timeout};
use tonic::{Code, Request};

fn place(order_id: &str, customer_id: &str) -> PlaceOrderRequest {
    PlaceOrderRequest {
        request_id: format!("place-{order_id}"),
        order_id: order_id.to_owned(),
        customer_id: customer_id.to_owned(),
        items: vec![item("tea", 2)],
        address: Some(PostalAddress {
            region_code: "CH".to_owned(),
            address_lines: vec!["1 Market Square".to_owned()],
            ..PostalAddress::default()
        }),
        wait_for_completion: false,
    }
}

fn item(sku: &str, quantity: i64) -> OrderItem {
    OrderItem { sku: sku.to_owned(), quantity }
}

fn get(order_id: &str) -> GetOrderRequest {
    GetOrderRequest { order_id: order_id.to_owned(), include_shipment: false }
}

fn ids(orders: &[Order]) -> Vec<&str> {
    orders.iter().map(|order| order.order_id.as_str()).collect()
}

#[tokio::test]
async fn an_order_is_taken_while_everybody_it_needs_is_out() {
    let mut app = TestApp::start().await;
    let placed = app.commands.place_order(place("o1", "ada")).await.unwrap();
    let order = placed.get_ref().order.clone().unwrap();
    assert_eq!((order.state(), order.items.as_slice()), (OrderState::Pending, &[item("tea", 2)][..]));
    let seen = app.queries.get_order(after(&placed, get("o1"))).await.unwrap().into_inner();
    assert_eq!(seen.order, Some(order));
    assert_eq!((seen.charge, seen.shipment, seen.shipped), (None, None, None));

    let asked = GetOrderRequest { include_shipment: true, ..get("o1") };
    let standing = app.queries.get_order(asked).await.unwrap().into_inner().shipment.unwrap();
    assert!(!standing.current && standing.shipment.is_none(), "{standing:?}");
    assert!(standing.unavailable_because.starts_with("shipping "), "{standing:?}");
}

#[tokio::test]
async fn an_order_is_shown_in_time_though_shipping_hangs_for_longer_than_its_caller_waits() {
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let began = async || {
        let mut app = TestApp::start_with_shipping_at(&silent).await;
        let placed = app.commands.place_order(place("o1", "ada")).await.unwrap();
        app.queries.get_order(after(&placed, get("o1"))).await.unwrap();
        app
    };
    let shown = async {
        let mut app = began().await;
        loop {
            let mut asked = Request::new(GetOrderRequest { include_shipment: true, ..get("o1") });
            asked.set_timeout(Duration::from_millis(300));
            // A loaded machine may take longer for the answer than is left for it.
            let Ok(answer) = app.queries.get_order(asked).await else { continue };
            let standing = answer.into_inner().shipment.unwrap();
            if standing.unavailable_because == "shipping gave no answer: DEADLINE_EXCEEDED" {
                return standing;
            }
            // So often that shipping isn't asked any more.
            if standing.unavailable_because.contains("circuit") {
                app = began().await;
            }
        }
    };
    let standing = timeout(Duration::from_secs(60), shown).await.expect("never an answer without shipping's");
    assert!(!standing.current && standing.shipment.is_none(), "{standing:?}");
}

#[tokio::test]
async fn a_repetition_gets_the_first_answer_and_another_wish_of_that_id_is_refused() {
    let mut app = TestApp::start().await;
    let chosen_by_the_service = PlaceOrderRequest { request_id: "r1".to_owned(), ..place("", "ada") };
    let first = app.commands.place_order(chosen_by_the_service.clone()).await.unwrap().into_inner();
    let again = app.commands.place_order(chosen_by_the_service.clone()).await.unwrap().into_inner();
    assert_eq!(first, again);
    let other = PlaceOrderRequest { items: vec![item("tea", 3)], ..chosen_by_the_service };
    assert_eq!(refused(app.commands.place_order(other).await), (Code::AlreadyExists, "REQUEST_ID_REUSED".to_owned()));
    let taken = PlaceOrderRequest { request_id: "r2".to_owned(), ..place(&first.order.unwrap().order_id, "ada") };
    assert_eq!(refused(app.commands.place_order(taken).await), (Code::AlreadyExists, "ORDER_EXISTS".to_owned()));
}

#[tokio::test]
async fn what_says_that_it_is_a_sagas_is_refused_and_leaves_nothing_as_no_saga_calls_this_service() {
    let mut app = TestApp::start().await;
    let words = [("saga-id", "s1"), ("saga-type", "tour"), ("saga-step", "order"), ("saga-op", "action")];
    // What is wrong with the request as well is not what it is refused for.
    for wish in [place("o1", "ada"), place("o1", "a b")] {
        for words in [&words[..], &words[3..]] {
            let mut call = Request::new(wish.clone());
            for (key, word) in words {
                call.metadata_mut().insert(*key, word.parse().unwrap());
            }
            let answer = app.commands.place_order(call).await;
            assert_eq!(wrong_fields(answer), [words[0].0]);
        }
    }
    assert_eq!(app.kept(), 0);
    app.commands.place_order(place("o1", "ada")).await.unwrap();
    assert_eq!(app.kept(), 1);
}

#[tokio::test]
async fn what_is_malformed_is_told_field_by_field_and_leaves_nothing() {
    let mut app = TestApp::start().await;
    let worst = PlaceOrderRequest {
        request_id: "x".repeat(129),
        order_id: "o".repeat(100 << 10),
        items: Vec::new(),
        address: None,
        ..place("", "a b")
    };
    let fields = ["order_id", "customer_id", "items", "address", "request_id"];
    assert_eq!(wrong_fields(app.commands.place_order(worst).await), fields);
    let items = vec![item("tea", 1), item("", 1), item("tea", 0)];
    let wrong = PlaceOrderRequest { items, ..place("o1", "ada") };
    let fields = ["items[1].sku", "items[2].quantity", "items[2].sku"];
    assert_eq!(wrong_fields(app.commands.place_order(wrong).await), fields);
    let cancel = CancelOrderRequest { reason: "x".repeat(513), ..CancelOrderRequest::default() };
    assert_eq!(wrong_fields(app.commands.cancel_order(cancel).await), ["order_id", "reason"]);
    // What is listed is as far as something good that came after.
    let good = app.commands.place_order(place("o2", "ada")).await.unwrap();
    let all = app.queries.list_orders(after(&good, ListOrdersRequest::default())).await.unwrap().into_inner();
    assert_eq!(all.orders.iter().map(|order| order.order_id.as_str()).collect::<Vec<_>>(), ["o2"]);
}

#[tokio::test]
async fn what_is_larger_than_any_order_is_not_read_and_the_largest_order_is() {
    let mut app = TestApp::start().await;
    let huge = PlaceOrderRequest { customer_id: "x".repeat(1 << 20), ..place("o1", "ada") };
    assert_eq!(refused(app.commands.place_order(huge).await), (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned()));
    let wide = || "\u{10348}".repeat(200);
    let address = PostalAddress {
        revision: 0,
        region_code: "CH".to_owned(),
        language_code: wide(),
        postal_code: wide(),
        sorting_code: wide(),
        administrative_area: wide(),
        locality: wide(),
        sublocality: wide(),
        address_lines: vec![wide(); 10],
        recipients: vec![wide(); 10],
        organization: wide(),
    };
    let largest = PlaceOrderRequest {
        request_id: "r".repeat(128),
        order_id: "o".repeat(64),
        customer_id: "c".repeat(64),
        items: (0..100).map(|sku| item(&format!("{sku:064}"), 1_000_000)).collect(),
        address: Some(address),
        wait_for_completion: false,
    };
    let bytes = largest.encoded_len() as u64;
    assert!(bytes <= Limits::LEAST_REQUEST_BYTES, "an order of {bytes} bytes may be refused");
    app.commands.place_order(largest).await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_so() {
    let mut app = TestApp::start().await;
    let unknown = (Code::NotFound, "UNKNOWN_ORDER".to_owned());
    assert_eq!(refused(app.queries.get_order(get("o1")).await), unknown);
    let cancel = CancelOrderRequest { order_id: "o1".to_owned(), ..CancelOrderRequest::default() };
    assert_eq!(refused(app.commands.cancel_order(cancel).await), unknown);
    assert_eq!(wrong_fields(app.queries.get_order(get("")).await), ["order_id"]);
    let before_time = WatchOrderRequest { order_id: "a b".to_owned(), after_position: -1 };
    assert_eq!(wrong_fields(app.queries.watch_order(before_time).await), ["after_position", "order_id"]);
}

#[tokio::test]
async fn orders_are_listed_by_customer_and_state_the_newest_first() {
    let mut app = TestApp::start().await;
    let mut last = None;
    for (order_id, customer_id) in [("o1", "ada"), ("o2", "bob"), ("o3", "ada"), ("o4", "ada")] {
        last = Some(app.commands.place_order(place(order_id, customer_id)).await.unwrap());
    }
    let list = ListOrdersRequest {
        customer_id: "ada".to_owned(),
        state: OrderState::Pending.into(),
        page_size: 2,
        ..ListOrdersRequest::default()
    };
    let first = app.queries.list_orders(after(&last.unwrap(), list.clone())).await.unwrap().into_inner();
    assert_eq!(ids(&first.orders), ["o4", "o3"]);
    let page_token = first.next_page_token;
    let second = app.queries.list_orders(ListOrdersRequest { page_token, ..list.clone() }).await.unwrap().into_inner();
    assert_eq!((ids(&second.orders), second.next_page_token.as_str()), (vec!["o1"], ""));
    let completed = ListOrdersRequest { state: OrderState::Completed.into(), ..list.clone() };
    assert_eq!(app.queries.list_orders(completed).await.unwrap().into_inner().orders, []);

    let wrong = ListOrdersRequest { customer_id: "a b".to_owned(), state: 99, ..list };
    assert_eq!(wrong_fields(app.queries.list_orders(wrong).await), ["customer_id", "state"]);
}

#[tokio::test]
async fn a_watcher_sees_every_order_and_can_resume_after_any() {
    let mut app = TestApp::start().await;
    let watch = |after_position| WatchOrderRequest { after_position, ..WatchOrderRequest::default() };
    let mut changes = app.queries.watch_order(watch(0)).await.unwrap().into_inner();
    app.commands.place_order(place("o1", "ada")).await.unwrap();
    let first = changes.message().await.unwrap().unwrap();
    app.commands.place_order(place("o2", "ada")).await.unwrap();
    let second = changes.message().await.unwrap().unwrap();
    assert_eq!([&first.order, &second.order].map(|order| order.as_ref().unwrap().order_id.as_str()), ["o1", "o2"]);
    assert!(second.position > first.position);

    let mut resumed = app.queries.watch_order(watch(first.position)).await.unwrap().into_inner();
    assert_eq!(resumed.message().await.unwrap().unwrap(), second);
}
