//! A connection that tells when its client has begun to speak HTTP/2.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};
use tonic::transport::server::Connected;

/// What an HTTP/2 client begins with is so long.
const GREETING: usize = 24;

/// Above TLS, where there is any: what is said before that is no greeting.
#[derive(Debug)]
pub(super) struct Greeted<S> {
    io: S,
    /// How much is still to come.
    missing: usize,
    /// Sent once all of it is there.
    greet: Option<oneshot::Sender<()>>,
}

impl<S> Greeted<S> {
    pub(super) const fn new(io: S, greet: oneshot::Sender<()>) -> Self {
        Self { io, missing: GREETING, greet: Some(greet) }
    }

    fn heard(&mut self, bytes: usize) {
        self.missing = self.missing.saturating_sub(bytes);
        if self.missing == 0
            && let Some(greet) = self.greet.take()
        {
            // Nobody waits for it any more once the connection has been asked to leave.
            let _ = greet.send(());
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.heard(buf.filled().len() - before);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S: Connected> Connected for Greeted<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_client_has_greeted_once_it_has_said_as_much_as_a_preface() -> io::Result<()> {
        let (mut client, server) = duplex(1);
        let (greet, mut greeted) = oneshot::channel();
        let mut server = Greeted::new(server, greet);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for (at, byte) in preface.iter().enumerate() {
            assert!(greeted.try_recv().is_err(), "after {at} bytes");
            client.write_u8(*byte).await?;
            server.read_u8().await?;
        }
        assert_eq!(greeted.try_recv(), Ok(()));
        Ok(())
    }
}
