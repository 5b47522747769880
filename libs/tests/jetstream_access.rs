//! Whom a NATS server lets in, and that nobody else is told how. Runs where `TEST_NATS` names the server's program, as far as it needs
//! one.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod broker;
mod database;
mod desk;
mod lines;
mod streamed;

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use broker::Broker;
use libs::cqrs::{Board, JetStream, Log};
use lines::Lines;
use parking_lot::Mutex;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use streamed::{PATIENCE, Source, shown, until};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket},
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};
use tracing::Level;

/// A certificate that is its own authority, for whoever is on this machine.
struct Certificate {
    folder: TempDir,
}

impl Certificate {
    fn new() -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let made = Self { folder: TempDir::new().unwrap() };
        fs::write(made.path(), cert.pem()).unwrap();
        fs::write(made.key(), signing_key.serialize_pem()).unwrap();
        made
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    fn acceptor(&self) -> TlsAcceptor {
        let certificate = CertificateDer::from_pem_file(self.path()).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.key()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }
}

/// What a server says before anything else, in plain text: whether it speaks TLS after that, and where others of its cluster are.
fn info(tls_required: bool, others: &[SocketAddr]) -> Vec<u8> {
    let info = serde_json::json!({"tls_required": tls_required, "connect_urls": others, "max_payload": 1 << 20});
    format!("INFO {info}\r\n").into_bytes()
}

/// What whoever connects says first, until they listen, end or are given up.
async fn heard(link: &mut (impl AsyncRead + Unpin)) -> String {
    let mut heard = Vec::new();
    let listen =
        async { while !heard.ends_with(b"PING\r\n") && link.read_buf(&mut heard).await.is_ok_and(|read| read > 0) {} };
    timeout(PATIENCE, listen).await.expect("they say nothing, and stay");
    String::from_utf8_lossy(&heard).into_owned()
}

/// A server's address as whoever is typed there reaches it.
fn as_whom(who: &str, broker: &Broker) -> String {
    broker.url().replace("://", &format!("://{who}@"))
}

