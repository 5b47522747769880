//! Another service's events by its stream, and by the service itself what the stream doesn't hold.

use std::{collections::VecDeque, fmt, time::Duration};

use async_nats::{
    datetime::DateTime,
    jetstream::{
        Message,
        consumer::{AckPolicy, DeliverPolicy, pull},
        message::Acker,
    },
};
use futures::{FutureExt as _, StreamExt as _};
use prost::Message as _;
use proto::events::v1 as pb;
use tokio::time::timeout;

use super::{
    super::{
        envelope,
        inbox::Inbox,
        log::MOST_BYTES,
        reasons::{Recurring, ToldReason},
        subscription::Subscription,
    },
    BrokerError, Found, JetStream, LOOK, PAUSE, UnknownEnd,
    forms::{self, Forms},
    is_own, kind_of, position, stream_name,
};
use crate::journal::Event;

/// How many messages are asked for at a time.
const BATCH: usize = 1024;
/// Of a message that is sent, what its subject and the place for its acknowledgement take at most, beside the broker's own allowance.
const LINE: usize = 4096;
/// How many may be unacknowledged before the server waits: more than the inbox holds.
const MOST_PENDING: i64 = 1 << 15;
/// How often the server says that it is there while nothing comes.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A replica's consumer goes when nobody has asked it for so long.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Why the service is asked for what is deleted, or came too long ago.
const GONE: &str = "the stream doesn't hold it";

/// A durable consumer of another service's stream. It holds what has come and was not kept yet; a clone begins with nothing.
///
/// The reader's own checkpoint says how far it is. The server is told by acknowledgements once the checkpoint is committed, and made to
/// go on from the checkpoint where the two differ.
pub(in super::super) struct Consumer {
    jetstream: JetStream,
    durable: Durable,
    /// When the stream was made that it follows.
    made: Option<DateTime>,
    /// The old forms that its publishers bring events from.
    forms: Forms,
    messages: Option<pull::Stream>,
    inbox: Inbox,
    /// What came and was not acknowledged, by position.
    unacknowledged: VecDeque<(i64, Acker)>,
    /// A position that the stream doesn't hold as it should, and in what way.
    left_out: Option<(i64, String)>,
    /// What the server remembers of this reader is not to be relied on.
    anew: bool,
    /// The consumer was made to begin with what comes next, and nothing has come yet: what it passes over is not in the stream.
    begins: bool,
    service: Subscription,
    /// The stream was found to end before what was read, or the log.
    is_ahead: bool,
    told: ToldReason,
    /// Why the service was asked.
    asked: Recurring,
}

/// The name under which the server remembers a reader.
#[derive(Clone, Debug)]
pub(in super::super) enum Durable {
    /// The one reader of that name.
    Reader(String),
    /// One of several processes that keep the same views.
    Replica(String),
}

impl Durable {
    /// A name that nobody else has, which the server forgets in time.
    pub(in super::super) fn another(reader: &str) -> Self {
        Self::Replica(format!("{reader}-{}", uuid::Uuid::new_v4().simple()))
    }

    fn name(&self) -> &str {
        match self {
            Self::Reader(name) | Self::Replica(name) => name,
        }
    }
}

