//! One service killed under load and brought back: what its callers see of it, moment by moment.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use parking_lot::Mutex;
use proto::{
    breaker::v1::{
        CircuitState, ListBreakersRequest, Override, SetOverrideRequest,
        breaker_command_service_client::BreakerCommandServiceClient,
        breaker_query_service_client::BreakerQueryServiceClient,
    },
    google::r#type::PostalAddress,
    order::v1::{GetOrderRequest, OrderItem, OrderState, PlaceOrderRequest},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{Clients, Shop, facts::Facts, invariants};

/// Customers who place orders, and readers who ask how a shipment stands.
const CUSTOMERS: u64 = 4;
const READERS: usize = 2;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Looks before shipping is killed, and while it is dead.
const BEFORE: usize = 6;
const DEAD: usize = 10;
/// How long it may take until all is as it was.
const WHOLE: Duration = Duration::from_secs(90);
/// Questions asked once all is quiet.
const QUIET: usize = 200;
/// Between two orders of a customer, so that what waits for shipping stays within bounds.
const PAUSE: Duration = Duration::from_millis(20);

/// What one look showed.
#[derive(Clone, Debug)]
pub struct Look {
    /// Since the beginning.
    pub at: Duration,
    /// True while shipping's process runs.
    pub alive: bool,
    /// The order service's breaker towards shipping.
    pub state: CircuitState,
    /// Orders accepted since the last look.
    pub accepted: u64,
    /// Questions after a shipment that shipping answered itself, since the last look.
    pub current: u64,
    /// Those answered from what was last heard.
    pub known: u64,
    /// How long half of those questions took at the most.
    pub median: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// From the kill until the circuit was open.
    pub opened_after: Duration,
    /// From the restart until it was closed.
    pub closed_after: Duration,
    /// The median answer while the circuit was closed and while it was open.
    pub medians: (Duration, Duration),
    /// Orders placed, all COMPLETED in the end.
    pub orders: u64,
    /// The median answer once all is quiet: without a question to shipping, and with one that an open circuit refuses.
    pub quiet: (Duration, Duration),
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    current: AtomicU64,
    known: AtomicU64,
    micros: Mutex<Vec<u64>>,
    closing: AtomicBool,
}

/// Runs it, telling each look.
///
/// # Errors
/// Whatever went otherwise than announced.
pub async fn run(mut tell: impl FnMut(&Look)) -> anyhow::Result<Report> {
    let mut shop = Shop::start().await?;
    shop.stock("tea", 1_000_000, 1).await?;
    for customer in 0..CUSTOMERS {
        shop.deposit(&format!("customer-{customer}"), 1_000_000).await?;
    }
    let counts = Arc::new(Counts::default());
    let mut load = JoinSet::new();
    place(&shop.clients(), "first", "customer-0", true).await?;
    shop.clients().shown(GetOrderRequest { order_id: "first".to_owned(), ..GetOrderRequest::default() }).await?;
    for customer in 0..CUSTOMERS {
        load.spawn(order(shop.clients(), customer, Arc::clone(&counts)));
    }
    for _ in 0..READERS {
        load.spawn(read(shop.clients(), Arc::clone(&counts)));
    }

    let begin = Instant::now();
    let mut medians: BTreeMap<bool, Vec<Duration>> = BTreeMap::new();
    for _ in 0..BEFORE {
        let look = look(&shop, begin, true, &counts).await?;
        ensure!(look.state == CircuitState::Closed, "the circuit is {:?} before anything happened", look.state);
        medians.entry(false).or_default().push(look.median);
        tell(&look);
    }
    shop.shipping().kill().await?;
    let killed = Instant::now();
    let (mut opened_after, mut accepted) = (None, 0);
    for _ in 0..DEAD {
        let look = look(&shop, begin, false, &counts).await?;
        if look.state != CircuitState::Closed {
            opened_after.get_or_insert_with(|| killed.elapsed());
        }
        if look.state == CircuitState::Open && look.current == 0 {
            medians.entry(true).or_default().push(look.median);
        }
        accepted += look.accepted;
        tell(&look);
    }
    ensure!(accepted > 0, "no order was accepted any more: shipping's death is everybody's");
    let Some(opened_after) = opened_after else { anyhow::bail!("the circuit never opened") };
    shop.shipping().spawn()?;
    let restarted = Instant::now();
    loop {
        let look = look(&shop, begin, true, &counts).await?;
        tell(&look);
        if look.state == CircuitState::Closed && look.current > 0 && look.known == 0 {
            break;
        }
        ensure!(restarted.elapsed() < WHOLE, "the circuit is {:?} long after shipping is back", look.state);
    }
    let closed_after = restarted.elapsed();
    counts.closing.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended??;
    }
    let orders = settle(&shop).await?;
    let median = |open: bool| middle(medians.get(&open).cloned().unwrap_or_default());
    let medians = (median(false), median(true));
    Ok(Report { opened_after, closed_after, medians, orders, quiet: refused_in_quiet(&shop).await? })
}

