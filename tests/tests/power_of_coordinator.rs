//! The power of the order service fails with sagas under way: each order that was answered before comes to the end that it had, and none of
//! the participants, whose disks live on, does anything twice. Runs where `TEST_STRACE` names strace, which records what order asks of its
//! disk.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, anyhow, ensure};
use futures::future::try_join_all;
use proto::{
    google::r#type::Money,
    order::v1::{Order, OrderState},
    payment::v1::{Account, Charge, ChargeState},
    shipping::v1::{Shipment, ShipmentState},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tests::{
    Clients, Server, Shop,
    disk::{Recording, now},
    facts::Facts,
    invariants, shop,
};
use tokio::time::{Instant, sleep};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Orders that are placed together, and how often: the next ones while the sagas of the last are under way.
const TOGETHER: usize = 6;
const TIMES: usize = 12;
/// How often the power fails.
const FAILURES: usize = 10;

/// What order asked of its disk, and when.
struct Recorded {
    /// From its first start on.
    recording: Recording,
    serving: f64,
    /// Which orders it answered, and when.
    answered: Vec<(String, f64)>,
    /// When the last saga had ended.
    quiet: f64,
    /// What all queries said then.
    facts: Facts,
}

/// An order by somebody who can pay or not, to where shipping delivers or not; answered as soon as its saga is durable.
async fn place(clients: Clients, number: usize) -> anyhow::Result<(String, f64)> {
    let id = format!("order-{number}");
    let region = if number % 5 == 3 { "AQ" } else { "CH" };
    let mut request = shop::order(&id, region);
    request.wait_for_completion = false;
    if number % 5 == 4 {
        request.customer_id = "poor".to_owned();
    }
    clients.order_commands().place_order(request).await?;
    Ok((id, now()))
}

async fn record(shop: &mut Shop, strace: &str) -> anyhow::Result<Recorded> {
    let file = shop.folder().join("record");
    try_join_all(shop.participants_mut().map(Server::start)).await?;
    shop.order().spawn_under(&Recording::words(strace, &file))?;
    shop.order().serving().await?;
    let serving = now();
    shop.stock("tea", 1_000, 3).await?;
    shop.deposit("ann", 10_000).await?;
    shop.deposit("poor", 1).await?;
    let (clients, mut answered) = (shop.clients(), Vec::new());
    for time in 0..TIMES {
        let together = (0..TOGETHER).map(|at| place(clients.clone(), time * TOGETHER + at));
        answered.extend(try_join_all(together).await?);
    }
    let facts = once_quiet(&clients, |facts| {
        ensure!(facts.orders.len() == TOGETHER * TIMES, "{} orders are shown", facts.orders.len());
        let differences = invariants::differences(facts);
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    });
    let facts = facts.await?;
    let quiet = now();
    shop.order().terminate().await?;
    shop.order().ended().await?;
    let recording = Recording::of_ended(&file).await?;
    Ok(Recorded { recording, serving, answered, quiet, facts })
}

/// Waits until no order is under way and the views, which are a moment behind, show what they should; answers all that they show.
async fn once_quiet(clients: &Clients, is_shown: impl Fn(&Facts) -> anyhow::Result<()>) -> anyhow::Result<Facts> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let facts = Facts::read(clients).await?;
        let pending = facts.orders.iter().filter(|order| order.state() == OrderState::Pending).count();
        let shown = if pending == 0 { is_shown(&facts) } else { Err(anyhow!("{pending} orders are under way")) };
        match shown {
            Ok(()) => return Ok(facts),
            Err(why) => ensure!(Instant::now() < deadline, "after {PATIENCE:?}: {why:#}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// What the participants have done, as far as an order that comes to nothing leaves it as it is.
#[derive(Debug, PartialEq)]
struct Done {
    /// Units added and available. Which of the others have left, inventory hears from shipping, later.
    stock: Vec<[i64; 2]>,
    balances: BTreeMap<String, Option<Money>>,
    charges: Vec<(String, ChargeState)>,
    shipments: Vec<(String, ShipmentState)>,
}

impl Done {
    fn of(facts: &Facts) -> Self {
        let stock = facts.stock.iter().map(|stock| [stock.added, stock.available]);
        let balance = |account: &Account| (account.customer_id.clone(), account.balance.clone());
        let charge = |charge: &Charge| (charge.charge_id.clone(), charge.state());
        let shipment = |shipment: &Shipment| (shipment.shipment_id.clone(), shipment.state());
        Self {
            stock: stock.collect(),
            balances: facts.accounts.iter().map(balance).collect(),
            charges: facts.charges.iter().map(charge).collect(),
            shipments: facts.shipments.iter().map(shipment).collect(),
        }
    }
}

/// How an order ended.
fn end(order: &Order) -> (OrderState, String) {
    (order.state(), order.rejection.as_ref().map(|rejection| rejection.reason.clone()).unwrap_or_default())
}

/// Starts order on what the disk holds, beside the participants as they are, and answers which of these orders are gone once all others
/// have ended as they had.
async fn gone(
    shop: &mut Shop,
    recorded: &Recorded,
    cut: usize,
    ids: &[&str],
    random: &mut StdRng,
) -> anyhow::Result<Vec<String>> {
    let disk = TempDir::new()?;
    recorded.recording.lay(shop.folder(), cut, disk.path(), random)?;
    let mut order = Server::new("order", disk.path())?;
    shop.participants_mut().for_each(|participant| order.peer(participant));
    order.start().await?;
    let clients = Clients { order: order.channel(), ..shop.clients() };
    // What is shown before this has been shown for good: views follow the log.
    let last = format!("last-{:x}", random.random::<u64>());
    let mut request = shop::order(&last, "CH");
    request.customer_id = "poor".to_owned();
    clients.order_commands().place_order(request).await?;
    let before = Done::of(&recorded.facts);
    let facts = once_quiet(&clients, |facts| {
        ensure!(facts.orders.iter().any(|order| order.order_id == last), "{last} is not shown");
        let after = Done::of(facts);
        ensure!(before == after, "the participants did {before:?} and then {after:?}");
        Ok(())
    });
    let facts = facts.await?;
    let was: BTreeMap<&str, _> = recorded.facts.orders.iter().map(|order| (&*order.order_id, end(order))).collect();
    for order in facts.orders.iter().filter(|order| order.order_id != last) {
        ensure!(was.get(&*order.order_id) == Some(&end(order)), "{order:?} ended as {:?}", was.get(&*order.order_id));
    }
    order.kill().await?;
    let is_there = |id: &&&str| facts.orders.iter().any(|order| order.order_id == ***id);
    Ok(ids.iter().filter(|id| !is_there(id)).map(|id| (*id).to_owned()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_order_that_was_answered_outlives_the_power_and_ends_as_it_would_have() -> anyhow::Result<()> {
    let Ok(strace) = std::env::var("TEST_STRACE") else {
        eprintln!("skipped: needs strace, and TEST_STRACE names none (tests/strace.sh)");
        return Ok(());
    };
    let mut shop = Shop::new()?;
    let recorded = record(&mut shop, &strace).await?;
    let Recorded { recording, serving, answered, quiet, .. } = &recorded;
    let during = |at: &usize| (*serving..*quiet).contains(&recording.time(*at));
    let (begin, end) = ((0..recording.len()).find(during), (0..recording.len()).rfind(during));
    let (begin, end) = (begin.context("nothing was asked")?, end.context("nothing was asked")?);
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..FAILURES {
        let cut = random.random_range(begin..=end);
        let ids: Vec<&str> = answered.iter().filter(|(_, at)| *at < recording.time(cut)).map(|(id, _)| &**id).collect();
        let gone = gone(&mut shop, &recorded, cut, &ids, &mut random)
            .await
            .with_context(|| format!("seed {seed}, power lost at {cut} of {}", recording.len()))?;
        ensure!(gone.is_empty(), "seed {seed}, power lost at {cut}: of {} answered, {gone:?} are gone", ids.len());
    }

    // The same without the syncs of the log at each commit, as `synchronous=NORMAL` would have it: the database opens, and the test must
    // see what it lacks.
    let lossy = recorded.recording.without_syncs_at_commits("order.db-wal");
    let recorded = Recorded { recording: lossy, ..recorded };
    let cut = (0..recorded.recording.len()).rfind(|at| recorded.recording.time(*at) < recorded.quiet);
    let cut = cut.context("nothing was asked")?;
    let ids: Vec<&str> = recorded.answered.iter().map(|(id, _)| &**id).collect();
    let gone = gone(&mut shop, &recorded, cut, &ids, &mut random).await;
    let gone = gone.with_context(|| format!("seed {seed}, without syncs at commits"))?;
    ensure!(!gone.is_empty(), "seed {seed}: nothing is gone without syncs at commits");
    Ok(())
}
