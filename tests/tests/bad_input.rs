//! Wrong requests: each is refused with what is wrong, and leaves nothing behind.

use anyhow::Context as _;
use proto::{
    breaker::v1::{ResetBreakerRequest, breaker_command_service_client::BreakerCommandServiceClient},
    google::r#type::{Money, PostalAddress},
    inventory::v1::{
        AddStockRequest, GetStockRequest, Item, ListStockRequest, ReleaseStockRequest, ReserveStockRequest,
    },
    order::v1::{
        CancelOrderRequest, GetOrderRequest, ListOrdersRequest, OrderItem, OrderState, PlaceOrderRequest,
        WatchOrderRequest,
    },
    payment::v1::{
        ChargeCustomerRequest, DepositFundsRequest, GetAccountRequest, GetChargeRequest, ListChargesRequest,
        RefundChargeRequest,
    },
    projections::v1::{
        RebuildProjectionsRequest, ResumeProjectionRequest,
        projection_command_service_client::ProjectionCommandServiceClient,
    },
    saga::v1::{DescribeSagaRequest, GetSagaRequest, ListParkedSagasRequest, ListSagasRequest},
    shipping::v1::{CancelShipmentRequest, CreateShipmentRequest, GetShipmentRequest, ListShipmentsRequest, Parcel},
};
use tests::{Clients, Shop, facts::Facts, invariants, refusal::Refused, shop::usd};
use tonic::Code;

/// A shop with ten teas, a customer, and an order of two that was completed.
async fn shop() -> anyhow::Result<(Shop, Facts)> {
    let shop = Shop::start().await?;
    shop.stock("tea", 10, 3).await?;
    shop.deposit("ann", 100).await?;
    let clients = shop.clients();
    let placed = clients.order_commands().place_order(fine("first")).await?.into_inner();
    assert_eq!(placed.order.context("an order")?.state(), OrderState::Completed);
    let facts = at_rest(&clients, 1).await?;
    Ok((shop, facts))
}

/// A request that is right in all its parts.
fn fine(id: &str) -> PlaceOrderRequest {
    PlaceOrderRequest {
        request_id: id.to_owned(),
        order_id: id.to_owned(),
        customer_id: "ann".to_owned(),
        items: vec![item("tea", 2)],
        address: Some(home()),
        wait_for_completion: true,
    }
}

fn item(sku: &str, quantity: i64) -> OrderItem {
    OrderItem { sku: sku.to_owned(), quantity }
}

fn home() -> PostalAddress {
    PostalAddress {
        region_code: "CH".to_owned(),
        address_lines: vec!["Bahnhofstrasse 1".to_owned()],
        ..PostalAddress::default()
    }
}

/// The facts once the views have followed, with so many orders.
async fn at_rest(clients: &Clients, orders: usize) -> anyhow::Result<Facts> {
    for _ in 0..10_000 {
        let facts = Facts::read(clients).await?;
        if facts.orders.len() == orders && invariants::differences(&facts).is_empty() {
            return Ok(facts);
        }
    }
    anyhow::bail!("the shop does not come to rest: {:?}", invariants::differences(&Facts::read(clients).await?))
}

/// Checks that nothing of the shop has changed. What would have been written before is seen when an order after it is.
async fn assert_nothing_written(shop: &Shop, mut before: Facts) -> anyhow::Result<()> {
    let clients = shop.clients();
    shop.deposit("marker", 1).await?;
    shop.stock("marker", 1, 1).await?;
    let place =
        PlaceOrderRequest { customer_id: "marker".to_owned(), items: vec![item("marker", 1)], ..fine("marker") };
    clients.order_commands().place_order(place).await?;
    let mut after = at_rest(&clients, before.orders.len() + 1).await?;
    after.stock.retain(|stock| stock.sku != "marker");
    after.accounts.retain(|account| account.customer_id != "marker");
    after.charges.retain(|charge| charge.charge_id != "marker");
    after.shipments.retain(|shipment| shipment.shipment_id != "marker");
    after.orders.retain(|order| order.order_id != "marker");
    after.sagas.retain(|saga| saga.saga_id != "marker");
    before.sagas.sort_by(|one, other| one.saga_id.cmp(&other.saga_id));
    after.sagas.sort_by(|one, other| one.saga_id.cmp(&other.saga_id));
    assert_eq!(format!("{after:#?}"), format!("{before:#?}"));
    Ok(())
}

