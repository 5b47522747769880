//! What a service keeps in files, made anew by its own program and found by it when it starts.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod lines;
mod squeamish;

use std::{
    fs::{File, Permissions},
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use libs::{
    breaker::Registry,
    cli::{BoxError, DatabaseUrl, Serve, Store, Surface},
    cqrs::{Log, Projection, ProjectionError, Projections, Views},
    journal::{
        AggregateId, Cause, Change, Decided, Entry, Event, Journal, Loaded, Location, NewEvent, OpenError, SubmitError,
        Table, head,
        sql::Transaction,
        sqlite::{Durability, Writer, companion, readers, remove},
    },
    rpc::client::{PeerOptions, Peers},
    service::{App, Source, Stores},
};
use lines::Lines;
use squeamish::{SEEN, Squeamish};
use tempfile::TempDir;

/// Writes an event of each id.
async fn write(journal: &Journal, ids: &[&str]) {
    for id in ids {
        let aggregate = AggregateId::new("thing", *id);
        let event = NewEvent { name: "Happened", payload: Vec::new().into() };
        let change = Change { aggregate, state: None, version: 1, events: vec![event] };
        let decide = Box::new(move |_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
        let entry = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 10 };
        journal.submit(entry).await.unwrap();
    }
}

fn stores(mended: &Arc<AtomicBool>) -> Stores {
    Stores { projections: Projections::new().with(Squeamish { mended: Arc::clone(mended) }), ..Stores::default() }
}

fn kept(journal: &Path) -> Store {
    Store { database_url: DatabaseUrl::Sqlite(journal.to_owned()) }
}

/// Does what a stopped service's `rebuild` does.
async fn rebuild(journal: &Path, mended: &Arc<AtomicBool>) -> Result<(), BoxError> {
    stores(mended).rebuild("test", &kept(journal)).await
}

/// What the views say of these ids.
async fn seen<const N: usize>(journal: &Path, ids: [&str; N]) -> [Option<i64>; N] {
    let projections = Projections::new().with(Squeamish { mended: Arc::default() });
    let log = Log::open(journal).unwrap();
    let views = Views::open(Location::from(journal).views(), log, &projections).await.unwrap();
    let read = views.read_side("test", Duration::ZERO);
    let seen = futures::future::join_all(ids.map(|id| read.document(&SEEN, id))).await;
    drop(read);
    // It lets go of the file: nothing is left to fold.
    views.catch_up(|_, _| {}).await.unwrap();
    seen.into_iter().map(Result::unwrap).collect::<Vec<_>>().try_into().unwrap()
}

#[tokio::test]
async fn views_that_can_not_fold_every_event_take_nobodys_place() {
    let folder = TempDir::new().unwrap();
    let (path, mended) = (folder.path().join("test.db"), Arc::new(AtomicBool::new(true)));
    let journal = Journal::open(&path, &[]).await.unwrap();
    write(&journal, &["a", "poison", "b"]).await;
    rebuild(&path, &mended).await.unwrap();
    let others = folder.path().join("test.views.other.db");
    std::fs::write(&others, "another service's").unwrap();

    mended.store(false, Ordering::SeqCst);
    let error = rebuild(&path, &mended).await.unwrap_err().to_string();
    assert!(error.contains("are as they were") && error.contains("poison") && !error.contains('\n'), "{error}");
    assert_eq!(seen(&path, ["a", "poison", "b"]).await, [Some(1); 3]);
    assert!(others.exists());
    assert_eq!(files(&folder, "views.new"), [""; 0], "it gives back the room that it took");

    mended.store(true, Ordering::SeqCst);
    rebuild(&path, &mended).await.unwrap();
    assert_eq!(seen(&path, ["a", "poison", "b"]).await, [Some(1); 3]);
    assert!(!others.exists());
}

/// As where root puts a backup back.
#[tokio::test]
async fn views_that_are_made_anew_are_whose_the_old_ones_were() {
    let folder = TempDir::new().unwrap();
    let (path, mended) = (folder.path().join("test.db"), Arc::new(AtomicBool::new(true)));
    write(&Journal::open(&path, &[]).await.unwrap(), &["a"]).await;
    rebuild(&path, &mended).await.unwrap();
    let views = path.with_extension("views.db");
    std::fs::set_permissions(&views, Permissions::from_mode(0o640)).unwrap();
    // Who may not give a file away is who serves.
    let _ = chown(&views, Some(1), Some(1));
    let whose =
        || std::fs::metadata(&views).map(|file| (file.ino(), file.uid(), file.gid(), file.mode() & 0o777)).unwrap();
    let before = whose();
    rebuild(&path, &mended).await.unwrap();
    let after = whose();
    assert_ne!(after.0, before.0, "they are new ones");
    assert_eq!((after.1, after.2, after.3), (before.1, before.2, 0o640));

    // Where there were none they are whose the journal is.
    remove(&views).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
    let _ = chown(&path, Some(2), Some(2));
    rebuild(&path, &mended).await.unwrap();
    let of = |file: &Path| std::fs::metadata(file).map(|file| (file.uid(), file.gid(), file.mode() & 0o777)).unwrap();
    assert_eq!([of(&views), of(&companion(&views, ".lock"))], [of(&path); 2]);
}

/// Tries, at each fold, to open the views and to make them anew, as a supervisor or an impatient operator may.
struct Impatient {
    journal: PathBuf,
    refused: Arc<AtomicUsize>,
}

impl Projection for Impatient {
    const NAME: &'static str = "impatient";
    const TABLES: &'static [&'static Table] = &[];

    async fn project(&self, _: &[Event], _: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let views = Writer::open(&self.journal.with_extension("views.db"), Durability::Rebuildable, &[]);
        let anew = Stores::default().rebuild("test", &kept(&self.journal)).await;
        let in_use = [
            matches!(views, Err(OpenError::InUse { .. })),
            anew.is_err_and(|error| error.is::<OpenError>() && error.to_string().contains("is in use")),
        ];
        self.refused.fetch_add(in_use.into_iter().filter(|refused| *refused).count(), Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test]
async fn nobody_opens_views_while_they_are_made_anew() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("test.db");
    let journal = Journal::open(&path, &[]).await.unwrap();
    write(&journal, &["a"]).await;
    rebuild(&path, &Arc::new(AtomicBool::new(true))).await.unwrap();
    let refused = Arc::default();
    let impatient = Impatient { journal: path.clone(), refused: Arc::clone(&refused) };
    let projections = Projections::new().with(impatient).with(Squeamish { mended: Arc::new(AtomicBool::new(true)) });
    Stores { projections, ..Stores::default() }.rebuild("test", &kept(&path)).await.unwrap();
    assert_eq!(refused.load(Ordering::SeqCst), 2, "neither of the two got hold of them");
    assert_eq!(seen(&path, ["a"]).await, [Some(1)]);
}

#[tokio::test]
async fn a_database_is_one_by_whatever_name() {
    let folder = TempDir::new().unwrap();
    let (path, link) = (folder.path().join("test.db"), folder.path().join("link.db"));
    let _journal = Journal::open(&path, &[]).await.unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let error = Journal::open(&link, &[]).await.unwrap_err().to_string();
    assert!(error.contains("is in use by another process"), "{error}");
}

#[tokio::test]
async fn a_database_is_one_by_links_that_were_there_first() {
    let folder = TempDir::new().unwrap();
    let (path, link) = (folder.path().join("volume.db"), folder.path().join("test.db"));
    let between = folder.path().join("disk.db");
    std::os::unix::fs::symlink("volume.db", &between).unwrap();
    std::os::unix::fs::symlink("disk.db", &link).unwrap();
    let _journal = Journal::open(&link, &[]).await.unwrap();
    assert!(path.exists());
    for name in [&link, &between, &path] {
        let error = Journal::open(name.as_path(), &[]).await.unwrap_err().to_string();
        assert!(error.contains("is in use by another process"), "{error}");
    }
    // What goes with it is beside it, not beside the link.
    Log::open(link.as_path()).unwrap();
    assert_eq!(files(&folder, "test.db"), ["test.db"]);
}

/// SQLite opens what it may not write for reading, and says nothing. Whoever runs this may write anything: such is a file of a form that is
/// newer than SQLite.
#[tokio::test]
async fn a_database_that_may_not_be_written_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("test.db");
    let journal = Journal::open(&path, &[]).await.unwrap();
    write(&journal, &["a"]).await;
    journal.close();
    journal.ended().await.unwrap();
    drop(journal);
    const WRITTEN_BY: u64 = 18;
    let mut file = File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(WRITTEN_BY)).unwrap();
    file.write_all(&[3]).unwrap();
    let error = Journal::open(&path, &[]).await.unwrap_err();
    let words = error.to_string();
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{words}");
    assert!(words.contains("test.db") && words.contains("owner") && !words.contains('\n'), "{words}");
}

