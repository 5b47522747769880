//! Places orders, so many under way at a time, and waits for each one's end.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use proto::{
    google::r#type::PostalAddress,
    order::v1::{
        Order, OrderItem, OrderState, PlaceOrderRequest, order_command_service_client::OrderCommandServiceClient,
    },
};
use serde_json::{Value, json};
use tests::Shop;
use tonic::transport::Channel;
use tower::{Service as _, ServiceExt as _};

use crate::figures;

/// How many SKUs, and how many customers of each kind.
const EACH: u64 = 100;

/// Whom orders are placed with.
#[derive(Clone, Debug)]
pub enum Front {
    /// `order.v1.OrderCommandService`.
    Grpc(Channel),
    /// The ingress of a Restate server, whose service `Orders` takes them as JSON.
    Restate(Channel),
}

/// How an order is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Shipped and COMPLETED.
    Completed,
    /// REJECTED because the customer can't pay: the step before the pivot is refused, and what was done before it undone.
    Rejected,
}

/// What a round came to.
#[derive(Debug)]
pub struct Figures {
    /// Orders a second.
    pub rate: f64,
    /// Which orders were placed.
    pub placed: Range<u64>,
    latency: Histogram<u64>,
}

impl Figures {
    /// `p50/p99` in milliseconds.
    #[must_use]
    pub fn latencies(&self) -> String {
        figures::latencies(&self.latency)
    }
}

/// The round in the middle, by its rate.
#[must_use]
pub fn median(rounds: Vec<Figures>) -> Figures {
    figures::median(rounds, |round| round.rate)
}

/// Stock for everybody, money for those whose orders are to complete, and too little for the others.
///
/// # Errors
/// When a service refuses.
pub async fn prepare(shop: &Shop) -> anyhow::Result<()> {
    for number in 0..EACH {
        shop.stock(&sku(number), 1_000_000, 1).await?;
        shop.deposit(&customer(number, End::Completed), 1_000_000).await?;
        shop.deposit(&customer(number, End::Rejected), 1).await?;
    }
    Ok(())
}

fn sku(number: u64) -> String {
    format!("sku-{}", number % EACH)
}

fn customer(number: u64, end: End) -> String {
    match end {
        End::Completed => format!("customer-{}", number % EACH),
        End::Rejected => format!("poor-{}", number % EACH),
    }
}

/// The next order of this run, whoever places it.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Places so many orders, each of which must end as said.
///
/// # Errors
/// When one can't be placed, or ends otherwise.
pub async fn place(front: &Front, end: End, in_flight: usize, orders: u64) -> anyhow::Result<Figures> {
    let front = front.clone();
    run(in_flight, orders, move |number| {
        let front = front.clone();
        async move {
            let ended = front.ended(request(number, end)).await?;
            let wanted = match end {
                End::Completed => OrderState::Completed,
                End::Rejected => OrderState::Rejected,
            };
            ensure!(ended == wanted, "order {number} is {ended:?}, not {wanted:?}");
            Ok(())
        }
    })
    .await
}

/// Places so many orders, each of which is accepted and left under way.
///
/// # Errors
/// When one can't be placed.
pub async fn accept(channel: &Channel, in_flight: usize, orders: u64) -> anyhow::Result<Figures> {
    let channel = channel.clone();
    run(in_flight, orders, move |number| {
        let mut client = OrderCommandServiceClient::new(channel.clone());
        async move {
            client
                .place_order(PlaceOrderRequest { wait_for_completion: false, ..request(number, End::Completed) })
                .await?;
            Ok(())
        }
    })
    .await
}

async fn run<F>(
    in_flight: usize,
    orders: u64,
    one: impl Fn(u64) -> F + Clone + Send + 'static,
) -> anyhow::Result<Figures>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let first = NEXT.load(Ordering::Relaxed);
    let last = first + orders;
    let begin = Instant::now();
    let workers = (0..in_flight).map(|_| {
        let one = one.clone();
        tokio::spawn(work(one, last))
    });
    let mut latency = Histogram::new(3)?;
    for done in try_join_all(workers).await? {
        latency.add(done?)?;
    }
    let rate = orders as f64 / begin.elapsed().as_secs_f64();
    NEXT.store(last, Ordering::Relaxed);
    Ok(Figures { rate, placed: first..last, latency })
}

async fn work<F>(one: impl Fn(u64) -> F, last: u64) -> anyhow::Result<Histogram<u64>>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut latency = Histogram::<u64>::new(3)?;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        if number >= last {
            return Ok(latency);
        }
        let begin = Instant::now();
        one(number).await?;
        latency.record(u64::try_from(begin.elapsed().as_micros())?)?;
    }
}

impl Front {
    /// Places an order and answers how it ended.
    async fn ended(self, request: PlaceOrderRequest) -> anyhow::Result<OrderState> {
        match self {
            Self::Grpc(channel) => {
                let placed = OrderCommandServiceClient::new(channel).place_order(request).await?.into_inner();
                Ok(placed.order.unwrap_or_default().state())
            }
            Self::Restate(channel) => by_ingress(channel, request).await,
        }
    }
}

/// The same channel: gRPC is HTTP/2, and so is this.
async fn by_ingress(mut channel: Channel, request: PlaceOrderRequest) -> anyhow::Result<OrderState> {
    let PlaceOrderRequest { request_id: id, customer_id, items, address, .. } = request;
    let address = address.unwrap_or_default();
    let items: Vec<Value> = items.into_iter().map(|item| json!([item.sku, item.quantity])).collect();
    let wanted = json!({
        "id": id,
        "customer": customer_id,
        "items": items,
        "region": address.region_code,
        "postal_code": address.postal_code,
        "locality": address.locality,
        "lines": address.address_lines,
    });
    let body = Full::from(serde_json::to_vec(&wanted)?);
    let call = http::Request::post("/Orders/place")
        .header("content-type", "application/json")
        .header("idempotency-key", id)
        .body(tonic::body::Body::new(body))?;
    let answer = channel.ready().await?.call(call).await?;
    let status = answer.status();
    let answer = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&answer));
    let ended: Value = serde_json::from_slice(&answer)?;
    let (end, _) = ended.as_object().and_then(|ended| ended.iter().next()).context("no end")?;
    Ok(if end == "Completed" { OrderState::Completed } else { OrderState::Rejected })
}

fn request(number: u64, end: End) -> PlaceOrderRequest {
    let Order { order_id, customer_id, items, address, .. } = order(number, end);
    PlaceOrderRequest { request_id: order_id.clone(), order_id, customer_id, items, address, wait_for_completion: true }
}

/// An order of this run as it must have ended, but for the reason of a rejection.
#[must_use]
pub fn order(number: u64, end: End) -> Order {
    let address = PostalAddress {
        region_code: "DE".to_owned(),
        postal_code: "10115".to_owned(),
        locality: "Berlin".to_owned(),
        address_lines: vec!["Invalidenstraße 117".to_owned()],
        ..PostalAddress::default()
    };
    // At a dollar each; who is poor has one.
    let quantity = if end == End::Completed { 1 } else { 2 };
    let mut order = Order {
        order_id: format!("bench-{number}"),
        customer_id: customer(number, end),
        items: vec![OrderItem { sku: sku(number), quantity }],
        address: Some(address),
        ..Order::default()
    };
    match end {
        End::Completed => {
            order.set_state(OrderState::Completed);
            order.total = Some(tests::shop::usd(quantity));
        }
        End::Rejected => order.set_state(OrderState::Rejected),
    }
    order
}
