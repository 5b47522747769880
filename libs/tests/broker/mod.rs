//! A NATS server of a test's own, by the program that `TEST_NATS` names: killed, restarted, and robbed of its last writes.
#![allow(dead_code, clippy::unwrap_used, reason = "for tests, and not every one does all of it")]

#[path = "../../../tests/src/port.rs"]
#[allow(unreachable_pub, clippy::expect_used, reason = "public where processes are tested")]
mod port;

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use port::Port;
use tempfile::TempDir;

/// A server, or the place where it was.
#[derive(Debug)]
pub(crate) struct Broker {
    program: PathBuf,
    port: Port,
    // The process is gone before its folder is.
    child: Option<Child>,
    folder: TempDir,
}

impl Broker {
    /// A server on a free port with nothing in it; None where no program is named.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// The same, configured so.
    #[expect(clippy::print_stderr, reason = "a test that is left out says why")]
    pub(crate) fn start_with(configuration: &str) -> Option<Self> {
        let Some(program) = std::env::var_os("TEST_NATS") else {
            eprintln!("skipped: needs NATS, and TEST_NATS names no nats-server (tests/nats.sh)");
            return None;
        };
        let program = program.into();
        let port = Port::free().unwrap();
        let mut broker = Self { program, port, child: None, folder: TempDir::new().unwrap() };
        fs::write(broker.configuration(), configuration).unwrap();
        broker.go_on();
        Some(broker)
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.port.address())
    }

    /// Starts it again on what it has stored.
    pub(crate) fn go_on(&mut self) {
        let mut command = Command::new(&self.program);
        command
            .args(["-a", "127.0.0.1", "-p", &self.port.address().port().to_string(), "-js", "-sd"])
            .arg(self.store())
            .arg("-c")
            .arg(self.configuration());
        let child = self.child.insert(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let begun = Instant::now();
        while TcpStream::connect(self.port.address()).is_err() {
            assert_eq!(child.try_wait().unwrap(), None, "nats-server ends by itself");
            assert!(begun.elapsed() < Duration::from_secs(60), "nats-server does not start");
            sleep(Duration::from_millis(10));
        }
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// What it has stored by now, to be [given back](Self::give_back).
    pub(crate) fn remember(&self) -> TempDir {
        let memory = TempDir::new().unwrap();
        copy(&self.store(), memory.path());
        memory
    }

    /// Puts what was remembered in the place of what it has stored: as if the rest had never reached the disk.
    pub(crate) fn give_back(&self, memory: &TempDir) {
        assert!(self.child.is_none(), "it is running");
        fs::remove_dir_all(self.store()).unwrap();
        copy(memory.path(), &self.store());
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("nats.conf")
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
