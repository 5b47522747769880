//! Every saga of services that run, as it moves.

use std::collections::HashMap;

use anyhow::bail;
use libs::refusal::Refusal;
use proto::saga::v1::{WatchSagasRequest, WatchSagasResponse};
use tonic::{Code, Status, Streaming};

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
    // Until the first change: from now on.
    let mut position = 0;
    let mut changes = changes_after(orders, position).await?;
    screen.line(screen.paint(Tone::Faint, "watching; Ctrl-C ends"))?;
    let mut timelines: HashMap<String, Timeline> = HashMap::new();
    loop {
        let change = match changes.message().await {
            Ok(Some(change)) => change,
            Ok(None) => bail!("the order service has ended the watch"),
            Err(status) if is_to_be_made_anew(&status) => {
                changes = changes_after(orders, position).await?;
                continue;
            }
            Err(status) => return Err(sentence(&status)),
        };
        position = change.position;
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
}

async fn changes_after(orders: &Orders, after_position: i64) -> anyhow::Result<Streaming<WatchSagasResponse>> {
    let everything = WatchSagasRequest { after_position, ..WatchSagasRequest::default() };
    let changes = orders.sagas.clone().watch_sagas(everything).await;
    Ok(changes.map_err(|status| sentence(&status))?.into_inner())
}

/// Whether the stream was ended in order: its connection is old, as each is after a quarter of an hour, or its server stops. Asking
/// again tells which, for a server that has stopped does not answer. Or nobody read it for a while, as where a terminal is held: what
/// came since is told after the last position.
fn is_to_be_made_anew(status: &Status) -> bool {
    let reason = Refusal::from_status(status).reason;
    matches!((status.code(), &*reason), (Code::Unavailable, "DRAINING") | (Code::ResourceExhausted, "SLOW_WATCHER"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_a_stream_that_drains_or_was_left_is_made_anew() {
        let refused = |reason| Refusal::unavailable(reason, "call again", Duration::ZERO).into_status("order");
        assert!(is_to_be_made_anew(&refused("DRAINING")));
        let exhausted = |reason| Refusal::exhausted(reason, "watch again", Duration::ZERO).into_status("order");
        assert!(is_to_be_made_anew(&exhausted("SLOW_WATCHER")));
        assert!(!is_to_be_made_anew(&exhausted("OVERLOADED")));
        assert!(!is_to_be_made_anew(&refused("NOT_CAUGHT_UP")));
        assert!(!is_to_be_made_anew(&Status::unavailable("gone")));
    }
}
