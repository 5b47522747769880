//! Events between services by NATS JetStream, where many read what one writes.
//!
//! A service's stream is a copy of its log: an event's sequence number in the stream *is* its position in the log. The relay
//! publishes each event on condition that the one before it is the stream's last, so the copy has no gap, no repetition and no other
//! order, whoever publishes and whatever is lost under way. It is a copy alone: nothing is decided by it, and it may be deleted. What
//! it has lost, by a power failure or because it keeps events for a while only, is published again or read from the service.

mod consumer;
mod forms;
mod relay;
mod seen;
mod servers;

use std::{error::Error, path::PathBuf, sync::Arc, time::Duration};

use async_nats::{
    ConnectOptions, Event as Connection, HeaderMap, HeaderValue,
    header::NATS_MESSAGE_ID,
    jetstream::{self, ErrorCode, response::Response, stream},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

pub(super) use self::consumer::{Consumer, Durable};
pub use self::relay::Relay;
use self::{forms::Forms, seen::Seen, servers::Servers};
use super::{Log, reasons::Recurring};

/// For how long a stream keeps events, if it wasn't there: who comes later reads older ones from the service.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long to leave a broker alone that is out.
const PAUSE: Duration = Duration::from_millis(500);

/// How often a stream is looked at by who waits for it or for something to publish.
const LOOK: Duration = Duration::from_secs(5);

type BrokerError = Box<dyn Error + Send + Sync>;

/// The broker doesn't say where a stream ends.
#[derive(Debug, thiserror::Error)]
#[error("the broker does not say where {stream} ends: {source}")]
pub struct UnknownEnd {
    /// The stream.
    pub stream: String,
    /// Why not.
    pub source: BrokerError,
}

/// A connection to a NATS server or cluster. Clones share it.
#[derive(Clone, Debug)]
pub struct JetStream {
    context: jetstream::Context,
    seen: Seen,
}

/// A stream that is there.
struct Found {
    stream: stream::Stream<()>,
    /// What it was like when it was asked for.
    info: stream::Info,
}

impl JetStream {
    /// Connects to a list of servers with commas between them, as `name`. Before each host is the same `USER:PASSWORD@` or `TOKEN@`, or
    /// nothing; and where one is `tls://` all are, and they alone are reached. That none is there, or lets nobody in so, is no error: it
    /// goes on trying for as long as it lives, and the log says why, once a reason. The authority to trust is read whenever it tries.
    ///
    /// # Errors
    /// When the list can't be read.
    pub async fn connect(servers: &str, name: &str, authority: Option<PathBuf>) -> Result<Self, BrokerError> {
        let servers = Servers::read(servers)?;
        let recurring = Arc::<Mutex<Recurring>>::default();
        let told = move |event| {
            tell(&recurring, event);
            std::future::ready(())
        };
        let mut options = ConnectOptions::new().name(name).retry_on_initial_connect().event_callback(told);
        if let Some(authority) = authority {
            options = options.add_root_certificates(authority);
        }
        let client = servers.reached_by(options).connect(servers.addresses).await?;
        Ok(Self { context: jetstream::new(client), seen: Seen::default() })
    }

    /// What publishes the log of `service`.
    #[must_use]
    pub fn relay(&self, service: &'static str, log: Log) -> Relay {
        Relay::new(self.clone(), service, log)
    }

    /// The stream of a service, made now if it isn't there. One that is there is taken as it is: its limits and replicas are the
    /// operator's, and those that it had when it was seen last it is made again with.
    async fn stream(&self, service: &str) -> Result<Found, BrokerError> {
        let name = stream_name(service);
        let info = match self.context.request(format!("STREAM.INFO.{name}"), &json!({})).await? {
            Response::Ok(info) => info,
            Response::Err { error } if error.code() == 404 => self.make(service, &name).await?,
            Response::Err { error } => return Err(error.into()),
        };
        self.seen.saw(&name, info["config"].clone());
        Ok(Found { info: serde_json::from_value(info)?, stream: self.context.get_stream_no_info(name).await? })
    }

    /// Makes a stream, and answers what the server says of it.
    async fn make(&self, service: &str, name: &str) -> Result<Value, BrokerError> {
        let config = match self.seen.again(name) {
            Some(config) => config,
            None => serde_json::to_value(stream::Config {
                name: name.to_owned(),
                subjects: vec![format!("trellis.{service}.>")],
                description: Some(format!("The log of {service}: sequence numbers are positions.")),
                max_age: KEPT,
                ..stream::Config::default()
            })?,
        };
        let info: Value = match self.context.request(format!("STREAM.CREATE.{name}"), &config).await? {
            Response::Ok(info) => info,
            // By somebody else in the meantime, and otherwise than here.
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                return self.ask(format!("STREAM.INFO.{name}"), &json!({})).await;
            }
            Response::Err { error } => {
                return Err(format!(
                    "the broker does not make stream {name}: {error}. Make it as the broker allows (nats stream add {name}), and it is \
                     taken as it is"
                )
                .into());
            }
        };
        let config = &info["config"];
        let kept = Duration::from_nanos(config["max_age"].as_u64().unwrap_or_default());
        let replicas = config["num_replicas"].as_u64();
        tracing::info!(service, stream = name, replicas, ?kept, "the stream is made, as it wasn't there");
        Ok(info)
    }

    /// Has somebody see how the stream of a service is by now, if nobody was to of late. If that fails, whoever reads it will hear of that.
    fn look(&self, service: &str) {
        if self.seen.is_due(&stream_name(service)) {
            let (jetstream, service) = (self.clone(), service.to_owned());
            tokio::spawn(async move { jetstream.stream(&service).await.map(drop) });
        }
    }

    /// Has the description of a stream tell of these forms. Nothing else of it is changed, nor lost that only a newer client knows of.
    async fn tell_of(&self, forms: &Forms, info: &stream::Info) -> Result<(), BrokerError> {
        let stream::Config { name, description, .. } = &info.config;
        if forms.missing_in(description.as_deref()).is_none() {
            return Ok(());
        }
        let mut config = self.ask(format!("STREAM.INFO.{name}"), &json!({})).await?["config"].take();
        if let Some(description) = forms.missing_in(config["description"].as_str()) {
            config["description"] = description.into();
            self.ask(format!("STREAM.UPDATE.{name}"), &config).await?;
        }
        Ok(())
    }

    async fn ask(&self, subject: String, request: &Value) -> Result<Value, BrokerError> {
        let answer: Value = self.context.request(subject, request).await?;
        match answer.get("error") {
            Some(error) => Err(error.to_string().into()),
            None => Ok(answer),
        }
    }

    /// Where the stream of a service ends.
    async fn last_position(&self, service: &str) -> Result<i64, BrokerError> {
        Ok(position(self.stream(service).await?.info.state.last_sequence))
    }
}

