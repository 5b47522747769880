//! Keeps a peer's addresses current: names are looked up again, and who is gone is forgotten.

use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::join_all;
use http::Uri;
use tokio::time::{sleep, timeout};

use super::{
    PeerOptions, Peers,
    endpoints::{Endpoint, Endpoints, Shared},
    place::{self, Lookup, Place},
};

/// Between two lookups while all addresses answer, and the least time while one is out.
const PERIOD: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(1);
/// Lookups of other names wait no longer for one. A resolver asks the next nameserver after 5 s, and has three of them.
const LOOKUP: Duration = Duration::from_secs(15);

/// Whoever keeps the addresses of one channel to a peer.
pub(super) struct Follower {
    peers: Peers,
    name: String,
    uris: Vec<Known>,
    options: PeerOptions,
    /// Breakers of addresses that are gone, while calls to them are under way.
    gone: Vec<String>,
}

/// What one address of the peer, as it was typed, was last found to stand for.
struct Known {
    uri: Uri,
    places: Vec<Place>,
    /// Its name cannot be looked up at present.
    lost: bool,
}

impl Follower {
    pub(super) fn new(peers: &Peers, name: &str, uris: &[Uri], options: &PeerOptions) -> Self {
        let (peers, name, options) = (peers.clone(), name.to_owned(), options.clone());
        let typed = |uri: &Uri| Known { uri: uri.clone(), places: vec![Place::typed(uri.clone())], lost: false };
        Self { peers, name, uris: uris.iter().map(typed).collect(), options, gone: Vec::new() }
    }

    /// Follows from now on, as long as anybody holds the endpoints. Without a name there is nothing to follow.
    pub(super) fn start(self, endpoints: &Endpoints) {
        if self.uris.iter().any(|known| place::name(&known.uri).is_some()) {
            tokio::spawn(self.run(Arc::downgrade(endpoints.shared())));
        }
    }

    async fn run(mut self, endpoints: Weak<Shared>) {
        loop {
            let places = self.look().await;
            let Some(shared) = endpoints.upgrade() else { return };
            self.move_to(&shared, &places);
            drop(shared);
            sleep(SOON).await;
            let Some(shared) = endpoints.upgrade() else { return };
            // An error is time that is over.
            let _ = timeout(PERIOD - SOON, shared.doubted()).await;
        }
    }

    /// All places. Those of a name that cannot be looked up stay as they are known, and hold up no other's for longer
    /// than [`LOOKUP`].
    async fn look(&mut self) -> Vec<Place> {
        let (peer, lookup) = (&self.name, self.peers.lookup());
        join_all(self.uris.iter_mut().map(|known| known.look(peer, lookup))).await;
        self.uris.iter().flat_map(|known| known.places.clone()).collect()
    }

    fn move_to(&mut self, endpoints: &Shared, places: &[Place]) {
        let held = endpoints.all();
        if !held.iter().map(|endpoint| &endpoint.place).eq(places) {
            let several = places.len() > 1;
            let stays = |place: &Place| held.iter().find(|endpoint| several && endpoint.place == *place).cloned();
            let make = |place: &Place| self.peers.endpoint(&self.name, place, several, &self.options);
            let all: Result<Vec<Endpoint>, _> =
                places.iter().map(|place| stays(place).map_or_else(|| make(place), Ok)).collect();
            match all {
                Ok(all) => {
                    tracing::info!(peer = self.name, from = held.len(), to = places.len(), "addresses changed");
                    tracing::debug!(peer = self.name, from = ?held, to = ?places, "addresses");
                    endpoints.replace(all);
                    if held.len() > 1 {
                        self.gone.extend(held.iter().map(|endpoint| endpoint.ejection.breaker().name().to_string()));
                    }
                }
                // It could be set up when the peer was named.
                Err(error) => tracing::warn!(peer = self.name, %error, "new addresses are not used"),
            }
        }
        drop(held);
        let registry = self.peers.registry();
        self.gone.retain(|name| !registry.forget(name));
        // Those that are in use again are nobody's to forget.
        let used: Vec<Arc<str>> =
            endpoints.all().iter().map(|endpoint| Arc::clone(endpoint.ejection.breaker().name())).collect();
        self.gone.retain(|name| used.iter().all(|used| **used != **name));
    }
}