#[tokio::test]
async fn a_malformed_order_is_refused_with_every_field_that_is_wrong() -> anyhow::Result<()> {
    let (shop, before) = shop().await?;
    let mut orders = shop.clients().order_commands();
    let huge = "x".repeat(100 << 10);
    let with = |change: &dyn Fn(&mut PlaceOrderRequest)| {
        let mut request = fine("wrong");
        change(&mut request);
        request
    };
    let address =
        |change: &dyn Fn(&mut PostalAddress)| with(&|request| change(request.address.get_or_insert_default()));
    let cases: Vec<(PlaceOrderRequest, &[&str])> = vec![
        (PlaceOrderRequest::default(), &["address", "customer_id", "items"]),
        (with(&|r| r.items.clear()), &["items"]),
        (with(&|r| r.items = (0..101).map(|sku| item(&sku.to_string(), 1)).collect()), &["items"]),
        (with(&|r| r.items = vec![item("tea", 1); 10_000]), &["items"]),
        (with(&|r| r.items[0].quantity = 0), &["items[0].quantity"]),
        (with(&|r| r.items[0].quantity = -1), &["items[0].quantity"]),
        (with(&|r| r.items[0].quantity = i64::MIN), &["items[0].quantity"]),
        (with(&|r| r.items[0].quantity = i64::MAX), &["items[0].quantity"]),
        (with(&|r| r.items.push(item("tea", 1))), &["items[1].sku"]),
        (with(&|r| r.items.push(item("", -5))), &["items[1].quantity", "items[1].sku"]),
        (with(&|r| r.items[0].sku = "two words".to_owned()), &["items[0].sku"]),
        (with(&|r| r.items[0].sku.clone_from(&huge)), &["items[0].sku"]),
        (with(&|r| r.customer_id.clear()), &["customer_id"]),
        (with(&|r| r.customer_id = "a'; drop table orders; --".to_owned()), &["customer_id"]),
        (with(&|r| r.customer_id.clone_from(&huge)), &["customer_id"]),
        (with(&|r| r.order_id = "../../etc/passwd".to_owned()), &["order_id"]),
        (with(&|r| r.order_id.clone_from(&huge)), &["order_id"]),
        (with(&|r| r.request_id = "line\nbreak".to_owned()), &["request_id"]),
        (with(&|r| r.request_id.clone_from(&huge)), &["request_id"]),
        (with(&|r| r.address = None), &["address"]),
        (address(&|a| a.region_code = "ch".to_owned()), &["address.region_code"]),
        (address(&|a| a.region_code.clone_from(&huge)), &["address.region_code"]),
        (address(&|a| a.address_lines.clear()), &["address.address_lines"]),
        (address(&|a| a.address_lines = vec![huge.clone()]), &["address.address_lines"]),
    ];
    for (request, fields) in cases {
        let shown = format!("{request:?}").chars().take(200).collect::<String>();
        let mut refused = Refused::of(orders.place_order(request).await);
        refused.fields.sort();
        assert_eq!(refused, Refused::invalid("order", fields), "{shown}");
    }
    // Past the limit of a message the refusal comes from further out.
    let request = with(&|r| r.customer_id = "x".repeat(1 << 20));
    let refused = Refused::of(orders.place_order(request).await);
    assert_eq!(refused, Refused::by("order", Code::OutOfRange, "MESSAGE_TOO_LARGE", &[]));
    assert_nothing_written(&shop, before).await
}

