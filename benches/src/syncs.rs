//! Counts what processes ask of the disk while something is done, by strace: it slows them, so give it a round of its own.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context as _, ensure};
use tests::program;
use tokio::{io::AsyncReadExt as _, process::Command};

/// How often these processes call fsync and fdatasync until `work` is done. `folder` is for strace's own file.
///
/// # Errors
/// When there is no strace, or `work` fails.
pub async fn count(
    processes: &[u32],
    folder: &Path,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<u64> {
    let summary = folder.join("syncs");
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-e", "trace=fsync,fdatasync", "-o"]).arg(&summary);
    for process in processes {
        command.arg("-p").arg(process.to_string());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut strace = command.spawn().context("strace is not installed")?;
    // A line for each process says that it is attached.
    let words = strace.stderr.as_mut().context("strace says nothing")?;
    let mut said = Vec::new();
    while said.iter().filter(|byte| **byte == b'\n').count() < processes.len() {
        let read = words.read_buf(&mut said).await?;
        ensure!(read > 0, "strace ended at once: {}", String::from_utf8_lossy(&said).trim());
    }
    work.await?;
    program::signal(&strace, "INT").await?;
    strace.wait().await?;
    let calls = fs::read_to_string(summary)?;
    // No call, no table.
    let Some(total) = calls.lines().find(|line| line.ends_with("total")) else { return Ok(0) };
    total.split_whitespace().nth(3).context("strace counted nothing")?.parse().context("strace counted nothing")
}
