//! What a process asked of the disk, as strace recorded it, and what a disk may hold of it that lost its power at some moment: what was
//! synced, and of the rest any sectors. Names come and go in order, as on a file system with a journal.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use rand::{Rng, RngExt as _};
use tokio::time::{sleep, timeout};

/// Far more than a record takes to be written.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// The system calls that the record is made of.
pub const CALLS: &str = "pwrite64,ftruncate,fsync,fdatasync,unlink";

/// The clock that a record's times are of, in seconds since 1970.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// One thing asked of the disk.
#[derive(Clone, Debug)]
enum Asked {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        length: usize,
    },
    Remove,
    /// All that was asked before this of the file is on the disk now.
    Sync,
}

/// What a process asked of its disk, in order.
#[derive(Debug, Default)]
pub struct Recording {
    /// When (seconds since 1970), of which file, what.
    asked: Vec<(f64, PathBuf, Asked)>,
}

impl Recording {
    /// The words by which strace, at this path, runs a program and records into `file`.
    #[must_use]
    pub fn words(strace: &str, file: &Path) -> Vec<String> {
        let trace = format!("trace={CALLS}");
        let words = ["-D", "-f", "-y", "-ttt", "-q", "-xx", "-s", "1000000", "-e", &trace, "-e", "signal=none", "-o"];
        let file = file.display().to_string();
        [strace].into_iter().chain(words).chain([&*file]).map(str::to_owned).collect()
    }