#[tokio::test]
async fn malformed_stock_is_refused() -> anyhow::Result<()> {
    let (shop, before) = shop().await?;
    let mut inventory = shop.clients().inventory_commands();
    let fine = AddStockRequest {
        request_id: "wrong".to_owned(),
        sku: "tea".to_owned(),
        quantity: 1,
        unit_price: Some(usd(3)),
    };
    let price = |currency_code: &str, units, nanos| AddStockRequest {
        unit_price: Some(Money { currency_code: currency_code.to_owned(), units, nanos }),
        ..fine.clone()
    };
    let cases: Vec<(AddStockRequest, &[&str])> = vec![
        (AddStockRequest::default(), &["quantity", "sku", "unit_price"]),
        (AddStockRequest { quantity: 0, ..fine.clone() }, &["quantity"]),
        (AddStockRequest { quantity: -1, ..fine.clone() }, &["quantity"]),
        (AddStockRequest { quantity: 1_000_000_001, ..fine.clone() }, &["quantity"]),
        (AddStockRequest { sku: "x".repeat(100 << 10), ..fine.clone() }, &["sku"]),
        (price("USD", 0, 0), &["unit_price"]),
        (price("USD", -1, 0), &["unit_price"]),
        (price("dollars", 1, 0), &["unit_price.currency_code"]),
        (price("", 1, 0), &["unit_price.currency_code"]),
        (price("USD", 1, 1_000_000_000), &["unit_price.nanos"]),
        (price("USD", 1, -1), &["unit_price.nanos"]),
    ];
    for (request, fields) in cases {
        let mut refused = Refused::of(inventory.add_stock(request.clone()).await);
        refused.fields.sort();
        assert_eq!(refused, Refused::invalid("inventory", fields), "{request:.200?}");
    }
    let refused = Refused::of(inventory.add_stock(price("EUR", 3, 0)).await);
    assert_eq!(refused, Refused::by("inventory", Code::FailedPrecondition, "CURRENCY_MISMATCH", &[]));

    let reserve = |id: &str, items: &[(&str, i64)]| ReserveStockRequest {
        request_id: format!("reserve-{id}"),
        reservation_id: id.to_owned(),
        items: items.iter().map(|(sku, quantity)| Item { sku: (*sku).to_owned(), quantity: *quantity }).collect(),
    };
    let refusals = [
        (reserve("r-1", &[("nothing", 1)]), Refused::by("inventory", Code::NotFound, "UNKNOWN_SKU", &[])),
        (reserve("r-2", &[("tea", 9)]), Refused::by("inventory", Code::FailedPrecondition, "INSUFFICIENT_STOCK", &[])),
        (reserve("first", &[("tea", 1)]), Refused::by("inventory", Code::AlreadyExists, "RESERVATION_EXISTS", &[])),
        (reserve("r-3", &[]), Refused::invalid("inventory", &["items"])),
        (reserve("r-4", &[("tea", -1)]), Refused::invalid("inventory", &["items[0].quantity"])),
    ];
    for (request, refusal) in refusals {
        assert_eq!(Refused::of(inventory.reserve_stock(request.clone()).await), refusal, "{request:?}");
    }
    let release = |id: &str, quantity| ReleaseStockRequest {
        request_id: format!("release-{id}-{quantity}"),
        reservation_id: id.to_owned(),
        items: vec![Item { sku: "tea".to_owned(), quantity }],
    };
    let refused = Refused::of(inventory.release_stock(release("nobody", 1)).await);
    assert_eq!(refused, Refused::by("inventory", Code::NotFound, "UNKNOWN_RESERVATION", &[]));
    let refused = Refused::of(inventory.release_stock(release("first", 1)).await);
    assert_eq!(refused, Refused::by("inventory", Code::FailedPrecondition, "RESERVATION_DIFFERS", &[]));
    assert_nothing_written(&shop, before).await
}