fn position(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

fn stream_name(service: &str) -> String {
    format!("trellis-{service}")
}

fn subject(service: &str, kind: &str) -> String {
    format!("trellis.{service}.{kind}")
}

/// The kind of aggregate that a service's subject names.
fn kind_of<'s>(subject: &'s str, service: &str) -> Option<&'s str> {
    subject.strip_prefix("trellis.")?.strip_prefix(service)?.strip_prefix('.')
}

/// A message's `Nats-Msg-Id`, by which the server knows a repetition.
fn message_id(service: &str, position: i64) -> String {
    format!("{service}:{position}")
}

/// Whether a service says of a message that it is its own, at that position.
fn is_own(headers: &HeaderMap, service: &str, position: i64) -> bool {
    let own = |id: &HeaderValue| id.as_str().strip_prefix(service)?.strip_prefix(':')?.parse().ok();
    headers.get(NATS_MESSAGE_ID).and_then(own) == Some(position)
}

fn tell(recurring: &Mutex<Recurring>, event: Connection) {
    match event {
        Connection::Connected => tracing::info!("connected to the broker"),
        Connection::Disconnected => tracing::warn!("the broker is out of reach"),
        // Each attempt to connect. Of one that was never reached nothing else says why.
        Connection::ClientError(error) if recurring.lock().is_news(&error.to_string()) => {
            tracing::warn!(%error, "the broker is not reached");
        }
        // It says so of each message that it doesn't take, and those are sent again.
        Connection::ServerError(error) if recurring.lock().is_news(&error.to_string()) => {
            tracing::warn!(%error, "the broker");
        }
        _ => {}
    }
}
