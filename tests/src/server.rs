//! One service as a real process: started, asked for health, killed, restarted on the same port and data.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{port::Port, program, tls::Secrets};

/// How long a server may take to serve. It takes a fraction of a second; the rest is for a machine with much to do.
const START: Duration = Duration::from_secs(60);
/// Between two looks at a server that doesn't serve yet: nothing tells a stranger that a port begins to listen.
const LOOK: Duration = Duration::from_millis(10);

/// A service's process, or the place where it was.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    port: Port,
    folder: PathBuf,
    /// Where the data is, if not in the folder.
    database: Option<String>,
    peers: BTreeMap<String, String>,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    scheme: &'static str,
    channel: Channel,
    child: Option<Child>,
}

fn endpoint(uri: String) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::from_shared(uri)?.connect_timeout(Duration::from_secs(2)))
}

impl Server {
    /// A server that isn't started yet, on a free port, with its data in `folder`.
    ///
    /// # Errors
    /// When no port is free.
    pub fn new(name: &'static str, folder: &Path) -> anyhow::Result<Self> {
        let port = Port::free()?;
        let channel = endpoint(format!("http://{}", port.address()))?.connect_lazy();
        let mut server = Self {
            name,
            port,
            folder: folder.to_owned(),
            database: std::env::var("TEST_POSTGRES").ok(),
            peers: BTreeMap::new(),
            flags: Vec::new(),
            environment: Vec::new(),
            scheme: "http",
            channel,
            child: None,
        };
        server.flag("--listen", &server.port.address().to_string());
        // Far more than views are behind their log, on whatever machine.
        server.flag("--max-staleness-wait", "20s");
        Ok(server)
    }

    /// The service's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where it listens: host and port.
    #[must_use]
    pub fn address(&self) -> String {
        self.port.address().to_string()
    }

    /// The process's id while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Where its data is: in its folder, or on the server that `TEST_POSTGRES` or [`keep_in`](Self::keep_in) names.
    #[must_use]
    pub fn database_url(&self) -> String {
        let in_folder = || format!("sqlite:{}", self.folder.join(format!("{}.db", self.name)).display());
        self.database.clone().unwrap_or_else(in_folder)
    }

    /// Has its data on a PostgreSQL server from the next start on.
    pub fn keep_in(&mut self, url: &str) {
        self.database = Some(url.to_owned());
    }

    /// A channel that reconnects after a restart.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Has it reach a peer at this address, host and port, in all starts to come.
    pub fn peer_at(&mut self, name: &str, address: &str) {
        self.peers.insert(name.to_owned(), format!("{name}=http://{address}"));
    }

    /// Adds a flag for all starts to come.
    pub fn flag(&mut self, name: &str, value: &str) {
        self.flags.extend([name.to_owned(), value.to_owned()]);
    }

    /// Tells it where another server is, for all starts to come.
    pub fn peer(&mut self, other: &Self) {
        let (name, scheme) = (other.name, other.scheme);
        self.peers.insert(name.to_owned(), format!("{name}={scheme}://{}", other.address()));
    }

