//! This very program once more, as a server.

use std::{ffi::OsStr, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use tests::port::Port;
use tokio::{
    process::{Child, Command},
    time::sleep,
};
use tonic::transport::{Channel, Endpoint};

/// A process of this program. It ends with this.
#[derive(Debug)]
pub struct Again {
    channel: Channel,
    port: Port,
    _process: Child,
}

impl Again {
    /// Starts it with these words, after which comes where it is to listen, and waits until it does.
    ///
    /// # Errors
    /// When it can't be started, or ends.
    pub async fn start<W: AsRef<OsStr>>(
        words: impl IntoIterator<Item = W>,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let port = Port::free()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(words).arg(port.address().to_string()).env_clear().envs(environment.iter().copied());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().context("this program can't be started again")?;
        let endpoint = Endpoint::from_shared(format!("http://{}", port.address()))?.tcp_nodelay(true);
        let channel = loop {
            if let Ok(channel) = endpoint.connect().await {
                break channel;
            }
            ensure!(process.try_wait()?.is_none(), "this program ends when it is started again");
            sleep(Duration::from_millis(10)).await;
        };
        Ok(Self { channel, port, _process: process })
    }

    /// A channel to it.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        self.port.address().to_string()
    }
}
