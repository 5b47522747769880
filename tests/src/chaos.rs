//! A shop under load whose processes are killed at random moments, and the proof that nothing was lost or done twice.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use proto::order::v1::GetOrderRequest;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;

use crate::{
    Clients, Shop,
    facts::Facts,
    invariants,
    load::{Load, Told},
    wish::Wish,
};

/// Customers who order at the same time.
const CUSTOMERS: u64 = 8;
/// Whoever may be killed.
const SERVERS: usize = Shop::NAMES.len();
/// How long outstanding orders may take once nobody is killed any more: the longest backoff, a few times over.
const SETTLE: Duration = Duration::from_secs(120);
/// Orders asked for at the same time.
const AT_ONCE: usize = 32;
/// Between two looks at whether all has settled.
const LOOK: Duration = Duration::from_millis(200);

/// What to do, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long processes are killed.
    pub time: Duration,
    /// What the orders and the moments are drawn from.
    pub seed: u64,
}

/// How far it has come, and in the end what came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Processes killed.
    pub kills: u64,
    /// Orders accepted.
    pub orders: u64,
    /// Attempts of customers that got no answer.
    pub retries: u64,
    /// Of the orders, those completed. Known in the end.
    pub completed: u64,
}

/// Runs the plan, telling how far it is after each kill.
///
/// # Errors
/// Everything that didn't add up in the end, or the first thing that should not have happened on the way.
pub async fn run(plan: Plan, mut tell: impl FnMut(&Progress)) -> anyhow::Result<Progress> {
    let mut shop = Shop::start().await?;
    Wish::prepare(&shop).await?;
    let clients = shop.clients();
    let load = Load::begin(&clients, CUSTOMERS, plan.seed);

    let mut progress = Progress::default();
    let mut killer = Killer { random: StdRng::seed_from_u64(plan.seed), back: [None; SERVERS] };
    let end = Instant::now() + plan.time;
    while Instant::now() < end {
        killer.kill_one(&mut shop).await?;
        progress.kills += 1;
        progress.orders = load.counts().orders.load(Ordering::Relaxed);
        progress.retries = load.counts().retries.load(Ordering::Relaxed);
        tell(&progress);
    }
    killer.bring_all_back(&mut shop)?;
    for server in shop.servers_mut() {
        server.serving().await?;
    }

    let settled = settle(load, &clients).await;
    let logs = || shop.servers_mut().iter_mut().map(|server| server.log_end()).collect::<Vec<_>>().join("\n");
    let (orders, facts) = settled.with_context(logs)?;
    progress.orders = facts.orders.len() as u64;
    progress.completed = completed(&facts);
    if orders.is_empty() || progress.completed == 0 {
        bail!("of {} orders none was completed, so nothing is proved", orders.len());
    }
    Ok(progress)
}

/// Kills at random moments and brings back after random times. It never waits until a server serves: to be killed while
/// recovering is one of the moments, and so is being called by a peer that recovers.
struct Killer {
    random: StdRng,
    /// When each that is down comes back.
    back: [Option<Instant>; SERVERS],
}

impl Killer {
    /// Waits for the next moment, bringing back meanwhile whose time has come, and kills one of those that run.
    async fn kill_one(&mut self, shop: &mut Shop) -> anyhow::Result<()> {
        let mut moment = Instant::now() + self.between(0, 600);
        loop {
            let next = (0..SERVERS).filter_map(|at| Some((self.back[at]?, at))).min();
            if let Some((back, at)) = next.filter(|(back, _)| *back <= moment) {
                sleep_until(back).await;
                self.bring_back(shop, at)?;
                continue;
            }
            sleep_until(moment).await;
            let up: Vec<usize> = (0..SERVERS).filter(|at| self.back[*at].is_none()).collect();
            // With all of them down there is nobody to kill before the next is back.
            let Some(victim) = up.choose(&mut self.random).copied() else {
                moment += self.between(100, 600);
                continue;
            };
            for at in up {
                // Whoever runs must not have ended by itself meanwhile.
                shop.servers_mut()[at].running()?;
            }
            shop.servers_mut()[victim].kill().await?;
            self.back[victim] = Some(Instant::now() + self.downtime());
            return Ok(());
        }
    }

