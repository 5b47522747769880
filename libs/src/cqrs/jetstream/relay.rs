//! Publishes a log, in its order and without a gap.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    self,
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
    stream::{self, RawMessageErrorKind},
};
use bytes::Bytes;
use prost::Message as _;
use proto::events::v1 as pb;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    super::{Board, Log, board::Standing, envelope, log::News, reasons::ToldReason, upcast::is_unreadable},
    BrokerError, Found, JetStream, LOOK, PAUSE,
    forms::{FORM, Forms},
    is_own, kind_of, message_id, position, subject,
};
use crate::journal::{Event, sql};

/// How many messages are under way at a time.
const STRETCH: i64 = 256;
/// How long who publishes second stands back from who was first.
const STAND_BACK: Duration = Duration::from_secs(1);
/// How often to look how far the log is that is not published yet.
const LOOK_AHEAD: Duration = Duration::from_secs(1);
/// Of what the broker takes at a time, what a message's headers and the protocol may take.
const PROTOCOL: usize = 1024;
/// Of what a stream takes, its headers alone.
const HEADERS: usize = 256;

/// Publishes a service's log to its stream. Several may: the stream takes each event once and in order, and who comes second stands back.
#[derive(Debug)]
pub struct Relay {
    jetstream: JetStream,
    service: &'static str,
    log: Log,
    /// The old forms that its events are brought from.
    forms: Forms,
    standing: Arc<Standing>,
    /// When it was seen how far the log is.
    looked: Instant,
}

/// How publishing ended.
enum Ended {
    /// The log is closed, and all of it is published.
    Closed,
    /// The stream is not as far as was thought: it is to be looked at anew.
    Moved,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "stream {stream} is not a copy of this log: {what}. Delete it, and it is filled anew (nats stream rm {stream}); services that \
     followed it make their views over this one's events anew (RebuildProjections)"
)]
struct Foreign {
    stream: String,
    what: String,
}

impl Relay {
    pub(super) fn new(jetstream: JetStream, service: &'static str, log: Log) -> Self {
        let standing = Standing::unknown("jetstream", log.watched_head());
        let forms = Forms::of(log.upcasters());
        Self { jetstream, service, log, forms, standing, looked: Instant::now() }
    }

    /// Shows on a board how far it is.
    pub fn show_on(&self, board: &Board) {
        board.add(self.service, [Arc::clone(&self.standing)]);
    }

    /// Publishes until the log is closed. A broker that is out is waited for: nothing else waits for it.
    ///
    /// # Errors
    /// Never.
    pub async fn run(mut self) -> Result<(), std::convert::Infallible> {
        let mut told = ToldReason::default();
        loop {
            match self.publish(&mut told).await {
                Ok(Ended::Closed) => return Ok(()),
                Ok(Ended::Moved) => sleep(STAND_BACK).await,
                Err(error) => {
                    let why = error.to_string();
                    if told.is_news(&why) {
                        tracing::warn!(service = self.service, why, "events are not published until this is mended");
                    }
                    self.standing.park_at_next(why);
                    sleep(PAUSE).await;
                    // If that is what fails, it was told.
                    let _ = self.look_ahead().await;
                }
            }
        }
    }

    /// Goes on where the stream ends.
    async fn publish(&mut self, told: &mut ToldReason) -> Result<Ended, BrokerError> {
        let mut found = self.jetstream.stream(self.service).await?;
        let (mut last, head) = self.end_of(&found).await?;
        self.standing.moved(last);
        // Before there is any message that says so.
        self.jetstream.tell_of(&self.forms, &found.info).await?;
        // A stream that can be read need not take anything.
        if !told.is_out() || last >= head {
            self.goes_on(last, told);
        }
        let mut looked = Instant::now();
        loop {
            // By time, not by silence: there may always be something to publish.
            if looked.elapsed() >= LOOK {
                found = self.jetstream.stream(self.service).await?;
                // A broker that lost its last messages gets them again.
                if position(found.info.state.last_sequence) != last {
                    return Ok(Ended::Moved);
                }
                // Somebody else may have described it.
                self.jetstream.tell_of(&self.forms, &found.info).await?;
                looked = Instant::now();
            }
            match timeout_at(looked + LOOK, self.log.news_or_loss(last)).await {
                Ok(Ok(News::Come)) => {}
                Ok(Ok(News::Closed)) => return Ok(Ended::Closed),
                // The stream has what the log has lost, and is another one's.
                Ok(Ok(News::Lost(_))) => return Ok(Ended::Moved),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => continue,
            }
            let events = self.log.after(last, STRETCH).await?;
            let Some(end) = events.last().map(|event| event.position) else {
                // What was told of is lost, as after a failover. The stream's end may be, too: then it is another log's.
                sleep(PAUSE).await;
                return Ok(Ended::Moved);
            };
            self.standing.saw(end);
            if !self.send(events, &found.info.config).await? {
                return Ok(Ended::Moved);
            }
            last = end;
            self.standing.moved(last);
            if told.is_out() {
                self.goes_on(last, told);
            }
            self.look_ahead().await?;
        }
    }

    /// Shows, and tells where that is news, that nothing is in the way of what comes after this.
    fn goes_on(&self, last: i64, told: &mut ToldReason) {
        self.standing.go_on(last);
        if told.take() {
            tracing::info!(service = self.service, position = last, "events are published again");
        }
    }

