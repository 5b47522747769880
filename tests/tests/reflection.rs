//! What reflection says of each server, by grpcurl: every service, method and message is described, and every method answers a call.

use std::{
    collections::BTreeSet,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::{Deserializer, Value, json};
use tests::{
    Server, Shop,
    grpcurl::{command, printed, run},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};
use tonic::Code::{self, FailedPrecondition};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// As many runs of grpcurl at once: each is a process that starts, asks and ends.
const AT_ONCE: usize = 4;

/// A method, a request, and what becomes of it. SERVER in a request is the server's name.
type Call = (&'static str, &'static str, Answer);

#[derive(Clone, Copy)]
enum Answer {
    /// A reply, or a stream that ends.
    Ends,
    /// A stream that goes on after its first message.
    GoesOn,
    /// A refusal and its reason.
    Refused(Code, &'static str),
}

use Answer::{Ends, GoesOn, Refused};

const OF_ALL: &[Call] = &[
    ("events.v1.EventService/Subscribe", "{}", GoesOn),
    ("grpc.health.v1.Health/Check", "{}", Ends),
    ("grpc.health.v1.Health/Watch", "{}", GoesOn),
    ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", r#"{"list_services":""}"#, Ends),
    ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", r#"{"list_services":""}"#, Ends),
    ("projections.v1.ProjectionCommandService/RebuildProjections", r#"{"source":"SERVER"}"#, Ends),
    ("projections.v1.ProjectionQueryService/ListProjections", "{}", Ends),
    ("saga.v1.BarrierService/ForgetSteps", r#"{"steps":[{"saga_id":"o-0","step":"any"}]}"#, Ends),
];

/// In an order in which each does something to what those before it have left.
const INVENTORY: &[Call] = &[
    (
        "inventory.v1.InventoryCommandService/AddStock",
        r#"{"request_id":"a","sku":"tea","quantity":10,"unit_price":{"currency_code":"EUR","units":3}}"#,
        Ends,
    ),
    (
        "inventory.v1.InventoryCommandService/ReserveStock",
        r#"{"request_id":"r","reservation_id":"r-1","items":[{"sku":"tea","quantity":2}]}"#,
        Ends,
    ),
    (
        "inventory.v1.InventoryCommandService/ReleaseStock",
        r#"{"request_id":"b","reservation_id":"r-1","items":[{"sku":"tea","quantity":2}]}"#,
        Ends,
    ),
    ("inventory.v1.InventoryQueryService/GetStock", r#"{"sku":"tea"}"#, Ends),
    ("inventory.v1.InventoryQueryService/ListStock", r#"{"page_size":10}"#, Ends),
    ("inventory.v1.InventoryQueryService/WatchStock", r#"{"sku":"tea"}"#, GoesOn),
    ("projections.v1.ProjectionCommandService/ResumeProjection", r#"{"name":"stock"}"#, Ends),
    ("breaker.v1.BreakerQueryService/ListBreakers", "{}", Ends),
    ("breaker.v1.BreakerQueryService/WatchBreakers", "{}", GoesOn),
    (
        "breaker.v1.BreakerCommandService/SetOverride",
        r#"{"name":"shipping/streams","override":"OVERRIDE_METRICS_ONLY"}"#,
        Ends,
    ),
    ("breaker.v1.BreakerCommandService/ResetBreaker", r#"{"name":"shipping/streams"}"#, Ends),
];

const PAYMENT: &[Call] = &[
    (
        "payment.v1.PaymentCommandService/DepositFunds",
        r#"{"request_id":"d","customer_id":"ann","amount":{"currency_code":"EUR","units":100}}"#,
        Ends,
    ),
    (
        "payment.v1.PaymentCommandService/ChargeCustomer",
        r#"{"request_id":"c","charge_id":"c-1","customer_id":"ann","amount":{"currency_code":"EUR","units":6}}"#,
        Ends,
    ),
    (
        "payment.v1.PaymentCommandService/RefundCharge",
        r#"{"request_id":"r","charge_id":"c-1","customer_id":"ann"}"#,
        Ends,
    ),
    ("payment.v1.PaymentQueryService/GetAccount", r#"{"customer_id":"ann"}"#, Ends),
    ("payment.v1.PaymentQueryService/GetCharge", r#"{"charge_id":"c-1"}"#, Ends),
    ("payment.v1.PaymentQueryService/ListCharges", r#"{"customer_id":"ann"}"#, Ends),
    ("projections.v1.ProjectionCommandService/ResumeProjection", r#"{"name":"accounts"}"#, Ends),
];

const SHIPPING: &[Call] = &[
    (
        "shipping.v1.ShippingCommandService/CreateShipment",
        r#"{"request_id":"c","shipment_id":"s-1","address":{"region_code":"CH","address_lines":["Bahnhofstrasse 1"]},"parcels":[{"sku":"jam","quantity":2}]}"#,
        Ends,
    ),
    ("shipping.v1.ShippingCommandService/CancelShipment", r#"{"request_id":"r","shipment_id":"s-1"}"#, Ends),
    ("shipping.v1.ShippingQueryService/GetShipment", r#"{"shipment_id":"s-1"}"#, Ends),
    ("shipping.v1.ShippingQueryService/ListShipments", "{}", Ends),
    ("projections.v1.ProjectionCommandService/ResumeProjection", r#"{"name":"shipments"}"#, Ends),
];

const STEERED: &str = r#"{"saga_id":"o-2","actor":"ann","reason":"to see"}"#;

/// An order that has ended, and one that waits for payment, whose breaker is held open.
const ORDER: &[Call] = &[
    (
        "order.v1.OrderCommandService/PlaceOrder",
        r#"{"request_id":"p","order_id":"o-1","customer_id":"ann","items":[{"sku":"tea","quantity":2}],"address":{"region_code":"CH","address_lines":["Bahnhofstrasse 1"]},"wait_for_completion":true}"#,
        Ends,
    ),
    ("order.v1.OrderQueryService/GetOrder", r#"{"order_id":"o-1","include_shipment":true}"#, Ends),
    ("order.v1.OrderQueryService/ListOrders", r#"{"customer_id":"ann","state":"ORDER_STATE_COMPLETED"}"#, Ends),
    ("order.v1.OrderQueryService/WatchOrder", r#"{"order_id":"o-1"}"#, Ends),
    ("saga.v1.SagaQueryService/GetSaga", r#"{"saga_id":"o-1"}"#, Ends),
    ("saga.v1.SagaQueryService/ListSagas", r#"{"phases":["SAGA_PHASE_COMPLETED"]}"#, Ends),
    ("saga.v1.SagaQueryService/WatchSagas", r#"{"saga_id":"o-1"}"#, Ends),
    ("saga.v1.SagaQueryService/DescribeSaga", r#"{"type":"place-order"}"#, Ends),
    ("saga.v1.ParkedSagaQueryService/ListParkedSagas", "{}", Ends),
    ("breaker.v1.BreakerQueryService/ListBreakers", r#"{"name_prefix":"pay"}"#, Ends),
    ("breaker.v1.BreakerQueryService/WatchBreakers", r#"{"name_prefix":"pay"}"#, GoesOn),
    ("breaker.v1.BreakerCommandService/SetOverride", r#"{"name":"payment","override":"OVERRIDE_FORCED_OPEN"}"#, Ends),
    ("breaker.v1.BreakerCommandService/ResetBreaker", r#"{"name":"payment"}"#, Ends),
    (
        "order.v1.OrderCommandService/PlaceOrder",
        r#"{"request_id":"q","order_id":"o-2","customer_id":"ann","items":[{"sku":"tea","quantity":2}],"address":{"region_code":"CH","address_lines":["Bahnhofstrasse 1"]}}"#,
        Ends,
    ),
    ("saga.v1.SagaCommandService/PauseSaga", STEERED, Ends),
    ("saga.v1.SagaCommandService/ResumeSaga", STEERED, Ends),
    ("saga.v1.SagaCommandService/RetrySaga", STEERED, Ends),
    (
        "saga.v1.SagaCommandService/SkipStep",
        r#"{"saga_id":"o-2","step":"charge_customer","operation":"OPERATION_ACTION","outcome":"SKIP_OUTCOME_DONE","actor":"ann","reason":"to see"}"#,
        Refused(FailedPrecondition, "NOT_STUCK"),
    ),
    ("saga.v1.SagaCommandService/ForceCloseSaga", STEERED, Refused(FailedPrecondition, "NOT_STUCK")),
    ("saga.v1.SagaCommandService/CancelSaga", STEERED, Ends),
    ("order.v1.OrderCommandService/CancelOrder", r#"{"request_id":"c","order_id":"o-2"}"#, Ends),
    ("projections.v1.ProjectionCommandService/ResumeProjection", r#"{"name":"orders"}"#, Ends),
];

/// What is called at a server, in order: what all have, and what is its own.
fn calls(server: &Server) -> impl Iterator<Item = &'static Call> {
    let own = match server.name() {
        "inventory" => INVENTORY,
        "payment" => PAYMENT,
        "shipping" => SHIPPING,
        "order" => ORDER,
        other => panic!("{other} is new: say here what is called there, and what it answers"),
    };
    OF_ALL.iter().chain(own)
}

/// The methods of a service as it is described, each with its request and its reply.
fn methods(described: &str) -> impl Iterator<Item = [&str; 3]> {
    described.lines().filter_map(|line| {
        let (method, rest) = line.trim().strip_prefix("rpc ")?.split_once(" ( ")?;
        let (request, rest) = rest.split_once(" ) returns ( ")?;
        let (reply, _) = rest.split_once(" )")?;
        let [request, reply] = [request, reply].map(|side| side.trim_start_matches("stream ").trim_start_matches('.'));
        Some([method, request, reply])
    })
}

/// Has a server describe each of these, and checks that it says what they are.
async fn describe(server: &Server, symbols: &BTreeSet<String>, kind: &str) -> anyhow::Result<Vec<String>> {
    let describe = async |symbol: &String| {
        let described = printed(server, &["describe", symbol]).await?;
        ensure!(described.starts_with(&format!("{symbol} is a {kind}:\n")), "{}: {described}", server.name());
        Ok(described)
    };
    stream::iter(symbols).map(describe).buffered(AT_ONCE).try_collect().await
}

#[tokio::test]
async fn all_that_is_listed_is_described_and_no_method_is_without_a_call() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    // What several have is described by the first of them.
    let mut known = BTreeSet::new();
    for server in shop.servers_mut() {
        let called: BTreeSet<String> = calls(server).map(|(method, ..)| method.replace('/', ".")).collect();
        let services: BTreeSet<String> = printed(server, &["list"]).await?.lines().map(str::to_owned).collect();
        let (mut found, mut messages) = (BTreeSet::new(), BTreeSet::new());
        for (service, described) in services.iter().zip(describe(server, &services, "service").await?) {
            for [method, request, reply] in methods(&described) {
                found.insert(format!("{service}.{method}"));
                messages.extend([request, reply].map(str::to_owned));
            }
        }
        let (uncalled, absent) = (&found - &called, &called - &found);
        let all = uncalled.is_empty() && absent.is_empty();
        assert!(all, "{}: nobody calls {uncalled:?}, and it has no {absent:?}", server.name());
        for described in describe(server, &(&found - &known), "method").await? {
            // Those of others come without their comments.
            ensure!(described.starts_with("grpc.") || described.contains("\n// "), "it has no comment: {described}");
        }
        describe(server, &(&messages - &known), "message").await?;
        known.extend(found.into_iter().chain(messages));
    }
    Ok(())
}

#[tokio::test]
async fn both_versions_of_reflection_know_the_same() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    for server in shop.servers_mut() {
        let listed = printed(server, &["list"]).await?;
        let symbols =
            calls(server).map(|(method, ..)| method.replace('/', ".")).chain(listed.lines().map(str::to_owned));
        let asked: String = symbols.map(|symbol| json!({"file_containing_symbol": symbol}).to_string()).collect();
        let asked = format!("{}{asked}", json!({"list_services": ""}));
        let mut known = Vec::new();
        for version in ["v1", "v1alpha"] {
            let method = format!("grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            let output = run(&["-d", &asked], server, &[&method]).await?;
            ensure!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
            let answers: Vec<Value> = Deserializer::from_slice(&output.stdout).into_iter().collect::<Result<_, _>>()?;
            let unknown = answers.iter().find(|answer| !answer["errorResponse"].is_null());
            ensure!(unknown.is_none(), "{}: {method}: {unknown:?}", server.name());
            known.push(answers);
        }
        let names = known[0][0]["listServicesResponse"]["service"].as_array().context("a list")?;
        let names: BTreeSet<&str> = names.iter().filter_map(|service| service["name"].as_str()).collect();
        assert_eq!(names, listed.lines().collect());
        assert_eq!(known[0], known[1], "{}", server.name());
    }
    Ok(())
}

/// Waits for the first message of a stream that goes on.
async fn first_message(server: &Server, method: &str, request: &str) -> anyhow::Result<()> {
    let mut command = command(&["-d", request], server, &[method])?;
    let mut asking = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(asking.stdout.take().context("its output")?).lines();
    while let Some(line) = lines.next_line().await? {
        if line == "}" {
            // Whoever has ended is gone by the time that another has come and gone.
            run(&[], server, &["grpc.health.v1.Health/Check"]).await?;
            ensure!(asking.try_wait()?.is_none(), "{method} {request} ends after its first message");
            return Ok(());
        }
    }
    let said = asking.wait_with_output().await?.stderr;
    bail!("{method} {request} ends without a message: {}", String::from_utf8_lossy(&said))
}

fn is_refused(output: &Output, code: Code, reason: &str) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    said.contains(&format!("Code: {code:?}\n")) && said.contains(&format!("\"reason\":\"{reason}\""))
}

/// Calls a method, and checks that it answers as it should.
async fn answers(server: &Server, (method, request, answer): &Call) -> anyhow::Result<()> {
    let request = request.replace("SERVER", server.name());
    if let GoesOn = answer {
        return timeout(PATIENCE, first_message(server, method, &request)).await.context(*method)?;
    }
    let begun = Instant::now();
    loop {
        let output = run(&["-d", &request], server, &[method]).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        match answer {
            Refused(code, reason) if is_refused(&output, *code, reason) => return Ok(()),
            Ends if output.status.success() => return Ok(()),
            // A view is a moment behind the command that has made what is looked for.
            Ends if said.contains("Code: NotFound\n") && begun.elapsed() < PATIENCE => {}
            _ => bail!("{}: {method} {request}: {said}", server.name()),
        }
    }
}

#[tokio::test]
async fn every_method_answers_a_call() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    for server in shop.servers_mut() {
        for call in calls(server) {
            answers(server, call).await?;
        }
    }
    Ok(())
}
