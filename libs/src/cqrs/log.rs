//! Where the events of a projection come from: this process's journal, another process's on the same database, or another service.
//!
//! | of a log | on the service's own database | of another service by gRPC | by its stream |
//! |---|---|---|---|
//! | `news` | waits for more; false once it is closed | waits for what comes; true also if it ends before: `is_behind` | the same |
//! | `news_or_loss` | the same, or what was handed out is lost | as `news` | as `news` |
//! | `news_up_to` | looks whether there is more, and doesn't wait | waits; false if there is no more | as `news` |
//! | `head` | its last event | the last that has come | the last that has come |
//! | `head_after` | None: ask for `head` | where it ends, as far as is known | the same |
//! | `told_end` | None | where it ends, once the service has said so | None |
//! | `lost_to` | where it ends, if that is before and no standby says so | None | None |
//! | `is_behind` | false | it was refused: the log ends before | the stream, or the log, ends before |

use std::{cmp::Ordering, time::Duration};

use tokio::{sync::watch, time::timeout};

use super::{
    JetStream, UnknownEnd, Upcasters,
    jetstream::{Consumer, Durable},
    subscription::{OtherLog, Subscription},
};
use crate::{
    journal::{
        Event, Journal, Location, OpenError, Recent, batch_after, head, head_of_primary,
        sql::{self, Reader},
        store,
    },
    rpc::client::Peer,
};

/// How often a log in another process is looked at.
pub(super) const POLL: Duration = Duration::from_millis(20);
/// How long to leave a standby alone that has yet to replay what was read.
const STANDBY: Duration = Duration::from_millis(500);
/// After events of so many bytes no more are held at once, of a log that is read or of another service's.
pub(super) const MOST_BYTES: usize = 8 << 20;

/// Where events come from.
#[derive(Clone, Debug)]
pub struct Log {
    source: Source,
    upcasters: Upcasters,
}

#[derive(Clone, Debug)]
enum Source {
    Database {
        reader: Reader,
        recent: Recent,
        /// Tells of news; None where this process writes nothing.
        head: Option<watch::Receiver<i64>>,
        /// True where other processes write, so that it must be looked at.
        shared: bool,
        /// The end that was told of last and is not there: it was lost, as after a failover, and nobody says so before the next commit.
        gone: Option<i64>,
    },
    Service(Box<Subscription>),
    Stream(Box<Consumer>),
}

