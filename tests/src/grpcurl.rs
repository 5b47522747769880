//! grpcurl, which knows nothing of the services but what reflection says.

use std::process::Output;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::{Server, program};

/// A run of grpcurl against a server: its flags, and what to do there.
///
/// # Errors
/// When it isn't installed.
pub fn command(flags: &[&str], server: &Server, words: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(program::tool("grpcurl")?);
    command.arg("-plaintext").args(flags).arg(server.address()).args(words);
    Ok(command)
}

/// Runs it to its end.
///
/// # Errors
/// When it isn't installed, or doesn't end.
pub async fn run(flags: &[&str], server: &Server, words: &[&str]) -> anyhow::Result<Output> {
    program::output(command(flags, server, words)?).await
}

/// What it prints when all is well.
///
/// # Errors
/// When it isn't, with what it says.
pub async fn printed(server: &Server, words: &[&str]) -> anyhow::Result<String> {
    let output = run(&[], server, words).await?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Calls a method and answers its reply.
///
/// # Errors
/// When it is refused.
pub async fn call(server: &Server, method: &str, request: &Value) -> anyhow::Result<Value> {
    let output = run(&["-d", &request.to_string()], server, &[method]).await?;
    ensure!(output.status.success(), "{method} {request}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).with_context(|| method.to_owned())
}
