//! Where the built programs and the installed tools are.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// How long a program that should end may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The path of a service's program, built beside the one that asks.
///
/// # Errors
/// When it isn't built, with the command that builds it.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let running = std::env::current_exe().context("the path of this program is not known")?;
    let folder = running.parent().context("this program is in no folder")?;
    // Tests are in `target/debug/deps`, programs one above.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let program = folder.join(name);
    ensure!(program.is_file(), "{} is missing: run `cargo build --workspace`", program.display());
    Ok(program)
}

/// The path of a tool that `tests/tools.sh` installs.
///
/// # Errors
/// When it isn't there, with the command that installs it.
pub fn tool(name: &str) -> anyhow::Result<PathBuf> {
    let tool = repository().join("target/tools/python/bin").join(name);
    ensure!(tool.is_file(), "{} is missing: run `tests/tools.sh`", tool.display());
    Ok(tool)
}

/// The folder of the whole project.
#[must_use]
pub fn repository() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// A command that runs a service's program in `folder` with an environment that holds nothing: flags have variables.
///
/// # Errors
/// When the program isn't built.
pub fn command(name: &str, folder: &Path) -> anyhow::Result<Command> {
    Ok(quietly(Command::new(built(name)?), folder))
}

/// As [`command`], run by another program: that one's path and its own arguments come first.
///
/// # Errors
/// When the program isn't built.
pub fn command_under(other: &[String], name: &str, folder: &Path) -> anyhow::Result<Command> {
    let (program, arguments) = other.split_first().context("no program to run it by")?;
    let mut command = Command::new(program);
    command.args(arguments).arg(built(name)?);
    Ok(quietly(command, folder))
}

fn quietly(mut command: Command, folder: &Path) -> Command {
    command.current_dir(folder).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    // Tests read what a service logs: what a person's RUST_LOG says is not for it.
    if let Some(level) = std::env::var_os("TEST_LOG") {
        command.env("RUST_LOG", level);
    }
    command
}

/// Runs a command to its end and answers its status and output.
///
/// # Errors
/// When it can't be run or doesn't end within a minute.
pub async fn output(mut command: Command) -> anyhow::Result<Output> {
    command.kill_on_drop(true);
    let ended = timeout(PATIENCE, command.output()).await;
    ended
        .with_context(|| format!("{command:?} did not end within {PATIENCE:?}"))?
        .with_context(|| format!("{command:?}"))
}

/// Sends a process a signal, such as `TERM`. By the shell's own `kill`: the program of that name is not everywhere.
///
/// # Errors
/// When it has ended.
pub async fn signal(child: &Child, signal: &str) -> anyhow::Result<()> {
    let process = child.id().context("it has ended")?.to_string();
    let sent = Command::new("sh").args(["-c", "kill -\"$1\" \"$2\"", "sh", signal, &process]).status().await?;
    ensure!(sent.success(), "can't send SIG{signal} to {process}");
    Ok(())
}
