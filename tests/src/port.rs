//! Where to listen so that no other test does: ports that stay one server's own while it is killed and restarted, and whole addresses.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

use rand::RngExt as _;

/// A TCP port of the loopback interface that no other test takes.
#[derive(Debug)]
pub struct Port {
    number: u16,
    // The UDP port of the same number, held for as long as this lives: it keeps tests that run at the same time apart and leaves
    // the TCP port free for the server, in whichever process that is.
    _held: UdpSocket,
}

impl Port {
    /// Chooses a free port.
    ///
    /// Below the range that the kernel takes the ports of outgoing connections from, so that none is given to a client while its
    /// server is down.
    ///
    /// # Errors
    /// When none of a hundred is free.
    pub fn free() -> io::Result<Self> {
        let mut random = rand::rng();
        let try_one = || {
            let number = random.random_range(10_000..32_000);
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
    fn a_chosen_port_is_free_for_tcp_and_nobody_elses() {
        let port = Port::free().expect("a free port");
        assert!(TcpListener::bind(port.address()).is_ok());
        assert!(UdpSocket::bind(port.address()).is_err());
    }
}
