//! What a process has in memory.

use anyhow::Context as _;

/// The resident memory of a process, in bytes.
///
/// # Errors
/// When it is not there, or the kernel doesn't say, as only Linux does.
pub fn resident(process: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"));
    let status = status.context("memory is told by /proc, which only Linux has")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1_024)
}