impl Clone for Consumer {
    fn clone(&self) -> Self {
        Self::new(self.jetstream.clone(), self.durable.clone(), self.service.clone())
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { durable, inbox, service, .. } = self;
        f.debug_struct("Consumer")
            .field("durable", durable)
            .field("inbox", inbox)
            .field("service", service)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    pub(in super::super) fn new(jetstream: JetStream, durable: Durable, service: Subscription) -> Self {
        Self {
            jetstream,
            durable,
            made: None,
            forms: Forms::default(),
            messages: None,
            inbox: Inbox::default(),
            unacknowledged: VecDeque::new(),
            left_out: None,
            anew: false,
            begins: false,
            service,
            is_ahead: false,
            told: ToldReason::default(),
            asked: Recurring::default(),
        }
    }

    /// The service itself, for who doesn't go by its stream.
    pub(in super::super) fn service(&self) -> Subscription {
        self.service.clone()
    }

    /// The stream and where it ends.
    ///
    /// # Errors
    /// When the broker can't be asked.
    pub(in super::super) async fn stream_end(&self) -> Result<(String, i64), UnknownEnd> {
        let (source, stream) = (self.service.source(), stream_name(self.service.source()));
        match self.jetstream.last_position(source).await {
            Ok(end) => Ok((stream, end)),
            Err(source) => Err(UnknownEnd { stream, source }),
        }
    }

    /// Waits until events after `position` are held, which is as far as the caller has kept them; or until the stream is found to end
    /// before that, or the service's log where the service must be asked.
    pub(in super::super) async fn news(&mut self, position: i64) {
        if !self.inbox.keep(position) {
            self.begin_again();
        }
        self.acknowledge().await;
        while self.inbox.is_empty() {
            self.is_ahead = false;
            let Err(error) = self.receive().await else {
                // A long stretch of what nobody here wants, too: the broker sends only so much that is not acknowledged.
                self.acknowledge().await;
                continue;
            };
            self.close();
            self.anew = true;
            if self.told.is_news(&error.to_string()) {
                let source = self.service.source();
                tracing::warn!(source, %error, "no events come: the views over them stand still until this is mended");
            }
            tokio::time::sleep(PAUSE).await;
            if self.is_ahead {
                return;
            }
        }
    }

    /// Goes on from where the caller is, whatever came behind that: a position that was passed over is kept nowhere, and may have been
    /// another log's.
    pub(in super::super) fn begin_again(&mut self) {
        self.close();
        self.anew = true;
        self.left_out = None;
        self.service.begin_again();
        self.inbox.go_on_from(self.inbox.kept());
    }

    /// Whether the stream was found to end before what was waited for last, or the log.
    pub(in super::super) const fn is_ahead(&self) -> bool {
        self.is_ahead
    }

    /// What is held after a position.
    pub(in super::super) fn after(&self, position: i64, limit: i64) -> Vec<Event> {
        self.inbox.after(position, limit)
    }

    /// Where the log ends, as far as is known, for who has kept it up to a position.
    pub(in super::super) fn head_after(&self, position: i64) -> i64 {
        self.inbox.head_after(position)
    }

    pub(in super::super) const fn reached(&self) -> i64 {
        self.inbox.reached()
    }

    fn close(&mut self) {
        self.messages = None;
        self.unacknowledged.clear();
    }

    /// Tells the server what is kept: it need not send that again.
    async fn acknowledge(&mut self) {
        let kept = if self.inbox.is_empty() { self.inbox.reached() } else { self.inbox.kept() };
        let mut last = None;
        while let Some((_, acker)) = self.unacknowledged.pop_front_if(|(position, _)| *position <= kept) {
            last = Some(acker);
        }
        if let Some(acker) = last {
            // One acknowledges all before it. If it is lost, what it stood for comes again and is passed over.
            let _ = acker.ack().await;
        }
    }

    /// Takes what comes next, and what has come behind it already.
    async fn receive(&mut self) -> Result<(), BrokerError> {
        let messages = match &mut self.messages {
            Some(messages) => messages,
            None => match self.open().await? {
                Some(messages) => self.messages.insert(messages),
                None => {
                    return self.ask_the_service().await;
                }
            },
        };
        // What the last look found, a whole one ago: it has come in the meantime if it was on its way then.
        let mut is_behind = false;
        let next = loop {
            if let Ok(next) = timeout(LOOK, messages.next()).await {
                break next.ok_or("the broker ended it")??;
            }
            // A server that was killed may think that it has delivered what never came, and so may one whose messages another reader takes.
            let (last, reached) = (self.jetstream.last_position(self.service.source()).await?, self.inbox.reached());
            if last > reached && is_behind {
                if self.begins {
                    self.leave_out(reached + 1, GONE.to_owned());
                    return Ok(());
                }
                return Err(format!("the stream goes on, and nothing came after {reached}").into());
            }
            // The service may have been asked for what the stream gets in a moment; by now it would have it.
            if last < reached {
                self.is_ahead = true;
                self.begin_again();
                return Err(format!(
                    "the stream ends before {reached}, which was read: it is not filled again yet, or its log is another one, as after a \
                     restored backup; then make the views over it anew (RebuildProjections)"
                )
                .into());
            }
            is_behind = last > reached;
            if !is_behind {
                self.told.over(self.service.source());
            }
        };
        self.take(next)?;
        self.told.over(self.service.source());
        while !self.inbox.is_full() {
            let Some(messages) = &mut self.messages else { break };
            match messages.next().now_or_never() {
                Some(Some(more)) => self.take(more?)?,
                Some(None) | None => break,
            }
        }
        // There may always be something to read, and then nothing else asks.
        self.jetstream.look(self.service.source());
        Ok(())
    }

    /// Opens the consumer after what was reached; None if the stream doesn't hold what comes next.
    async fn open(&mut self) -> Result<Option<pull::Stream>, BrokerError> {
        let Found { stream, info } = self.jetstream.stream(self.service.source()).await?;
        self.forms = Forms::told_by(info.config.description.as_deref());
        let made = info.created;
        if self.made.replace(made).is_some_and(|before| before != made) {
            self.begin_again();
        }
        let next = self.inbox.reached().unsigned_abs() + 1;
        if next < info.state.first_sequence
            || self.left_out.as_ref().is_some_and(|(position, _)| position.unsigned_abs() == next)
        {
            return Ok(None);
        }
        let name = self.durable.name();
        let goes_on = match stream.consumer_info(name).await {
            Ok(info) => {
                let places = [info.ack_floor.stream_sequence, info.delivered.stream_sequence];
                !self.anew && info.num_ack_pending == 0 && places.iter().all(|place| place + 1 == next)
            }
            Err(_) => false,
        };
        if !goes_on {
            // It may not be there, and one that can't be deleted can't be made either.
            let _ = stream.delete_consumer(name).await;
        }
        self.begins = !goes_on;
        let config = pull::Config {
            durable_name: Some(name.to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: next },
            ack_policy: AckPolicy::All,
            max_ack_pending: MOST_PENDING,
            inactive_threshold: match self.durable {
                Durable::Reader(_) => Duration::ZERO,
                Durable::Replica(_) => FORGOTTEN,
            },
            ..pull::Config::default()
        };
        let consumer = stream.get_or_create_consumer(name, config).await?;
        // The server sends none that is larger than what it was asked for, and says so as often as it is asked.
        let largest = self.jetstream.context.client().server_info().max_payload.saturating_add(LINE);
        let messages = consumer.stream().max_messages_per_batch(BATCH).max_bytes_per_batch(MOST_BYTES.max(largest));
        let messages = messages.heartbeat(HEARTBEAT).messages().await?;
        self.anew = false;
        if position(info.state.last_sequence) == self.inbox.reached() {
            // All has come that there is: nothing else would tell that it is over.
            self.told.over(self.service.source());
        }
        Ok(Some(messages))
    }

    /// Takes from the service what the stream doesn't hold.
    async fn ask_the_service(&mut self) -> Result<(), BrokerError> {
        let reached = self.inbox.reached();
        let source = self.service.source();
        let left_out = self.left_out.as_ref().filter(|(position, _)| *position == reached + 1);
        let why = left_out.map_or(GONE, |(_, why)| why);
        if !self.told.is_out() && self.asked.is_news(why) {
            tracing::info!(
                source,
                position = reached + 1,
                why,
                "this is read from the service, and not from the stream"
            );
        }
        if !self.service.news(reached).await {
            self.is_ahead = true;
            return Err(format!(
                "the stream doesn't hold what follows {reached}, and the service's log ends before: it is another one, as after a \
                 restored backup; make the views over it anew (RebuildProjections)"
            )
            .into());
        }
        self.service.after(reached, i64::MAX).into_iter().for_each(|event| self.inbox.put(event));
        self.inbox.pass(self.service.reached());
        // A subscription that nobody reads any more would keep the service waiting.
        self.service = self.service.clone();
        self.left_out = None;
        Ok(())
    }

    /// Takes a message that comes next. One that came before is passed over; after a gap all is asked for again.
    fn take(&mut self, message: Message) -> Result<(), BrokerError> {
        let info = message.info()?;
        let position = i64::try_from(info.stream_sequence)?;
        self.inbox.ends(position.saturating_add_unsigned(info.pending));
        let (message, acker) = message.split();
        let reached = self.inbox.reached();
        self.unacknowledged.push_back((position, acker));
        let begins = std::mem::take(&mut self.begins);
        if position <= reached {
            return Ok(());
        }
        if position > reached + 1 {
            if begins {
                // Deleted from the midst of it.
                self.leave_out(reached + 1, GONE.to_owned());
                return Ok(());
            }
            return Err(format!("after {reached} came {position}").into());
        }
        let is_own = message.headers.as_ref().is_some_and(|headers| is_own(headers, self.service.source(), position));
        // Too large to be published, or unreadable then. Who doesn't want its kind need not ask what it was.
        let kind = kind_of(&message.subject, self.service.source());
        if is_own && message.payload.is_empty() && kind.is_some_and(|kind| !self.service.wants(kind)) {
            self.inbox.pass(position);
            return Ok(());
        }
        let form = forms::of_message(message.headers.as_ref());
        match pb::Event::decode(message.payload) {
            Ok(event) if is_own && event.position == position => {
                if !self.service.wants(&event.kind) {
                    self.inbox.pass(position);
                    return Ok(());
                }
                let today = self.forms.of_event(&event.kind, &event.name);
                if form == Some(today) {
                    self.inbox.put(envelope::open(event));
                } else {
                    // Published by another version of the service than the newest, or by a newer one than was known here.
                    let pb::Event { kind, name, .. } = event;
                    let form = form.map_or_else(|| "an unknown form".to_owned(), |form| format!("form {form}"));
                    self.leave_out(position, format!("{kind}.{name} is in {form} and the stream in form {today}"));
                }
            }
            // Too large to be published, unreadable then, or somebody else's. The service has it.
            _ => self.leave_out(position, "the message is no event of the service's that can be read".to_owned()),
        }
        Ok(())
    }

    /// Has the service asked for what is at a position, for this reason.
    fn leave_out(&mut self, position: i64, why: String) {
        self.left_out = Some((position, why));
        self.close();
    }
}
