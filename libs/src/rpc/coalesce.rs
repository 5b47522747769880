//! A connection that writes once for all that is ready to be said.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Lets every task that is ready say its part before anything is written.
///
/// A commit answers dozens of calls at once. Each answer wakes its connection, which would run before the next call and write for
/// that one alone: a system call, a segment and a wake-up at the other end for each. So the first write after a flush gives way once,
/// to the back of the queue.
///
/// Below TLS it gives way to nobody. TLS flushes whatever it is given, so nothing would be saved; and why it ends a connection it tries to
/// say once, and closes.
#[derive(Debug)]
pub(crate) struct Coalesced<S> {
    io: S,
    is_below_tls: bool,
    gave_way: bool,
}

impl<S> Coalesced<S> {
    pub(crate) const fn new(io: S, is_below_tls: bool) -> Self {
        Self { io, is_below_tls, gave_way: false }
    }

    fn gives_way(&mut self, cx: &Context<'_>) -> bool {
        if self.gave_way || self.is_below_tls {
            return false;
        }
        self.gave_way = true;
        cx.waker().wake_by_ref();
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalesced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.gives_way(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.gives_way(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.gave_way = false;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S: Connected> Connected for Coalesced<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use futures::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Counts what is written to it.
    struct Counting(Arc<AtomicUsize>);

    impl AsyncWrite for Counting {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.fetch_add(buf.len(), Ordering::Relaxed);
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn whoever_is_ready_has_its_say_before_anything_is_written() {
        let written = Arc::new(AtomicUsize::new(0));
        let mut io = Coalesced::new(Counting(Arc::clone(&written)), false);
        for round in 0..3 {
            let before = written.load(Ordering::Relaxed);
            let others = (0..4).map(|_| {
                let written = Arc::clone(&written);
                tokio::spawn(async move { written.load(Ordering::Relaxed) })
            });
            let others: Vec<_> = others.collect();
            io.write_all(b"an answer").await.unwrap();
            io.write_all(b"and more").await.unwrap();
            for other in others {
                assert_eq!(other.await.unwrap(), before, "{round}: one came after the write");
            }
            io.flush().await.unwrap();
        }
        assert_eq!(written.load(Ordering::Relaxed), 3 * "an answerand more".len());
    }

    #[tokio::test]
    async fn below_tls_what_is_said_is_written_at_once() {
        let written = Arc::new(AtomicUsize::new(0));
        let mut io = Coalesced::new(Counting(Arc::clone(&written)), true);
        for _ in 0..2 {
            assert!(io.write_all(b"alert").now_or_never().is_some());
            io.flush().await.unwrap();
        }
        assert_eq!(written.load(Ordering::Relaxed), 2 * "alert".len());
    }

    #[tokio::test]
    async fn what_is_said_is_heard() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Coalesced::new(near, false);
        near.write_all(b"tea").await.unwrap();
        near.shutdown().await.unwrap();
        let mut heard = String::new();
        far.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "tea");
    }
}
