//! Connections that end with their host's power: nothing is sent any more, and whoever sends to them later is refused.
//!
//! A runtime that is dropped drops its tasks in an order that depends on what else ran in the same process. So the connections are
//! taken from them before, or what each sends as it is dropped would come in another order each time.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::TcpStream;

type Shared = Mutex<Option<TcpStream>>;

thread_local! {
    /// The connections of this thread's simulation, by their host's address.
    static LINES: RefCell<BTreeMap<IpAddr, Vec<Weak<Shared>>>> = const { RefCell::new(BTreeMap::new()) };
}

/// A connection.
pub(super) struct Line(Arc<Shared>);

impl Line {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        let host = stream.local_addr()?.ip();
        let line = Arc::new(Mutex::new(Some(stream)));
        LINES.with_borrow_mut(|lines| lines.entry(host).or_default().push(Arc::downgrade(&line)));
        Ok(Self(line))
    }
}

/// Ends all connections of a host, without a word to the other side. Not to be called from a host.
pub(super) fn power_off(host: IpAddr) {
    let lines = LINES.with_borrow_mut(|lines| lines.remove(&host)).unwrap_or_default();
    for line in lines.iter().filter_map(Weak::upgrade) {
        drop(line.lock().take());
    }
}

/// Forgets the connections of a simulation that has ended.
pub(super) fn forget() {
    LINES.take();
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self.0.lock() {
            Some(stream) => Pin::new(stream).poll_read(cx, buffer),
            None => Poll::Ready(Err(gone())),
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self.0.lock() {
            Some(stream) => Pin::new(stream).poll_write(cx, bytes),
            None => Poll::Ready(Err(gone())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.0.lock() {
            Some(stream) => Pin::new(stream).poll_flush(cx),
            None => Poll::Ready(Err(gone())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.0.lock() {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Err(gone())),
        }
    }
}
