//! Every saga of services that run, as it moves.

use std::collections::HashMap;

use anyhow::bail;
use libs::{cqrs::READ_POSITION, refusal::Refusal};
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
    // From now on.
    let (mut changes, mut position) = changes_after(orders, 0).await?;
    screen.line(screen.paint(Tone::Faint, "watching; Ctrl-C ends"))?;
    let mut timelines: HashMap<String, Timeline> = HashMap::new();
    loop {
        let change = match changes.message().await {
            Ok(Some(change)) => change,
            Ok(None) => bail!("the order service has ended the watch"),
            Err(status) if is_to_be_made_anew(&status) => {
                (changes, position) = changes_after(orders, position).await?;
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

/// The changes after a position, 0 being now, and after which that is: where to go on until the first has come.
async fn changes_after(orders: &Orders, after_position: i64) -> anyhow::Result<(Streaming<WatchSagasResponse>, i64)> {
    let everything = WatchSagasRequest { after_position, ..WatchSagasRequest::default() };
    let changes = orders.sagas.clone().watch_sagas(everything).await.map_err(|status| sentence(&status))?;
    let now = changes.metadata().get(READ_POSITION).and_then(|position| position.to_str().ok()?.parse().ok());
    let after = if after_position == 0 { now.unwrap_or_default() } else { after_position };
    Ok((changes.into_inner(), after))
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
    use std::{sync::Mutex, time::Duration};

    use libs::cqrs::Outgoing;
    use proto::saga::v1::{
        DescribeSagaRequest, DescribeSagaResponse, GetSagaRequest, GetSagaResponse, ListSagasRequest,
        ListSagasResponse,
        saga_query_service_server::{SagaQueryService, SagaQueryServiceServer},
    };
    use tonic::{
        Request, Response,
        codegen::tokio_stream,
        transport::{Server, server::TcpIncoming},
    };

    use super::*;

    /// Its views are at 7, its connections are old at once, and it says after which position the second watch was to go on.
    #[derive(Default)]
    struct Old(Mutex<Vec<i64>>);

    #[tonic::async_trait]
    impl SagaQueryService for Old {
        type WatchSagasStream = Outgoing<WatchSagasResponse>;

        async fn watch_sagas(
            &self,
            request: Request<WatchSagasRequest>,
        ) -> Result<Response<Self::WatchSagasStream>, Status> {
            let mut asked = self.0.lock().expect("nobody panics");
            asked.push(request.into_inner().after_position);
            let end = match asked[..] {
                [_] => Refusal::unavailable("DRAINING", "the connection is old", Duration::ZERO),
                _ => Refusal::precondition("ENOUGH", format!("{asked:?}")),
            };
            let ends: Outgoing<_> = Box::pin(tokio_stream::once(Err(end.into_status("order"))));
            let mut response = Response::new(ends);
            response.metadata_mut().insert(READ_POSITION, 7.into());
            Ok(response)
        }

        async fn get_saga(&self, _: Request<GetSagaRequest>) -> Result<Response<GetSagaResponse>, Status> {
            Err(Status::unimplemented("it is only watched"))
        }

        async fn list_sagas(&self, _: Request<ListSagasRequest>) -> Result<Response<ListSagasResponse>, Status> {
            Err(Status::unimplemented("it is only watched"))
        }

        async fn describe_saga(
            &self,
            _: Request<DescribeSagaRequest>,
        ) -> Result<Response<DescribeSagaResponse>, Status> {
            Err(Status::unimplemented("it is only watched"))
        }
    }

    #[tokio::test]
    async fn what_happens_while_a_watch_that_has_told_nothing_is_made_anew_is_told() {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = format!("http://{}", incoming.local_addr().expect("it is bound"));
        let service = SagaQueryServiceServer::new(Old::default());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        let orders = Orders::connect(&address).await.expect("it is there");
        let ended = show(&orders, Screen::plain()).await.expect_err("it ends");
        assert_eq!(ended.to_string(), "ENOUGH: [0, 7]");
    }

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
