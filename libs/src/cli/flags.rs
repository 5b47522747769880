//! The flags. Their comments are what `--help` says, and every flag has a variable of the same name.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, ValueEnum, builder::RangedU64ValueParser};

use super::{BoxError, DatabaseUrl, NatsUrl, duration};
use crate::{
    breaker::{self, Registry},
    rpc::client::{PeerAddress, PeerAddresses, Peers},
    service::{StartError, tls},
    telemetry::{self, ClientMetrics, propagation},
};

/// How a service serves.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// Address and port to listen on; 0.0.0.0 is every address, as a container needs it, and 127.0.0.1 this machine alone.
    #[arg(long, env = "LISTEN", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,

    /// What to serve: commands, queries or both.
    #[arg(long, env = "SURFACE", value_enum, default_value_t)]
    pub surface: Surface,

    /// Where the data is.
    #[command(flatten)]
    pub store: Store,

    /// NATS servers whose JetStream carries events between services, such as nats://localhost:4222 or tls://USER:PASSWORD@HOST:4222.
    /// Without it services ask each other.
    #[arg(long, env = "NATS_URL", value_name = "URL", hide_env_values = true)]
    pub nats_url: Option<NatsUrl>,

    /// Where another service is, such as inventory=http://localhost:50051, with a comma before each further address or peer; repeatable.
    /// NAME.queries=URI is where its queries are answered and its events told, if not by the same processes.
    #[arg(long = "peer", env = "PEER", value_name = "NAME=URI")]
    pub peers: Vec<PeerAddresses>,

    /// TLS.
    #[command(flatten)]
    pub tls: Tls,

    /// How much and how long.
    #[command(flatten)]
    pub limits: Limits,

    /// How to log.
    #[command(flatten)]
    pub telemetry: telemetry::Args,
}

/// What a process serves of its service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Surface {
    /// Commands and queries.
    #[default]
    All,
    /// Commands alone.
    Command,
    /// Queries alone.
    Query,
}

/// Where a service keeps its data.
#[derive(Clone, Debug, Args)]
pub struct Store {
    /// The database: sqlite:PATH, a file that is made when missing (but not for queries alone), or postgres://…, where the service has a
    /// schema of its own.
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: DatabaseUrl,
}

/// TLS, on when a certificate is given.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "TLS")]
pub struct Tls {
    /// The certificate chain of this server, a PEM file; https peers that want to see one are shown it too.
    #[arg(long, env = "TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, a PEM file.
    #[arg(long, env = "TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// The authority to trust, a PEM file: clients of a TLS server must show a certificate of it, https peers too.
    #[arg(long, env = "TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
}

