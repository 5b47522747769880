//! A client that speaks HTTP/2 by itself, as no client of gRPC does.

use std::{net, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use crate::shelf::Served;

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A connection, which is read from as long as this is there.
pub(crate) struct Raw {
    socket: net::TcpStream,
    calls: h2::client::SendRequest<Bytes>,
    reads: JoinHandle<Result<(), h2::Error>>,
    to: String,
}

impl Raw {
    /// A client that takes so many bytes of each answer before it is asked.
    pub(crate) async fn connect(served: &Served, window: u32) -> Self {
        let socket = TcpStream::connect(served.address).await.expect("taken").into_std().expect("a socket");
        let heard = TcpStream::from_std(socket.try_clone().expect("another handle")).expect("a socket");
        let mut http = h2::client::Builder::new();
        http.initial_window_size(window).initial_connection_window_size((1 << 31) - 1);
        let (calls, connection) = http.handshake::<_, Bytes>(heard).await.expect("HTTP/2");
        let to = format!("http://{}/inventory.v1.InventoryQueryService", served.address);
        Self { socket, calls, reads: tokio::spawn(connection), to }
    }

    /// Sends a call, and waits for the head of its answer.
    pub(crate) async fn ask(
        &self,
        method: &str,
        message: &impl prost::Message,
        metadata: &[(&str, &str)],
    ) -> http::Response<h2::RecvStream> {
        let request = http::Request::post(format!("{}/{method}", self.to))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = metadata.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(()).expect("a request");
        let mut calls = self.calls.clone().ready().await.expect("ready");
        let (answer, mut body) = calls.send_request(request, false).expect("sent");
        let message = message.encode_to_vec();
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(message.len().try_into().expect("short"));
        framed.extend(message);
        body.send_data(framed.freeze(), true).expect("sent");
        answer.await.expect("an answer has begun")
    }

    /// Stops reading. The socket stays open: another handle is here.
    pub(crate) async fn stop(self) -> net::TcpStream {
        self.reads.abort();
        let _ = self.reads.await;
        self.socket
    }

    /// Waits until the server has left.
    pub(crate) async fn left(self) {
        let _ = timeout(PATIENCE, self.reads).await.expect("its connection lives on");
    }
}