/// What a refusal costs its caller when nothing else is going on: the same question without it and with it.
async fn refused_in_quiet(shop: &Shop) -> anyhow::Result<(Duration, Duration)> {
    let clients = shop.clients();
    let over = SetOverrideRequest { name: "shipping".to_owned(), r#override: Override::ForcedOpen.into() };
    BreakerCommandServiceClient::new(clients.order.clone()).set_override(over).await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..QUIET {
        for (include_shipment, took) in [(false, &mut without), (true, &mut with)] {
            let asked = GetOrderRequest { order_id: "first".to_owned(), include_shipment };
            let begin = Instant::now();
            let answer = clients.order_queries().get_order(asked).await?.into_inner();
            took.push(begin.elapsed());
            let refused = answer.shipment.is_some_and(|standing| !standing.current);
            ensure!(refused == include_shipment, "an open circuit let a question through");
        }
    }
    Ok((middle(without), middle(with)))
}

async fn look(shop: &Shop, begin: Instant, alive: bool, counts: &Counts) -> anyhow::Result<Look> {
    sleep(LOOK).await;
    let mut client = BreakerQueryServiceClient::new(shop.clients().order);
    let breakers = client.list_breakers(ListBreakersRequest::default()).await?.into_inner().breakers;
    let shipping = breakers.into_iter().find(|breaker| breaker.name == "shipping");
    let took = std::mem::take(&mut *counts.micros.lock());
    Ok(Look {
        at: begin.elapsed(),
        alive,
        state: shipping.map_or(CircuitState::Unspecified, |breaker| breaker.state()),
        accepted: counts.accepted.swap(0, Ordering::Relaxed),
        current: counts.current.swap(0, Ordering::Relaxed),
        known: counts.known.swap(0, Ordering::Relaxed),
        median: middle(took.into_iter().map(Duration::from_micros).collect()),
    })
}

fn middle(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

async fn place(clients: &Clients, id: &str, customer: &str, wait_for_completion: bool) -> anyhow::Result<()> {
    let address = PostalAddress {
        region_code: "CH".to_owned(),
        address_lines: vec!["1 Market Square".to_owned()],
        ..PostalAddress::default()
    };
    let order = PlaceOrderRequest {
        request_id: id.to_owned(),
        order_id: id.to_owned(),
        customer_id: customer.to_owned(),
        items: vec![OrderItem { sku: "tea".to_owned(), quantity: 1 }],
        address: Some(address),
        wait_for_completion,
    };
    clients.order_commands().place_order(order).await?;
    Ok(())
}

/// Places order after order without waiting for their ends.
async fn order(clients: Clients, customer: u64, counts: Arc<Counts>) -> anyhow::Result<()> {
    let mut number = 0;
    while !counts.closing.load(Ordering::Relaxed) {
        place(&clients, &format!("{customer}-{number}"), &format!("customer-{customer}"), false).await?;
        counts.accepted.fetch_add(1, Ordering::Relaxed);
        number += 1;
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Asks again and again how the first order's shipment stands.
async fn read(clients: Clients, counts: Arc<Counts>) -> anyhow::Result<()> {
    let mut queries = clients.order_queries();
    while !counts.closing.load(Ordering::Relaxed) {
        let asked = GetOrderRequest { order_id: "first".to_owned(), include_shipment: true };
        let begin = Instant::now();
        let standing = queries.get_order(asked).await?.into_inner().shipment.unwrap_or_default();
        counts.micros.lock().push(u64::try_from(begin.elapsed().as_micros())?);
        let count = if standing.current { &counts.current } else { &counts.known };
        count.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Waits until every order is COMPLETED and the books add up.
async fn settle(shop: &Shop) -> anyhow::Result<u64> {
    let deadline = Instant::now() + WHOLE;
    loop {
        let facts = Facts::read(&shop.clients()).await?;
        let open = facts.orders.iter().filter(|order| order.state() != OrderState::Completed).count();
        let differences = invariants::differences(&facts);
        if open == 0 && differences.is_empty() {
            return Ok(u64::try_from(facts.orders.len())?);
        }
        ensure!(Instant::now() < deadline, "{open} orders are not COMPLETED; {:?}", differences.first());
        sleep(LOOK).await;
    }
}
