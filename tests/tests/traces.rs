//! One order is one trace, across the processes of all services; what is taken up after a crash is another, which points to the first.

use std::{
    future::poll_fn,
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use anyhow::Context as _;
use proto::{
    google::r#type::PostalAddress,
    order::v1::{GetOrderRequest, OrderItem, PlaceOrderRequest},
};
use tests::{
    Shop,
    collector::{Collector, Exported},
    port::Port,
    server::Server,
};
use tokio::time::{sleep, timeout};
use tonic::{Request, body::Body, client::GrpcService};

/// Exporters send every five seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn order(id: &str, wait: bool) -> Request<PlaceOrderRequest> {
    let mut request = Request::new(PlaceOrderRequest {
        request_id: id.to_owned(),
        order_id: id.to_owned(),
        customer_id: "ann".to_owned(),
        items: vec![OrderItem { sku: "tea".to_owned(), quantity: 1 }],
        address: Some(PostalAddress {
            region_code: "CH".to_owned(),
            address_lines: vec!["Bahnhofstrasse 1".to_owned()],
            ..PostalAddress::default()
        }),
        wait_for_completion: wait,
    });
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01").parse();
    if let Ok(parent) = parent {
        request.metadata_mut().insert("traceparent", parent);
    }
    request
}

async fn traced(collector: &Collector) -> anyhow::Result<Shop> {
    let mut shop = Shop::new()?;
    for server in shop.servers_mut() {
        server.variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.uri());
        server.variable("OTEL_METRICS_EXPORTER", "none");
        server.start().await?;
    }
    shop.stock("tea", 100, 3).await?;
    shop.deposit("ann", 1_000).await?;
    Ok(shop)
}