    /// Reads what strace has recorded of a process that has ended.
    ///
    /// # Errors
    /// When the record has no end, or isn't understood.
    pub async fn of_ended(file: &Path) -> anyhow::Result<Self> {
        // The recorder ends a moment after what it records.
        let written = async {
            loop {
                if let Ok(text) = fs::read_to_string(file)
                    && text.lines().last().is_some_and(|line| line.contains("+++"))
                {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, written).await.context("the record has no end")?;
        Self::read(&fs::read_to_string(file)?)
    }

    fn read(record: &str) -> anyhow::Result<Self> {
        let (mut recording, mut unfinished) = (Self::default(), BTreeMap::new());
        for line in record.lines() {
            let mut words = line.split_whitespace();
            let (thread, time) = (words.next().context("no thread")?, words.next().context("no time")?);
            let rest = line[line.find(time).unwrap_or_default() + time.len()..].trim_start();
            let time: f64 = time.parse().context("no time")?;
            if rest.starts_with("+++") {
                continue;
            }
            if rest.starts_with("<...") {
                // A sync holds for what was asked before it began, and from when it has ended.
                if let Some((path, begun)) = unfinished.remove(thread)
                    && rest.ends_with("= 0")
                {
                    recording.sync(time, path, begun);
                    // What follows it is a place further on, for the other syncs that are under way as well.
                    for (_, at) in unfinished.values_mut().filter(|(_, at)| *at > begun) {
                        *at += 1;
                    }
                }
                continue;
            }
            let (name, arguments) = rest.split_once('(').with_context(|| format!("no call: {rest:.60}"))?;
            // The process ended before strace could see what a thread of it asked.
            if name == "???" {
                continue;
            }
            let (path, arguments) = match name {
                "unlink" => (PathBuf::from(String::from_utf8(quoted(arguments)?.0)?), ""),
                _ => path(arguments)?,
            };
            match name {
                "unlink" => recording.asked.push((time, path, Asked::Remove)),
                "pwrite64" => {
                    let (bytes, places) = quoted(arguments)?;
                    let offset = places.trim_start_matches(", ").split(", ").nth(1).context("no offset")?;
                    let offset = number(offset)?;
                    recording.asked.push((time, path, Asked::Write { offset, bytes }));
                }
                "ftruncate" => {
                    let length = number(arguments.trim_start_matches(", "))?;
                    recording.asked.push((time, path, Asked::Truncate { length }));
                }
                "fsync" | "fdatasync" if rest.ends_with("<unfinished ...>") => {
                    unfinished.insert(thread.to_owned(), (path, recording.asked.len()));
                }
                "fsync" | "fdatasync" if rest.ends_with("= 0") => {
                    let begun = recording.asked.len();
                    recording.sync(time, path, begun);
                }
                // The process ended in it.
                "fsync" | "fdatasync" if rest.ends_with("= ?") => {}
                _ => bail!("what is this: {rest}"),
            }
        }
        Ok(recording)
    }

    /// Notes a sync of what was asked before `begun`. What was asked meanwhile is put behind it: it may not be on the disk.
    fn sync(&mut self, time: f64, path: PathBuf, begun: usize) {
        let meanwhile = self.asked.split_off(begun);
        self.asked.push((time, path, Asked::Sync));
        self.asked.extend(meanwhile);
    }

    /// How many things were asked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// True if nothing was asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// When the first of a thing and all that follow it was asked, in seconds since 1970: whose power fails before that thing has come no
    /// further. A sync has the time at which it ended, and what was asked meanwhile follows it.
    #[must_use]
    pub fn time(&self, at: usize) -> f64 {
        self.asked.iter().skip(at).map(|(time, ..)| *time).fold(f64::INFINITY, f64::min)
    }

    /// The same as with `synchronous=NORMAL`: without the syncs of a database's write-ahead log at its commits. Of its header, which is all
    /// that is at 0, and before it is copied, which with `synchronous=FULL` is after a commit's, it is synced with either.
    #[must_use]
    pub fn without_syncs_at_commits(mut self, log: &str) -> Self {
        let mut unsynced = None;
        self.asked.retain(|(_, path, asked)| {
            if !path.ends_with(log) {
                return true;
            }
            match asked {
                Asked::Write { offset, .. } => unsynced = Some(*offset),
                Asked::Sync => return unsynced.take().is_none_or(|offset| offset == 0),
                Asked::Truncate { .. } | Asked::Remove => {}
            }
            true
        });
        self
    }

    /// Lays the files of `folder` into another one as a disk may hold them that lost its power before it was asked for the thing at `end`.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn lay(&self, folder: &Path, end: usize, into: &Path, random: &mut impl Rng) -> anyhow::Result<()> {
        // As strace says it.
        let folder = fs::canonicalize(folder)?;
        for (name, bytes) in self.files_after(&folder, end, random) {
            // The index of the log is memory, and nobody's who comes after the power.
            if !name.to_string_lossy().ends_with("-shm") {
                fs::write(into.join(name), bytes)?;
            }
        }
        Ok(())
    }

    fn files_after(&self, folder: &Path, end: usize, random: &mut impl Rng) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        let synced: BTreeMap<&Path, usize> = self.asked[..end]
            .iter()
            .enumerate()
            .filter(|(_, (.., asked))| matches!(asked, Asked::Sync))
            .map(|(at, (_, path, _))| (path.as_path(), at))
            .collect();
        for (at, (_, path, asked)) in self.asked[..end].iter().enumerate() {
            // The folder itself is synced too.
            let Some(name) = path.strip_prefix(folder).ok().filter(|name| *name != Path::new("")) else { continue };
            if matches!(asked, Asked::Remove) {
                files.remove(name);
                continue;
            }
            let file = files.entry(name.to_owned()).or_default();
            let whole = synced.get(path.as_path()).is_some_and(|synced| at < *synced);
            match asked {
                Asked::Write { offset, bytes } => {
                    for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
                        if whole || random.random_bool(0.5) {
                            put(file, offset + sector * SECTOR, bytes);
                        }
                    }
                }
                Asked::Truncate { length } if whole || random.random_bool(0.5) => file.resize(*length, 0),
                Asked::Truncate { .. } | Asked::Remove | Asked::Sync => {}
            }
        }
        files
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

/// The path of `13</path>`, in hexadecimal as all text here, and what follows.
fn path(arguments: &str) -> anyhow::Result<(PathBuf, &str)> {
    let (_, rest) = arguments.split_once('<').context("no file")?;
    let (path, rest) = rest.split_once('>').context("no file's end")?;
    let path = if path.starts_with('\\') { String::from_utf8(bytes(path)?)? } else { path.to_owned() };
    Ok((PathBuf::from(path), rest))
}

/// The bytes of `, "\x01\x02", …`, and what follows them.
fn quoted(arguments: &str) -> anyhow::Result<(Vec<u8>, &str)> {
    let (_, rest) = arguments.split_once('"').context("no bytes")?;
    let (text, rest) = rest.split_once('"').context("no end of the bytes")?;
    anyhow::ensure!(!rest.starts_with("..."), "the record is cut short");
    Ok((bytes(text)?, rest))
}

fn bytes(text: &str) -> anyhow::Result<Vec<u8>> {
    text.split("\\x").skip(1).map(|hex| u8::from_str_radix(hex, 16).context("not a byte")).collect()
}

fn number(text: &str) -> anyhow::Result<usize> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("not a number: {text:.40}"))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn what_a_process_asks_as_it_ends_is_no_riddle() {
        let record = concat!(
            "1 0.1 pwrite64(4</disk/log>, \"\\x07\", 1, 0) = 1\n",
            "2 0.2 ???( <unfinished ...>\n",
            "3 0.2 ???()\n",
            "1 0.3 fsync(4</disk/log>) = ?\n",
            "2 0.4 <... ??? resumed>) = ?\n",
            "1 0.5 +++ exited with 0 +++\n",
        );
        assert_eq!(Recording::read(record).expect("a record").len(), 1);
    }

    #[test]
    fn without_syncs_at_commits_a_log_is_synced_with_its_header_and_before_it_is_copied() {
        let record = concat!(
            "1 0.1 pwrite64(4</disk/a.db-wal>, \"\\x07\", 1, 0) = 1\n",
            "1 0.2 fdatasync(4</disk/a.db-wal>) = 0\n",
            "1 0.3 pwrite64(4</disk/a.db-wal>, \"\\x07\", 1, 32) = 1\n",
            "1 0.4 fdatasync(4</disk/a.db-wal>) = 0\n",
            "1 0.5 fdatasync(4</disk/a.db-wal>) = 0\n",
            "1 0.6 pwrite64(3</disk/a.db>, \"\\x07\", 1, 32) = 1\n",
            "1 0.7 fdatasync(3</disk/a.db>) = 0\n",
        );
        let recording = Recording::read(record).expect("a record").without_syncs_at_commits("a.db-wal");
        let times: Vec<f64> = recording.asked.iter().map(|(time, ..)| *time).collect();
        assert_eq!(times, [0.1, 0.2, 0.3, 0.5, 0.6, 0.7]);
    }

    #[test]
    fn a_sync_holds_for_what_was_asked_before_it_whatever_else_is_synced_meanwhile() {
        let record = concat!(
            "1 0.1 fsync(3</disk/views> <unfinished ...>\n",
            "2 0.2 pwrite64(4</disk/log>, \"\\x07\", 1, 0) = 1\n",
            "2 0.3 fsync(4</disk/log> <unfinished ...>\n",
            "1 0.4 <... fsync resumed>) = 0\n",
            "2 0.5 <... fsync resumed>) = 0\n",
        );
        let recording = Recording::read(record).expect("a record");
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..64 {
            let files = recording.files_after(Path::new("/disk"), recording.len(), &mut random);
            assert_eq!(files.get(Path::new("log")).map(Vec::as_slice), Some([7].as_slice()));
        }
        // The first sync is put before what was written meanwhile, which is not there without it: the power has failed by then.
        assert_eq!([0, 1, 2, 3].map(|at| recording.time(at)), [0.2, 0.2, 0.5, f64::INFINITY]);
    }
}
