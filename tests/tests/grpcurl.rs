//! The shop as seen by grpcurl, which knows nothing of it but what reflection says.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use tests::{
    Server, Shop,
    grpcurl::{call, printed, run},
};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn order(id: &str, customer: &str, region: &str) -> Value {
    json!({
        "request_id": id,
        "order_id": id,
        "customer_id": customer,
        "items": [{"sku": "tea", "quantity": 2}],
        "address": {"region_code": region, "address_lines": ["Bahnhofstrasse 1"]},
        "wait_for_completion": true,
    })
}

#[tokio::test]
async fn grpcurl_asks_every_service_for_its_health() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    for server in shop.servers_mut() {
        let listed = printed(server, &["list"]).await?;
        let own = listed.lines().filter(|service| service.contains(".v1.") && !service.starts_with("grpc."));
        for service in own.chain([""]) {
            let health = call(server, "grpc.health.v1.Health/Check", &json!({"service": service})).await?;
            assert_eq!(health, json!({"status": "SERVING"}), "{service:?} of {}", server.name());
        }
        let unknown = run(&["-d", r#"{"service": "nothing"}"#], server, &["grpc.health.v1.Health/Check"]).await?;
        assert!(String::from_utf8_lossy(&unknown.stderr).contains("Code: NotFound"), "{unknown:?}");
    }
    Ok(())
}

#[tokio::test]
async fn grpcurl_drives_whole_orders() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    let [inventory, payment, shipping, orders] = shop.servers_mut();
    let three = json!({"currency_code": "USD", "units": 3});

    let stock = json!({"request_id": "s", "sku": "tea", "quantity": 10, "unit_price": three});
    let added = call(inventory, "inventory.v1.InventoryCommandService/AddStock", &stock).await?;
    assert_eq!(added, json!({"sku": "tea", "available": "10"}));
    let funds = json!({"request_id": "d", "customer_id": "ann", "amount": {"currency_code": "USD", "units": 100}});
    let deposited = call(payment, "payment.v1.PaymentCommandService/DepositFunds", &funds).await?;
    assert_eq!(deposited["balance"], json!({"currencyCode": "USD", "units": "100"}));

    let place = "order.v1.OrderCommandService/PlaceOrder";
    let placed = call(orders, place, &order("o-1", "ann", "CH")).await?;
    assert_eq!(placed["order"]["state"], "ORDER_STATE_COMPLETED", "{placed}");
    assert_eq!(placed["order"]["total"]["units"], "6", "{placed}");
    let refused = call(orders, place, &order("o-2", "ann", "AQ")).await?;
    assert_eq!(refused["order"]["state"], "ORDER_STATE_REJECTED", "{refused}");
    assert_eq!(refused["order"]["rejection"]["reason"], "UNDELIVERABLE_ADDRESS", "{refused}");

    // Every list of the shop shows what came of them. The reply waits for the order, not for the other services' views.
    let until = async |server: &Server, method: &str, request: Value, holds: &dyn Fn(&Value) -> bool| {
        let begun = Instant::now();
        loop {
            // A view that is behind may not know yet what it is asked for.
            let answer = call(server, method, &request).await;
            if answer.as_ref().is_ok_and(holds) {
                return anyhow::Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{method}: {answer:?}");
        }
    };
    let query = "order.v1.OrderQueryService";
    until(orders, &format!("{query}/GetOrder"), json!({"order_id": "o-1"}), &|a| a["order"]["orderId"] == "o-1")
        .await?;
    until(orders, &format!("{query}/ListOrders"), json!({}), &|a| a["orders"].as_array().is_some_and(|o| o.len() == 2))
        .await?;
    until(inventory, "inventory.v1.InventoryQueryService/GetStock", json!({"sku": "tea"}), &|a| {
        a["stock"]["available"] == "8" && a["stock"]["shipped"] == "2" && a["stock"]["reserved"].is_null()
    })
    .await?;
    until(payment, "payment.v1.PaymentQueryService/GetAccount", json!({"customer_id": "ann"}), &|a| {
        a["account"]["balance"]["units"] == "94" && a["account"]["charged"]["units"] == "6"
    })
    .await?;
    until(payment, "payment.v1.PaymentQueryService/GetCharge", json!({"charge_id": "o-2"}), &|a| {
        a["charge"]["state"] == "CHARGE_STATE_REFUNDED"
    })
    .await?;
    until(shipping, "shipping.v1.ShippingQueryService/ListShipments", json!({}), &|a| {
        a["shipments"].as_array().is_some_and(|s| s.len() == 1 && s[0]["state"] == "SHIPMENT_STATE_SHIPPED")
    })
    .await?;
    until(orders, "saga.v1.SagaQueryService/GetSaga", json!({"saga_id": "o-2"}), &|a| {
        a["saga"]["phase"] == "SAGA_PHASE_COMPENSATED" && a["saga"]["reason"]["step"] == "ship_order"
    })
    .await?;
    let described = call(orders, "saga.v1.SagaQueryService/DescribeSaga", &json!({"type": "place-order"})).await?;
    assert!(described["steps"].as_array().is_some_and(|steps| steps.len() == 4), "{described}");
    let breakers = call(orders, "breaker.v1.BreakerQueryService/ListBreakers", &json!({})).await?;
    let names: Vec<_> = breakers["breakers"].as_array().into_iter().flatten().map(|b| b["name"].clone()).collect();
    let expected = ["inventory", "payment", "payment/streams", "shipping", "shipping.queries", "shipping/streams"];
    assert_eq!(names, expected, "{breakers}");
    assert!(breakers["breakers"][1]["state"] == "CIRCUIT_STATE_CLOSED", "{breakers}");
    Ok(())
}

#[tokio::test]
async fn grpcurl_shows_what_is_wrong_with_a_request() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    let mut request = order("o-1", "ann", "CH");
    request["items"] = json!([]);
    let place = "order.v1.OrderCommandService/PlaceOrder";
    let output = run(&["-d", &request.to_string()], shop.order(), &[place]).await?;
    let said = String::from_utf8(output.stderr)?;
    assert!(!output.status.success());
    for words in
        ["Code: InvalidArgument", "INVALID_REQUEST", "trellis.order", "\"field\":\"items\"", "must be 1 to 100 items"]
    {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    Ok(())
}
