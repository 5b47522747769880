//! What is told to a server that may be anybody, where the address asks it to prove who it is. The server is the test's own.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{error::Error as _, time::Duration};

use libs::journal::{Journal, Location};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// An SSLRequest: its length, and a number.
const ASKED: u64 = (8 << 32) | 80_877_103;

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_told_nothing_more_where_tls_is_asked_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for mode in ["verify-full", "verify-ca", "require"] {
        let url = format!("postgres://me:secret@{address}/db?sslmode={mode}");
        let opens = tokio::spawn(Journal::open(Location::Postgres { url, schema: "test".to_owned() }, &[]));
        let (mut link, _) = timeout(PATIENCE, listener.accept()).await.expect("nobody comes").unwrap();
        assert_eq!(link.read_u64().await.unwrap(), ASKED, "{mode}");
        link.write_all(b"N").await.unwrap();
        let mut more = Vec::new();
        timeout(PATIENCE, link.read_to_end(&mut more)).await.expect("they stay").unwrap();
        assert_eq!(more, b"", "{mode}");
        let error = opens.await.unwrap().expect_err(mode);
        let why = error.source().expect("why").to_string();
        assert!(why.contains("does not support TLS"), "{mode}: {error}: {why}");
    }
}
