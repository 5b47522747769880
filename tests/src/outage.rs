//! One service killed under load and brought back: what its callers see of it, moment by moment.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;
use proto::{
    breaker::v1::{
        Breaker, CircuitState, ListBreakersRequest, Override, SetOverrideRequest,
        breaker_command_service_client::BreakerCommandServiceClient,
        breaker_query_service_client::BreakerQueryServiceClient,
    },
    google::r#type::PostalAddress,
    order::v1::{GetOrderRequest, OrderItem, OrderState, PlaceOrderRequest},
    payment::v1::GetAccountRequest,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{Clients, Shop, facts::Facts, invariants};

/// The breaker of questions after a shipment.
const QUESTIONS: &str = "shipping.queries";
/// Customers who place orders, and readers who ask how a shipment stands.
const CUSTOMERS: u64 = 4;
const READERS: usize = 2;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Looks before shipping is killed, and at least while it is dead.
const BEFORE: usize = 6;
const DEAD: usize = 10;
/// How long it may take until the circuit is open.
const OPENS: Duration = Duration::from_secs(60);
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
    /// The order service's breaker towards shipping's queries.
    pub state: CircuitState,
    /// Orders accepted since the last look.
    pub accepted: u64,
    /// Orders charged since the last look: what inventory and payment do for them was done.
    pub charged: u64,
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
    /// Orders accepted a second before the kill, and while shipping was dead.
    pub accepted: (f64, f64),
    /// Orders charged a second, likewise.
    pub charged: (f64, f64),
    /// Orders placed, all COMPLETED in the end.
    pub orders: u64,
    /// The median answer once all is quiet: without a question to shipping, and with one that an open circuit refuses.
    pub quiet: (Duration, Duration),
}

/// What went on over some looks.
#[derive(Debug, Default)]
struct Pace {
    began: Duration,
    ended: Duration,
    accepted: u64,
    charged: u64,
}

impl Pace {
    fn from(began: Duration) -> Self {
        Self { began, ended: began, ..Self::default() }
    }

    const fn add(&mut self, look: &Look) {
        self.ended = look.at;
        self.accepted += look.accepted;
        self.charged += look.charged;
    }

    /// Orders were accepted and charged. How many depends on the machine.
    const fn went_on(&self) -> bool {
        self.accepted > 0 && self.charged > 0
    }

    /// Accepted and charged, each a second.
    fn rates(&self) -> [f64; 2] {
        let seconds = (self.ended - self.began).as_secs_f64();
        [self.accepted, self.charged].map(|count| count as f64 / seconds)
    }
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    current: AtomicU64,
    known: AtomicU64,
    micros: Mutex<Vec<u64>>,
    charged: AtomicU64,
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
    let mut before = Pace::default();
    for _ in 0..BEFORE {
        let look = look(&shop, begin, true, &counts).await?;
        ensure!(look.state == CircuitState::Closed, "the circuit is {:?} before anything happened", look.state);
        medians.entry(false).or_default().push(look.median);
        before.add(&look);
        tell(&look);
    }
    shop.shipping().kill().await?;
    let killed = Instant::now();
    let (mut opened_after, mut dead) = (None, Pace::default());
    for at in 0.. {
        if at >= DEAD && opened_after.is_some() && dead.went_on() {
            break;
        }
        ensure!(killed.elapsed() < OPENS, "{OPENS:?} after the kill: opened after {opened_after:?}, {dead:?}");
        let look = look(&shop, begin, false, &counts).await?;
        if look.state == CircuitState::Open {
            opened_after.get_or_insert_with(|| killed.elapsed());
        }
        if look.state == CircuitState::Open && look.current == 0 {
            medians.entry(true).or_default().push(look.median);
        }
        if at == 0 {
            // The first look may count what came from before the kill.
            dead = Pace::from(look.at);
        } else {
            ensure!(look.current == 0, "shipping is dead, and answered {} questions", look.current);
            dead.add(&look);
        }
        tell(&look);
    }
    let opened_after = opened_after.context("the circuit never opened")?;
    let ([accepted, charged], [accepted_dead, charged_dead]) = (before.rates(), dead.rates());
    let (accepted, charged) = ((accepted, accepted_dead), (charged, charged_dead));
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
    let mut placed = 1;
    while let Some(ended) = load.join_next().await {
        placed += ended??;
    }
    let orders = settle(&shop).await?;
    ensure!(orders == placed, "{placed} orders were accepted, and {orders} are COMPLETED");
    let median = |open: bool| middle(medians.get(&open).cloned().unwrap_or_default());
    let medians = (median(false), median(true));
    let quiet = refused_in_quiet(&shop).await?;
    Ok(Report { opened_after, closed_after, medians, accepted, charged, orders, quiet })
}

