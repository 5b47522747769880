//! Inventory as its callers see it: the real server, a real client, nothing in between replaced.

mod support;

use std::time::Duration;

use inventory::Service;
use libs::{
    cli::Program as _,
    rpc::verdict::{Op, Verdict},
    testing::{after, in_saga, refused, verdict, wrong_fields},
};
use proto::{
    google::r#type::Money,
    inventory::v1::{
        AddStockRequest, GetStockRequest, Item, ListStockRequest, ReleaseStockRequest, ReserveStockRequest, Stock,
        WatchStockRequest,
    },
};
use support::{TestApp, store};
use tempfile::TempDir;
use tonic::{Code, Response};

fn euros(units: i64) -> Option<Money> {
    Some(Money { currency_code: "EUR".to_owned(), units, nanos: 0 })
}

fn add(sku: &str, quantity: i64) -> AddStockRequest {
    AddStockRequest { request_id: format!("add-{sku}"), sku: sku.to_owned(), quantity, unit_price: euros(3) }
}

fn items(items: &[(&str, i64)]) -> Vec<Item> {
    items.iter().map(|&(sku, quantity)| Item { sku: sku.to_owned(), quantity }).collect()
}

fn reserve(id: &str, wanted: &[(&str, i64)]) -> ReserveStockRequest {
    let (request_id, reservation_id) = (format!("reserve-{id}"), id.to_owned());
    ReserveStockRequest { request_id, reservation_id, items: items(wanted) }
}

fn release(id: &str, held: &[(&str, i64)]) -> ReleaseStockRequest {
    let (request_id, reservation_id) = (format!("release-{id}"), id.to_owned());
    ReleaseStockRequest { request_id, reservation_id, items: items(held) }
}

fn get(sku: &str) -> GetStockRequest {
    GetStockRequest { sku: sku.to_owned() }
}

fn counts(stock: Option<Stock>) -> (i64, i64, i64) {
    stock.map(|stock| (stock.added, stock.available, stock.reserved)).expect("a stock")
}

#[tokio::test]
async fn what_a_command_did_a_query_with_its_token_sees() {
    let mut app = TestApp::start().await;
    let added = app.commands.add_stock(add("tea", 10)).await.unwrap();
    let stock = app.queries.get_stock(after(&added, get("tea"))).await.unwrap().into_inner().stock;
    assert_eq!(stock.as_ref().unwrap().unit_price, euros(3));
    assert_eq!(counts(stock), (10, 10, 0));

    let reserved = app.commands.reserve_stock(reserve("r1", &[("tea", 4)])).await.unwrap();
    assert_eq!(reserved.get_ref().total, euros(12));
    let stock = app.queries.get_stock(after(&reserved, get("tea"))).await.unwrap().into_inner().stock;
    assert_eq!(counts(stock), (10, 6, 4));

    let released = app.commands.release_stock(release("r1", &[("tea", 4)])).await.unwrap();
    let stock = app.queries.get_stock(after(&released, get("tea"))).await.unwrap().into_inner().stock;
    assert_eq!(counts(stock), (10, 10, 0));
}

#[tokio::test]
async fn a_repetition_gets_the_first_answer_and_another_wish_of_that_id_is_refused() {
    let mut app = TestApp::start().await;
    let first = app.commands.add_stock(add("tea", 10)).await.unwrap();
    let again = app.commands.add_stock(add("tea", 10)).await.unwrap();
    assert_eq!(first.get_ref(), again.get_ref());
    assert_eq!(counts(app.queries.get_stock(after(&again, get("tea"))).await.unwrap().into_inner().stock), (10, 10, 0));
    let other = app.commands.add_stock(add("tea", 11)).await;
    assert_eq!(refused(other), (Code::AlreadyExists, "REQUEST_ID_REUSED".to_owned()));

    let too_much = reserve("r1", &[("tea", 11)]);
    let insufficient = (Code::FailedPrecondition, "INSUFFICIENT_STOCK".to_owned());
    assert_eq!(refused(app.commands.reserve_stock(too_much.clone()).await), insufficient);
    app.commands.add_stock(AddStockRequest { request_id: "more".to_owned(), ..add("tea", 10) }).await.unwrap();
    assert_eq!(refused(app.commands.reserve_stock(too_much).await), insufficient, "a refusal is kept");
}

