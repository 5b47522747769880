//! A shop under load whose processes are killed at random moments, and the proof that nothing was lost or done twice.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use anyhow::{Context as _, bail};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{Instant, sleep};

use crate::{Clients, Server, Shop, facts::Facts, invariants, load::Load, wish::Wish};

/// Customers who order at the same time.
const CUSTOMERS: u64 = 8;
/// How long outstanding orders may take once nobody is killed any more: the longest backoff, a few times over.
const SETTLE: Duration = Duration::from_secs(120);
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
    let mut random = StdRng::seed_from_u64(plan.seed);
    let end = Instant::now() + plan.time;
    while Instant::now() < end {
        kill_and_restart(&mut shop, &mut random).await?;
        progress.kills += 1;
        progress.orders = load.counts().orders.load(Ordering::Relaxed);
        progress.retries = load.counts().retries.load(Ordering::Relaxed);
        tell(&progress);
    }
    for server in shop.servers_mut() {
        server.serving().await?;
    }

    let settled = settle(load, &clients).await;
    let logs = || shop.servers_mut().iter_mut().map(|server| server.log_end()).collect::<Vec<_>>().join("\n");
    let (wishes, facts) = settled.with_context(logs)?;
    progress.orders = facts.orders.len() as u64;
    progress.completed = completed(&facts);
    if wishes.is_empty() || progress.completed == 0 {
        bail!("of {} orders none was completed, so nothing is proved", wishes.len());
    }
    Ok(progress)
}

/// Kills one of the four at a random moment and starts it again, not always waiting until it serves: to be killed while
/// recovering is one of the moments.
async fn kill_and_restart(shop: &mut Shop, random: &mut StdRng) -> anyhow::Result<()> {
    sleep(Duration::from_millis(random.random_range(0..600))).await;
    let servers = shop.servers_mut();
    let victim: &mut Server = &mut servers[random.random_range(0..4)];
    victim.kill().await?;
    sleep(Duration::from_millis(random.random_range(0..200))).await;
    victim.spawn()?;
    if random.random_bool(0.7) {
        victim.serving().await?;
    }
    // Any other that was left to recover must not have ended by itself meanwhile.
    servers.iter_mut().try_for_each(Server::running)
}

/// Waits until every order has ended and the books add up; says what doesn't when that takes too long.
async fn settle(load: Load, clients: &Clients) -> anyhow::Result<(BTreeMap<String, Wish>, Facts)> {
    let wishes = load.end(SETTLE).await?;
    let deadline = Instant::now() + SETTLE;
    loop {
        // Queries follow commands at a little distance, so what differs now may not in a moment.
        let facts = Facts::read(clients).await?;
        let differences = differences(&wishes, &facts);
        if differences.is_empty() {
            return Ok((wishes, facts));
        }
        if Instant::now() > deadline {
            let (all, some) = (differences.len(), &differences[..differences.len().min(20)]);
            bail!("{all} things differ {SETTLE:?} after the last kill:\n{}", some.join("\n"));
        }
        sleep(LOOK).await;
    }
}

/// What differs from the invariants, or from what the customers were told and may expect.
fn differences(wishes: &BTreeMap<String, Wish>, facts: &Facts) -> Vec<String> {
    let mut differences = invariants::differences(facts);
    let orders: BTreeMap<&str, _> = facts.orders.iter().map(|order| (order.order_id.as_str(), order)).collect();
    for (id, wish) in wishes {
        match orders.get(id.as_str()) {
            None => differences.push(format!("order {id} was accepted, but is not listed")),
            Some(order) => differences.extend(wish.disappointment(order)),
        }
    }
    let unasked = orders.keys().filter(|id| !wishes.contains_key(**id));
    differences.extend(unasked.map(|id| format!("order {id} is nobody's: one request made two orders")));
    differences
}

fn completed(facts: &Facts) -> u64 {
    facts.orders.iter().filter(|order| order.state() == proto::order::v1::OrderState::Completed).count() as u64
}
