//! Places orders, so many under way at a time, and waits for each one's end.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use anyhow::ensure;
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use proto::{
    google::r#type::PostalAddress,
    order::v1::{OrderItem, OrderState, PlaceOrderRequest, order_command_service_client::OrderCommandServiceClient},
};
use tonic::transport::Channel;

pub(crate) const SKUS: u64 = 100;
pub(crate) const CUSTOMERS: u64 = 100;

pub(crate) fn sku(number: u64) -> String {
    format!("sku-{}", number % SKUS)
}

pub(crate) fn customer(number: u64) -> String {
    format!("customer-{}", number % CUSTOMERS)
}

/// What a round came to.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) rate: f64,
    latency: Histogram<u64>,
}

impl Figures {
    /// `p50/p99` in milliseconds.
    pub(crate) fn latencies(&self) -> String {
        let at = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1_000.0;
        format!("{:.2}/{:.2} ms", at(0.5), at(0.99))
    }
}

/// The round in the middle.
pub(crate) fn median(mut rounds: Vec<Figures>) -> Figures {
    rounds.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    rounds.swap_remove(rounds.len() / 2)
}

/// The next order of this run, whoever places it.
static NEXT: AtomicU64 = AtomicU64::new(0);

pub(crate) async fn place(channel: Channel, in_flight: usize, orders: u64) -> anyhow::Result<Figures> {
    let end = NEXT.load(Ordering::Relaxed) + orders;
    let begin = Instant::now();
    let workers = (0..in_flight).map(|_| {
        let client = OrderCommandServiceClient::new(channel.clone());
        tokio::spawn(work(client, end))
    });
    let mut latency = Histogram::new(3)?;
    for done in try_join_all(workers).await? {
        latency.add(done?)?;
    }
    let rate = orders as f64 / begin.elapsed().as_secs_f64();
    NEXT.store(end, Ordering::Relaxed);
    Ok(Figures { rate, latency })
}

async fn work(mut client: OrderCommandServiceClient<Channel>, end: u64) -> anyhow::Result<Histogram<u64>> {
    let mut latency = Histogram::<u64>::new(3)?;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        if number >= end {
            return Ok(latency);
        }
        let begin = Instant::now();
        let placed = client.place_order(order(number)).await?.into_inner();
        latency.record(u64::try_from(begin.elapsed().as_micros())?)?;
        let order = placed.order.unwrap_or_default();
        ensure!(order.state() == OrderState::Completed, "an order is not COMPLETED: {order:?}");
    }
}

fn order(number: u64) -> PlaceOrderRequest {
    let address = PostalAddress {
        region_code: "DE".to_owned(),
        postal_code: "10115".to_owned(),
        locality: "Berlin".to_owned(),
        address_lines: vec!["Invalidenstraße 117".to_owned()],
        ..PostalAddress::default()
    };
    PlaceOrderRequest {
        request_id: format!("bench-{number}"),
        customer_id: customer(number),
        items: vec![OrderItem { sku: sku(number), quantity: 1 }],
        address: Some(address),
        wait_for_completion: true,
        ..PlaceOrderRequest::default()
    }
}
