//! A PostgreSQL server of a test's own, by the programs in the folder that `TEST_POSTGRES_BIN` names: stopped in the midst of what it does,
//! started again, and given a disk that is full.

use std::{
    fs::{self, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use crate::port::Port;

/// How large a disk is that is small.
const SMALL: &str = "size=96m";

/// Which of the server's files are on a disk that can be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Small {
    /// The tables and everything else but the log.
    Data,
    /// The write-ahead log.
    Log,
}

/// A server, or the place where it was.
#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    port: Port,
    mounted: bool,
    folder: TempDir,
}

impl Postgres {
    /// A server on a free port with nothing in it; None where no programs are named.
    ///
    /// # Errors
    /// When it can't be set up or doesn't start.
    pub fn start() -> anyhow::Result<Option<Self>> {
        Self::set_up(None)
    }

    /// The same with some of its files on a small disk; None also where no disk can be mounted.
    ///
    /// # Errors
    /// When it can't be set up or doesn't start.
    pub fn start_on(small: Small) -> anyhow::Result<Option<Self>> {
        Self::set_up(Some(small))
    }

    /// The same by TLS as well, with this certificate and key.
    ///
    /// # Errors
    /// When it can't be set up or doesn't start.
    pub fn start_with(certificate: &Path, key: &Path) -> anyhow::Result<Option<Self>> {
        let Some(postgres) = Self::set_up(None)? else { return Ok(None) };
        postgres.stop_at_once()?;
        let data = postgres.data(None);
        for (file, name) in [(certificate, "server.crt"), (key, "server.key")] {
            fs::copy(file, data.join(name))?;
            // A key that others may read it doesn't take.
            fs::set_permissions(data.join(name), Permissions::from_mode(0o600))?;
        }
        let mut settings = fs::OpenOptions::new().append(true).open(data.join("postgresql.conf"))?;
        writeln!(settings, "ssl = on")?;
        postgres.give_away()?;
        postgres.go_on()?;
        Ok(Some(postgres))
    }

    /// Has the server own its files.
    fn give_away(&self) -> anyhow::Result<()> {
        if is_root() {
            let owner = Command::new("chown").args(["-R", "postgres"]).arg(self.folder.path()).output()?;
            ensure!(owner.status.success(), "chown: {}", String::from_utf8_lossy(&owner.stderr));
        }
        Ok(())
    }

    #[expect(clippy::print_stderr, reason = "a test that is left out says why")]
    fn set_up(small: Option<Small>) -> anyhow::Result<Option<Self>> {
        let Some(bin) = std::env::var_os("TEST_POSTGRES_BIN") else {
            eprintln!("skipped: needs PostgreSQL, and TEST_POSTGRES_BIN names no programs (tests/postgres.sh)");
            return Ok(None);
        };
        let folder = tempfile::Builder::new().prefix("postgres-").tempdir()?;
        let mut postgres = Self { bin: bin.into(), port: Port::free()?, mounted: false, folder };
        fs::create_dir(postgres.disk())?;
        if small.is_some() {
            let mounting =
                Command::new("mount").args(["-t", "tmpfs", "-o", SMALL, "tmpfs"]).arg(postgres.disk()).output();
            let why = match mounting {
                Ok(mounted) if mounted.status.success() => None,
                Ok(refused) => Some(String::from_utf8_lossy(&refused.stderr).trim().to_owned()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = why {
                // Not by `eprintln!`, which is heard of a test that fails alone: what is missing here nothing else makes up for.
                writeln!(io::stderr(), "skipped: a full disk needs the right to mount one (run as root): {why}")?;
                return Ok(None);
            }
            postgres.mounted = true;
        }
        postgres.give_away()?;
        postgres.create(small)?;
        postgres.go_on()?;
        Ok(Some(postgres))
    }

    fn create(&self, small: Option<Small>) -> anyhow::Result<()> {
        let mut initdb = self.command("initdb");
        initdb
            .args(["-U", "trellis", "--auth=trust", "--encoding=UTF8", "--lc-messages=C", "--wal-segsize=1", "-D"])
            .arg(self.data(small));
        if small.is_some() {
            initdb.arg("-X").arg(if small == Some(Small::Log) {
                self.disk().join("log")
            } else {
                self.folder.path().join("log")
            });
        }
        done(&initdb.output().context("initdb")?, "initdb")?;
        if small.is_some() {
            std::os::unix::fs::symlink(self.data(small), self.folder.path().join("data"))?;
        }
        Ok(())
    }

    /// Starts it on what it has stored.
    ///
    /// # Errors
    /// When it doesn't start, with the end of its log.
    pub fn go_on(&self) -> anyhow::Result<()> {
        let port = self.port.address().port();
        let options = format!("-p {port} -k '' -c listen_addresses=127.0.0.1 -c max_connections=300");
        let output = self.control(&["-w", "-o", &options, "start"])?;
        done(&output, "pg_ctl start").with_context(|| self.log_end())
    }

    /// Stops it where it stands: what was not committed is gone, and what was is recovered at the next start.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn stop_at_once(&self) -> anyhow::Result<()> {
        done(&self.control(&["-m", "immediate", "stop"])?, "pg_ctl stop").with_context(|| self.log_end())
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn runs(&self) -> anyhow::Result<bool> {
        Ok(self.control(&["status"])?.status.success())
    }

    /// Takes all room that its small disk has left, but for the rest of what the server has written to last.
    ///
    /// # Errors
    /// When a file can't be made there, or the server can't be asked.
    pub fn fill_disk(&self) -> anyhow::Result<()> {
        ensure!(self.mounted, "its disk is not its own");
        let mut file = fs::File::create(self.filler())?;
        for chunk in [vec![0; 1 << 16], vec![0; 1 << 9], vec![0; 1]] {
            while file.write_all(&chunk).is_ok() {}
        }
        // The log's next files are there already: they are used up.
        self.ask(
            "DO $$ BEGIN
                WHILE EXISTS (SELECT FROM pg_ls_waldir()
                    WHERE length(name) = 24 AND name > pg_walfile_name(pg_current_wal_insert_lsn()))
                LOOP PERFORM pg_logical_emit_message(false, '', ''), pg_switch_wal(); END LOOP;
            END $$",
        )
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// When it was not taken.
    pub fn make_room(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn ask(&self, sql: &str) -> anyhow::Result<()> {
        let output = self.command("psql").args([&self.url(), "-v", "ON_ERROR_STOP=1", "-qc", sql]).output();
        done(&output.context("psql")?, "psql")
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://trellis@{}/postgres", self.port.address())
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!("--- the end of the database's log\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    fn control(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command("pg_ctl");
        command.arg("-D").arg(self.folder.path().join("data")).arg("-l").arg(self.log_path()).args(words);
        command.output().context("pg_ctl")
    }

    /// One of its programs. The server refuses to run as root.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
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

    fn data(&self, small: Option<Small>) -> PathBuf {
        match small {
            None => self.folder.path().join("data"),
            Some(Small::Data) => self.disk().join("data"),
            Some(Small::Log) => self.folder.path().join("files"),
        }
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn filler(&self) -> PathBuf {
        self.disk().join("filler")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It may not run, and there is nobody to tell.
        let _ = self.stop_at_once();
        if self.mounted {
            let _ = Command::new("umount").arg("--lazy").arg(self.disk()).status();
        }
    }
}

fn done(output: &Output, what: &str) -> anyhow::Result<()> {
    let said = || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{what}: {}", said());
    Ok(())
}

/// Whether the process may do everything, as its own entry in /proc says.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(Path::new("/proc/self")).is_ok_and(|process| process.uid() == 0)
}
