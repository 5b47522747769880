//! A connection's socket that can be cut from outside, gives up a client that takes nothing, and tells when it is gone.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
};
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::stall::Stall;

/// A socket with a string attached.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    cut: oneshot::Receiver<()>,
    is_cut: bool,
    stall: Stall,
    /// Dropped with the socket, which is how the other end knows.
    _gone: oneshot::Sender<()>,
}

/// The other end of the string.
#[derive(Debug)]
pub(super) struct Cord {
    /// Cuts the socket when sent.
    pub(super) cut: oneshot::Sender<()>,
    /// Resolves, with an error, when the socket is gone.
    pub(super) gone: oneshot::Receiver<()>,
}

impl Socket {
    /// Gives its client up by itself once it has taken nothing of what waits, nor said anything, for as long as `patience`.
    pub(super) fn new(stream: TcpStream, patience: Duration) -> (Self, Cord) {
        let (cut, to_cut) = oneshot::channel();
        let (_gone, gone) = oneshot::channel();
        let socket = Self { stream, cut: to_cut, is_cut: false, stall: Stall::new(patience), _gone };
        (socket, Cord { cut, gone })
    }

    /// Asked by whoever is about to wait, for what comes or for room.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> bool {
        // A cord that is gone is a cut as well: nobody else ends the connection, and what has resolved is not asked again.
        self.is_cut = self.is_cut || Pin::new(&mut self.cut).poll(cx).is_ready();
        self.is_cut
    }

    /// HTTP/2 doesn't read while a ping, a pong or a goodbye waits for room: then only the write finds out that it is cut.
    fn poll_written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stall.moved();
            return written;
        }
        if self.stall.poll_over(cx).is_ready() {
            self.is_cut = true;
        }
        if self.poll_cut(cx) { Poll::Ready(Err(self.aborted())) } else { Poll::Pending }
    }

    fn aborted(&self) -> io::Error {
        if self.stall.is_waiting() {
            // Or the system would go on offering what the client doesn't take. If it can't be told, it does.
            let _ = self.stream.set_zero_linger();
        }
        io::ErrorKind::ConnectionAborted.into()
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.poll_cut(cx) {
            return Poll::Ready(Err(self.aborted()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.stall.moved();
        }
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.poll_written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.poll_written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Socket {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::{Instant, sleep, timeout},
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(40);

    async fn connected() -> io::Result<(TcpStream, Socket, Cord)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let client = TcpStream::connect(listener.local_addr()?).await?;
        let (socket, cord) = Socket::new(listener.accept().await?.0, PATIENCE);
        Ok((client, socket, cord))
    }

    #[tokio::test]
    async fn a_socket_whose_cord_is_cut_or_gone_is_cut_for_good() -> io::Result<()> {
        for told in [true, false] {
            let (mut client, mut socket, Cord { cut, gone: _gone }) = connected().await?;
            client.write_all(b"more").await?;
            if told {
                cut.send(()).expect("the socket is there")
            } else {
                drop(cut)
            }
            for _ in 0..3 {
                let read = socket.read_u8().await.map_err(|error| error.kind());
                assert_eq!(read, Err(io::ErrorKind::ConnectionAborted), "told: {told}");
            }
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_waits_is_cut_as_well_and_given_up_in_time() -> io::Result<()> {
        for told in [Some(true), Some(false), None] {
            let (_client, mut socket, Cord { cut, gone: _gone }) = connected().await?;
            let start = Instant::now();
            let fill = async {
                // When it last had room: what the system acknowledges late makes some.
                let mut moved = start;
                loop {
                    match socket.write(&[0; 1 << 16]).await {
                        Ok(_) => moved = Instant::now(),
                        Err(error) => break (error.kind(), moved),
                    }
                }
            };
            let cutting = async {
                // The time goes on once the write waits.
                sleep(PATIENCE / 2).await;
                match told {
                    Some(true) => cut.send(()).map(|()| None).expect("the socket is there"),
                    Some(false) => None,
                    None => Some(cut),
                }
            };
            let (ended, _cut) = tokio::join!(timeout(3 * PATIENCE, fill), cutting);
            let (failed, moved) = ended.expect("it is given up");
            assert_eq!(failed, io::ErrorKind::ConnectionAborted, "told: {told:?}");
            let (since, after) = if told.is_some() { (start, PATIENCE / 2) } else { (moved, PATIENCE) };
            assert_eq!(since.elapsed().as_secs(), after.as_secs(), "told: {told:?}");
            assert!(socket.read_u8().await.is_err(), "told: {told:?}: it is cut for good");
        }
        Ok(())
    }
}