#[tokio::test]
async fn what_is_written_to_a_database_that_is_removed_or_replaced_is_not_answered() {
    for (gone, replaced) in [("test.db", false), ("test.db", true), ("test.db.lock", false)] {
        let folder = TempDir::new().unwrap();
        let (path, gone) = (folder.path().join("test.db"), folder.path().join(gone));
        let journal = Journal::open(&path, &[]).await.unwrap();
        write(&journal, &["a"]).await;
        if replaced {
            std::fs::copy(&gone, gone.with_extension("copy")).unwrap();
            std::fs::rename(gone.with_extension("copy"), &gone).unwrap();
        } else {
            std::fs::remove_file(&gone).unwrap();
        }
        let entry = Entry {
            request: None,
            aggregates: Vec::new(),
            cause: Cause::default(),
            decide: Box::new(|_| {
                let happened = NewEvent { name: "Happened", payload: Vec::new().into() };
                let (aggregate, events) = (AggregateId::new("thing", "b"), vec![happened]);
                let change = Change { aggregate, state: None, version: 1, events };
                Decided { changes: vec![change], ..Decided::default() }
            }),
            size: 10,
        };
        assert_eq!(journal.submit(entry).await.map(|done| done.position), Err(SubmitError::Closed), "{gone:?}");
        let end = journal.ended().await.unwrap_err().to_string();
        let says = format!("{} was removed or replaced", gone.display());
        assert!(end.contains(&says) && !end.contains("what was answered is safe"), "{end}");
    }
}

