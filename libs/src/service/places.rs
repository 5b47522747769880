//! The bound on connections: each costs memory and an open file, whoever it is of and whether it calls or not.
//!
//! What has no place is closed before anything is said on it. Nobody's address has more than half of the places, so that one caller alone
//! leaves some; callers that come by a proxy have its address. The last places are for who has no other connection, such as the kubelet
//! with its next probe, and for this machine, of which are a probe that is a program of its own and an operator with a forwarded port.
//! This machine has no half either: a proxy beside the service may be all its callers.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use opentelemetry::metrics::Meter;
use parking_lot::Mutex;

use crate::told::Told;

/// Of so many places one is for those with no other connection and for this machine, and no more than [`MOST_LAST`] are.
const OTHERS: usize = 16;
/// More than a machine has probes and operators.
const MOST_LAST: usize = 64;

/// The places of a server. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    service: &'static str,
    most: usize,
    /// How many of them are the last ones.
    last: usize,
    taken: Mutex<Taken>,
    refused: AtomicU64,
    told: Told,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// By address, of those that have any.
    of: HashMap<IpAddr, usize>,
}

/// What a connection has until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    client: IpAddr,
}

impl Places {
    /// So many, for the service of this bare name.
    pub(super) fn new(service: &'static str, most: usize) -> Self {
        let last = (most / OTHERS).min(MOST_LAST);
        let (taken, refused, told) = (Mutex::default(), AtomicU64::default(), Told::default());
        Self(Arc::new(Shared { service, most, last, taken, refused, told }))
    }

    /// Measures them.
    pub(super) fn observe(&self, meter: &Meter) {
        // The instruments live as long as their meter's provider; these handles are not needed.
        let places = self.clone();
        let _open = meter
            .u64_observable_gauge("connections.open")
            .with_unit("{connection}")
            .with_description("Connections that have a place.")
            .with_callback(move |observer| observer.observe(places.0.taken.lock().all as u64, &[]))
            .build();
        let places = self.clone();
        let _refused = meter
            .u64_observable_counter("connections.refused")
            .with_unit("{connection}")
            .with_description("Connections that were closed at once, as there was no place for them.")
            .with_callback(move |observer| observer.observe(places.0.refused.load(Relaxed), &[]))
            .build();
    }

    /// A place for a connection of this address, if there is one.
    pub(super) fn enter(&self, client: IpAddr) -> Option<Place> {
        let Shared { service, most, last, taken, refused, told } = &*self.0;
        // One that takes IPv6 sees those of IPv4 as such.
        let client = client.to_canonical();
        let mut taken = taken.lock();
        let of_client = taken.of.get(&client).copied().unwrap_or_default();
        let (is_first, is_near, half) = (of_client == 0, client.is_loopback(), most.div_ceil(2));
        let free = if is_first || is_near { *most } else { most - last };
        if taken.all < free && (of_client < half || is_near) {
            taken.all += 1;
            taken.of.insert(client, of_client + 1);
            return Some(Place { places: self.clone(), client });
        }
        let open = taken.all;
        drop(taken);
        let refused = refused.fetch_add(1, Relaxed) + 1;
        if told.is_due() {
            tracing::warn!(service, %client, of_client, open, refused, "too many connections: others are closed at once");
        }
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.taken.lock();
        taken.all -= 1;
        if let Some(of_client) = taken.of.get_mut(&self.client) {
            *of_client -= 1;
            if *of_client == 0 {
                taken.of.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter::from_fn;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// All that one address gets.
    fn all_of(places: &Places, client: IpAddr) -> Vec<Place> {
        from_fn(|| places.enter(client)).collect()
    }

    #[test]
    fn one_address_has_half_of_the_places_at_the_most() {
        let places = Places::new("tea", 64);
        let greedy = all_of(&places, address(1));
        assert_eq!(greedy.len(), 32);
        assert!(places.enter(address(2)).is_some(), "it has left some");
        let mapped = "::ffff:10.0.0.1".parse().expect("an address");
        assert!(places.enter(mapped).is_none(), "it is the same one by IPv6");
        drop(greedy);
        assert!(places.enter(address(1)).is_some(), "who has gone has left a place");
        assert!(places.0.taken.lock().of.is_empty(), "and is not remembered");
    }

    #[test]
    fn the_last_places_are_for_who_has_no_other_connection_and_for_this_machine() {
        let places = Places::new("tea", 64);
        let mut taken: Vec<_> = [1, 2].into_iter().flat_map(|client| all_of(&places, address(client))).collect();
        assert_eq!(taken.len(), 60);
        let probe = places.enter(address(3)).expect("it has none");
        assert!(places.enter(address(3)).is_none(), "it has one");
        drop(probe);
        assert!(places.enter(address(3)).is_some(), "it has none again");
        let here = IpAddr::from([127, 0, 0, 1]);
        taken.extend(all_of(&places, here));
        assert_eq!(taken.len(), 64);
        assert!(places.enter(address(4)).is_none(), "there are no more than all");
    }

    #[test]
    fn this_machine_may_have_them_all() {
        for (most, here) in [(64, IpAddr::from([127, 0, 0, 6])), (1, "::1".parse().expect("an address"))] {
            assert_eq!(all_of(&Places::new("tea", most), here).len(), most);
        }
    }

    #[test]
    fn few_places_are_places_all_the_same() {
        for (most, of_one) in [(1, 1), (2, 1), (3, 2), (15, 8)] {
            assert_eq!(all_of(&Places::new("tea", most), address(1)).len(), of_one, "of {most}");
        }
    }
}
