//! The stores of a service: the journal its commands are written to, and beside it the views its queries read.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::App;
use crate::{
    cli::{BoxError, DatabaseUrl, Serve, Store},
    cqrs::{Answers, Barrier, CommandSide, Log, Outbox, Projections, ReadSide, Upcasters, Views},
    journal::{Journal, Location, Names, OpenError, Table, sqlite::remove_abandoned},
    rpc::client::Peer,
    telemetry,
};

/// What a service keeps: tables beside the journal's own, and views.
#[derive(Debug, Default)]
pub struct Stores {
    /// Tables that decisions write to beside their events, such as a coordinator's sagas. A constraint of theirs that refuses a row is
    /// INTERNAL to whoever asked, and an ERROR line: what a client may bring about, a decision refuses by what it has loaded.
    pub tables: Vec<&'static Table>,
    /// The folds that make the views.
    pub projections: Projections,
    /// What brings old forms of events into the form of today.
    pub upcasters: Upcasters,
    /// The folds over other services' events, by the service's name: what [`migrate`](Self::migrate) makes ready for
    /// [`follow`](Self::follow).
    pub others: Vec<(&'static str, Projections)>,
}

/// Another service whose events make views here.
#[derive(Debug)]
pub struct Source {
    /// The service, reached by [`PeerOptions::stream`](crate::rpc::client::PeerOptions::stream).
    pub peer: Peer,
    /// The kinds of aggregate whose events are wanted.
    pub kinds: &'static [&'static str],
    /// The folds that make the views.
    pub projections: Projections,
}

/// The sides that this process serves.
#[derive(Debug)]
pub struct Sides {
    /// Where commands are decided, unless this process serves queries alone.
    pub commands: Option<CommandSide>,
    /// Where queries are answered, unless this process serves commands alone.
    pub queries: Option<ReadSide>,
    /// The journal behind the commands.
    pub journal: Option<Journal>,
}

impl Stores {
    /// Opens what this process serves, making what is missing, and gives its tasks to the app: the service ends if the journal
    /// or the views fail, and when it drains all that waits is committed.
    ///
    /// # Errors
    /// When a database is in use, can't be opened or can't promise durability, or two tables or projections have one name, among them those
    /// over other services' events.
    pub async fn open(self, service: &'static str, app: &mut App, flags: &Serve) -> Result<Sides, BoxError> {
        app.names = Some(self.names()?);
        let location = location(&flags.store, service);
        // On a full disk the journal can't be opened as long as it is there.
        if let (true, Location::Sqlite(views)) = (flags.surface.queries(), location.views()) {
            remove_half_made(&views);
        }
        let journal = match flags.surface.commands() {
            true => Some(Journal::open(&location, &self.tables).await?),
            false => None,
        };
        let queries = match flags.surface.queries() {
            true => {
                let log = match &journal {
                    Some(journal) => Log::of(journal),
                    None => Log::open(&location)?,
                };
                let log = log.upcast(self.upcasters);
                if let Some(jetstream) = app.jetstream() {
                    let relay = jetstream.relay(service, log.clone());
                    relay.show_on(app.board());
                    app.task("relay", relay.run());
                }
                app.add(Outbox::new(service, log.clone()).into_server());
                let board = app.board().service(service);
                app.add(board.queries()).add(board.commands());
                if let Some(meter) = telemetry::meter(service) {
                    app.board().observe(&meter);
                }
                tell_of_former(&location, &location.views());
                let views = Views::open(location.views(), log, &self.projections).await?;
                views.show_on(app.board(), service);
                let read = read_side(&views, service, flags);
                app.task("views", views.run());
                Some(read)
            }
            false => None,
        };
        if let Some(journal) = &journal {
            app.add(Barrier::new(service, journal.clone()).into_server());
            let answers = Answers::new(journal.clone(), flags.limits.keep_answers);
            if let Some(meter) = telemetry::meter(service) {
                answers.observe(&meter);
            }
            app.task("stored answers", answers.run());
            let (running, draining) = (journal.clone(), journal.clone());
            app.task_until_drained("journal", async move { running.ended().await }, move || draining.close());
        }
        let commands = journal.clone().map(|journal| CommandSide::new(service, journal));
        if let (Some(commands), Some(meter)) = (&commands, telemetry::meter(service)) {
            commands.observe(&meter);
        }
        Ok(Sides { commands, queries, journal })
    }