/// What a refusal costs its caller when nothing else is going on: the same question without it and with it.
async fn refused_in_quiet(shop: &Shop) -> anyhow::Result<(Duration, Duration)> {
    let clients = shop.clients();
    let over = SetOverrideRequest { name: QUESTIONS.to_owned(), r#override: Override::ForcedOpen.into() };
    BreakerCommandServiceClient::new(clients.order.clone()).set_override(over).await?;
    let before = towards_shipping(&clients).await?;
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
    let after = towards_shipping(&clients).await?;
    let (sent, refused) = (sent(&after) - sent(&before), refused(&after) - refused(&before));
    ensure!((sent, refused) == (0, QUIET as u64), "of {QUIET} questions {refused} were refused, and {sent} sent");
    Ok((middle(without), middle(with)))
}

async fn look(shop: &Shop, begin: Instant, alive: bool, counts: &Counts) -> anyhow::Result<Look> {
    sleep(LOOK).await;
    let (clients, mut charged) = (shop.clients(), 0);
    for customer in 0..CUSTOMERS {
        // A dollar an order.
        let account = GetAccountRequest { customer_id: format!("customer-{customer}") };
        let account = clients.payment_queries().get_account(account).await?.into_inner().account.unwrap_or_default();
        charged += u64::try_from(account.charged.unwrap_or_default().units)?;
    }
    let state = towards_shipping(&clients).await?.state();
    let took = std::mem::take(&mut *counts.micros.lock());
    Ok(Look {
        at: begin.elapsed(),
        alive,
        state,
        accepted: counts.accepted.swap(0, Ordering::Relaxed),
        charged: charged - counts.charged.swap(charged, Ordering::Relaxed),
        current: counts.current.swap(0, Ordering::Relaxed),
        known: counts.known.swap(0, Ordering::Relaxed),
        median: middle(took.into_iter().map(Duration::from_micros).collect()),
    })
}

/// The order service's breaker towards shipping's queries.
async fn towards_shipping(clients: &Clients) -> anyhow::Result<Breaker> {
    let mut client = BreakerQueryServiceClient::new(clients.order.clone());
    let breakers = client.list_breakers(ListBreakersRequest::default()).await?.into_inner().breakers;
    breakers.into_iter().find(|breaker| breaker.name == QUESTIONS).context("the order service has no breaker for it")
}

/// Calls that left, by how they ended.
fn sent(breaker: &Breaker) -> u64 {
    let totals = breaker.totals.unwrap_or_default();
    totals.success + totals.failure + totals.overload + totals.neutral
}

fn refused(breaker: &Breaker) -> u64 {
    breaker.totals.unwrap_or_default().rejected
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

/// Places order after order without waiting for their ends, and says how many.
async fn order(clients: Clients, customer: u64, counts: Arc<Counts>) -> anyhow::Result<u64> {
    let mut number = 0;
    while !counts.closing.load(Ordering::Relaxed) {
        place(&clients, &format!("{customer}-{number}"), &format!("customer-{customer}"), false).await?;
        counts.accepted.fetch_add(1, Ordering::Relaxed);
        number += 1;
        sleep(PAUSE).await;
    }
    Ok(number)
}

/// Asks again and again how the first order's shipment stands. It places no order.
async fn read(clients: Clients, counts: Arc<Counts>) -> anyhow::Result<u64> {
    let mut queries = clients.order_queries();
    let mut heard = false;
    while !counts.closing.load(Ordering::Relaxed) {
        let asked = GetOrderRequest { order_id: "first".to_owned(), include_shipment: true };
        let begin = Instant::now();
        let standing = queries.get_order(asked).await?.into_inner().shipment.unwrap_or_default();
        counts.micros.lock().push(u64::try_from(begin.elapsed().as_micros())?);
        ensure!(!heard || standing.shipment.is_some(), "the shipment was known, and is answered as {standing:?}");
        heard |= standing.shipment.is_some();
        let count = if standing.current { &counts.current } else { &counts.known };
        count.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(2)).await;
    }
    Ok(0)
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