/// No news of a log.
#[derive(Debug, thiserror::Error)]
pub(super) enum NewsError {
    /// It can't be read.
    #[error(transparent)]
    Database(#[from] sql::Error),
    /// It is another one since it was read.
    #[error(transparent)]
    OtherLog(#[from] OtherLog),
}

/// What comes after a position of a log.
pub(super) enum News {
    /// Something.
    Come,
    /// Nothing any more: the journal is closed.
    Closed,
    /// What came before it is lost, as after a failover: the log ends here.
    Lost(i64),
}

/// What one look at a log finds after a position.
enum Found {
    More,
    Nothing,
    /// Not even what is at that position.
    Less,
    Closed,
}

impl From<Source> for Log {
    fn from(source: Source) -> Self {
        Self { source, upcasters: Upcasters::default() }
    }
}

impl Log {
    /// The log of a journal in this process.
    #[must_use]
    pub fn of(journal: &Journal) -> Self {
        let shared = matches!(journal.location(), Location::Postgres { .. });
        let (reader, recent) = (journal.reader().clone(), journal.recent().clone());
        Self::from(Source::Database { reader, recent, head: Some(journal.head()), shared, gone: None })
    }

    /// The log of a journal that another process writes, on the same database.
    ///
    /// # Errors
    /// When its database isn't there or can't be read, or the disk doesn't take what a killed process left in it.
    pub fn open(location: impl Into<Location>) -> Result<Self, OpenError> {
        let (reader, recent) = (store::reader_of_journal(&location.into())?, Recent::default());
        Ok(Self::from(Source::Database { reader, recent, head: None, shared: true, gone: None }))
    }

    /// The log of another service, by its `events.v1.EventService`: the events of these kinds of aggregate, all when there are none.
    /// The peer must let a call last for ever ([`PeerOptions::stream`](crate::rpc::client::PeerOptions::stream)).
    #[must_use]
    pub fn of_service(peer: Peer, kinds: &[&str]) -> Self {
        Self::from(Source::Service(Box::new(Subscription::new(peer, kinds))))
    }

    /// The log of another service, by its stream, and by [the service itself](Self::of_service) what the stream doesn't hold. `reader` is
    /// the name under which the broker remembers how far the reader is; `replicas` is true where several processes of that name keep
    /// the same views, each of which is then remembered by itself.
    #[must_use]
    pub fn of_stream(jetstream: JetStream, peer: Peer, kinds: &[&str], reader: &str, replicas: bool) -> Self {
        let durable = match replicas {
            true => Durable::another(reader),
            false => Durable::Reader(reader.to_owned()),
        };
        Self::from(Source::Stream(Box::new(Consumer::new(jetstream, durable, Subscription::new(peer, kinds)))))
    }

    /// Brings old forms of its events into the form of today as they are read. Another service does that to its own.
    #[must_use]
    pub fn upcast(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }

    pub(super) const fn upcasters(&self) -> &Upcasters {
        &self.upcasters
    }

    /// The same log, for somebody who reads it beside this one, up to its end. Where that is, of another service's, the service alone
    /// knows: its stream may be behind, or the copy of a log that was there before.
    pub(super) fn beside(&self) -> Self {
        let source = match &self.source {
            Source::Stream(consumer) => Source::Service(Box::new(consumer.service())),
            source => source.clone(),
        };
        Self { source, upcasters: self.upcasters.clone() }
    }

    /// The stream that is followed instead of another service's log, if one is, and where it ends.
    ///
    /// # Errors
    /// When the broker can't be asked.
    pub(super) async fn stream_end(&self) -> Result<Option<(String, i64)>, UnknownEnd> {
        match &self.source {
            Source::Stream(consumer) => consumer.stream_end().await.map(Some),
            Source::Service(_) | Source::Database { .. } => Ok(None),
        }
    }

    /// Waits until the log has something after `position`. False when the journal is closed and there is nothing more. Another service
    /// is waited for, however long it is out; but if its log is found to end before that, there is nothing: see
    /// [`is_behind`](Self::is_behind).
    pub(super) async fn news(&mut self, position: i64) -> Result<bool, sql::Error> {
        loop {
            match self.look(position).await? {
                Found::More => return Ok(true),
                Found::Closed => return Ok(false),
                Found::Nothing | Found::Less => {}
            }
        }
    }

    /// The same, for who has handed out what came up to `position`: what was handed out may be lost.
    pub(super) async fn news_or_loss(&mut self, position: i64) -> Result<News, sql::Error> {
        loop {
            match self.look(position).await? {
                Found::More => return Ok(News::Come),
                Found::Closed => return Ok(News::Closed),
                Found::Nothing => {}
                Found::Less => {
                    if let Some(head) = self.lost_to(position).await? {
                        return Ok(News::Lost(head));
                    }
                    // Each answer of a standby costs a session with it.
                    tokio::time::sleep(STANDBY).await;
                }
            }
        }
    }

    /// Where the log ends, if what was at a position of it is lost.
    pub(super) async fn lost_to(&self, position: i64) -> Result<Option<i64>, sql::Error> {
        let Some(reader) = self.own() else { return Ok(None) };
        // A standby may have what it has yet to replay: it doesn't know.
        Ok(head_of_primary(reader).await?.filter(|head| *head < position))
    }

    /// Waits for what is after a position until it is told of, or the log was looked at.
    async fn look(&mut self, position: i64) -> Result<Found, sql::Error> {
        let (reader, told, shared, gone) = match &mut self.source {
            Source::Database { reader, head, shared, gone, .. } => (reader, head, *shared, *gone),
            Source::Service(subscription) => {
                subscription.news(position).await;
                return Ok(Found::More);
            }
            Source::Stream(consumer) => {
                consumer.news(position).await;
                return Ok(Found::More);
            }
        };
        let found = |is_more| if is_more { Found::More } else { Found::Closed };
        let is_news = |head: &i64| *head > position && Some(*head) != gone;
        match told {
            Some(told) if !shared => return Ok(found(told.wait_for(|head| *head > position).await.is_ok())),
            Some(told) => match timeout(POLL, told.wait_for(is_news)).await.map(|told| told.is_ok()) {
                // What was told of may be lost since, and nobody will say so any more.
                Ok(true) if told.has_changed().is_err() => return Ok(found(head(reader).await? > position)),
                Ok(is_more) => return Ok(found(is_more)),
                Err(_) => {}
            },
            None => tokio::time::sleep(POLL).await,
        }
        Ok(match head(reader).await?.cmp(&position) {
            Ordering::Greater => Found::More,
            Ordering::Equal => Found::Nothing,
            Ordering::Less => Found::Less,
        })
    }

    /// Whether another service's log was found to end before what was waited for last: whoever shares the views may have made them anew.
    pub(super) const fn is_behind(&self) -> bool {
        match &self.source {
            Source::Service(subscription) => subscription.is_ahead(),
            Source::Stream(consumer) => consumer.is_ahead(),
            Source::Database { .. } => false,
        }
    }

    /// The same, but for what there is up to `end` only. False if there is no more of it, because all was handed out or the log ends
    /// before. Where it ends is asked anew after [`begin_again`](Self::begin_again).
    pub(super) async fn news_up_to(&mut self, position: i64, end: i64) -> Result<bool, NewsError> {
        match &mut self.source {
            Source::Database { reader, .. } => Ok(head(reader).await?.min(end) > position),
            Source::Service(subscription) => Ok(subscription.news_up_to(position, end).await?),
            Source::Stream(_) => Ok(self.news(position).await?),
        }
    }

    /// Relies no more on what has come of another service's log, nor on what it has said of it.
    pub(super) fn begin_again(&mut self) {
        match &mut self.source {
            Source::Service(subscription) => subscription.begin_again(),
            Source::Stream(consumer) => consumer.begin_again(),
            Source::Database { .. } => {}
        }
    }

    /// The events after a position, in order, at most `limit`, and fewer where they are large: see [`MOST_BYTES`]. Of another service: those
    /// that have come.
    pub(super) async fn after(&mut self, position: i64, limit: i64) -> Result<Vec<Event>, sql::Error> {
        match &mut self.source {
            Source::Database { reader, recent, head, gone, .. } => {
                let told = head.as_ref().map(|head| *head.borrow()).filter(|head| *head > position);
                let held = recent.after(position, usize::try_from(limit).unwrap_or_default());
                let events = match held {
                    Some(events) => events,
                    None => batch_after(reader, position, limit, MOST_BYTES as i64).await?,
                };
                *gone = told.filter(|_| events.is_empty());
                Ok(self.upcasters.apply(events))
            }
            Source::Service(subscription) => Ok(subscription.after(position, limit)),
            Source::Stream(consumer) => Ok(consumer.after(position, limit)),
        }
    }

    /// The position of the last event; of another service, of the last that has come.
    pub(super) async fn head(&self) -> Result<i64, sql::Error> {
        match &self.source {
            Source::Database { reader, .. } => head(reader).await,
            Source::Service(subscription) => Ok(subscription.reached()),
            Source::Stream(consumer) => Ok(consumer.reached()),
        }
    }

    /// Where another service's log ends, as far as is known, for who has kept it up to a position. None for a log that can be asked.
    pub(super) fn head_after(&self, position: i64) -> Option<i64> {
        match &self.source {
            Source::Database { .. } => None,
            Source::Service(subscription) => Some(subscription.head_after(position)),
            Source::Stream(consumer) => Some(consumer.head_after(position)),
        }
    }

    /// Where another service's log ends, if the service has said so.
    pub(super) const fn told_end(&self) -> Option<i64> {
        match &self.source {
            Source::Service(subscription) => subscription.end(),
            Source::Database { .. } | Source::Stream(_) => None,
        }
    }

    /// Reads the log's own database; None where another service keeps it.
    pub(super) fn own(&self) -> Option<&Reader> {
        match &self.source {
            Source::Database { reader, .. } => Some(reader),
            Source::Service(_) | Source::Stream(_) => None,
        }
    }

    /// True if its events come from another service.
    pub(super) const fn is_remote(&self) -> bool {
        matches!(self.source, Source::Service(_) | Source::Stream(_))
    }

    /// The head as it moves, where this process alone writes the log: else it is told of its own commits alone, and not of what is lost.
    pub(super) fn watched_head(&self) -> Option<watch::Receiver<i64>> {
        match &self.source {
            Source::Database { head, shared: false, .. } => head.clone(),
            Source::Database { .. } | Source::Service(_) | Source::Stream(_) => None,
        }
    }
}

/// What events take up, as far as that may be much.
pub(super) fn bytes<'e>(events: impl IntoIterator<Item = &'e Event>) -> usize {
    events.into_iter().map(|event| event.payload.len()).sum()
}