#[tokio::test]
async fn who_only_reads_says_what_makes_the_database() {
    let folder = TempDir::new().unwrap();
    let error = Log::open(folder.path().join("test.db").as_path()).unwrap_err().to_string();
    assert!(error.contains("serve its commands or run migrate first") && !error.contains('\n'), "{error}");
    // Nor are views made of one that isn't there.
    let error = rebuild(&folder.path().join("test.db"), &Arc::default()).await.unwrap_err().to_string();
    assert!(error.contains("serve its commands or run migrate first") && !error.contains('\n'), "{error}");
    // Nor is one there whose maker was killed at once.
    File::create(folder.path().join("test.db")).unwrap();
    let error = Log::open(folder.path().join("test.db").as_path()).unwrap_err().to_string();
    assert!(error.contains("serve its commands or run migrate first"), "{error}");
}

#[tokio::test]
async fn views_that_went_further_than_a_restored_log_are_refused_until_they_are_made_anew() {
    let folder = TempDir::new().unwrap();
    let (path, mended) = (folder.path().join("test.db"), Arc::new(AtomicBool::new(true)));
    let migrate = async || stores(&mended).migrate("test", &kept(&path)).await;
    let begin = async |ids: &[&str]| {
        let journal = Journal::open(&path, &[]).await.unwrap();
        write(&journal, ids).await;
        journal.close();
        journal.ended().await.unwrap();
    };
    begin(&["a", "b", "c"]).await;
    migrate().await.unwrap();
    remove(&path).unwrap();
    begin(&["a"]).await;

    let error = migrate().await.unwrap_err().to_string();
    assert!(error.contains("the views are at 3 and the log ends at 1") && error.contains("`rebuild`"), "{error}");
    assert!(!error.contains('\n'), "{error}");
    rebuild(&path, &mended).await.unwrap();
    migrate().await.unwrap();
    assert_eq!(seen(&path, ["a", "b", "c"]).await, [Some(1), None, None]);
}