    /// Mostly as short as a restart; now and then long enough for breakers to open and for calls to run out of time.
    fn downtime(&mut self) -> Duration {
        if self.random.random_bool(0.1) { self.between(1_000, 6_000) } else { self.between(0, 250) }
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.random_range(least..most))
    }

    fn bring_back(&mut self, shop: &mut Shop, at: usize) -> anyhow::Result<()> {
        self.back[at] = None;
        shop.servers_mut()[at].spawn()
    }

    fn bring_all_back(&mut self, shop: &mut Shop) -> anyhow::Result<()> {
        (0..SERVERS)
            .filter(|at| self.back[*at].is_some())
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|at| self.bring_back(shop, at))
    }
}

/// Waits until every order has ended and the books add up; answers what customers were told, and how all ended.
///
/// # Errors
/// What doesn't add up when that takes too long.
pub async fn settle(load: Load, clients: &Clients) -> anyhow::Result<(BTreeMap<String, Told>, Facts)> {
    let told = load.end(SETTLE).await?;
    let deadline = Instant::now() + SETTLE;
    loop {
        // Queries follow commands at a little distance, so what differs now may not in a moment.
        let facts = Facts::read(clients).await?;
        let mut differences = differences(&told, &facts);
        if differences.is_empty() {
            // Each order is asked for, so not at every look.
            differences = unheard(clients, &facts).await?;
        }
        if differences.is_empty() {
            return Ok((told, facts));
        }
        if Instant::now() > deadline {
            let (all, some) = (differences.len(), &differences[..differences.len().min(20)]);
            bail!("{all} things differ {SETTLE:?} after the last kill:\n{}", some.join("\n"));
        }
        sleep(LOOK).await;
    }
}

/// What differs from the invariants, or from what the customers were told and may expect.
fn differences(told: &BTreeMap<String, Told>, facts: &Facts) -> Vec<String> {
    let mut differences = invariants::differences(facts);
    let orders: BTreeMap<&str, _> = facts.orders.iter().map(|order| (order.order_id.as_str(), order)).collect();
    for (id, told) in told {
        match orders.get(id.as_str()) {
            None => differences.push(format!("order {id} was accepted, but is not listed")),
            Some(order) => differences.extend(told.disappointment(order)),
        }
    }
    let unasked = orders.keys().filter(|id| !told.contains_key(**id));
    differences.extend(unasked.map(|id| format!("order {id} is nobody's: one request made two orders")));
    differences
}

/// What order shows of its orders' charges and shipments, which it hears of from payment and shipping, and those tell otherwise.
async fn unheard(clients: &Clients, facts: &Facts) -> Result<Vec<String>, Status> {
    let charges: BTreeMap<&str, _> = facts.charges.iter().map(|charge| (charge.charge_id.as_str(), charge)).collect();
    let shipments = facts.shipments.iter().map(|shipment| (shipment.shipment_id.as_str(), shipment));
    let shipments: BTreeMap<&str, _> = shipments.collect();
    let looks = facts.orders.iter().map(|order| {
        let id = order.order_id.as_str();
        let told = (charges.get(id).copied(), shipments.get(id).copied());
        async move {
            let asked = GetOrderRequest { order_id: id.to_owned(), include_shipment: false };
            let shown = clients.order_queries().get_order(asked).await?.into_inner();
            let heard = (shown.charge.as_ref(), shown.shipped.as_ref());
            Ok((heard != told).then(|| format!("order {id} was heard to have {heard:?}, but has {told:?}")))
        }
    });
    stream::iter(looks).buffer_unordered(AT_ONCE).try_filter_map(future::ok).try_collect().await
}

fn completed(facts: &Facts) -> u64 {
    facts.orders.iter().filter(|order| order.state() == proto::order::v1::OrderState::Completed).count() as u64
}