    /// Where it listens, as a URI.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("{}://{}", self.scheme, self.address())
    }

    /// Gives it TLS for all starts to come, and its channel a certificate to show.
    ///
    /// # Errors
    /// When the certificate can't be used.
    pub fn secure(&mut self, secrets: &Secrets) -> anyhow::Result<()> {
        for (flag, file) in secrets.flags() {
            self.flag(flag, &file);
        }
        self.ask_by(secrets)
    }

    /// Asks it by TLS, with a certificate to show.
    ///
    /// # Errors
    /// When the certificate can't be used.
    pub fn ask_by(&mut self, secrets: &Secrets) -> anyhow::Result<()> {
        self.scheme = "https";
        self.channel = endpoint(self.uri())?.tls_config(secrets.client())?.connect_lazy();
        Ok(())
    }

    /// Sets a variable of the environment for all starts to come.
    pub fn variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// The variables that were set.
    #[must_use]
    pub fn variables(&self) -> &[(String, String)] {
        &self.environment
    }

    /// Starts the process and waits until it serves.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn) and [`serving`](Self::serving).
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.serving().await
    }

    /// Starts the process and waits for nothing.
    ///
    /// # Errors
    /// When it runs already, isn't built or can't be started.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        self.spawn_by(program::command(self.name, &self.folder)?)
    }

    /// As [`spawn`](Self::spawn), by another program that becomes the server: its path and its own arguments.
    ///
    /// # Errors
    /// When it runs already, isn't built or can't be started.
    pub fn spawn_under(&mut self, other: &[String]) -> anyhow::Result<()> {
        self.spawn_by(program::command_under(other, self.name, &self.folder)?)
    }

    fn spawn_by(&mut self, mut command: Command) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = self.open_log()?;
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(["serve", "--database-url", &self.database_url()]).args(&self.flags);
        command.args(self.peers.values().flat_map(|peer| ["--peer", peer]));
        command.stdout(Stdio::from(log.try_clone()?)).stderr(Stdio::from(log));
        self.child = Some(command.spawn().with_context(|| format!("{command:?}"))?);
        Ok(())
    }

    /// Waits until the server answers SERVING.
    ///
    /// # Errors
    /// When the process ends instead, or takes too long, with the end of its log.
    pub async fn serving(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        let mut health = HealthClient::new(self.channel.clone());
        loop {
            self.running()?;
            let answer = timeout(Duration::from_secs(2), health.check(HealthCheckRequest::default())).await;
            if let Ok(Ok(answer)) = answer
                && answer.get_ref().status() == ServingStatus::Serving
            {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} does not serve after {START:?}\n{}", self.name, self.log_end());
            sleep(LOOK).await;
        }
    }

    /// Checks that the process has not ended by itself.
    ///
    /// # Errors
    /// When it has, with its status and the end of its log.
    pub fn running(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else { bail!("{} is not started", self.name) };
        match child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself, {status}\n{}", self.name, self.log_end()),
        }
    }

    /// The status with which the process ended by itself, if it has; it may be started again then.
    ///
    /// # Errors
    /// When it isn't started.
    pub fn has_ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { bail!("{} is not started", self.name) };
        let ended = child.try_wait()?;
        if ended.is_some() {
            self.child = None;
        }
        Ok(ended)
    }

    /// Kills the process with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it isn't running.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.running()?;
        self.end().await
    }

    /// The same, and it may have ended by itself.
    ///
    /// # Errors
    /// When it isn't started.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { bail!("{} is not started", self.name) };
        child.kill().await.with_context(|| format!("can't kill {}", self.name))
    }

    /// Sends SIGTERM, and leaves the process to end.
    ///
    /// # Errors
    /// When it isn't running.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal("TERM").await
    }

    /// Sends a signal, such as `STOP` or `CONT`.
    ///
    /// # Errors
    /// When it isn't running.
    pub async fn signal(&mut self, signal: &str) -> anyhow::Result<()> {
        self.running()?;
        let child = self.child.as_ref().context("the process is gone")?;
        program::signal(child, signal).await.with_context(|| self.name)
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    /// When it isn't started or doesn't end within a minute.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let Some(child) = &mut self.child else { bail!("{} is not started", self.name) };
        let Ok(status) = timeout(START, child.wait()).await else {
            bail!("{} does not end\n{}", self.name, self.log_end())
        };
        self.child = None;
        Ok(status?)
    }

    /// What it has logged since it was first started.
    #[must_use]
    pub fn log(&self) -> String {
        // An incomplete last line may cut a character in two.
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!("--- the end of {}'s log\n{}", self.name, lines[lines.len().saturating_sub(40)..].join("\n"))
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    fn open_log(&self) -> anyhow::Result<File> {
        let path = self.log_path();
        OpenOptions::new().create(true).append(true).open(&path).with_context(|| path.display().to_string())
    }
}

impl Drop for Server {
    #[expect(clippy::print_stderr, reason = "a failed test shows what the servers said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Where nobody listens any more this panics, and one that leaves a drop ends the process before the servers are killed.
            let _ = catch_unwind(AssertUnwindSafe(|| eprintln!("{}", self.log_end())));
        }
    }
}