/// Publishes some events there.
async fn publish(jetstream: &JetStream) {
    let mut source = Source::start().await;
    source.write(3, 100).await;
    let (relay, board) = (jetstream.relay("source", Log::of(&source.journal)), Board::default());
    relay.show_on(&board);
    tokio::spawn(relay.run());
    until("all is published", || async { shown(&board).await.position == 3 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_typed_before_the_host_is_let_in() {
    let cases = [
        ("users = [{user: me, password: secret}]", "me:secret"),
        ("users = [{user: \"a me\", password: \"@/w%rd:1,\"}]", "a%20me:%40%2Fw%25rd%3A1%2C"),
        ("token: \"a secret\"", "a%20secret"),
    ];
    for (let_in, who) in cases {
        let Some(broker) = Broker::start_with(&format!("authorization {{{let_in}}}")) else { return };
        publish(&JetStream::connect(&as_whom(who, &broker), "test", None).await.unwrap()).await;
    }
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn that_a_broker_lets_nobody_in_by_that_password_is_told_once() {
    let Some(broker) = Broker::start_with("authorization {users = [{user: me, password: secret}]}") else { return };
    let (lines, _keeping) = Lines::keep();
    let _trying = JetStream::connect(&as_whom("me:former", &broker), "test", None).await.unwrap();
    let told = || lines.that_say("the broker");
    until("it is told", || async { !told().is_empty() }).await;
    // Long enough for some tries more.
    sleep(Duration::from_secs(2)).await;
    let told = told();
    assert!(told.len() == 1 && told[0].starts_with("WARN"), "{told:?}");
    assert!(told[0].contains("is not reached") && told[0].contains("authorization violation"), "{told:?}");
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn whoever_connects_writes_no_password_down() {
    let (lines, _keeping) = Lines::keep_of(&["async_nats", "libs"], Level::TRACE);
    for who in ["me:secret", "secret"] {
        // Nobody listens there, nor will for as long as it is held.
        let held = TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let nobodys = held.local_addr().unwrap();
        let _trying = JetStream::connect(&format!("nats://{who}@{nobodys}"), "test", None).await.unwrap();
        let port = nobodys.port().to_string();
        let tried = || lines.that_say("connection attempt failed").iter().any(|line| line.contains(&port));
        until("it is tried, and where is told", || async { tried() }).await;
        assert_eq!(lines.that_say("secret"), [""; 0]);
    }
}

#[tokio::test]
async fn servers_that_are_reached_otherwise_are_no_broker() {
    let wrong = ["nats://me:secret@a,nats://b", "nats://me:secret@a,nats://you:secret@b", "nats://secret@a,nats://c@b"];
    for servers in wrong {
        let line = JetStream::connect(servers, "test", None).await.expect_err(servers).to_string();
        assert!(line.contains("user and password") && !line.contains("secret"), "{servers}: {line}");
    }
    let line = JetStream::connect("tls://a,nats://b", "test", None).await.expect_err("half in plain text").to_string();
    assert!(line.contains("tls://"), "{line}");
    let line = JetStream::connect("nats://me:%FFsecret@a", "test", None).await.expect_err("no text").to_string();
    assert!(line.contains("UTF-8") && !line.contains("secret"), "{line}");
    for right in ["nats://a,nats://b", "tls://a,tls://b", "nats://me:se%63ret@127.0.0.1:1,nats://me:secret@127.0.0.1:2"]
    {
        JetStream::connect(right, "test", None).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_with_a_certificate_is_told_by_tls() {
    let certificate = Certificate::new();
    let (file, key) = (certificate.path(), certificate.key());
    let by_tls = format!("tls {{cert_file: {file:?}, key_file: {key:?}}}");
    let let_in = "authorization {users = [{user: me, password: secret}]}";
    let Some(broker) = Broker::start_with(&format!("{by_tls}\n{let_in}")) else { return };
    let url = as_whom("me:secret", &broker).replace("nats://", "tls://");
    publish(&JetStream::connect(&url, "test", Some(file)).await.unwrap()).await;
}

/// What a server says of its cluster comes before its TLS, so that anybody on the way may have said it.
#[tokio::test]
async fn where_tls_is_typed_nobody_is_told_anything_in_plain_text() {
    let certificate = Certificate::new();
    let typed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tls://me:secret@{}", typed.local_addr().unwrap());
    let others = [other.local_addr().unwrap()];
    let overheard = Arc::<Mutex<Vec<String>>>::default();
    let hears = Arc::clone(&overheard);
    tokio::spawn(async move {
        while let Ok((mut link, _)) = other.accept().await {
            link.write_all(&info(false, &[])).await.unwrap();
            let heard = heard(&mut link).await;
            hears.lock().push(heard);
        }
    });

    let _trying = JetStream::connect(&url, "test", Some(certificate.path())).await.unwrap();
    let come = async || timeout(PATIENCE, typed.accept()).await.expect("nobody comes").unwrap().0;
    let mut link = come().await;
    link.write_all(&info(true, &others)).await.unwrap();
    let mut link = certificate.acceptor().accept(link).await.unwrap();
    assert!(heard(&mut link).await.contains("secret"));
    link.write_all(b"PONG\r\n").await.unwrap();
    link.flush().await.unwrap();
    drop(link);
    // Each server that is known is tried once before this one is tried again.
    for _ in 0..2 {
        drop(come().await);
    }
    assert_eq!(*overheard.lock(), [""; 0]);
}

/// A server that is one in name alone, which says that it speaks no TLS.
#[tokio::test]
async fn where_tls_is_typed_a_server_without_is_told_nothing() {
    let certificate = Certificate::new();
    let typed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tls://me:secret@{}", typed.local_addr().unwrap());
    let _trying = JetStream::connect(&url, "test", Some(certificate.path())).await.unwrap();
    let (mut link, _) = timeout(PATIENCE, typed.accept()).await.expect("nobody comes").unwrap();
    link.write_all(&info(false, &[])).await.unwrap();
    // A handshake, 22, in TLS' records.
    assert_eq!(timeout(PATIENCE, link.read_u8()).await.expect("nothing is said").unwrap(), 22);
}
