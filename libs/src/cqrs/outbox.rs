//! A service's events for other services: its log is the outbox, and this streams it.

use std::sync::Arc;

use futures::StreamExt as _;
use proto::events::v1::{
    SubscribeRequest, SubscribeResponse,
    event_service_server::{EventService, EventServiceServer},
};
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use super::{
    Log, Outgoing, envelope,
    log::{News, POLL},
};
use crate::{
    journal::{Event, RefusedReads, sql::Error},
    refusal::{Refusal, Violations},
};

/// How many events are read at a time, and sent in a message: fewer if they are large, so that any reader can take it.
const STRETCH: i64 = 512;
const MOST_BYTES: usize = 1 << 20;
/// Why who asks for what comes after the log's end is refused.
pub(super) const AHEAD: &str = "AHEAD_OF_LOG";

/// Streams a log to other services, as each takes it in: a slow one makes nothing grow here.
#[derive(Clone, Debug)]
pub struct Outbox {
    service: &'static str,
    log: Log,
    refused: Arc<RefusedReads>,
}

impl Outbox {
    /// The outbox of `service`, by its bare name, for the domain of its errors.
    #[must_use]
    pub fn new(service: &'static str, log: Log) -> Self {
        Self { service, log, refused: Arc::default() }
    }

    /// The tonic server.
    #[must_use]
    pub fn into_server(self) -> EventServiceServer<Self> {
        EventServiceServer::new(self)
    }

    /// Where the log ends, if it can be read as asked.
    async fn check(&self, request: &SubscribeRequest) -> Result<i64, Refusal> {
        let mut violations = Violations::default();
        violations.require(request.after_position >= 0, "after_position", "must not be negative");
        violations.require(request.kinds.len() <= 64, "kinds", "must be at most 64");
        let named = request.kinds.iter().all(|kind| (1..=64).contains(&kind.len()));
        violations.require(named, "kinds", "must be 1 to 64 characters each");
        violations.refuse()?;
        let head = self.log.head().await.map_err(|error| self.unreadable(&error))?;
        if request.after_position > head
            && let Some(head) =
                self.log.lost_to(request.after_position).await.map_err(|error| self.unreadable(&error))?
        {
            return Err(ahead(request.after_position, head));
        }
        // A standby may have the rest to replay yet: it is waited for.
        Ok(head)
    }

    fn unreadable(&self, error: &Error) -> Refusal {
        self.refused.refusal("the log", error, || tracing::error!(%error, "the log can't be read"))
    }
}

#[tonic::async_trait]
impl EventService for Outbox {
    type SubscribeStream = Outgoing<SubscribeResponse>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let (service, request) = (self.service, request.into_inner());
        let head = self.check(&request).await.map_err(|refusal| refusal.into_status(service))?;
        let SubscribeRequest { after_position, kinds } = request;
        let (outbox, mut log) = (self.clone(), self.log.clone());
        let stretches = async_stream::try_stream! {
            let mut reached = after_position;
            if head == reached {
                yield SubscribeResponse { after_position, events: Vec::new(), position: head, head };
            }
            loop {
                match log.news_or_loss(reached).await.map_err(|error| outbox.unreadable(&error))? {
                    News::Come => {}
                    News::Closed => break,
                    News::Lost(head) => Err(ahead(reached, head))?,
                }
                let mut events = log.after(reached, STRETCH).await.map_err(|error| outbox.unreadable(&error))?;
                events.truncate(that_fit(&events));
                let Some(position) = events.last().map(|event| event.position) else {
                    // What was told of is lost, as after a failover: the next commit here tells where the log ends now.
                    if let Some(head) = log.lost_to(reached).await.map_err(|error| outbox.unreadable(&error))? {
                        Err(ahead(reached, head))?;
                    }
                    sleep(POLL).await;
                    continue;
                };
                let head = log.head().await.map_err(|error| outbox.unreadable(&error))?;
                let is_wanted = |event: &Event| kinds.is_empty() || kinds.iter().any(|kind| *kind == event.kind);
                let wanted = events.into_iter().filter(is_wanted);
                let events = wanted.map(envelope::seal).collect();
                yield SubscribeResponse { after_position: reached, events, position, head };
                reached = position;
            }
        };
        Ok(Response::new(
            stretches.map(move |stretch| stretch.map_err(|refusal: Refusal| refusal.into_status(service))).boxed(),
        ))
    }
}

/// How many of the events go into one message: at least the first.
fn that_fit(events: &[Event]) -> usize {
    let mut bytes = 0;
    let fits = |event: &&Event| {
        let fits = bytes < MOST_BYTES;
        bytes += event.payload.len();
        fits
    };
    events.iter().take_while(fits).count()
}

/// Refuses who has read further than the log goes.
fn ahead(reached: i64, head: i64) -> Refusal {
    let message = format!(
        "the log ends at {head}: it is not the one that was read to {reached}; make what was made of that one anew (RebuildProjections)"
    );
    Refusal::precondition(AHEAD, message).with("head", head.to_string())
}