/// The other one may be a backup, or what somebody tries something with.
#[tokio::test]
async fn views_are_those_of_one_database_however_alike_another_is_named() {
    let folder = TempDir::new().unwrap();
    let (path, other) = (folder.path().join("order.db"), folder.path().join("order.test"));
    let mended = Arc::default();
    for (path, id) in [(&path, "a"), (&other, "b")] {
        let journal = Journal::open(path, &[]).await.unwrap();
        write(&journal, &[id]).await;
        journal.close();
        journal.ended().await.unwrap();
        drop(journal);
        stores(&mended).migrate("test", &kept(path)).await.unwrap();
    }
    assert_eq!(seen(&other, ["a", "b"]).await, [None, Some(1)]);
    let followed = folder.path().join("order.views.payment.db");
    std::fs::write(&followed, "payment's, as order.db follows them").unwrap();
    rebuild(&other, &mended).await.unwrap();
    assert!(followed.exists());
    assert_eq!(seen(&path, ["a", "b"]).await, [Some(1), None]);
}

/// As an older version named them. Without a word queries would find less than before.
#[tokio::test]
async fn views_that_a_database_had_under_the_names_of_another_one_are_told_of() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("order.sqlite");
    let (former, today) = (folder.path().join("order.views.db"), folder.path().join("order.sqlite-views.db"));
    let migrate = async || {
        let (lines, _keeping) = Lines::keep();
        let others = vec![("payment", Projections::new().with(Squeamish::default()))];
        let both = Stores { others, projections: Projections::new(), ..Stores::default() };
        both.migrate("test", &kept(&path)).await.unwrap();
        lines.that_say("order.views.").len()
    };
    assert_eq!(migrate().await, 0, "there are none");
    std::fs::rename(&today, &former).unwrap();
    assert_eq!(migrate().await, 1);
    assert_eq!(migrate().await, 0, "they have begun anew");
    // Those of others are named after them.
    std::fs::rename(folder.path().join("order.sqlite-views.payment.db"), folder.path().join("order.views.payment.db"))
        .unwrap();
    assert_eq!(migrate().await, 1);
    remove(&today).unwrap();
    File::create(folder.path().join("order.db")).unwrap();
    assert_eq!(migrate().await, 0, "they are that one's");
}

/// The files of a folder whose names say this.
fn files(folder: &TempDir, says: &str) -> Vec<String> {
    let names =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(says)).collect()
}

#[tokio::test]
async fn who_answers_queries_removes_at_its_start_what_one_left_who_was_killed_in_the_midst_of_making_views() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("test.db");
    let half_made =
        ["views.anew", "views.new", "views.other.anew"].map(|name| path.with_extension(format!("{name}.db")));
    let kept = ["views", "views.other"].map(|name| path.with_extension(format!("{name}.db")));
    let serve = async |surface: Surface| {
        let flags = Serve::new("127.0.0.1:0".parse().unwrap(), DatabaseUrl::Sqlite(path.clone()));
        let flags = Serve { surface, ..flags };
        let mut app = App::bind("test", &flags).await.unwrap();
        drop(stores(&Arc::default()).open("test", &mut app, &flags).await.unwrap());
        // What it has begun has let go of the files once it has ended.
        app.run_until(std::future::ready(())).await.unwrap();
    };
    for left in half_made.iter().chain(&kept) {
        drop(Writer::open(left, Durability::Rebuildable, &[]).unwrap());
    }
    serve(Surface::Command).await;
    assert!(half_made.iter().all(|path| path.exists()), "who folds nothing leaves it to who does");

    let [at_work, ..] = &half_made;
    let writer = Writer::open(at_work, Durability::Rebuildable, &[]).unwrap();
    serve(Surface::All).await;
    assert!(at_work.exists(), "somebody is at it");
    assert!(half_made[1..].iter().all(|path| !path.exists()));
    assert!(kept.iter().all(|path| path.exists()));
    drop(writer);
    serve(Surface::Query).await;
    assert_eq!(files(&folder, "anew"), [""; 0]);
}

#[tokio::test]
async fn what_follows_another_service_is_made_ready_too() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("test.db");
    let projections = || Projections::new().with(Squeamish { mended: Arc::default() });
    let both = Stores { others: vec![("other", projections())], ..Stores::default() };
    both.migrate("test", &kept(&path)).await.unwrap();
    // Anybody who may only read finds the tables.
    let others = folder.path().join("test.views.other.db");
    let read = readers(&others, 1).unwrap().fetch_keys(&SEEN, vec![vec!["a".into()]]).await.unwrap();
    assert!(read.is_empty());
}

