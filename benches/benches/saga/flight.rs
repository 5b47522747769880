//! A hundred thousand sagas under way, and SIGKILL: what each weighs, and how long after the restart all of them move, and have ended.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use benches::{books, load, memory::resident};
use futures::TryStreamExt as _;
use proto::events::v1::{SubscribeRequest, event_service_client::EventServiceClient};
use tests::{Shop, facts::Facts};
use tokio::time::timeout;
use tonic::transport::Channel;

/// How many orders are placed at a time.
const AT_ONCE: usize = 256;
/// How long the log must have been quiet for the sagas to be at rest.
const QUIET: Duration = Duration::from_secs(2);
/// After so long something is wrong.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) async fn measure(sagas: u64) -> anyhow::Result<()> {
    println!(
        "{sagas} sagas under way on SQLite, inventory out; then SIGKILL to order, inventory back, order started again"
    );
    let mut shop = Shop::new()?;
    shop.order().flag("--max-sagas", &sagas.to_string());
    for server in shop.servers_mut() {
        server.start().await?;
    }
    load::prepare(&shop).await?;
    shop.inventory().kill().await?;
    let before = memory(&mut shop)?;
    let placed = load::accept(&shop.clients().order, AT_ONCE, sagas).await?;
    let position = at_rest(shop.clients().order).await?;
    let after = memory(&mut shop)?;
    println!("accepted {:.0} a second ({})", placed.rate, placed.latencies());
    println!(
        "memory of order: {:.0} MB before, {:.0} MB with them: {:.0} bytes a saga",
        before as f64 / 1e6,
        after as f64 / 1e6,
        after.saturating_sub(before) as f64 / sagas as f64
    );
    shop.order().kill().await?;
    shop.inventory().start().await?;
    let begin = Instant::now();
    shop.order().start().await?;
    println!("serving after {:.2} s", begin.elapsed().as_secs_f64());
    timeout(PATIENCE, follow(shop.clients().order, position, sagas, begin)).await.context("they don't end")??;
    let peak = memory(&mut shop)?;
    println!("memory of order then: {:.0} MB", peak as f64 / 1e6);
    let clients = shop.clients();
    books::balance(PATIENCE, sagas, 0, async || Facts::read(&clients).await).await?;
    println!("end states: {sagas} of {sagas} orders COMPLETED, sagas too, and the books balance");
    Ok(())
}

/// The resident memory of the order service, in bytes.
fn memory(shop: &mut Shop) -> anyhow::Result<u64> {
    resident(shop.order().id().context("order is not running")?)
}

/// Waits until the sagas write nothing any more, and answers the log's end.
async fn at_rest(order: Channel) -> anyhow::Result<i64> {
    let mut position = 0;
    let mut events = events(order, position).await?;
    while let Ok(Some(stretch)) = timeout(QUIET, events.try_next()).await.unwrap_or(Ok(None)) {
        position = stretch.position;
    }
    Ok(position)
}

/// Tells when each saga has moved on from where it was, and when each has ended.
async fn follow(order: Channel, position: i64, sagas: u64, begin: Instant) -> anyhow::Result<()> {
    let mut events = events(order, position).await?;
    let (mut moved, mut ended) = (HashSet::new(), 0);
    let mut told = false;
    while ended < sagas {
        let stretch = events.try_next().await?.context("the log ended")?;
        for event in stretch.events {
            ended += u64::from(event.name == "SagaCompleted");
            ensure!(event.name != "SagaCompensating", "saga {} turned back", event.id);
            moved.insert(event.id);
        }
        if !told && moved.len() as u64 == sagas {
            told = true;
            println!("each of them has moved on after {:.1} s", begin.elapsed().as_secs_f64());
        }
    }
    println!("each of them COMPLETED after {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

async fn events(
    order: Channel,
    after_position: i64,
) -> anyhow::Result<tonic::Streaming<proto::events::v1::SubscribeResponse>> {
    let wanted = SubscribeRequest { after_position, kinds: vec!["saga".to_owned()] };
    Ok(EventServiceClient::new(order).subscribe(wanted).await?.into_inner())
}