#[tokio::test]
async fn malformed_payments_and_shipments_are_refused() -> anyhow::Result<()> {
    let (shop, before) = shop().await?;
    let clients = shop.clients();
    let (mut payment, mut shipping) = (clients.payment_commands(), clients.shipping_commands());

    let refused = Refused::of(payment.deposit_funds(DepositFundsRequest::default()).await);
    assert_eq!(refused, Refused::invalid("payment", &["customer_id", "amount"]));
    let deposit = |amount| DepositFundsRequest {
        request_id: "wrong".to_owned(),
        customer_id: "ann".to_owned(),
        amount: Some(amount),
    };
    for amount in [usd(0), usd(-1), usd(i64::MIN)] {
        assert_eq!(Refused::of(payment.deposit_funds(deposit(amount)).await), Refused::invalid("payment", &["amount"]));
    }
    let euros = Money { currency_code: "EUR".to_owned(), ..usd(1) };
    let refused = Refused::of(payment.deposit_funds(deposit(euros.clone())).await);
    assert_eq!(refused, Refused::by("payment", Code::FailedPrecondition, "CURRENCY_MISMATCH", &[]));

    let charge = |id: &str, customer: &str, amount: Money| ChargeCustomerRequest {
        request_id: format!("charge-{id}-{customer}-{}", amount.currency_code),
        charge_id: id.to_owned(),
        customer_id: customer.to_owned(),
        amount: Some(amount),
    };
    let refusals = [
        (charge("c", "ann", usd(95)), Refused::by("payment", Code::FailedPrecondition, "INSUFFICIENT_FUNDS", &[])),
        (charge("c", "ann", euros), Refused::by("payment", Code::FailedPrecondition, "CURRENCY_MISMATCH", &[])),
        (charge("c", "bob", usd(1)), Refused::by("payment", Code::NotFound, "UNKNOWN_ACCOUNT", &[])),
        (charge("first", "ann", usd(1)), Refused::by("payment", Code::AlreadyExists, "CHARGE_EXISTS", &[])),
        (charge("", "", usd(-1)), Refused::invalid("payment", &["charge_id", "customer_id", "amount"])),
    ];
    for (request, refusal) in refusals {
        assert_eq!(Refused::of(payment.charge_customer(request.clone()).await), refusal, "{request:?}");
    }
    let refund = |id: &str, customer: &str| RefundChargeRequest {
        request_id: format!("refund-{id}-{customer}"),
        charge_id: id.to_owned(),
        customer_id: customer.to_owned(),
    };
    let refused = Refused::of(payment.refund_charge(refund("nothing", "ann")).await);
    assert_eq!(refused, Refused::by("payment", Code::NotFound, "UNKNOWN_CHARGE", &[]));
    let refused = Refused::of(payment.refund_charge(refund("first", "bob")).await);
    assert_eq!(refused, Refused::by("payment", Code::FailedPrecondition, "CHARGE_OF_ANOTHER", &[]));

    let refused = Refused::of(shipping.create_shipment(CreateShipmentRequest::default()).await);
    assert_eq!(refused.code, Code::InvalidArgument);
    let to = |id: &str, region: &str| CreateShipmentRequest {
        request_id: format!("ship-{id}-{region}"),
        shipment_id: id.to_owned(),
        address: Some(PostalAddress { region_code: region.to_owned(), ..home() }),
        parcels: vec![Parcel { sku: "tea".to_owned(), quantity: 1 }],
    };
    let refused = Refused::of(shipping.create_shipment(to("s", "AQ")).await);
    assert_eq!(refused, Refused::by("shipping", Code::FailedPrecondition, "UNDELIVERABLE_ADDRESS", &[]));
    let refused = Refused::of(shipping.create_shipment(to("first", "CH")).await);
    assert_eq!(refused, Refused::by("shipping", Code::AlreadyExists, "SHIPMENT_EXISTS", &[]));
    let recall = CancelShipmentRequest { request_id: "recall".to_owned(), shipment_id: "nothing".to_owned() };
    let refused = Refused::of(shipping.cancel_shipment(recall).await);
    assert_eq!(refused, Refused::by("shipping", Code::NotFound, "UNKNOWN_SHIPMENT", &[]));
    assert_nothing_written(&shop, before).await
}