#[tokio::test]
async fn what_is_malformed_is_told_field_by_field_and_leaves_nothing() {
    let mut app = TestApp::start().await;
    let worst =
        AddStockRequest { request_id: "é".to_owned(), sku: "x".repeat(100 << 10), quantity: 0, unit_price: None };
    assert_eq!(wrong_fields(app.commands.add_stock(worst).await), ["sku", "quantity", "unit_price", "request_id"]);
    let unit_price = Some(Money { currency_code: "euro".to_owned(), units: 1, nanos: 0 });
    let currency = AddStockRequest { unit_price, ..add("tea", 1) };
    assert_eq!(wrong_fields(app.commands.add_stock(currency).await), ["unit_price.currency_code"]);
    assert_eq!(wrong_fields(app.commands.reserve_stock(reserve("r1", &[])).await), ["items"]);
    let twice = ReserveStockRequest { request_id: String::new(), ..reserve("r 1", &[("tea", 1), ("tea", 0)]) };
    let fields = ["reservation_id", "items[1].quantity", "items[1].sku"];
    assert_eq!(wrong_fields(app.commands.reserve_stock(twice).await), fields);
    // What is listed is as far as something good that came after.
    let good = app.commands.add_stock(add("tea", 1)).await.unwrap();
    let all = app.queries.list_stock(after(&good, ListStockRequest::default())).await.unwrap().into_inner();
    assert_eq!(all.stock.iter().map(|stock| (stock.sku.as_str(), stock.added)).collect::<Vec<_>>(), [("tea", 1)]);
}

#[tokio::test]
async fn a_page_ends_where_the_next_begins() {
    let mut app = TestApp::start().await;
    let mut last = None;
    for sku in ["jam", "bun", "tea"] {
        last = Some(app.commands.add_stock(add(sku, 1)).await.unwrap());
    }
    let page = ListStockRequest { page_size: 2, ..ListStockRequest::default() };
    let first = app.queries.list_stock(after(&last.unwrap(), page.clone())).await.unwrap().into_inner();
    let skus: Vec<_> = first.stock.iter().map(|stock| stock.sku.as_str()).collect();
    assert_eq!(skus, ["bun", "jam"]);
    let page_token = first.next_page_token;
    let second = app.queries.list_stock(ListStockRequest { page_token, ..page.clone() }).await.unwrap().into_inner();
    assert_eq!((second.stock.len(), second.next_page_token.as_str()), (1, ""));

    let garbage = ListStockRequest { page_token: "garbage".to_owned(), ..page };
    assert_eq!(wrong_fields(app.queries.list_stock(garbage).await), ["page_token"]);
    let negative = ListStockRequest { page_size: -1, ..ListStockRequest::default() };
    assert_eq!(wrong_fields(app.queries.list_stock(negative).await), ["page_size"]);
}

#[tokio::test]
async fn queries_for_what_is_not_there_say_so() {
    let mut app = TestApp::start().await;
    assert_eq!(refused(app.queries.get_stock(get("tea")).await), (Code::NotFound, "UNKNOWN_SKU".to_owned()));
    assert_eq!(wrong_fields(app.queries.get_stock(get("")).await), ["sku"]);
    let before_time = WatchStockRequest { sku: "a b".to_owned(), after_position: -1, after_shipping_position: -1 };
    let wrong = ["after_position", "after_shipping_position", "sku"];
    assert_eq!(wrong_fields(app.queries.watch_stock(before_time).await), wrong);
}

#[tokio::test]
async fn a_watcher_sees_every_change_and_can_resume_after_any() {
    let mut app = TestApp::start().await;
    let watch =
        |after_position| WatchStockRequest { sku: "tea".to_owned(), after_position, ..WatchStockRequest::default() };
    let mut changes = app.queries.watch_stock(watch(0)).await.unwrap().into_inner();
    app.commands.add_stock(add("jam", 1)).await.unwrap();
    app.commands.add_stock(add("tea", 10)).await.unwrap();
    let first = changes.message().await.unwrap().unwrap();
    assert_eq!(counts(first.stock), (10, 10, 0));
    app.commands.reserve_stock(reserve("r1", &[("tea", 4)])).await.unwrap();
    let second = changes.message().await.unwrap().unwrap();
    assert_eq!(counts(second.stock.clone()), (10, 6, 4));
    assert!(second.position > first.position);

    let mut resumed = app.queries.watch_stock(watch(first.position)).await.unwrap().into_inner();
    assert_eq!(resumed.message().await.unwrap().unwrap().stock, second.stock);
}

