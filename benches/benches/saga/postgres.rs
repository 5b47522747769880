//! What the PostgreSQL server says of itself, by psql.

use std::process::Stdio;

use anyhow::ensure;
use tokio::process::Command;

/// Its version, and how durable its commits are.
pub(crate) async fn about(url: &str) -> anyhow::Result<String> {
    let mut about = format!("PostgreSQL {}", ask(url, "SHOW server_version").await?);
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        about += &format!(", {setting}={}", ask(url, &format!("SHOW {setting}")).await?);
    }
    Ok(about)
}

/// Its processes that write.
pub(crate) async fn processes(url: &str) -> anyhow::Result<Vec<u32>> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()";
    let told = ask(url, sql).await?;
    told.lines().map(|line| Ok(line.parse()?)).collect()
}

async fn ask(url: &str, sql: &str) -> anyhow::Result<String> {
    let told = Command::new("psql").args(["-X", "-A", "-t", "-c", sql, url]).stdin(Stdio::null()).output().await?;
    ensure!(told.status.success(), "psql: {}", String::from_utf8_lossy(&told.stderr).trim());
    Ok(String::from_utf8(told.stdout)?.trim().to_owned())
}
