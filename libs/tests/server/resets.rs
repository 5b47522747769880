//! A client whose streams the server must reset again and again, and which takes none of what it is told.

use bytes::{BufMut as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    raw::PATIENCE,
    shelf::{Served, flags},
};

/// What a connection has of them.
const MOST: usize = 4_096;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn frame(said: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    said.put_uint(payload.len().try_into().expect("short"), 3);
    said.extend([kind, flags]);
    said.put_u32(stream);
    said.extend(payload);
}

/// The next frame's kind and payload.
async fn heard(socket: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 9];
    socket.read_exact(&mut head).await.expect("a frame");
    let [_, high, middle, low, kind, ..] = [&[0], &head[..]].concat()[..] else { panic!("{head:?}") };
    let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]).try_into().expect("short")];
    socket.read_exact(&mut payload).await.expect("all of it");
    (kind, payload)
}

#[tokio::test]
async fn a_client_that_has_too_many_streams_reset_loses_its_connection() {
    let served = Served::start(&flags()).await;
    let mut socket = TcpStream::connect(served.address).await.expect("taken");
    let mut said = BytesMut::from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    frame(&mut said, SETTINGS, 0, 0, b"");
    // POST, http, /; both ended. By it all streams of lower numbers are over.
    frame(&mut said, HEADERS, 5, 0x7fff_fffd, b"\x83\x86\x84");
    for stream in (1..).step_by(2).take(MOST + 1) {
        frame(&mut said, DATA, 0, stream, b"");
    }
    timeout(PATIENCE, socket.write_all(&said)).await.expect("it is read").expect("its connection lives");
    let goodbye = async {
        let mut resets = 0;
        loop {
            match heard(&mut socket).await {
                (GOAWAY, why) => break why,
                (RST_STREAM, _) => resets += 1,
                _ => {}
            }
            assert!(resets <= MOST, "each has its own");
        }
    };
    let goodbye = timeout(PATIENCE, goodbye).await.expect("it is told");
    assert_eq!(goodbye[4..8], 11_u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
    served.get("tea").await.expect("others are served on");
}
