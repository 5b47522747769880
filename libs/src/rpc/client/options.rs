//! How a peer is called.

use std::time::Duration;

use tonic::Status;

use super::Retry;
use crate::breaker::{BreakerLayer, Class, Classes, Config, ProbeTimeout, layer::Judge};

/// How a peer is called.
#[derive(Clone, Debug)]
#[must_use]
pub struct PeerOptions {
    pub(super) timeout: Option<Duration>,
    pub(super) connect_timeout: Duration,
    pub(super) breaker: Config,
    /// What follows the peer's name in the breaker's, for channels that are judged apart.
    pub(super) apart: Option<&'static str>,
    /// True for what the peer's query surface answers, which may be at addresses of its own.
    pub(super) asks: bool,
    pub(super) classes: Classes,
    pub(super) method_classes: Vec<(Box<str>, Classes)>,
    pub(super) judge: Option<Judge>,
    pub(super) methods: Option<usize>,
    pub(super) most_calls: Option<usize>,
    pub(super) retry: Option<Retry>,
    pub(super) ejection: Config,
}

impl PeerOptions {
    /// For a saga's steps: a long timeout, and nothing below the saga ever sends a call twice.
    pub fn saga() -> Self {
        Self {
            timeout: Some(Duration::from_secs(10)),
            connect_timeout: Duration::from_secs(2),
            breaker: Config::default(),
            apart: None,
            asks: false,
            classes: Classes::default(),
            method_classes: Vec::new(),
            judge: None,
            methods: None,
            most_calls: None,
            retry: None,
            ejection: ejection(ProbeTimeout::Failure),
        }
    }

    /// For queries: a person may be waiting, and asking twice does no harm. Their breaker is one of their own, `PEER.queries`, and so are
    /// those of several addresses: who gives up early says that the peer is too slow for them, and not for a saga.
    pub fn query() -> Self {
        Self {
            asks: true,
            timeout: Some(Duration::from_secs(5)),
            most_calls: Some(1024),
            retry: Some(Retry::new()),
            ..Self::saga()
        }
    }

    /// For a stream that is to last: no timeout, and whoever reads it opens it again. Its breaker is one of its own, `PEER/streams`, and
    /// so are those of several addresses: a stream on which nothing happens says nothing about calls. One probe decides, as there may
    /// be but one stream, and one that waits for something to happen is not hung.
    pub fn stream() -> Self {
        let (breaker, ejection) = (of_streams(), ejection(ProbeTimeout::Neutral));
        Self { timeout: None, apart: Some("streams"), asks: true, breaker, ejection, ..Self::saga() }
    }

    /// Lets no more than so many calls be under way at once; what does not fit is refused as RESOURCE_EXHAUSTED.
    pub fn most_calls(mut self, calls: impl Into<Option<usize>>) -> Self {
        self.most_calls = calls.into();
        self
    }

    /// Tries calls again. Only for calls that may be made twice, and never for a saga's steps.
    pub fn retry(mut self, retry: impl Into<Option<Retry>>) -> Self {
        self.retry = retry.into();
        self
    }

    /// When one of several addresses is passed over, and for how long.
    pub fn ejection(mut self, config: Config) -> Self {
        self.ejection = config;
        self
    }

    /// Ends a call that carries no timeout of its own after so long; `None` never does. For a call that does, that one holds.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Gives up connecting after so long, and a TLS handshake on what is connected after as long again.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Configures the breaker, unless the peer already has one.
    pub fn breaker(mut self, config: Config) -> Self {
        self.breaker = config;
        self
    }

    /// Gives each method a breaker of its own, configured as the peer's is when the method is first called; while the peer's is forced open,
    /// no method is called. There are at most so many: for one more, those that are idle are forgotten; where none is, the new method
    /// shares the peer's. For peers whose methods fail apart, such as one that needs a database the others don't.
    pub fn breaker_per_method(mut self, most: usize) -> Self {
        self.methods = Some(most);
        self
    }

    /// Judges codes by other classes.
    pub fn classes(mut self, classes: Classes) -> Self {
        self.classes = classes;
        self
    }

    /// Judges the codes of one method by other classes: `/inventory.v1.InventoryQueryService/GetStock`, say.
    pub fn method_classes(mut self, path: &str, classes: Classes) -> Self {
        self.method_classes.push((format!("/{}", path.trim_start_matches('/')).into(), classes));
        self
    }

    /// Asks this about every error before its code is looked up: details may tell what the code doesn't. `None` leaves it to the
    /// code.
    pub fn judge(mut self, judge: impl Fn(&Status) -> Option<Class> + Send + Sync + 'static) -> Self {
        self.judge = Some(Judge::new(judge));
        self
    }

    /// A layer that judges calls as these options say.
    pub(super) fn judged(&self, layer: BreakerLayer) -> BreakerLayer {
        let layer = layer.classes(self.classes);
        // An attempt's own time is kept until its answer begins, and not to its end.
        let own_time = self.retry.as_ref().is_some_and(|retry| retry.attempt_timeout.is_some());
        let layer = if own_time { layer } else { layer.punctual() };
        match self.judge.clone() {
            Some(judge) => layer.judge_by(judge),
            None => layer,
        }
    }
}

/// Three failures in a row, and an address is passed over; one probe that succeeds, and it is back. There are two, since the first may
/// fail for what is long over: how a connection ended that an earlier call began and left is told to the next one.
fn ejection(hung: ProbeTimeout) -> Config {
    // Checked by a test: these settings make sense.
    Config::builder().consecutive_failures(3).probes(2, 1).on_probe_timeout(hung).build().unwrap_or_default()
}

fn of_streams() -> Config {
    // Checked by a test as well.
    let config = Config::builder().probes(1, 1).on_probe_timeout(ProbeTimeout::Neutral);
    config.build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::advance;

    use super::*;
    use crate::breaker::{Breaker, State, TokioClock};

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_that_probes_an_address_says_nothing_against_it() {
        let address = Breaker::with_clock("address", PeerOptions::stream().ejection, Arc::new(TokioClock::new()));
        (0..3).for_each(|_| address.admit().expect("closed").finish(Class::Failure));
        advance(Duration::from_secs(10)).await;
        let _quiet = address.admit().expect("a probe");
        advance(Duration::from_secs(10)).await;
        let _other = address.admit().expect("the next one");
        assert_eq!(address.state(), State::HalfOpen);
    }

    #[test]
    fn the_settings_of_ejection_and_streams_make_sense() {
        for options in [PeerOptions::saga(), PeerOptions::stream()] {
            assert_ne!(options.ejection, Config::default());
        }
        assert_ne!(PeerOptions::stream().breaker, Config::default());
    }
}