/// A query process may be the first to come back: whoever wrote the log was killed before it was synced.
#[tokio::test]
async fn what_a_killed_process_left_in_the_log_is_settled_before_a_query_process_reads_it() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(format!("{name}.db"));
    let killed = Journal::open(path("killed").as_path(), &[]).await.unwrap();
    write(&killed, &["a"]).await;
    let (left, settled) = (path("left"), path("settled"));
    for suffix in ["", "-wal"] {
        std::fs::copy(companion(&path("killed"), suffix), companion(&left, suffix)).unwrap();
    }
    let log = Log::open(left.as_path()).unwrap();
    let projections = Projections::new().with(Squeamish { mended: Arc::default() });
    let views = Views::open(&left.with_extension("views.db"), log, &projections).await.unwrap();
    views.catch_up(|_, _| {}).await.unwrap();
    assert_eq!(seen(&left, ["a"]).await, [Some(1)]);
    // The power fails, and what was in the log alone is gone.
    std::fs::copy(&left, &settled).unwrap();
    let journal = Journal::open(settled.as_path(), &[]).await.unwrap();
    assert_eq!(head(journal.reader()).await.unwrap(), 1);
}

#[tokio::test]
async fn new_views_that_can_not_take_their_place_leave_the_old_ones_there() {
    let folder = TempDir::new().unwrap();
    let (path, mended) = (folder.path().join("test.db"), Arc::new(AtomicBool::new(true)));
    let journal = Journal::open(&path, &[]).await.unwrap();
    write(&journal, &["a"]).await;
    rebuild(&path, &mended).await.unwrap();
    // What is beside the old ones can't be removed: it is where the new ones would find their log.
    let log = companion(&path.with_extension("views.db"), "-wal");
    std::fs::create_dir(&log).unwrap();
    write(&journal, &["b"]).await;
    rebuild(&path, &mended).await.unwrap_err();
    std::fs::remove_dir(&log).unwrap();
    assert_eq!(seen(&path, ["a", "b"]).await, [Some(1), None]);
}

/// Folds nothing, into a table of this name.
struct Named<const TABLE: usize>;

static NAMED: [Table; 3] = [
    Table { name: "events", ..SEEN },
    Table { name: "checkpoints", ..SEEN },
    Table {
        create: &[
            "CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, position INTEGER, document BLOB, kind TEXT)",
            "CREATE INDEX IF NOT EXISTS seen_by_kind ON seen (kind)",
        ],
        ..SEEN
    },
];

impl<const TABLE: usize> Projection for Named<TABLE> {
    const NAME: &'static str = ["zero", "one", "squeamish"][TABLE];
    const TABLES: &'static [&'static Table] = &[&NAMED[TABLE]];

    async fn project(&self, _: &[Event], _: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        Ok(())
    }
}

#[tokio::test]
async fn views_that_lack_what_a_new_index_is_on_are_refused_until_they_are_made_anew() {
    let folder = TempDir::new().unwrap();
    let (path, mended) = (folder.path().join("test.db"), Arc::new(AtomicBool::new(true)));
    write(&Journal::open(&path, &[]).await.unwrap(), &["a"]).await;
    rebuild(&path, &mended).await.unwrap();
    let wider = || Projections::new().with(Named::<2>);
    let open =
        async || Views::open(&path.with_extension("views.db"), Log::open(&path).unwrap(), &wider()).await.map(drop);
    let refused = open().await.unwrap_err().to_string();
    assert!(refused.contains("no such column: kind") && refused.contains("`rebuild`"), "{refused}");
    assert!(!refused.contains('\n'), "{refused}");
    Stores { projections: wider(), ..Stores::default() }.rebuild("test", &kept(&path)).await.unwrap();
    open().await.unwrap();
}

