//! Counts what the processes ask of the disk, in a round of its own: tracing slows them.

use std::{fs, process::Stdio};

use anyhow::{Context as _, ensure};
use tests::Shop;
use tokio::{io::AsyncReadExt as _, process::Command};

use crate::load;

const ORDERS: u64 = 5_000;

/// fsync and fdatasync per order at 256 in flight, by strace.
pub(crate) async fn count(shop: &mut Shop) -> anyhow::Result<f64> {
    let summary = shop.folder().join("syncs");
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-e", "trace=fsync,fdatasync", "-o"]).arg(&summary);
    for server in shop.servers_mut() {
        command.arg("-p").arg(server.id().context("it is not running")?.to_string());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut strace = command.spawn().context("strace is not installed")?;
    // Its first words say that it is attached.
    let mut said = [0; 64];
    let words = strace.stderr.as_mut().context("strace says nothing")?;
    ensure!(words.read(&mut said).await? > 0, "strace ended at once");
    load::place(shop.clients().order, 256, ORDERS).await?;
    let pid = strace.id().context("strace ended before its time")?;
    Command::new("kill").args(["-INT", &pid.to_string()]).status().await?;
    strace.wait().await?;
    let calls = fs::read_to_string(summary)?;
    let total = calls.lines().find(|line| line.ends_with("total")).context("strace counted nothing")?;
    let count: f64 = total.split_whitespace().nth(3).context("strace counted nothing")?.parse()?;
    Ok(count / ORDERS as f64)
}