#[tokio::test]
async fn a_request_id_stands_for_one_request_only() -> anyhow::Result<()> {
    let (shop, before) = shop().await?;
    let clients = shop.clients();
    let reused = |service| Refused::by(service, Code::AlreadyExists, "REQUEST_ID_REUSED", &[]);

    let mut orders = clients.order_commands();
    let again = orders.place_order(fine("first")).await?.into_inner();
    assert_eq!(again.order.as_ref(), before.orders.first(), "the same request has the same order");
    let other = PlaceOrderRequest { items: vec![item("tea", 3)], ..fine("first") };
    assert_eq!(Refused::of(orders.place_order(other).await), reused("order"));
    let unseen = PlaceOrderRequest { request_id: "second".to_owned(), ..fine("first") };
    let exists = Refused::by("order", Code::AlreadyExists, "ORDER_EXISTS", &[]);
    assert_eq!(Refused::of(orders.place_order(unseen).await), exists);

    shop.stock("tea", 10, 3).await?;
    assert_eq!(shop.stock("tea", 11, 3).await.map_err(as_refused), Err(reused("inventory")));
    shop.deposit("ann", 100).await?;
    assert_eq!(shop.deposit("ann", 101).await.map_err(as_refused), Err(reused("payment")));
    assert_nothing_written(&shop, before).await
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` calls it")]
fn as_refused(error: anyhow::Error) -> Refused {
    Refused::of::<()>(Err(error.downcast_ref::<tonic::Status>().expect("a status").clone()))
}

#[tokio::test]
async fn an_order_of_what_nobody_knows_is_accepted_and_then_rejected_with_the_reason() -> anyhow::Result<()> {
    let (shop, _) = shop().await?;
    let clients = shop.clients();
    let mut orders = clients.order_commands();
    let cases = [
        (PlaceOrderRequest { items: vec![item("nothing", 1)], ..fine("o-1") }, "reserve_inventory", "UNKNOWN_SKU"),
        (PlaceOrderRequest { items: vec![item("tea", 9)], ..fine("o-2") }, "reserve_inventory", "INSUFFICIENT_STOCK"),
        (PlaceOrderRequest { customer_id: "bob".to_owned(), ..fine("o-3") }, "charge_customer", "UNKNOWN_ACCOUNT"),
    ];
    for (request, step, reason) in cases {
        let order = orders.place_order(request).await?.into_inner().order.context("an order")?;
        let rejection = order.rejection.clone().context("a rejection")?;
        assert_eq!(order.state(), OrderState::Rejected);
        assert_eq!((rejection.step.as_str(), rejection.reason.as_str()), (step, reason));
    }
    at_rest(&clients, 4).await?;
    let cancel = |id: &str| CancelOrderRequest { order_id: id.to_owned(), ..CancelOrderRequest::default() };
    let refused = Refused::of(orders.cancel_order(cancel("nothing")).await);
    assert_eq!(refused, Refused::by("order", Code::NotFound, "UNKNOWN_ORDER", &[]));
    let refused = Refused::of(orders.cancel_order(cancel("first")).await);
    assert_eq!(refused.code, Code::FailedPrecondition, "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn queries_of_what_is_not_there_and_pages_that_never_were_are_refused() -> anyhow::Result<()> {
    let (shop, _) = shop().await?;
    let clients = shop.clients();
    let missing = |service, reason| Refused::by(service, Code::NotFound, reason, &[]);
    let id = || "nothing".to_owned();

    let mut inventory = clients.inventory_queries();
    assert_eq!(
        Refused::of(inventory.get_stock(GetStockRequest { sku: id() }).await),
        missing("inventory", "UNKNOWN_SKU")
    );
    let mut payment = clients.payment_queries();
    let refused = Refused::of(payment.get_account(GetAccountRequest { customer_id: id() }).await);
    assert_eq!(refused, missing("payment", "UNKNOWN_ACCOUNT"));
    let refused = Refused::of(payment.get_charge(GetChargeRequest { charge_id: id() }).await);
    assert_eq!(refused, missing("payment", "UNKNOWN_CHARGE"));
    let mut shipping = clients.shipping_queries();
    let refused = Refused::of(shipping.get_shipment(GetShipmentRequest { shipment_id: id() }).await);
    assert_eq!(refused, missing("shipping", "UNKNOWN_SHIPMENT"));
    let mut orders = clients.order_queries();
    let refused = Refused::of(orders.get_order(GetOrderRequest { order_id: id(), include_shipment: false }).await);
    assert_eq!(refused, missing("order", "UNKNOWN_ORDER"));
    let watch = WatchOrderRequest { order_id: id(), after_position: 0 };
    let watched = match orders.watch_order(watch).await {
        Ok(stream) => stream.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    assert_eq!(Refused::of(watched), missing("order", "UNKNOWN_ORDER"));
    let mut sagas = clients.saga_queries();
    let refused = Refused::of(sagas.get_saga(GetSagaRequest { saga_id: id() }).await);
    assert_eq!(refused, missing("order", "UNKNOWN_SAGA"));
    let refused = Refused::of(sagas.describe_saga(DescribeSagaRequest { r#type: id(), version: 0 }).await);
    assert_eq!(refused, missing("order", "UNKNOWN_SAGA_TYPE"));

    let huge = "A".repeat(100 << 10);
    for (size, token, field) in [(0, "garbage", "page_token"), (0, &huge, "page_token"), (-1, "", "page_size")] {
        let (page_size, page_token) = (size, token.to_owned());
        let request = ListStockRequest { page_size, page_token: page_token.clone() };
        assert_eq!(Refused::of(inventory.list_stock(request).await), Refused::invalid("inventory", &[field]));
        let request = ListChargesRequest { page_size, page_token: page_token.clone(), ..Default::default() };
        assert_eq!(Refused::of(payment.list_charges(request).await), Refused::invalid("payment", &[field]));
        let request = ListShipmentsRequest { page_size, page_token: page_token.clone() };
        assert_eq!(Refused::of(shipping.list_shipments(request).await), Refused::invalid("shipping", &[field]));
        let request = ListOrdersRequest { page_size, page_token: page_token.clone(), ..Default::default() };
        assert_eq!(Refused::of(orders.list_orders(request).await), Refused::invalid("order", &[field]));
        let request = ListParkedSagasRequest { page_size, page_token: page_token.clone() };
        let parked = clients.parked_sagas().list_parked_sagas(request).await;
        assert_eq!(Refused::of(parked), Refused::invalid("order", &[field]));
        let request = ListSagasRequest { page_size, page_token, ..Default::default() };
        assert_eq!(Refused::of(sagas.list_sagas(request).await), Refused::invalid("order", &[field]));
    }
    Ok(())
}

#[tokio::test]
async fn names_are_not_repeated_that_no_answer_could_hold() -> anyhow::Result<()> {
    let (shop, _) = shop().await?;
    let clients = shop.clients();
    let name = "n".repeat(100 << 10);
    let mut breakers = BreakerCommandServiceClient::new(clients.order.clone());
    let of = Refused::of(breakers.reset_breaker(ResetBreakerRequest { name: name.clone() }).await);
    assert_eq!(of, Refused::invalid("order", &["name"]));
    let mut projections = ProjectionCommandServiceClient::new(clients.order.clone());
    let of = Refused::of(projections.resume_projection(ResumeProjectionRequest { name: name.clone() }).await);
    assert_eq!(of, Refused::invalid("order", &["name"]));
    let of = Refused::of(projections.rebuild_projections(RebuildProjectionsRequest { source: name }).await);
    assert_eq!(of, Refused::invalid("order", &["source"]));
    Ok(())
}
