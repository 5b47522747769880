//! Every saga of services that run, as it moves.

use std::collections::HashMap;

use anyhow::bail;
use proto::saga::v1::WatchSagasRequest;

use crate::{
    clients::{Orders, sentence},
    config,
    screen::{Screen, Tone},
    timeline::{Timeline, is_over},
};

/// Shows sagas until Ctrl-C, or until nobody reads.
///
/// # Errors
/// When the order service isn't there, or goes away.
pub async fn run(asked: &config::Watch, screen: Screen) -> anyhow::Result<()> {
    let orders = Orders::connect(&asked.at.address).await?;
    tokio::select! {
        shown = show(&orders, screen) => shown,
        stopped = tokio::signal::ctrl_c() => Ok(stopped?),
    }
}

async fn show(orders: &Orders, screen: Screen) -> anyhow::Result<()> {
    let everything = WatchSagasRequest::default();
    let changes = orders.sagas.clone().watch_sagas(everything).await;
    let mut changes = changes.map_err(|status| sentence(&status))?.into_inner();
    screen.line(screen.paint(Tone::Faint, "watching; Ctrl-C ends"))?;
    let mut timelines: HashMap<String, Timeline> = HashMap::new();
    while let Some(change) = changes.message().await.map_err(|status| sentence(&status))? {
        let Some(saga) = change.saga else { continue };
        let timeline = timelines.entry(saga.saga_id.clone()).or_default();
        for line in timeline.news(&saga, screen) {
            screen.line(format!("{}  {line}", screen.paint(Tone::Title, &saga.saga_id)))?;
        }
        if is_over(&saga) {
            timelines.remove(&saga.saga_id);
            screen.line(format!("{}  {:?}", screen.paint(Tone::Title, &saga.saga_id), saga.phase()))?;
        }
    }
    bail!("the order service has ended the watch");
}
