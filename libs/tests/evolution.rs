//! Events whose form has changed since they were written, in views of another service: by whatever way they come, they are read in the form
//! of today. What goes by the stream runs where `TEST_NATS` names the server's program.
#![cfg(feature = "cqrs")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod broker;
mod database;
mod desk;
mod lines;
mod streamed;

use std::time::Duration;

use async_nats::jetstream::stream;
use broker::Broker;
use libs::{
    cqrs::{
        Aggregate, Board, Documents, Event, Log, Projection, ProjectionError, Projections, ReadSide, Upcasters, Views,
        events_of_kind,
    },
    journal::{AggregateId, Cause, Change, Decided, Entry, Journal, Loaded, NewEvent, Table, sql::Transaction},
};
use lines::Lines;
use prost::Message as _;
use proto::projections::v1::{
    ResumeProjectionRequest, projection_command_service_server::ProjectionCommandService as _,
};
use streamed::{Running, SEEN, STREAM, Source, connect, operator, shown, until};
use tokio::time::{Instant, sleep};
use tonic::Request;

/// Far more than any wait for what is there takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is said ends with a mark today, and did not once.
enum Today {}

impl Aggregate for Today {
    const KIND: &'static str = "thing";
    type State = ();
    type Event = String;

    const OLD_FORMS: &'static [&'static str] = &["Said"];

    fn evolve((): &mut (), _: &String) {}

    fn upcast(event: &mut String) {
        if !event.ends_with('!') {
            event.push('!');
        }
    }

    fn event_name(_: &String) -> &'static str {
        "Said"
    }
}

/// The same, by a program that can't read what is bad.
enum Broken {}

impl Aggregate for Broken {
    const KIND: &'static str = "thing";
    type State = ();
    type Event = String;

    const OLD_FORMS: &'static [&'static str] = Today::OLD_FORMS;

    fn evolve((): &mut (), _: &String) {}

    fn upcast(event: &mut String) {
        assert_ne!(event, "bad");
        Today::upcast(event);
    }

    fn event_name(event: &String) -> &'static str {
        Today::event_name(event)
    }
}

/// The log as a version of the program reads it.
fn read_by<A: Aggregate>(journal: &Journal) -> Log {
    Log::of(journal).upcast(Upcasters::new().with::<A>())
}

async fn say(journal: &Journal, text: &str) {
    let event = NewEvent { name: "Said", payload: text.to_owned().encode_to_vec().into() };
    let change = Change { aggregate: AggregateId::new("thing", "a"), state: None, version: 1, events: vec![event] };
    let decide = Box::new(move |_: &Loaded<'_>| Decided { changes: vec![change], ..Decided::default() });
    let entry = Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide, size: 10 };
    journal.submit(entry).await.unwrap();
}

/// Writes down what was said.
struct Heard;

impl Projection for Heard {
    const NAME: &'static str = "heard";
    const TABLES: &'static [&'static Table] = &[&SEEN];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let mut heard = Documents::<String>::load(transaction, &SEEN, events.iter().map(|event| &event.id)).await?;
        for event in events {
            let said = String::decode(event.payload.clone())
                .map_err(|source| ProjectionError::Decode { what: event.describe(), source })?;
            heard.update(&event.id, event.position, |all| *all = format!("{all} {said}").trim_start().to_owned());
        }
        heard.save(transaction, |_| Vec::new()).await
    }
}

/// Views that hear another service, and run.
struct Hearing {
    read: ReadSide,
    board: Board,
    _runs: Running,
}

impl Hearing {
    fn of(views: Views) -> Self {
        let (read, board) = (views.read_side("test", PATIENCE), Board::default());
        views.show_on(&board, "source");
        Self { read, board, _runs: Running(tokio::spawn(views.run())) }
    }

    async fn heard(&self, last: i64) -> String {
        self.read.wait_for_position(last).await.unwrap();
        self.read.document::<String>(&SEEN, "a").await.unwrap().unwrap()
    }

    async fn is_parked(&self) {
        until("it is parked", || async { shown(&self.board).await.parked.is_some() }).await;
    }

