//! Another service's events, as they come: one stream, opened again from the last position that was kept.

use std::{fmt, time::Duration};

use proto::events::v1::{SubscribeRequest, SubscribeResponse, event_service_client::EventServiceClient};
use tonic::{Status, Streaming};

use super::{envelope, inbox::Inbox, outbox::AHEAD, reasons::ToldReason};
use crate::{
    journal::Event,
    refusal::{Refusal, code_name},
    rpc::client::{CircuitOpen, Peer, is_draining},
};

/// How long to leave a service alone that is out.
const PAUSE: Duration = Duration::from_millis(500);

/// A subscription to another service. It holds what has come and was not kept yet; a clone begins with nothing.
pub(super) struct Subscription {
    client: EventServiceClient<Peer>,
    source: String,
    kinds: Vec<String>,
    stream: Option<Streaming<SubscribeResponse>>,
    inbox: Inbox,
    /// The service's last word was that its log ends before what was asked for.
    is_ahead: bool,
    told: ToldReason,
}

/// Another service's log has become another one since it was read.
#[derive(Debug, thiserror::Error)]
#[error(
    "the log of {service} ends before {position}, which was read: it is another one since, as after a restored backup"
)]
pub struct OtherLog {
    /// The service.
    pub service: String,
    /// How far it was read.
    pub position: i64,
}

impl Clone for Subscription {
    fn clone(&self) -> Self {
        let (client, source, kinds) = (self.client.clone(), self.source.clone(), self.kinds.clone());
        let (inbox, told) = (Inbox::default(), ToldReason::default());
        Self { client, source, kinds, stream: None, inbox, is_ahead: false, told }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, kinds, inbox, .. } = self;
        f.debug_struct("Subscription")
            .field("source", source)
            .field("kinds", kinds)
            .field("reached", &inbox.reached())
            .finish_non_exhaustive()
    }
}

impl Subscription {
    pub(super) fn new(peer: Peer, kinds: &[&str]) -> Self {
        let source = peer.name().to_owned();
        let client = EventServiceClient::new(peer).max_decoding_message_size(64 << 20);
        let kinds = kinds.iter().map(ToString::to_string).collect();
        let (inbox, told) = (Inbox::default(), ToldReason::default());
        Self { client, source, kinds, stream: None, inbox, is_ahead: false, told }
    }

    /// The service it is of.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether events of this kind of aggregate are wanted.
    pub(super) fn wants(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind)
    }

    /// Waits until events after `position` are held, which is as far as the caller has kept them. False, a while later, if the service
    /// says that its log ends before that.
    pub(super) async fn news(&mut self, position: i64) -> bool {
        self.wait(position, None).await;
        !self.inbox.is_empty()
    }

    /// The same, but no longer than until all has come that is wanted up to `end`, or all that the log has. False if nothing is held then.
    ///
    /// # Errors
    /// When the service says that its log ends before `position`, which it had told of: it is another one since.
    pub(super) async fn news_up_to(&mut self, position: i64, end: i64) -> Result<bool, OtherLog> {
        self.wait(position, Some(end)).await;
        if self.is_ahead {
            return Err(OtherLog { service: self.source.clone(), position });
        }
        Ok(!self.inbox.is_empty())
    }

    /// Asks the service again, from where the caller is: what it said of its log's end was true then.
    pub(super) fn begin_again(&mut self) {
        self.stream = None;
        self.inbox.go_on_from(self.inbox.kept());
    }

    async fn wait(&mut self, position: i64, end: Option<i64>) {
        if !self.inbox.keep(position) {
            self.stream = None;
        }
        while self.inbox.is_empty() && !end.is_some_and(|end| self.inbox.has_all(end)) {
            if let Err(status) = self.receive(position).await {
                self.stream = None;
                self.tell(&status);
                self.is_ahead = Refusal::from_status(&status).reason == AHEAD;
                tokio::time::sleep(PAUSE).await;
                if self.is_ahead {
                    return;
                }
            }
        }
    }

    /// Tells why no events come, unless that was told. That a stream ended in order is no reason, nor that a circuit is open that the
    /// reason has opened.
    fn tell(&mut self, status: &Status) {
        if is_draining(status) || self.told.is_out() && CircuitOpen::from_status(status).is_some() {
            return;
        }
        // The words may differ each time.
        if self.told.is_news(&Refusal::from_status(status).reason) {
            tracing::warn!(
                source = self.source,
                code = code_name(status.code()),
                why = status.message(),
                "no events come: the views over them stand still until this is mended"
            );
        }
    }

    /// What is held after a position.
    pub(super) fn after(&self, position: i64, limit: i64) -> Vec<Event> {
        self.inbox.after(position, limit)
    }

    /// Where the log ends, as far as is known, for who has kept it up to a position.
    pub(super) fn head_after(&self, position: i64) -> i64 {
        self.inbox.head_after(position)
    }

    /// Where the log ends, if the service has said so.
    pub(super) const fn end(&self) -> Option<i64> {
        self.inbox.end()
    }

    /// Whether the service has refused what was asked for last, because its log ends before.
    pub(super) const fn is_ahead(&self) -> bool {
        self.is_ahead
    }

    pub(super) const fn reached(&self) -> i64 {
        self.inbox.reached()
    }

    /// Takes what comes next, and what has come behind it already.
    async fn receive(&mut self, position: i64) -> Result<(), Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                // What was reached in memory alone is not kept anywhere: the caller's position is what counts.
                self.inbox.go_on_from(position);
                let request = SubscribeRequest { after_position: position, kinds: self.kinds.clone() };
                let stream = self.client.subscribe(request).await?.into_inner();
                self.stream.insert(stream)
            }
        };
        let next = stream.message().await?.ok_or_else(|| Status::unavailable("the stream has ended"))?;
        self.take(next)?;
        // The first stretch comes at once, though it may be empty.
        self.told.over(&self.source);
        self.is_ahead = false;
        while !self.inbox.is_full() {
            let Some(stream) = &mut self.stream else { break };
            match futures::FutureExt::now_or_never(stream.message()) {
                Some(Ok(Some(more))) => self.take(more)?,
                Some(Ok(None)) | None => break,
                Some(Err(status)) => return Err(status),
            }
        }
        Ok(())
    }

    /// Takes a stretch that goes on where the last one ended. One that came before is passed over; after a gap all is asked for again.
    fn take(&mut self, stretch: SubscribeResponse) -> Result<(), Status> {
        let SubscribeResponse { after_position, events, position, head } = stretch;
        let reached = self.inbox.reached();
        if after_position > reached {
            return Err(Status::data_loss(format!("a stretch begins at {after_position}, {reached} was reached")));
        }
        for event in events {
            self.inbox.put(envelope::open(event));
        }
        self.inbox.pass(position);
        // An empty log's end is no different from one that isn't told, but for the empty stretch that tells it.
        if head > 0 || after_position == position {
            self.inbox.ends(head);
        }
        Ok(())
    }
}