#[tokio::test]
async fn a_watch_from_beyond_the_log_is_refused_and_one_from_where_the_log_is_goes_on() {
    // What is beyond the log is waited for in vain.
    let mut app = TestApp::start_waiting(TempDir::new().unwrap(), Duration::ZERO).await;
    app.commands.add_stock(add("tea", 10)).await.unwrap();
    let watch = |after_position| WatchStockRequest { after_position, ..WatchStockRequest::default() };
    let stood = app.queries.watch_stock(watch(0)).await.unwrap().into_inner().message().await;
    let position = stood.unwrap().unwrap().position;
    let mut beyond = app.queries.watch_stock(watch(99_999)).await.unwrap().into_inner();
    assert_eq!(
        refused(beyond.message().await.map(Response::new)),
        (Code::FailedPrecondition, "AHEAD_OF_LOG".to_owned())
    );
    // How far shipping's log goes is not known here while shipping is out.
    let of_shipping = WatchStockRequest { after_shipping_position: 99_999, ..watch(position) };
    let mut beyond = app.queries.watch_stock(of_shipping).await.unwrap().into_inner();
    assert_eq!(refused(beyond.message().await.map(Response::new)), (Code::Unavailable, "NOT_CAUGHT_UP".to_owned()));

    let mut resumed = app.queries.watch_stock(watch(position)).await.unwrap().into_inner();
    app.commands.add_stock(AddStockRequest { request_id: "more".to_owned(), ..add("tea", 5) }).await.unwrap();
    assert_eq!(counts(resumed.message().await.unwrap().unwrap().stock), (15, 15, 0));
}

#[tokio::test]
async fn a_saga_that_turned_back_before_its_reservation_came_reserves_nothing() {
    let mut app = TestApp::start().await;
    app.commands.add_stock(add("tea", 10)).await.unwrap();
    let undone = app.commands.release_stock(in_saga(Op::Compensation, release("r1", &[("tea", 4)]))).await;
    assert_eq!(verdict(&undone), Some(Verdict::Applied));
    let late = app.commands.reserve_stock(in_saga(Op::Action, reserve("r1", &[("tea", 4)]))).await;
    assert_eq!(verdict(&late), Some(Verdict::Cancelled));
    let stock = app.queries.get_stock(after(&undone.unwrap(), get("tea"))).await.unwrap().into_inner().stock;
    assert_eq!(counts(stock), (10, 10, 0));
}

#[tokio::test]
async fn a_saga_s_operation_has_one_effect_however_often_it_comes() {
    let mut app = TestApp::start().await;
    app.commands.add_stock(add("tea", 10)).await.unwrap();
    for expected in [Verdict::Applied, Verdict::Replayed, Verdict::Replayed] {
        let reply = app.commands.reserve_stock(in_saga(Op::Action, reserve("r1", &[("tea", 4)]))).await;
        assert_eq!(verdict(&reply), Some(expected));
    }
    let changed = app.commands.reserve_stock(in_saga(Op::Action, reserve("r1", &[("tea", 5)]))).await;
    assert_eq!(verdict(&changed), Some(Verdict::Conflict));
    let mut last = None;
    for expected in [Verdict::Applied, Verdict::Replayed] {
        let reply = app.commands.release_stock(in_saga(Op::Compensation, release("r1", &[("tea", 4)]))).await;
        assert_eq!(verdict(&reply), Some(expected));
        last = Some(reply.unwrap());
    }
    let stock = app.queries.get_stock(after(&last.unwrap(), get("tea"))).await.unwrap().into_inner().stock;
    assert_eq!(counts(stock), (10, 10, 0));
}

#[tokio::test]
async fn what_was_decided_is_there_after_a_restart_and_its_key_too() {
    let mut app = TestApp::start().await;
    app.commands.add_stock(add("tea", 10)).await.unwrap();
    let data = app.stop().await;

    let mut app = TestApp::start_on(data).await;
    let again = app.commands.add_stock(add("tea", 10)).await.unwrap();
    let stock = app.queries.get_stock(after(&again, get("tea"))).await.unwrap().into_inner().stock;
    assert_eq!(counts(stock), (10, 10, 0));
}

#[tokio::test]
async fn views_made_anew_answer_as_before() {
    let mut app = TestApp::start().await;
    app.commands.add_stock(add("tea", 10)).await.unwrap();
    let reserved = app.commands.reserve_stock(reserve("r1", &[("tea", 4)])).await.unwrap();
    let before = app.queries.get_stock(after(&reserved, get("tea"))).await.unwrap().into_inner();
    let data = app.stop().await;

    // A view that got something wrong, as after a mistake in a projection that was mended since.
    std::fs::write(data.path().join("inventory.views.db"), "not a database".repeat(1_000)).unwrap();
    assert!(Service::rebuild(&store(&data)).await.is_ok());
    let mut app = TestApp::start_on(data).await;
    assert_eq!(app.queries.get_stock(after(&reserved, get("tea"))).await.unwrap().into_inner(), before);
}
