//! A PostgreSQL server and its hot standby, by the programs in the folder that `TEST_POSTGRES_BIN` names, behind one address that leads to
//! either.

#[path = "../../../tests/src/port.rs"]
#[allow(dead_code, unreachable_pub, clippy::expect_used, reason = "public where processes are tested")]
mod port;

use std::{
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use port::Port;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two servers, the second of which follows the first.
pub(crate) struct Pair {
    folder: TempDir,
    bin: PathBuf,
    pub(crate) primary: SocketAddr,
    pub(crate) standby: SocketAddr,
    // Theirs while they are down, too.
    _ports: [Port; 2],
    /// Where both are reached.
    near: SocketAddr,
    leads_to: Arc<Mutex<SocketAddr>>,
    /// How many connections were made to there.
    pub(crate) came: Arc<AtomicUsize>,
}

impl Pair {
    /// None where no programs are named. Whoever commits on the first with `synchronous_commit=remote_apply` waits for the second.
    #[expect(clippy::print_stderr, reason = "a test that is left out says why")]
    pub(crate) async fn start() -> Option<Self> {
        let Some(bin) = std::env::var_os("TEST_POSTGRES_BIN") else {
            eprintln!("skipped: needs PostgreSQL, and TEST_POSTGRES_BIN names no programs (tests/postgres.sh)");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("standby-").tempdir().unwrap();
        if is_root() {
            done(Command::new("chown").arg("postgres").arg(folder.path()));
        }
        let (near, leads_to, came) = address().await;
        let ports = [Port::free().unwrap(), Port::free().unwrap()];
        let [primary, standby] = [ports[0].address(), ports[1].address()];
        let pair = Self { folder, bin: bin.into(), primary, standby, _ports: ports, near, leads_to, came };
        *pair.leads_to.lock() = pair.primary;
        let (primary, standby) = (pair.data("primary"), pair.data("standby"));
        let made = ["-U", "trellis", "--auth=trust", "--encoding=UTF8", "--lc-messages=C", "-D"];
        done(pair.program("initdb").args(made).arg(&primary));
        // Named here and not in the settings, which the other one takes over: it waits for nobody.
        pair.go_on("primary", pair.primary, "-c synchronous_standby_names=*");
        let copied = ["-R", "-X", "stream", "-c", "fast", "-U", "trellis", "-h", "127.0.0.1", "-p"];
        let port = pair.primary.port().to_string();
        done(pair.program("pg_basebackup").args(copied).arg(port).arg("-D").arg(&standby));
        pair.go_on("standby", pair.standby, "-c log_statement=all");
        Some(pair)
    }

    fn go_on(&self, which: &str, address: SocketAddr, more: &str) {
        let options = format!("-p {} -k '' -c listen_addresses=127.0.0.1 {more}", address.port());
        let (data, log) = (self.data(which), self.log(which));
        done(self.program("pg_ctl").arg("-D").arg(data).arg("-l").arg(log).args(["-w", "-o", &options, "start"]));
    }

    /// The address of whichever of them is reached.
    pub(crate) fn url(&self) -> String {
        url(self.near)
    }

    /// Whoever reaches for them from now on reaches this one. Who has done so stays where it is.
    pub(crate) fn lead_to(&self, address: SocketAddr) {
        *self.leads_to.lock() = address;
    }

    /// The first one is gone at once, and whoever reaches for it reaches the second.
    pub(crate) fn fail_over(&self) {
        self.lead_to(self.standby);
        self.stop("primary");
    }

    fn stop(&self, which: &str) {
        done(self.program("pg_ctl").arg("-D").arg(self.data(which)).args(["-m", "immediate", "stop"]));
    }

    /// One of their programs. They refuse to run as root.
    fn program(&self, name: &str) -> Command {
        let program = self.bin.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.folder.path()).env("HOME", self.folder.path());
        command
    }

    /// Waits until the second one has been asked something in these words.
    pub(crate) async fn until_asked(&self, words: &str) {
        let asked = async {
            while !std::fs::read_to_string(self.log("standby")).unwrap().contains(words) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("nobody asked {words}"));
    }

    fn log(&self, which: &str) -> PathBuf {
        self.folder.path().join(format!("{which}.log"))
    }

    fn data(&self, which: &str) -> PathBuf {
        self.folder.path().join(which)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for which in ["primary", "standby"] {
            // It may not run, and there is nobody to tell.
            let _ = self.program("pg_ctl").arg("-D").arg(self.data(which)).args(["-m", "immediate", "stop"]).output();
        }
    }
}

/// A session with one of them.
pub(crate) async fn session(address: SocketAddr) -> PgConnection {
    PgConnection::connect(&url(address)).await.unwrap()
}

/// Has all that is done with the journal go on at the standby, in the schema `test`.
pub(crate) async fn strand(pair: &Pair, primary: &mut PgConnection) {
    pair.lead_to(pair.standby);
    let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'trellis test'";
    primary.execute(all).await.unwrap();
}

/// Waits until the server says that it is so.
pub(crate) async fn until(session: &mut PgConnection, so: &str) {
    let sql = format!("SELECT {so}");
    let is_so = async {
        while !sqlx::query_scalar::<_, bool>(AssertSqlSafe(&*sql)).fetch_one(&mut *session).await.unwrap() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, is_so).await.unwrap_or_else(|_| panic!("it never came to {so}"));
}

fn url(address: SocketAddr) -> String {
    format!("postgres://trellis@{address}/postgres?sslmode=disable")
}

/// An address that leads to another one, of which it can be told.
async fn address() -> (SocketAddr, Arc<Mutex<SocketAddr>>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = listener.local_addr().unwrap();
    let leads_to = Arc::new(Mutex::new(near));
    let came = Arc::<AtomicUsize>::default();
    let (to, coming) = (Arc::clone(&leads_to), Arc::clone(&came));
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            coming.fetch_add(1, Ordering::SeqCst);
            let to = *to.lock();
            tokio::spawn(async move {
                if let Ok(mut far) = TcpStream::connect(to).await {
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    (near, leads_to, came)
}

fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether the process may do everything, as its own entry in /proc says.
fn is_root() -> bool {
    std::fs::metadata(Path::new("/proc/self")).is_ok_and(|process| process.uid() == 0)
}
