//! Where to listen so that no other test does: ports that stay one server's own while it is killed and restarted, and whole addresses.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    ops::RangeInclusive,
};

use rand::seq::IndexedRandom as _;

/// A TCP port of the loopback interface that no other test takes.
#[derive(Debug)]
pub struct Port {
    number: u16,
    // The UDP port of the same number, held for as long as this lives: it keeps tests that run at the same time apart and leaves
    // the TCP port free for the server, in whichever process that is.
    _held: UdpSocket,
}

/// The ports that the kernel takes those of outgoing connections from, where it says.
fn outgoing() -> Option<RangeInclusive<u16>> {
    let told = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut told = told.split_whitespace().map_while(|port| port.parse().ok());
    Some(told.next()?..=told.next()?)
}

/// The ports to choose from: none of those, or it may be given to a client while its server is down. As they mostly are where nobody says,
/// or where there are no others.
fn outside(outgoing: Option<RangeInclusive<u16>>) -> Vec<u16> {
    let but = |taken: RangeInclusive<u16>| (10_000..=u16::MAX).filter(|port| !taken.contains(port)).collect();
    let others: Vec<u16> = outgoing.map(but).unwrap_or_default();
    if others.is_empty() { but(32_000..=u16::MAX) } else { others }
}

impl Port {
    /// Chooses a free port that the kernel gives to no client.
    ///
    /// # Errors
    /// When none of a hundred is free.
    pub fn free() -> io::Result<Self> {
        let (mut random, ports) = (rand::rng(), outside(outgoing()));
        let try_one = || {
            let number = *ports.choose(&mut random)?;
            let held = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
            TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
            Some(Self { number, _held: held })
        };
        let free = std::iter::repeat_with(try_one).take(100).flatten().next();
        free.ok_or_else(|| io::Error::other("no port is free"))
    }

    /// Where a server listens, or a client connects.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

/// An address of this machine that nobody else has: it keeps a program apart whose ports are fixed.
#[must_use]
pub fn own_host() -> Ipv4Addr {
    Ipv4Addr::from((127 << 24) | rand::random_range(1 << 16..1 << 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_chosen_that_an_outgoing_connection_may_have() {
        let usual: Vec<u16> = (10_000..32_000).collect();
        assert_eq!(outside(Some(12_000..=65_000)), (10_000..12_000).chain(65_001..=65_535).collect::<Vec<_>>());
        assert_eq!(outside(Some(10_000..=31_999)), (32_000..=65_535).collect::<Vec<_>>());
        assert_eq!(outside(Some(1_024..=65_535)), usual, "there are no others");
        assert_eq!(outside(None), usual, "nobody says");
        let port = Port::free().expect("a free port").number;
        assert!(outside(outgoing()).contains(&port), "{port}");
    }

    #[test]
    fn a_chosen_port_is_free_for_tcp_and_nobody_elses() {
        let port = Port::free().expect("a free port");
        assert!(TcpListener::bind(port.address()).is_ok());
        assert!(UdpSocket::bind(port.address()).is_err());
    }
}