/// How much and how long.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// How long calls in flight may take to end once the server is told to stop.
    #[arg(long, env = "DRAIN_TIMEOUT", value_name = "DURATION", default_value = "20s", value_parser = duration::parse)]
    pub drain_timeout: Duration,

    /// How long the server goes on accepting after it says NOT_SERVING, so that balancers look elsewhere first.
    #[arg(long, env = "DRAIN_GRACE", value_name = "DURATION", default_value = "500ms", value_parser = duration::parse)]
    pub drain_grace: Duration,

    /// The most time that a call may take, whatever its client allows it. A client that leaves an answer untaken for so long, and for
    /// longer than --keepalive-timeout, loses its connection, unless that is a stream.
    #[arg(long, env = "MAX_DEADLINE", value_name = "DURATION", default_value = "30s", value_parser = duration::parse_some)]
    pub max_deadline: Duration,

    /// How long a query waits for the write whose consistency token it carries.
    #[arg(long, env = "MAX_STALENESS_WAIT", value_name = "DURATION", default_value = "1s", value_parser = duration::parse)]
    pub max_staleness_wait: Duration,

    /// The largest message of a request, in bytes, for whichever service it is: 64 KiB at the least, as the largest order and each
    /// call of its saga have room in it, and 4 MiB at the most. A larger one is not read, and refused with OUT_OF_RANGE. As many as
    /// --max-calls may be held until they are complete, and beside them those for health, sixteen on a connection and of 4 KiB at the most, and
    /// 16 MiB of what reflection has not read, as its answers are not taken.
    #[arg(long, env = "MAX_REQUEST_BYTES", value_name = "BYTES", default_value_t = 128 << 10, value_parser = RangedU64ValueParser::<usize>::new().range(Limits::LEAST_REQUEST_BYTES..=Limits::MOST_REQUEST_BYTES))]
    pub max_request_bytes: usize,

    /// The largest message that the service's own commands and queries answer, in bytes, 128 KiB at the least: what the largest command
    /// makes must go into one.
    #[arg(long, env = "MAX_MESSAGE_BYTES", value_name = "BYTES", default_value_t = 4 << 20, value_parser = RangedU64ValueParser::<usize>::new().range(Limits::LEAST_MESSAGE_BYTES..))]
    pub max_message_bytes: usize,

    /// The largest header list of a call, in bytes, 4096 at the least: a saga's call has some 2000 with its trace. A larger one is refused
    /// with OUT_OF_RANGE, and one of more than twice as many with HTTP 431 and no gRPC status.
    #[arg(long, env = "MAX_HEADER_BYTES", value_name = "BYTES", default_value_t = 16 << 10, value_parser = clap::value_parser!(u32).range(4 << 10..))]
    pub max_header_bytes: u32,

    /// The most connections at a time; what comes beyond is closed at once, and once there are half as many of one address so is what comes
    /// of that. This machine has no such half, and of sixteen places one, 64 at the most, is for it and for who has no other connection. Each
    /// takes an open file.
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,

    /// The most calls in flight on one connection; more wait at the client.
    #[arg(long, env = "MAX_STREAMS", value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_streams: u32,

    /// The most calls being worked on, of all connections together, and answers that their clients have still to take; more are refused
    /// at once with RESOURCE_EXHAUSTED. Health and reflection are none of them, but a connection has sixteen such calls at a time, and all of
    /// them together sixteen of reflection; and of sixteen places one, 64 at the most, is for operators alone.
    #[arg(long, env = "MAX_CALLS", value_name = "COUNT", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_calls: u32,

    /// The most sagas under way in a process that drives some, and with 8 KiB for each of them the most that they keep of messages, all
    /// together, where each counts as four times its input at the least, and goes past it with what it comes to keep beyond that; what would
    /// start one more is refused with RESOURCE_EXHAUSTED, and what another process leaves is taken over as places become free.
    #[arg(long, env = "MAX_SAGAS", value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sagas: u32,

    /// How long answers are kept, a second at the least: a command that its client repeats within that gets the same one, and so long
    /// after a saga's end its participants forget it. The same for all processes that share a database. Ages go by the wall's clock: what
    /// is stored while that is behind looks so much older to whoever starts once it is right, or shares the database.
    #[arg(long, env = "KEEP_ANSWERS", value_name = "DURATION", default_value = "7d", value_parser = duration::parse_second)]
    pub keep_answers: Duration,

    /// How often a silent connection is asked for a sign of life.
    #[arg(long, env = "KEEPALIVE", value_name = "DURATION", default_value = "30s", value_parser = duration::parse_some)]
    pub keepalive: Duration,

    /// How long that sign may take before the connection is given up. So is one whose client takes nothing of what it is sent, nor says
    /// anything, for this and `--keepalive` together.
    #[arg(long, env = "KEEPALIVE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration::parse_some)]
    pub keepalive_timeout: Duration,

    /// The age, give or take a tenth, at which a connection is closed so that its client finds new servers. Its calls have the time
    /// that they may take.
    #[arg(long, env = "MAX_CONNECTION_AGE", value_name = "DURATION", default_value = "15m", value_parser = duration::parse_some)]
    pub max_connection_age: Duration,
}

impl Limits {
    /// The least that `--max-request-bytes` may be. The largest order that is valid is smaller, and so is what this crate asks of others by
    /// itself, such as what a participant may forget. A step of a saga has the request that its definition makes, however large.
    pub const LEAST_REQUEST_BYTES: u64 = 64 << 10;
    /// The most that it may be: tonic's own bound, so that it is never tonic that refuses.
    pub const MOST_REQUEST_BYTES: u64 = 4 << 20;
    /// The least that `--max-message-bytes` may be. What commands take is bounded, and so is what is made of it: the largest answer that
    /// isn't cut into pages must be smaller.
    pub const LEAST_MESSAGE_BYTES: u64 = 128 << 10;
}

