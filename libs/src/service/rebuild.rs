//! Views made anew by a program of its own, and put in the place of the old ones.

use std::{
    fs::{self, File, Metadata},
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::{MetadataExt as _, fchown},
    path::{Path, PathBuf},
};

use super::stores::{Stores, location, views_named};
use crate::{
    cli::{BoxError, Store},
    cqrs::{Log, Projections, Views},
    journal::{
        Location, OpenError,
        sqlite::{companion, itself, lock, remove, remove_abandoned},
    },
};

impl Stores {
    /// Makes the views anew from the events, beside the old ones, and puts them in their place. The service must not be
    /// serving queries.
    ///
    /// # Errors
    /// As [`open`](Self::open), or when an event can't be folded. The old ones are as they were then, unless it says that this isn't
    /// known. Until it ends nobody can begin to serve queries of them.
    pub async fn rebuild(self, service: &'static str, store: &Store) -> Result<(), BoxError> {
        self.names()?;
        let location = location(store, service);
        let (Location::Sqlite(path), Location::Sqlite(old)) = (&location, location.views()) else {
            let log = Log::open(&location)?.upcast(self.upcasters);
            let views = Views::open_old(location.views(), log, &self.projections).await?;
            views.rebuild(tell).await?;
            tracing::info!(views = %location, "the views are made anew");
            return Ok(());
        };
        let new = old.with_extension("new.db");
        let log = Log::open(&location)?;
        // Whoever runs this may be another user than who serves, as where a backup is put back.
        let whose = fs::metadata(&old).or_else(|_| fs::metadata(path))?;
        // Nobody may be reading the old ones. That they can't be opened may be why they are made anew.
        match Views::open(&old, log, &Projections::new()).await {
            Ok(views) => views.catch_up(|_, _| {}).await?,
            Err(in_use @ OpenError::InUse { .. }) => return Err(in_use.into()),
            Err(error) => tracing::warn!(%error, "the old views are lost"),
        }
        // Nor may anybody begin to: whoever did would go on reading what is removed in the end.
        let old_lock = lock(&old)?;
        remove(&new)?;
        let log = Log::open(&location)?.upcast(self.upcasters);
        if let Err(error) = make(&new, log, &self.projections).await {
            // What it took of the disk may be all that was left.
            remove(&new)?;
            return Err(error);
        }
        if fs::metadata(companion(&new, "-wal")).is_ok_and(|log| log.len() > 0) {
            return Err(format!("{} is not whole: somebody has it open", new.display()).into());
        }
        let _new = lock(&new)?;
        for source in views_of_others(&old)? {
            if !remove_abandoned(&source)? {
                return Err(OpenError::InUse { path: source }.into());
            }
            tracing::info!(views = %source.display(), "removed: they are made anew from that service's events");
        }
        for (name, file) in [(&new, &itself(File::options().read(true), &new)?), (&old, &old_lock)] {
            if let Err(error) = like(&whose, file) {
                let views = name.display();
                tracing::warn!(%views, %error, "they or their lock are not given to who has the views, or the journal");
            }
        }
        take_place(&new, &old)?;
        tracing::info!(views = %old.display(), "the views are made anew");
        Ok(())
    }
}

/// Makes views of the whole log.
async fn make(path: &Path, log: Log, projections: &Projections) -> Result<(), BoxError> {
    Ok(Views::open(path, log, projections).await?.catch_up(tell).await?)
}

/// Puts views that are whole in the place of old ones: whoever is killed in the midst of it leaves the ones or the others.
fn take_place(new: &Path, old: &Path) -> io::Result<()> {
    // It has nothing that the old file lacks, unless that is lost, and would be taken for the new one's.
    for suffix in ["-wal", "-shm"] {
        match fs::remove_file(companion(old, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(new, old)?;
    remove(new)
}

/// Gives a file another one's owner and rights.
fn like(other: &Metadata, file: &File) -> io::Result<()> {
    let its = file.metadata()?;
    file.set_permissions(other.permissions())?;
    if (its.uid(), its.gid()) != (other.uid(), other.gid()) {
        fchown(file, Some(other.uid()), Some(other.gid()))?;
    }
    Ok(())
}

/// How far a rebuild is: as a bar where somebody looks, in the log elsewhere.
fn tell(done: i64, all: i64) {
    const WIDTH: i64 = 40;
    let mut screen = io::stderr();
    if !screen.is_terminal() {
        tracing::info!(done, all, "folding events");
        return;
    }
    let full = usize::try_from(done * WIDTH / all.max(1)).unwrap_or_default();
    let end = if done == all { "\n" } else { "" };
    // Nothing depends on it.
    let _ = write!(screen, "\r{:░<40} {done} of {all} events{end}", "█".repeat(full));
}

/// The databases of views over other services' events.
fn views_of_others(views: &Path) -> io::Result<Vec<PathBuf>> {
    views_named(views, |source| source != "new" && !source.is_empty())
}