/// Waits for a span, and answers all.
async fn until(collector: &Collector, wanted: impl Fn(&Exported) -> bool) -> anyhow::Result<Vec<Exported>> {
    let come = async {
        while !collector.spans().iter().any(&wanted) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let names = || collector.spans().iter().map(|span| format!("{} {}", span.service, span.name)).collect::<Vec<_>>();
    timeout(PATIENCE, come).await.with_context(|| format!("it never came; what did: {:?}", names()))?;
    Ok(collector.spans())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn an_order_is_one_trace_through_four_services() -> anyhow::Result<()> {
    let collector = Collector::start().await?;
    let mut shop = traced(&collector).await?;
    shop.clients().order_commands().place_order(order("traced-1", true)).await?;
    let asked = async {
        loop {
            let mut ask = Request::new(GetOrderRequest { order_id: "traced-1".to_owned(), include_shipment: true });
            ask.metadata_mut().insert("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01").parse()?);
            let answer = shop.clients().order_queries().get_order(ask).await;
            // The view is a moment behind its command, and shipping has half a second for its answer, which may be little.
            if answer.is_ok_and(|answer| answer.into_inner().shipment.is_some_and(|standing| standing.current)) {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, asked).await.context("shipping is never heard")??;
    // What is held back goes out with the process.
    for server in shop.servers_mut() {
        server.terminate().await?;
        server.ended().await?;
    }
    let spans: Vec<_> = collector.spans().into_iter().filter(|span| hex(&span.trace_id) == TRACE).collect();
    let find = |service: &str, name: &str| -> anyhow::Result<&Exported> {
        let found = spans.iter().find(|span| span.service == service && span.name.ends_with(name));
        found.with_context(|| format!("no span {name} of {service} in {spans:#?}"))
    };
    let placed = find("order", "PlaceOrder")?;
    let saga = find("order", "saga place-order")?;
    assert_eq!((hex(&placed.parent_id), &saga.parent_id), ("b7ad6b7169203331".to_owned(), &placed.span_id));
    assert_eq!(saga.attributes.get("saga.id").map(String::as_str), Some("traced-1"));
    for (service, method) in
        [("inventory", "ReserveStock"), ("payment", "ChargeCustomer"), ("shipping", "CreateShipment")]
    {
        let (call, served) = (find("order", method)?, find(service, method)?);
        assert_eq!((&call.parent_id, &served.parent_id), (&saga.span_id, &call.span_id), "{method}");
        assert_eq!(call.attributes.get("rpc.response.status_code").map(String::as_str), Some("OK"));
        assert!(call.attributes.contains_key("saga.step"));
        let calls = spans.iter().filter(|span| span.service == "order" && span.name.ends_with(method)).count();
        assert_eq!(calls, 1, "a saga's call has one span: {method}");
    }
    let all = |service: &str, name: &str| {
        let found = spans.iter().filter(|span| span.service == service && span.name.ends_with(name));
        found.map(|span| (&span.span_id, &span.parent_id)).collect::<Vec<_>>()
    };
    let (asked, asks) = (all("order", "GetOrder"), all("order", "GetShipment"));
    let served = all("shipping", "GetShipment");
    assert!(!served.is_empty(), "{spans:#?}");
    // Each question is part of the one that it is asked for.
    for (part, whole) in [(&served, &asks), (&asks, &asked)] {
        assert!(part.iter().all(|(_, parent)| whole.iter().any(|(id, _)| id == parent)), "{spans:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_saga_taken_up_after_a_crash_points_to_where_it_began() -> anyhow::Result<()> {
    let collector = Collector::start().await?;
    let mut shop = traced(&collector).await?;
    shop.shipping().kill().await?;
    shop.clients().order_commands().place_order(order("traced-2", false)).await?;
    shop.order().kill().await?;
    shop.order().start().await?;
    shop.shipping().start().await?;
    let resumed = |span: &Exported| span.attributes.get("saga.resumed").is_some_and(|resumed| resumed == "true");
    let spans = until(&collector, resumed).await?;
    let saga = spans.iter().find(|span| resumed(span)).context("it came")?;
    assert_ne!(hex(&saga.trace_id), TRACE, "a trace of its own");
    assert_eq!(saga.links.iter().map(|link| hex(link)).collect::<Vec<_>>(), [TRACE]);
    Ok(())
}

#[tokio::test]
async fn a_strangers_path_is_no_spans_name() -> anyhow::Result<()> {
    let collector = Collector::start().await?;
    let mut shop = Shop::new()?;
    let server = shop.inventory();
    server.variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.uri());
    server.variable("OTEL_METRICS_EXPORTER", "none");
    server.start().await?;
    // Nobody serves the one, and the other is longer than headers may be.
    for bytes in [10 << 10, 20 << 10] {
        let uri = format!("{}/{}", server.uri(), "x".repeat(bytes));
        let call = http::Request::post(uri).header("content-type", "application/grpc").body(Body::empty())?;
        let mut channel = server.channel();
        poll_fn(|cx| GrpcService::<Body>::poll_ready(&mut channel, cx)).await?;
        let answer = GrpcService::call(&mut channel, call).await?;
        assert!(answer.headers().contains_key("grpc-status"), "{answer:?}");
    }
    server.terminate().await?;
    server.ended().await?;
    let spans = collector.spans();
    assert_eq!(spans.iter().filter(|span| span.name == "_OTHER").count(), 2, "{spans:?}");
    for span in &spans {
        assert!(span.attributes.values().chain([&span.name]).all(|text| text.len() < 100), "{span:?}");
    }
    Ok(())
}

#[tokio::test]
async fn who_is_traced_is_the_program_unless_the_environment_says_otherwise() -> anyhow::Result<()> {
    let attributes = "service.name=stock,service.version=7.1,service.instance.id=a";
    let cases = [
        (None, None, ["inventory", "0.0.0", ""]),
        (Some(""), None, ["inventory", "0.0.0", ""]),
        (None, Some(attributes), ["stock", "7.1", "a"]),
        (Some("shelf"), Some(attributes), ["shelf", "7.1", "a"]),
    ];
    for (name, attributes, says) in cases {
        let collector = Collector::start().await?;
        let mut shop = Shop::new()?;
        let server = shop.inventory();
        let told = [("OTEL_SERVICE_NAME", name), ("OTEL_RESOURCE_ATTRIBUTES", attributes)];
        for (variable, value) in told.into_iter().filter_map(|(variable, value)| Some((variable, value?))) {
            server.variable(variable, value);
        }
        server.variable("OTEL_EXPORTER_OTLP_ENDPOINT", collector.uri());
        server.variable("OTEL_METRICS_EXPORTER", "none");
        // To be asked for its health is a call.
        server.start().await?;
        server.terminate().await?;
        server.ended().await?;
        let spans = collector.spans();
        let span = spans.first().context("no span came")?;
        assert_eq!([&span.service, &span.version, &span.instance], says, "{name:?} {attributes:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_collector_that_is_out_is_told_and_so_is_its_return() -> anyhow::Result<()> {
    let port = Port::free()?;
    let mut shop = Shop::new()?;
    let server = shop.inventory();
    server.variable("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{}", port.address()));
    server.variable("OTEL_METRICS_EXPORTER", "none");
    server.variable("OTEL_BSP_SCHEDULE_DELAY", "50");
    server.start().await?;
    logged(server, "telemetry doesn't reach its collector").await?;
    let _collector = Collector::start_at(port.address()).await?;
    logged(server, "telemetry reaches its collector again").await?;
    assert!(!server.log().contains("opentelemetry_sdk"), "the SDK says it for each export: {}", server.log());
    Ok(())
}

#[tokio::test]
async fn spans_that_come_faster_than_they_can_be_sent_are_told_of_once() -> anyhow::Result<()> {
    // It takes connections, and answers nobody.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut shop = Shop::new()?;
    let server = shop.inventory();
    server.variable("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{}", silent.local_addr()?));
    server.variable("OTEL_METRICS_EXPORTER", "none");
    server.variable("OTEL_BSP_SCHEDULE_DELAY", "10");
    for size in ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] {
        server.variable(size, "1");
    }
    server.start().await?;
    logged(server, "dropped a Span due to queue full").await?;
    for _ in 0..10 {
        server.serving().await?;
    }
    let told = server.log().matches("dropped a Span").count();
    assert_eq!(told, 1, "{}", server.log());
    Ok(())
}

/// Has a server answer calls until it has logged this.
async fn logged(server: &mut Server, line: &str) -> anyhow::Result<()> {
    let said = async {
        while !server.log().contains(line) {
            server.serving().await?;
            sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, said).await.with_context(|| format!("{line:?} was never logged"))?
}