/// On a server the journal, its views and those over other services' events are in one schema.
#[tokio::test]
async fn two_tables_or_projections_of_one_name_are_refused_before_anything_is_made() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("test.db");
    let of = |projections| Stores { projections, ..Stores::default() };
    let squeamish = || Projections::new().with(Squeamish::default());
    let same: [(&dyn Fn() -> Stores, &str); 5] = [
        (&|| of(Projections::new().with(Named::<0>)), "events is the name of two tables"),
        (&|| of(Projections::new().with(Named::<1>)), "checkpoints is the name of two tables"),
        (&|| Stores { tables: vec![&SEEN], ..of(squeamish()) }, "seen is the name of two tables"),
        (&|| of(squeamish().with(Squeamish::default())), "two projections are named squeamish"),
        (&|| Stores { others: vec![("other", squeamish())], ..of(squeamish()) }, "two projections are named squeamish"),
    ];
    let flags = Serve::new("127.0.0.1:0".parse().unwrap(), DatabaseUrl::Sqlite(path.clone()));
    for (stores, says) in same {
        let mut app = App::bind("test", &flags).await.unwrap();
        let opened = stores().open("test", &mut app, &flags).await.map(drop);
        let migrated = stores().migrate("test", &kept(&path)).await;
        let rebuilt = stores().rebuild("test", &kept(&path)).await;
        for refused in [opened, migrated, rebuilt] {
            let refused = refused.expect_err(says).to_string();
            assert!(refused.starts_with(says) && !refused.contains('\n'), "{refused}");
        }
        assert_eq!(files(&folder, ""), [""; 0]);
    }
    // Nor is one that only shows when it is followed.
    let mut app = App::bind("test", &flags).await.unwrap();
    drop(of(squeamish()).open("test", &mut app, &flags).await.unwrap());
    let peers = Peers::new(Registry::new(), &[("other", "http://127.0.0.1:1")], Vec::new()).unwrap();
    let peer = peers.connect_with("other", &PeerOptions::stream()).unwrap();
    let source = Source { peer, kinds: &[], projections: squeamish() };
    let refused = Stores::follow("test", source, &mut app, &flags).await.unwrap_err().to_string();
    assert!(refused.starts_with("two projections are named squeamish"), "{refused}");
}

/// As they are made by a umask that lets everybody read.
#[tokio::test]
async fn what_a_service_makes_only_its_user_may_read() {
    let folder = TempDir::new().unwrap();
    let made = folder.path().join("made/data");
    let path = made.join("test.db");
    let journal = Journal::open(&path, &[]).await.unwrap();
    write(&journal, &["a"]).await;
    let projections = Projections::new().with(Squeamish { mended: Arc::new(AtomicBool::new(true)) });
    let views = Views::open(Location::from(&*path).views(), Log::open(&path).unwrap(), &projections).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    let mut modes: Vec<_> = std::fs::read_dir(&made)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|file| (file.file_name().unwrap().to_string_lossy().into_owned(), mode(&file)))
        .collect();
    modes.sort();
    let all = ["test.db", "test.views.db"].map(|name| ["", "-shm", "-wal", ".lock"].map(|end| format!("{name}{end}")));
    assert_eq!(modes, all.as_flattened().iter().map(|name| (name.clone(), 0o600)).collect::<Vec<_>>());
    assert_eq!([mode(&made), mode(made.parent().unwrap())], [0o700; 2]);
    drop((journal, views));

    // What is there stays as somebody has made it.
    let there = folder.path().join("there");
    let path = there.join("test.db");
    std::fs::create_dir(&there).unwrap();
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&there, Permissions::from_mode(0o750)).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let _journal = Journal::open(&path, &[]).await.unwrap();
    assert_eq!([mode(&there), mode(&path), mode(&companion(&path, "-wal"))], [0o750, 0o640, 0o640]);
}

/// Somebody else may have left it where the views' lock is to be.
#[tokio::test]
async fn making_views_anew_changes_nothing_that_a_link_leads_to() {
    let folder = TempDir::new().unwrap();
    let (path, mended) = (folder.path().join("test.db"), Arc::new(AtomicBool::new(true)));
    write(&Journal::open(&path, &[]).await.unwrap(), &["a"]).await;
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let (theirs, lock) = (folder.path().join("theirs"), companion(&path.with_extension("views.db"), ".lock"));
    std::fs::write(&theirs, "secret").unwrap();
    std::fs::set_permissions(&theirs, Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(&theirs, &lock).unwrap();
    let rebuilt = rebuild(&path, &mended).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&theirs), mode(&path)), (0o600, 0o644), "{rebuilt:?}");
    let refused = rebuilt.unwrap_err().to_string();
    assert!(refused.contains("test.views.db.lock: it is a link") && !refused.contains('\n'), "{refused}");
    assert_eq!(std::fs::read(&theirs).unwrap(), b"secret");
}