impl Serve {
    /// The defaults, for a service assembled by a program rather than a command line.
    #[must_use]
    pub fn new(listen: SocketAddr, database_url: DatabaseUrl) -> Self {
        Self {
            listen,
            surface: Surface::All,
            store: Store { database_url },
            nats_url: None,
            peers: Vec::new(),
            tls: Tls::default(),
            limits: Limits::default(),
            telemetry: telemetry::Args::default(),
        }
    }

    /// Checks the peers that were typed and how to trust them, before anything is made.
    ///
    /// # Errors
    /// When an address is given for a peer that `defaults` does not name, an address asks for a TLS that cannot be had, or a file of the
    /// TLS can't be used.
    pub(super) fn check_peers(&self, defaults: &[(&str, &str)]) -> Result<(), BoxError> {
        Ok(self.secured_peers(Registry::new(), defaults)?.check()?)
    }

    fn typed_peers(&self) -> Vec<PeerAddress> {
        self.peers.iter().flat_map(|PeerAddresses(peers)| peers.clone()).collect()
    }

    /// The peers of `defaults`, at the addresses typed instead where there are such. Their breakers are measured, and calls to them
    /// carry the trace they belong to. `service` is this one's bare name. Peers at https addresses are trusted by `--tls-ca` and shown this service's own certificate.
    ///
    /// # Errors
    /// When an address is given for a peer that `defaults` does not name, or a file of the TLS can't be read.
    pub fn known_peers(
        &self,
        service: &'static str,
        registry: Registry,
        defaults: &[(&str, &str)],
    ) -> Result<Peers, BoxError> {
        let meter = telemetry::meter(service);
        if let Some(meter) = &meter {
            breaker::metrics::observe(&registry, meter);
        }
        let peers = self.secured_peers(registry, defaults)?.on_request(Arc::new(propagation::inject));
        Ok(match meter {
            Some(meter) => peers.measured_by(ClientMetrics::of(&meter)),
            None => peers,
        })
    }

    fn secured_peers(&self, registry: Registry, defaults: &[(&str, &str)]) -> Result<Peers, BoxError> {
        let peers = Peers::new(registry, defaults, self.typed_peers())?;
        let Tls { tls_cert, tls_key, tls_ca } = &self.tls;
        let peers = match (tls_cert, tls_key) {
            (Some(certificate), Some(key)) => {
                peers.identify(tls::read("--tls-cert", certificate)?, tls::read("--tls-key", key)?)
            }
            _ => peers,
        };
        let Some(path) = tls_ca else { return Ok(peers) };
        let authority = tls::read("--tls-ca", path)?;
        // Who trusts nobody starts well, and then finds every peer wrong.
        if !authority.windows(CERTIFICATE.len()).any(|words| words == CERTIFICATE) {
            let source = io::Error::new(io::ErrorKind::InvalidData, "there is no certificate in it");
            return Err(StartError::File { flag: "--tls-ca", path: path.clone(), source }.into());
        }
        Ok(peers.trust(authority))
    }
}

/// What a certificate begins with in a PEM file.
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

impl Surface {
    /// True if commands are served.
    #[must_use]
    pub const fn commands(self) -> bool {
        matches!(self, Self::All | Self::Command)
    }

    /// True if queries are served.
    #[must_use]
    pub const fn queries(self) -> bool {
        matches!(self, Self::All | Self::Query)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(20),
            drain_grace: Duration::from_millis(500),
            max_deadline: Duration::from_secs(30),
            max_staleness_wait: Duration::from_secs(1),
            max_request_bytes: 128 << 10,
            max_message_bytes: 4 << 20,
            max_header_bytes: 16 << 10,
            max_connections: 512,
            max_streams: 256,
            max_calls: 4096,
            max_sagas: 100_000,
            keep_answers: Duration::from_secs(7 * 24 * 60 * 60),
            keepalive: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            max_connection_age: Duration::from_secs(15 * 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_tells_the_bound_of_a_limit_for_which_one_is_too_little() {
        let line = || Limits::augment_args(clap::Command::new("tea"));
        let mut bound = 0;
        for limit in line().get_arguments() {
            let flag = format!("--{}", limit.get_long().expect("a flag"));
            let is_taken = |value| line().try_get_matches_from(["tea", &flag, value]).is_ok();
            if !["1", "1ms"].into_iter().any(is_taken) {
                let help = limit.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains(" at the least"), "{flag}: {help}");
                bound += 1;
            }
        }
        assert!(bound >= 3, "{bound} limits have one");
    }
}
