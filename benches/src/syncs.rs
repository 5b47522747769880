//! What a sync of this disk takes, and how many processes ask for while something is done.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use tokio::{io::AsyncReadExt as _, process::Command, task::spawn_blocking};

use crate::load::told;

/// What a small commit writes to SQLite's log: four pages.
const COMMIT: usize = 4 * 4096;
const COMMITS: u64 = 200;
/// About as long as a service waits between two commits when one order is under way.
const REST: Duration = Duration::from_millis(2);

/// `p50/p99` in milliseconds of a write and a sync of a small commit's bytes, over bytes that are there already, which is what a log that
/// has been through a checkpoint does; nothing else is under way, and there is a rest between two. No order can take less than its commits.
///
/// # Errors
/// When a file can't be written in the folder for temporary files, where the services' databases are too.
pub async fn alone() -> anyhow::Result<String> {
    let latency = spawn_blocking(|| {
        let folder = tempfile::tempdir()?;
        let file = File::create(folder.path().join("log"))?;
        let bytes = vec![0x5a; COMMIT];
        let offset = |commit: u64| commit * COMMIT as u64;
        for commit in 0..COMMITS {
            file.write_all_at(&bytes, offset(commit))?;
        }
        file.sync_all()?;
        let mut latency = Histogram::<u64>::new(3)?;
        for commit in 0..COMMITS {
            sleep(REST);
            let begin = Instant::now();
            file.write_all_at(&bytes, offset(commit))?;
            file.sync_all()?;
            latency.record(u64::try_from(begin.elapsed().as_micros())?)?;
        }
        anyhow::Ok(latency)
    });
    Ok(told(&latency.await??))
}

/// How often these processes call fsync and fdatasync until `work` is done, by strace: it slows them, so give it a round of its own.
/// `folder` is for strace's own file.
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
    let pid = strace.id().context("strace ended before its time")?;
    Command::new("kill").args(["-INT", &pid.to_string()]).status().await?;
    strace.wait().await?;
    let calls = fs::read_to_string(summary)?;
    // No call, no table.
    let Some(total) = calls.lines().find(|line| line.ends_with("total")) else { return Ok(0) };
    total.split_whitespace().nth(3).context("strace counted nothing")?.parse().context("strace counted nothing")
}