    /// Opens views over another service's events, on SQLite in a file of their own, and gives their projector to the app. They follow as
    /// the events come, and stand still while that service is out.
    ///
    /// # Errors
    /// When the database is in use or can't be opened, or a table or projection has the name of another one of this service.
    pub async fn follow(
        service: &'static str,
        source: Source,
        app: &mut App,
        flags: &Serve,
    ) -> Result<ReadSide, BoxError> {
        let Source { peer, kinds, projections } = source;
        if let Some(names) = &mut app.names {
            projections.take_names(names)?;
        }
        let name = peer.name().to_owned();
        let journal = location(&flags.store, service);
        let location = journal.views_of(&name);
        tell_of_former(&journal, &location);
        let log = match app.jetstream() {
            Some(jetstream) => {
                let replicas = matches!(location, Location::Postgres { .. });
                Log::of_stream(jetstream.clone(), peer, kinds, service, replicas)
            }
            None => Log::of_service(peer, kinds),
        };
        let views = Views::open(location, log, &projections).await?;
        views.show_on(app.board(), &name);
        let read = read_side(&views, service, flags);
        app.task(format!("views over {name}"), views.run());
        Ok(read)
    }

    /// Brings every database to what this version needs: who serves then need not be allowed to make anything.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn migrate(self, service: &'static str, store: &Store) -> Result<(), BoxError> {
        self.names()?;
        let location = location(store, service);
        let journal = Journal::open(&location, &self.tables).await?;
        tell_of_former(&location, &location.views());
        let views = Views::open(location.views(), Log::of(&journal).upcast(self.upcasters), &self.projections).await?;
        for (source, projections) in &self.others {
            let views_of = location.views_of(source);
            tell_of_former(&location, &views_of);
            Views::make(&views_of, projections).await?;
        }
        journal.close();
        journal.ended().await?;
        Ok(views.run().await?)
    }

    /// The names that are taken, but for those over other services' events, which come as they are followed: none may be one of those.
    pub(super) fn names(&self) -> Result<Names, OpenError> {
        let mut names = Views::names(&self.tables)?;
        self.projections.take_names(&mut names)?;
        let mut all = names.clone();
        self.others.iter().try_for_each(|(_, projections)| projections.take_names(&mut all))?;
        Ok(names)
    }
}

/// Tells of views that are under the name which only those of an `order.db` have today: those that are made in their place have nothing
/// yet.
fn tell_of_former(journal: &Location, views: &Location) {
    let (Location::Sqlite(journal), Location::Sqlite(views)) = (journal, views) else { return };
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let today = name(views);
    let Some(what) = today.strip_prefix(&name(journal)).and_then(|rest| rest.strip_prefix('-')) else { return };
    let former = journal.with_extension(what);
    if former.exists() && !views.exists() && !journal.with_extension("db").exists() {
        let (former, views) = (former.display(), views.display());
        tracing::warn!(
            %former,
            %views,
            "views are made anew under another name, and queries find less until they have all: docs/operations.md"
        );
    }
}

fn read_side(views: &Views, service: &'static str, flags: &Serve) -> ReadSide {
    views.read_side(service, flags.limits.max_staleness_wait).answering_at_most(flags.limits.max_message_bytes)
}

/// Where a service keeps its data: on PostgreSQL in a schema of its own name.
pub(super) fn location(store: &Store, service: &str) -> Location {
    match &store.database_url {
        DatabaseUrl::Sqlite(path) => Location::Sqlite(path.clone()),
        DatabaseUrl::Postgres(url) => Location::Postgres { url: url.clone(), schema: service.to_owned() },
    }
}

/// Removes views that somebody was making who was killed. Those that are being made stay, and so does what can't be removed: it is nobody's
/// need.
fn remove_half_made(views: &Path) {
    let half_made = views_named(views, |name| matches!(name.rsplit('.').next(), Some("new" | "anew")));
    let removed = half_made.map_err(BoxError::from).and_then(|half_made| {
        for views in half_made {
            if remove_abandoned(&views)? {
                tracing::info!(views = %views.display(), "removed: whoever made views anew there came to no end");
            }
        }
        Ok(())
    });
    if let Err(error) = removed {
        tracing::warn!(error, "what was left beside the views is not removed");
    }
}

/// The databases beside a journal's views whose names say between those' and the ending that they are such views.
pub(super) fn views_named(views: &Path, such: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (views.parent(), views.file_stem().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let begins = format!("{name}.");
    let is_such = |name: &str| name.strip_prefix(&begins).and_then(|rest| rest.strip_suffix(".db")).is_some_and(&such);
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut found = Vec::new();
    // One that is yet to be made has none; what else is wrong with it, whoever opens the journal says.
    if !folder.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_such) {
            found.push(entry.path());
        }
    }
    Ok(found)
}