    /// Shows how far the log is: other processes may write it, and nothing else tells of what is not read yet.
    async fn look_ahead(&mut self) -> Result<(), sql::Error> {
        if self.looked.elapsed() >= LOOK_AHEAD {
            self.standing.ends(self.log.head().await?);
            self.looked = Instant::now();
        }
        Ok(())
    }

    /// Where the stream ends, if it is a copy of this log, and where that does.
    async fn end_of(&mut self, Found { stream, .. }: &Found) -> Result<(i64, i64), BrokerError> {
        let info = stream.get_info().await?;
        let (last, head) = (position(info.state.last_sequence), self.log.head().await?);
        self.standing.ends(head);
        let foreign = |what: String| Foreign { stream: info.config.name.clone(), what };
        if last > head {
            return match self.log.lost_to(last).await? {
                Some(head) => Err(foreign(format!("it ends at {last} and the log at {head}")).into()),
                // A standby has yet to replay the rest, or has by now.
                None => Ok((last, head)),
            };
        }
        if info.state.messages > 0 {
            let message = match stream.get_raw_message(info.state.last_sequence).await {
                // An operator deleted it: the stream ends there all the same, and a reader asks the service for what is missing.
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok((last, head)),
                message => message?,
            };
            if !is_own(&message.headers, self.service, last) {
                return Err(foreign(format!("somebody else published message {last}")).into());
            }
            // After a restored backup other events may have taken the places of those that were published. What was too large or unreadable is empty.
            let ours = self.log.after(last - 1, 1).await?.pop().map(envelope::seal);
            let is_ours = if message.payload.is_empty() {
                // Who doesn't want its kind goes by that alone.
                let kind = kind_of(&message.subject, self.service);
                kind.is_none_or(|kind| ours.is_some_and(|ours| ours.kind == kind))
            } else {
                let theirs = pb::Event::decode(message.payload.clone()).ok();
                ours.zip(theirs).is_some_and(|(ours, theirs)| is_same(&ours, &theirs))
            };
            if !is_ours {
                return Err(foreign(format!(
                    "message {last} is another event than the log's, as after a restored backup"
                ))
                .into());
            }
        }
        Ok((last, head))
    }

    /// Sends events that belong behind the stream's last one, which takes messages like this. False if that was another than thought, or
    /// somebody else publishes them.
    async fn send(&self, events: Vec<Event>, config: &stream::Config) -> Result<bool, BrokerError> {
        let context = &self.jetstream.context;
        let most = most_bytes(context.client().server_info().max_payload, config);
        let mut sent = Vec::with_capacity(events.len());
        for event in events {
            let (position, subject) = (event.position, subject(self.service, &event.kind));
            let (is_unreadable, form) = (is_unreadable(&event), self.forms.of_event(&event.kind, &event.name));
            let payload = Bytes::from(envelope::seal(event).encode_to_vec());
            // Nothing instead of what is too large, or can't be read until the program is mended: whoever wants it asks the service.
            let payload = if is_unreadable || payload.len() > most { Bytes::new() } else { payload };
            let mut message = PublishMessage::build()
                .message_id(message_id(self.service, position))
                .expected_last_sequence(position.unsigned_abs() - 1)
                .payload(payload);
            if form > 0 {
                message = message.header(FORM, form.to_string());
            }
            sent.push(context.send_publish(subject, message).await?);
        }
        let mut goes_on = true;
        for acknowledged in sent {
            match acknowledged.await {
                // Of two who publish the same, one was first with the last of it: that one goes on. Were it the first, both might stand
                // back: whoever came second with that may have been first with what follows.
                Ok(taken) => goes_on = !taken.duplicate,
                Err(error) if is_elsewhere(&error) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(goes_on)
    }
}

/// How large an event may be beside its headers. The broker counts both, and so does a stream that has a limit of its own.
fn most_bytes(max_payload: usize, config: &stream::Config) -> usize {
    let of_stream = usize::try_from(config.max_message_size).ok().filter(|most| *most > 0);
    let of_broker = max_payload.saturating_sub(PROTOCOL);
    of_stream.map_or(of_broker, |most| of_broker.min(most.saturating_sub(HEADERS)))
}

/// Whether two are one event. An upcast may have brought the one into another form since the other was published.
fn is_same(one: &pb::Event, other: &pb::Event) -> bool {
    let without_form = |event: &pb::Event| {
        let pb::Event { kind, id, version, name, cause, time, .. } = event.clone();
        (kind, id, version, name, cause, time)
    };
    without_form(one) == without_form(other)
}

/// Whether somebody else has published, or is about to: a stream of several replicas says so of a message that it has yet to agree on.
fn is_elsewhere(error: &PublishError) -> bool {
    let said = || std::error::Error::source(error)?.downcast_ref::<jetstream::Error>();
    error.kind() == PublishErrorKind::WrongLastSequence
        || said().is_some_and(|said| said.error_code() == jetstream::ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_publishes_is_no_failure() {
        let said = |code: u64| {
            let said =
                serde_json::json!({"code": 409, "err_code": code, "description": "duplicate message id is in process"});
            let said: jetstream::Error = serde_json::from_value(said).expect("an error");
            PublishError::with_source(PublishErrorKind::Other, said)
        };
        assert!(is_elsewhere(&said(10158)));
        assert!(is_elsewhere(&PublishErrorKind::WrongLastSequence.into()));
        assert!(!is_elsewhere(&said(10077)));
        assert!(!is_elsewhere(&PublishErrorKind::Other.into()));
    }
}
