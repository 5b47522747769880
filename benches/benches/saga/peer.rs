//! Another engine's process: the program that `SAGA_PEERS` names, and what it needs beside it.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use tests::{Shop, port::Port};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{Duration, timeout},
};
use tonic::transport::{Channel, Endpoint};

/// How long it may take to serve, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The process. It ends with this, or when it finds its standard input closed.
pub(crate) struct Peer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: Port,
    /// A server that works for it.
    beside: Option<Child>,
}

/// Starts it, and waits until it serves.
pub(crate) async fn start(program: &str, engine: &str, store: &str, shop: &Shop) -> anyhow::Result<Peer> {
    let port = Port::free()?;
    let mut command = Command::new(program);
    command.args([engine, &port.address().to_string(), store]).args(shop.addresses().iter().take(3));
    if store.starts_with("sqlite:") {
        // dtmrs's 32 connections are in each other's way at one writer's lock.
        command.env("DTMRS_DB_POOL", "4");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("{program} can't be started"))?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut peer = Peer { child, lines, port, beside: None };
    let line = peer.line().await?;
    ensure!(line == "ready", "{engine} says {line:?}");
    Ok(peer)
}

impl Peer {
    /// Lets a server end with it.
    pub(crate) fn beside(self, server: Child) -> Self {
        Self { beside: Some(server), ..self }
    }

    pub(crate) fn channel(&self) -> anyhow::Result<Channel> {
        Ok(Endpoint::from_shared(format!("http://{}", self.port.address()))?.tcp_nodelay(true).connect_lazy())
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = u32> {
        [Some(&self.child), self.beside.as_ref()].into_iter().flatten().filter_map(Child::id)
    }

    /// Has it count what its store has, and end.
    pub(crate) async fn end(mut self) -> anyhow::Result<String> {
        drop(self.child.stdin.take());
        self.line().await
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let line = timeout(PATIENCE, self.lines.next_line()).await.context("it says nothing")??;
        line.context("it ended")
    }
}