impl Known {
    async fn look(&mut self, peer: &str, lookup: &Lookup) {
        let (uri, lost) = (&self.uri, self.lost);
        let found = timeout(LOOKUP, place::places(uri, lookup)).await;
        match found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(places) => {
                if lost {
                    tracing::info!(peer, %uri, "a name can be looked up again");
                }
                (self.places, self.lost) = (places, false);
            }
            // Told once: the next try is soon, and many may follow.
            Err(error) => {
                if !lost {
                    tracing::warn!(peer, %uri, %error, "a name cannot be looked up: what it stood for is kept");
                }
                self.lost = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use parking_lot::Mutex;

    use super::*;
    use crate::breaker::{Breaker, Class, Config, Override, Registry};

    type Answer = io::Result<Vec<SocketAddr>>;

    /// A peer named "pod" whose addresses are what the answer says.
    fn followed(answer: &Arc<Mutex<Option<Vec<u8>>>>) -> (Endpoints, Registry) {
        let answer = Arc::clone(answer);
        let lookup = move |_: String, port: u16| -> Answer {
            let numbers = answer.lock().clone().ok_or_else(|| io::Error::other("no such name"))?;
            Ok(numbers.into_iter().map(|number| SocketAddr::from(([10, 0, 0, number], port))).collect())
        };
        let registry = Registry::new();
        let peers = Peers::new(registry.clone(), &[("pod", "http://pod:1")], Vec::new()).expect("well formed");
        let peers = peers.looked_up_by(Arc::new(move |host, port| Box::pin(std::future::ready(lookup(host, port)))));
        (peers.endpoints("pod", &PeerOptions::saga()).expect("known"), registry)
    }

    async fn after(time: Duration, endpoints: &Endpoints) -> String {
        sleep(time).await;
        format!("{endpoints:?}")
    }

    #[tokio::test(start_paused = true)]
    async fn pods_come_and_go_and_a_name_that_cannot_be_looked_up_changes_nothing() {
        let answer = Arc::new(Mutex::new(None));
        let (endpoints, registry) = followed(&answer);
        let (moment, period) = (Duration::from_millis(1), PERIOD + SOON);
        assert_eq!(after(moment, &endpoints).await, "[pod:1]");
        *answer.lock() = Some(vec![1, 2]);
        assert_eq!(after(period, &endpoints).await, "[10.0.0.1:1, 10.0.0.2:1]");
        *answer.lock() = None;
        assert_eq!(after(period, &endpoints).await, "[10.0.0.1:1, 10.0.0.2:1]");
        let names = || registry.list("pod/").iter().map(|breaker| breaker.name().to_string()).collect::<Vec<_>>();
        assert_eq!(names(), ["pod/10.0.0.1:1", "pod/10.0.0.2:1"]);
        *answer.lock() = Some(vec![2, 3]);
        assert_eq!(after(period, &endpoints).await, "[10.0.0.2:1, 10.0.0.3:1]");
        assert_eq!(names(), ["pod/10.0.0.2:1", "pod/10.0.0.3:1"], "who is gone is forgotten");
        *answer.lock() = Some(vec![3]);
        assert_eq!(after(period, &endpoints).await, "[pod:1]");
        assert_eq!(names(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_operator_has_said_of_an_address_holds_when_it_comes_back() {
        let answer = Arc::new(Mutex::new(Some(vec![1, 2])));
        let (endpoints, registry) = followed(&answer);
        assert_eq!(after(SOON, &endpoints).await, "[10.0.0.1:1, 10.0.0.2:1]");
        let forced = || registry.get("pod/10.0.0.2:1").map(|breaker| breaker.is_forced_open());
        registry.get("pod/10.0.0.2:1").expect("it is called").set_override(Override::ForcedOpen);
        let period = PERIOD + SOON;
        for (numbers, shown) in [(vec![1], "[pod:1]"), (vec![1, 2], "[10.0.0.1:1, 10.0.0.2:1]")] {
            *answer.lock() = Some(numbers);
            assert_eq!(after(period, &endpoints).await, shown);
            assert_eq!(forced(), Some(true), "{shown}");
        }
        registry.get("pod/10.0.0.2:1").expect("it is called").set_override(Override::None);
        *answer.lock() = Some(vec![1]);
        assert_eq!(after(period, &endpoints).await, "[pod:1]");
        assert_eq!(forced(), None, "as anybody who is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_cannot_be_looked_up_holds_up_no_other() {
        let pods = Arc::new(Mutex::new(vec![1, 2]));
        let found = Arc::clone(&pods);
        let lookup = move |host: String, port: u16| -> Answer {
            let numbers = if host == "pod" { found.lock().clone() } else { Vec::new() };
            let addresses = numbers.into_iter().map(|number| SocketAddr::from(([10, 0, 0, number], port)));
            if host == "pod" { Ok(addresses.collect()) } else { Err(io::Error::other("no such name")) }
        };
        let given = vec!["pod=http://lost:1,http://pod:1".parse().expect("well formed")];
        let peers = Peers::new(Registry::new(), &[("pod", "http://pod:1")], given).expect("well formed");
        let peers = peers.looked_up_by(Arc::new(move |host, port| Box::pin(std::future::ready(lookup(host, port)))));
        let endpoints = peers.endpoints("pod", &PeerOptions::saga()).expect("known");
        assert_eq!(after(SOON, &endpoints).await, "[lost:1, 10.0.0.1:1, 10.0.0.2:1]");
        *pods.lock() = vec![2, 3];
        assert_eq!(after(PERIOD + SOON, &endpoints).await, "[lost:1, 10.0.0.2:1, 10.0.0.3:1]");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_whose_lookup_does_not_end_holds_up_no_other() {
        let pods = Arc::new(Mutex::new(vec![1, 2]));
        let found = Arc::clone(&pods);
        let lookup: Lookup = Arc::new(move |host, port| {
            let numbers = found.lock().clone();
            Box::pin(async move {
                if host == "slow" {
                    std::future::pending::<()>().await;
                }
                Ok(numbers.into_iter().map(|number| SocketAddr::from(([10, 0, 0, number], port))).collect())
            })
        });
        let given = vec!["pod=http://slow:1,http://pod:1".parse().expect("well formed")];
        let peers = Peers::new(Registry::new(), &[("pod", "http://pod:1")], given).expect("well formed");
        let endpoints = peers.looked_up_by(lookup).endpoints("pod", &PeerOptions::saga()).expect("known");
        assert_eq!(after(PERIOD, &endpoints).await, "[slow:1, 10.0.0.1:1, 10.0.0.2:1]");
        *pods.lock() = vec![2, 3];
        assert_eq!(after(2 * PERIOD, &endpoints).await, "[slow:1, 10.0.0.2:1, 10.0.0.3:1]");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_asks_a_second_nameserver_counts() {
        let answer = Arc::new(Mutex::new((Duration::ZERO, vec![1, 2])));
        let told = Arc::clone(&answer);
        let lookup: Lookup = Arc::new(move |_, port| {
            let (wait, numbers) = told.lock().clone();
            Box::pin(async move {
                sleep(wait).await;
                Ok(numbers.into_iter().map(|number| SocketAddr::from(([10, 0, 0, number], port))).collect())
            })
        });
        let peers = Peers::new(Registry::new(), &[("pod", "http://pod:1")], Vec::new()).expect("well formed");
        let endpoints = peers.looked_up_by(lookup).endpoints("pod", &PeerOptions::saga()).expect("known");
        assert_eq!(after(SOON, &endpoints).await, "[10.0.0.1:1, 10.0.0.2:1]");
        // glibc gives each nameserver 5 s.
        *answer.lock() = (Duration::from_millis(5010), vec![2, 3]);
        assert_eq!(after(2 * PERIOD, &endpoints).await, "[10.0.0.2:1, 10.0.0.3:1]");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_out_has_the_name_looked_up_soon() {
        let answer = Arc::new(Mutex::new(Some(vec![1, 2])));
        let (endpoints, registry) = followed(&answer);
        assert_eq!(after(2 * SOON, &endpoints).await, "[10.0.0.1:1, 10.0.0.2:1]");
        let first = registry.get("pod/10.0.0.1:1").expect("shown");
        (0..3).for_each(|_| first.admit().expect("closed").finish(Class::Failure));
        *answer.lock() = Some(vec![2, 3]);
        // It is found out when a call is to go somewhere, and what has not opened yet is told before it is next asked.
        let peer = Breaker::new("pod", Config::default());
        drop(endpoints.call(http::Request::default(), &mut peer.admit().expect("closed")));
        assert_eq!(after(2 * SOON, &endpoints).await, "[10.0.0.2:1, 10.0.0.3:1]");
    }
}
