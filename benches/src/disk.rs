//! What a sync of this disk takes, when nothing else is under way.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    thread::sleep,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::task::spawn_blocking;

use crate::figures::latencies;

/// What a small commit writes to SQLite's log: four pages.
const COMMIT: usize = 4 * 4096;
const COMMITS: u64 = 200;
/// About as long as the order service waits between two commits when one order is under way.
const REST: Duration = Duration::from_millis(2);

/// `p50/p99` in milliseconds of a write and a sync of a small commit's bytes, over bytes that are there already, which is what a log that
/// has been through a checkpoint does; nothing else is under way, and there is a rest between two. No order can take less than its commits.
///
/// # Errors
/// When a file can't be written in the folder for temporary files, where the services' databases are too.
pub async fn sync() -> anyhow::Result<String> {
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
    Ok(latencies(&latency.await??))
}