    async fn resume(&self) {
        let request = Request::new(ResumeProjectionRequest { name: "heard".to_owned() });
        self.board.service("test").resume_projection(request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_parked_goes_on_once_the_service_can_read_its_event() {
    let source = Source::start().await;
    source.desk.tells(read_by::<Broken>(&source.journal));
    say(&source.journal, "bad").await;
    let log = Log::of_service(source.desk.peer.clone(), &["thing"]);
    let location = database::location(source.folder.path(), "views");
    let hearing = Hearing::of(Views::open(location, log, &Projections::new().with(Heard)).await.unwrap());
    hearing.is_parked().await;

    source.desk.tells(read_by::<Today>(&source.journal));
    hearing.resume().await;
    assert_eq!(hearing.heard(1).await, "bad!");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_read_when_it_was_published_comes_once_the_service_can() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    source.desk.tells(read_by::<Broken>(&source.journal));
    for text in ["good", "bad"] {
        say(&source.journal, text).await;
    }
    source.publish_as(&broker, read_by::<Broken>(&source.journal)).await;
    let hearing = Hearing::of(source.open(&broker, "views", Heard).await);
    hearing.is_parked().await;
    assert_eq!(hearing.heard(1).await, "good!");

    source.desk.tells(read_by::<Today>(&source.journal));
    source.publish_as(&broker, read_by::<Today>(&source.journal)).await;
    hearing.resume().await;
    assert_eq!(hearing.heard(2).await, "good! bad!");
}

/// Before anything was said in another form.
enum Before {}

impl Aggregate for Before {
    const KIND: &'static str = "thing";
    type State = ();
    type Event = String;

    fn evolve((): &mut (), _: &String) {}

    fn event_name(event: &String) -> &'static str {
        Today::event_name(event)
    }
}

/// Since it ends with two marks.
enum Later {}

impl Aggregate for Later {
    const KIND: &'static str = "thing";
    type State = ();
    type Event = String;

    const OLD_FORMS: &'static [&'static str] = &["Said", "Said"];

    fn evolve((): &mut (), _: &String) {}

    fn upcast(event: &mut String) {
        Today::upcast(event);
        if !event.ends_with("!!") {
            event.push('!');
        }
    }

    fn event_name(event: &String) -> &'static str {
        Today::event_name(event)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_in_an_old_form_is_read_in_the_form_of_today() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    source.desk.tells(read_by::<Before>(&source.journal));
    let board = source.publish_as(&broker, read_by::<Before>(&source.journal)).await;
    for text in ["a", "b"] {
        say(&source.journal, text).await;
    }
    until("they are published", || async { shown(&board).await.position == 2 }).await;
    let before = Hearing::of(source.open(&broker, "before", Heard).await);
    assert_eq!(before.heard(2).await, "a b");

    source.desk.tells(read_by::<Today>(&source.journal));
    let board = source.publish_as(&broker, read_by::<Today>(&source.journal)).await;
    say(&source.journal, "c").await;
    until("it is published", || async { shown(&board).await.position == 3 }).await;
    let late = Hearing::of(source.open(&broker, "late", Heard).await);
    assert_eq!(late.heard(3).await, "a! b! c!");
    assert_eq!(before.heard(3).await, "a b c!", "who has the stream open");

    source.desk.tells(read_by::<Later>(&source.journal));
    let board = source.publish_as(&broker, read_by::<Later>(&source.journal)).await;
    say(&source.journal, "d").await;
    until("it is published", || async { shown(&board).await.position == 4 }).await;
    let later = Hearing::of(source.open(&broker, "later", Heard).await);
    assert_eq!(later.heard(4).await, "a!! b!! c!! d!!");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_in_the_form_of_today_nobody_is_asked_for() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    let board = source.publish_as(&broker, read_by::<Today>(&source.journal)).await;
    for text in ["a", "b"] {
        say(&source.journal, text).await;
    }
    until("they are published", || async { shown(&board).await.position == 2 }).await;
    let begin = Instant::now();
    let hearing = Hearing::of(source.open(&broker, "views", Heard).await);
    assert_eq!(hearing.heard(2).await, "a! b!");
    // What takes so long to come is taken for what the stream doesn't hold.
    let may_ask = begin.elapsed() >= Duration::from_secs(5);
    assert!(source.desk.asked() == 0 || may_ask, "it was asked {} times", source.desk.asked());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_of_both_versions_side_by_side_leave_nothing_that_is_read_in_an_old_form() {
    let Some(broker) = Broker::start() else { return };
    let source = Source::start().await;
    // The operator's own, of which nothing else is changed.
    let config = stream::Config {
        name: STREAM.to_owned(),
        subjects: vec!["trellis.source.>".to_owned()],
        max_messages: 1_000,
        description: Some("Ask Ann.".to_owned()),
        ..stream::Config::default()
    };
    operator(&broker).await.create_stream(config).await.unwrap();
    let publish = async |log: Log| {
        let relay = connect(&broker).await.relay("source", log);
        tokio::spawn(relay.run()).abort_handle()
    };
    let mut expected = vec!["first!".to_owned()];
    // However slow the machine, it has published something.
    let older = publish(read_by::<Before>(&source.journal)).await;
    say(&source.journal, "first").await;
    let stream = operator(&broker).await.get_stream(STREAM).await.unwrap();
    until("it is published", || async { stream.get_info().await.is_ok_and(|info| info.state.messages == 1) }).await;
    older.abort();
    let newer = publish(read_by::<Today>(&source.journal)).await;
    for round in 0..6 {
        // It comes and goes, and publishes some of it.
        let older = publish(read_by::<Before>(&source.journal)).await;
        for at in 0..20 {
            say(&source.journal, &format!("{round}-{at}")).await;
            expected.push(format!("{round}-{at}!"));
        }
        sleep(Duration::from_millis(50)).await;
        older.abort();
    }
    source.desk.tells(read_by::<Today>(&source.journal));
    let last = i64::try_from(expected.len()).unwrap();
    let late = Hearing::of(source.open(&broker, "late", Heard).await);
    assert_eq!(late.heard(last).await, expected.join(" "));
    newer.abort();

    let stream = operator(&broker).await.get_stream(STREAM).await.unwrap();
    let config = &stream.cached_info().config;
    assert_eq!(config.max_messages, 1_000);
    assert_eq!(config.description.as_deref(), Some("Ask Ann. Old forms: thing.Said=1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_description_that_has_lost_the_old_forms_is_mended_while_there_is_always_something_to_publish() {
    let Some(broker) = Broker::start() else { return };
    let mut source = Source::start().await;
    source.publish_as(&broker, read_by::<Today>(&source.journal)).await;
    let operator = operator(&broker).await;
    let described = async || {
        let stream = operator.get_stream(STREAM).await.ok()?;
        stream.cached_info().config.description.clone().filter(|text| text.ends_with("Old forms: thing.Said=1"))
    };
    until("it is described", || async { described().await.is_some() }).await;

    let mut config = operator.get_stream(STREAM).await.unwrap().cached_info().config.clone();
    config.description = Some("Ask Ann.".to_owned());
    operator.update_stream(config).await.unwrap();
    let begin = Instant::now();
    while described().await.is_none() {
        assert!(begin.elapsed() < PATIENCE, "it never is");
        say(&source.journal, "more").await;
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(described().await.unwrap(), "Ask Ann. Old forms: thing.Said=1");
}

#[tokio::test]
async fn messages_in_an_old_form_are_told_of_once() {
    let Some(broker) = Broker::start() else { return };
    let (lines, _keeping) = Lines::keep();
    let mut source = Source::start().await;
    source.desk.tells(read_by::<Today>(&source.journal));
    let board = source.publish_as(&broker, read_by::<Today>(&source.journal)).await;
    say(&source.journal, "a").await;
    until("it is published", || async { shown(&board).await.position == 1 }).await;
    let hearing = Hearing::of(source.open(&broker, "views", Heard).await);
    assert_eq!(hearing.heard(1).await, "a!");
    // What takes long to come is read from there for another reason.
    let told = || {
        let told = lines.that_say("read from the service").into_iter();
        told.filter(|line| line.contains(" is in form ")).collect::<Vec<_>>()
    };
    assert_eq!(told(), Vec::<String>::new());

    source.publish_as(&broker, read_by::<Before>(&source.journal)).await;
    for position in 2..6 {
        say(&source.journal, "b").await;
        hearing.heard(position).await;
    }
    assert_eq!(hearing.heard(5).await, "a! b! b! b! b!");
    let told = told();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("thing.Said is in form 0 and the stream in form 1"), "{told:?}");
}

#[test]
fn who_reads_an_event_without_what_a_newer_version_wrote_of_it_says_so_once() {
    let (lines, _keeping) = Lines::keep();
    let event = |payload: &'static [u8]| Event {
        position: 7,
        kind: "thing".into(),
        name: "Said".into(),
        payload: payload.into(),
        ..Event::default()
    };
    let read = |events: &[Event]| {
        let said = events_of_kind::<String>("thing", events).unwrap();
        said.into_iter().map(|(_, said)| said).collect::<Vec<_>>()
    };
    assert_eq!(read(&[event(b"\x0a\x01a"), event(b"")]), ["a", ""]);
    assert_eq!(lines.that_say("more than is known here"), Vec::<String>::new());

    // What is said, and a field that is not known here.
    let newer = event(b"\x0a\x01a\x12\x01x");
    for _ in 0..2 {
        assert_eq!(read(&[newer.clone(), newer.clone()]), ["a", "a"]);
    }
    let told = lines.that_say("more than is known here");
    assert_eq!(told.len(), 1, "{told:?}");
    let (event, what) = ("event 7 (Said of thing", "RebuildProjections");
    assert!(told[0].starts_with("WARN") && told[0].contains(event) && told[0].contains(what), "{told:?}");
}
