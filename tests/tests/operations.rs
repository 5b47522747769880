//! What `docs/operations.md` says that an operator sees is what there is to see.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use proto::{
    order::v1::{GetOrderRequest, PlaceOrderRequest},
    saga::v1::{GetSagaRequest, Saga, SagaPhase},
};
use serde_json::Value;
use tests::{
    Server, Shop,
    collector::{Collector, Measured},
    port, program, shop,
};
use tokio::time::{sleep, timeout};
use tonic::{Request, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A metric: its kind, its unit, and the keys of its attributes.
type Metric = (String, String, BTreeSet<String>);

/// The table of metrics.
fn written() -> anyhow::Result<BTreeMap<String, Metric>> {
    let page = fs::read_to_string(program::repository().join("docs/operations.md"))?;
    let (_, table) = page.split_once("\n| metric |").context("no table of metrics")?;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, attributes, _] = cells[..] else { anyhow::bail!("no row of five cells: {line}") };
        let keys = attributes.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Ok((name.trim_matches('`').to_owned(), (kind.to_owned(), unit.to_owned(), keys)))
    };
    rows.map(row).collect()
}

/// Waits until an order's saga is as wanted.
async fn until(shop: &Shop, saga_id: &str, wanted: impl Fn(&Saga) -> bool) -> anyhow::Result<()> {
    let mut sagas = shop.clients().saga_queries();
    let request = GetSagaRequest { saga_id: saga_id.to_owned() };
    let comes = async {
        loop {
            let saga = sagas.get_saga(request.clone()).await.ok().and_then(|answer| answer.into_inner().saga);
            if saga.is_some_and(|saga| wanted(&saga)) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, comes).await.with_context(|| format!("{saga_id} never was as wanted"))
}

#[tokio::test]
async fn the_table_of_metrics_is_what_is_exported() -> anyhow::Result<()> {
    let collector = Collector::start().await?;
    let mut shop = Shop::new()?;
    for server in shop.servers_mut() {
        server.variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.uri());
        server.variable("OTEL_TRACES_EXPORTER", "none");
        server.start().await?;
    }
    shop.stock("tea", 100, 3).await?;
    shop.deposit("ann", 1_000).await?;
    // A call that is made again is a metric, too.
    shop.shipping().kill().await?;
    let order = PlaceOrderRequest { wait_for_completion: false, ..shop::order("o-1", "CH") };
    shop.clients().order_commands().place_order(order).await?;
    until(&shop, "o-1", |saga| saga.steps.iter().any(|step| step.attempts > 1)).await?;
    shop.shipping().start().await?;
    until(&shop, "o-1", |saga| saga.phase() == SagaPhase::Completed).await?;
    for server in shop.servers_mut() {
        server.terminate().await?;
        server.ended().await?;
    }
    let mut exported = BTreeMap::<String, Metric>::new();
    for Measured { name, kind, unit, attributes, .. } in collector.metrics() {
        let (_, _, keys) = exported.entry(name).or_insert((kind.to_owned(), unit, BTreeSet::new()));
        keys.extend(attributes);
    }
    assert_eq!(written()?, exported);
    Ok(())
}

/// The lines of a server's log in which all these fields are as given.
fn lines(server: &Server, fields: &[(&str, &str)]) -> Vec<Value> {
    let log = server.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| fields.iter().all(|(key, text)| line[key] == *text)).collect()
}

#[tokio::test]
async fn a_trace_goes_on_through_services_that_export_none_and_is_in_their_logs() -> anyhow::Result<()> {
    let mut shop = Shop::new()?;
    for server in shop.servers_mut() {
        server.variable("RUST_LOG", "info,libs::rpc::server=debug");
        server.start().await?;
    }
    shop.stock("tea", 100, 3).await?;
    shop.deposit("ann", 1_000).await?;
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let mut place = Request::new(shop::order("o-1", "CH"));
    place.metadata_mut().insert("traceparent", parent.parse()?);
    place.metadata_mut().insert("x-request-id", "say \"tea\"".parse()?);
    shop.clients().order_commands().place_order(place).await?;
    let ask = |order_id: &str| {
        let mut ask = Request::new(GetOrderRequest { order_id: order_id.to_owned(), include_shipment: true });
        ask.metadata_mut().insert("traceparent", parent.parse()?);
        anyhow::Ok(ask)
    };
    // One that nobody can serve, and one that asks shipping.
    assert!(shop.clients().order_queries().get_order(ask("")?).await.is_err());
    let asked = async {
        loop {
            let answer = shop.clients().order_queries().get_order(ask("o-1")?).await;
            // The view is a moment behind its command, and shipping has half a second for its answer, which may be little.
            if answer.is_ok_and(|answer| answer.into_inner().shipment.is_some_and(|standing| standing.current)) {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, asked).await.context("shipping is never heard")??;
    let traced = |server: &Server, method: &str| lines(server, &[("trace_id", TRACE), ("method", method)]);
    for (server, method) in [
        (0, "inventory.v1.InventoryCommandService/ReserveStock"),
        (1, "payment.v1.PaymentCommandService/ChargeCustomer"),
        (2, "shipping.v1.ShippingCommandService/CreateShipment"),
        (2, "shipping.v1.ShippingQueryService/GetShipment"),
    ] {
        let server = &shop.servers_mut()[server];
        // More than once where an answer took too long.
        assert!(!traced(server, method).is_empty(), "{method}\n{}", server.log());
    }
    let placed = traced(shop.order(), "order.v1.OrderCommandService/PlaceOrder");
    assert!(placed.iter().all(|line| line["request_id"] == "say \"tea\"") && placed.len() == 1, "{placed:?}");
    let refused = lines(shop.order(), &[("trace_id", TRACE), ("code", "INVALID_ARGUMENT")]);
    assert!(refused[0]["request_id"].as_str().is_some_and(|id| id.len() == 32), "one was given: {refused:?}");
    Ok(())
}

#[tokio::test]
async fn the_shop_tells_its_services_apart_and_what_is_held_back_goes_out_with_it() -> anyhow::Result<()> {
    let collector = Collector::start().await?;
    let folder = tempfile::tempdir()?;
    let host = port::own_host();
    let mut command = program::command("shop", folder.path())?;
    command.args(["serve", "--host", &host.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.uri());
    for variable in ["OTEL_BSP_SCHEDULE_DELAY", "OTEL_METRIC_EXPORT_INTERVAL"] {
        command.env(variable, "3600000");
    }
    let mut shop = command.spawn()?;
    let asked = Endpoint::from_shared(format!("http://{host}:50054"))?.connect_lazy();
    let serves = async {
        while HealthClient::new(asked.clone()).check(HealthCheckRequest::default()).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, serves).await.context("the shop doesn't serve")?;
    program::signal(&shop, "TERM").await?;
    assert!(timeout(PATIENCE, shop.wait()).await??.success());
    assert!(collector.spans().iter().any(|span| span.name == "grpc.health.v1.Health/Check"));
    let commits = collector.metrics().into_iter().filter(|measured| measured.name == "journal.commits");
    assert_eq!(
        commits.map(|measured| measured.service).collect::<Vec<_>>(),
        ["inventory", "order", "payment", "shipping"]
    );
    Ok(())
}
