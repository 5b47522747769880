//! The coordinators' store: a server like PostgreSQL that grants turns, and its clients, with the network between them.

use std::{fmt, io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use proto::saga::v1::{SagaPhase, Step, StepState};
use rand::rngs::StdRng;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use turmoil::net::{TcpListener, TcpStream};

use super::{
    disk::sync_takes,
    line::Line,
    mutant::Mutant,
    wire::{PORT, Parcel},
    world::{STORE, World},
};
use crate::{
    journal::{
        Table,
        simulated::{self, Begun, Database, Fate, Keys, Statement, Statements, Turn},
        sql::{Error, Record, Value},
    },
    saga::record,
};

/// How long a turn is kept for a client that says nothing in the midst of it.
const TURN: Duration = Duration::from_secs(4);
/// How long a client waits for a connection, and for an answer.
const CONNECT: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(8);

/// What a client asks.
pub(super) enum Ask {
    Fetch(String, Vec<Value>),
    FetchKeys(&'static Table, Keys),
    Execute(String, Vec<Value>),
    Begin { writer: String, requests: Keys, aggregates: Keys },
    Commit(Statements),
    Fate(u64),
}

/// What the server answers.
pub(super) enum Answer {
    Records(Vec<Record>),
    Begun { head: i64, id: u64, requests: Vec<Record>, aggregates: Vec<Record> },
    Done,
    Fate(Fate),
    Failed(String),
}

/// Serves the store until its host crashes.
pub(super) async fn serve(world: Arc<World>) -> turmoil::Result {
    let (process, boots) = world.boot(STORE);
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let turns = Arc::new(Semaphore::new(1));
    for number in 0.. {
        let (stream, _) = listener.accept().await?;
        let line = Line::new(stream)?;
        let (world, turns) = (Arc::clone(&world), Arc::clone(&turns));
        let chance = world.chance("store session", boots << 32 | number);
        let session = Session { world, turns, line, chance, turn: None };
        tokio::spawn(process.task(session.run()));
    }
    Ok(())
}

/// One client's connection, as the server has it.
struct Session {
    world: Arc<World>,
    turns: Arc<Semaphore>,
    line: Line,
    chance: StdRng,
    /// The turn that it has, and its transaction.
    turn: Option<(OwnedSemaphorePermit, u64)>,
}

impl Session {
    async fn run(mut self) {
        // A connection that breaks, or says nothing in its turn, is over; so is its transaction.
        while let Ok(parcel) = self.next().await {
            let Parcel::Ask(ask) = parcel else { return };
            let answer = self.answer(ask).await.unwrap_or_else(|error| Answer::Failed(error.to_string()));
            if self.world.parcels.send(&mut self.line, Parcel::Answer(answer)).await.is_err() {
                return;
            }
        }
    }

    async fn next(&mut self) -> io::Result<Parcel> {
        let next = self.world.parcels.receive(&mut self.line);
        if self.turn.is_none() { next.await } else { timeout(TURN, next).await? }
    }

    async fn answer(&mut self, ask: Ask) -> Result<Answer, Error> {
        let disk = &self.world.store;
        Ok(match ask {
            Ask::Fetch(sql, values) => Answer::Records(disk.fetch(self.world.clock(STORE)(), &sql, &values)?),
            Ask::FetchKeys(table, keys) => Answer::Records(disk.fetch_keys(table, &keys)?),
            Ask::Fate(id) => Answer::Fate(disk.fate(id)),
            Ask::Execute(sql, values) => {
                let now = self.world.clock(STORE)();
                let id = disk.begin("");
                let sql = simulated::translate(&sql, now);
                self.commit(id, vec![Statement::Execute(sql, values)]).await?;
                Answer::Done
            }
            Ask::Begin { writer, requests, aggregates } => {
                let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Error::Closed)?;
                let disk = &self.world.store;
                let id = disk.begin(&writer);
                self.turn = Some((turn, id));
                let head = disk.fetch(0, "SELECT COALESCE(MAX(position), 0) FROM events", &[])?[0].int(0)?;
                let requests = disk.fetch_keys(simulated::requests(), &requests)?;
                let aggregates = disk.fetch_keys(simulated::aggregates(), &aggregates)?;
                Answer::Begun { head, id, requests, aggregates }
            }
            Ask::Commit(statements) => {
                let Some((turn, id)) = self.turn.take() else { return Err(Error::Closed) };
                let done = self.commit(id, statements).await;
                drop(turn);
                done.map(|()| Answer::Done)?
            }
        })
    }

    async fn commit(&mut self, id: u64, statements: Statements) -> Result<(), Error> {
        let (world, disk) = (Arc::clone(&self.world), &self.world.store);
        disk.write(id, statements);
        let pause = sync_takes(&mut self.chance);
        if Mutant::LogNotDurable.is_left_out() {
            disk.show(&world, id)?;
            tokio::spawn(async move {
                sleep(pause * 10).await;
                world.store.flush();
            });
            return Ok(());
        }
        sleep(pause).await;
        disk.sync(&world, id)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some((_, id)) = self.turn {
            self.world.store.roll_back(id);
        }
    }
}

/// The store, as a coordinator reaches it.
pub(super) struct Remote {
    world: Arc<World>,
    host: &'static str,
    /// This process's name.
    name: String,
    idle: Arc<Mutex<Vec<Line>>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remote").field(&self.name).finish()
    }
}

impl Remote {
    pub(super) fn new(world: Arc<World>, host: &'static str, boots: u64) -> Self {
        Self { world, host, name: format!("{host}/{boots}"), idle: Arc::default() }
    }

    /// Asks on a connection of its own, which goes back to the idle ones.
    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer, Error>> {
        let (world, idle) = (Arc::clone(&self.world), Arc::clone(&self.idle));
        Box::pin(async move {
            let mut line = connection(&idle).await?;
            let answer = exchange(&world, &mut line, ask).await?;
            idle.lock().push(line);
            Ok(answer)
        })
    }
}

async fn connection(idle: &Mutex<Vec<Line>>) -> Result<Line, Error> {
    let kept = idle.lock().pop();
    if let Some(line) = kept {
        return Ok(line);
    }
    let connected = timeout(CONNECT, TcpStream::connect((STORE, PORT))).await.map_err(io::Error::from);
    connected.and_then(|stream| Line::new(stream?)).map_err(broken)
}

async fn exchange(world: &World, line: &mut Line, ask: Ask) -> Result<Answer, Error> {
    let answer = async {
        world.parcels.send(line, Parcel::Ask(ask)).await?;
        world.parcels.receive(line).await
    };
    match timeout(PATIENCE, answer).await.map_err(io::Error::from).and_then(|answer| answer).map_err(broken)? {
        Parcel::Answer(Answer::Failed(why)) => Err(Error::Corrupt(why)),
        Parcel::Answer(answer) => Ok(answer),
        Parcel::Ask(_) => Err(Error::Closed),
    }
}

fn broken(error: io::Error) -> Error {
    Error::Postgres(sqlx::Error::Io(error))
}

impl Database for Remote {
    fn execute(&self, sql: &str, values: &[Value]) -> BoxFuture<'static, Result<(), Error>> {
        let asked = self.ask(Ask::Execute(sql.to_owned(), values.to_vec()));
        Box::pin(async move { asked.await.map(drop) })
    }

    fn fetch(&self, sql: &str, values: &[Value]) -> BoxFuture<'static, Result<Vec<Record>, Error>> {
        let asked = self.ask(Ask::Fetch(sql.to_owned(), values.to_vec()));
        Box::pin(async move { records(asked.await?) })
    }

    fn fetch_keys(&self, table: &'static Table, keys: &[Vec<Value>]) -> BoxFuture<'static, Result<Vec<Record>, Error>> {
        let asked = self.ask(Ask::FetchKeys(table, keys.to_vec()));
        Box::pin(async move { records(asked.await?) })
    }

    fn begin(&self, requests: Keys, aggregates: Keys) -> BoxFuture<'static, Result<Begun, Error>> {
        let (world, idle) = (Arc::clone(&self.world), Arc::clone(&self.idle));
        let ask = Ask::Begin { writer: self.name.clone(), requests, aggregates };
        Box::pin(async move {
            let mut line = connection(&idle).await?;
            let Answer::Begun { head, id, requests, aggregates } = exchange(&world, &mut line, ask).await? else {
                return Err(Error::Closed);
            };
            let turn = Box::new(RemoteTurn { world, idle, line });
            Ok(Begun { head, id, requests, aggregates, turn })
        })
    }

    fn fate(&self, id: u64) -> BoxFuture<'static, Result<Fate, Error>> {
        if Mutant::LostCommitIsAborted.is_left_out() {
            return Box::pin(async { Ok(Fate::Aborted) });
        }
        let asked = self.ask(Ask::Fate(id));
        Box::pin(async move { if let Answer::Fate(fate) = asked.await? { Ok(fate) } else { Err(Error::Closed) } })
    }

    fn new_name(&self) -> String {
        self.name.clone()
    }

    fn now_micros(&self) -> i64 {
        self.world.clock(self.host)()
    }
}

fn records(answer: Answer) -> Result<Vec<Record>, Error> {
    if let Answer::Records(records) = answer { Ok(records) } else { Err(Error::Closed) }
}

struct RemoteTurn {
    world: Arc<World>,
    idle: Arc<Mutex<Vec<Line>>>,
    line: Line,
}

impl Turn for RemoteTurn {
    fn commit(self: Box<Self>, statements: Statements) -> BoxFuture<'static, Result<(), Error>> {
        let Self { world, idle, mut line } = *self;
        let statements = if Mutant::AbortNotDurable.is_left_out() { without_abort(statements) } else { statements };
        Box::pin(async move {
            exchange(&world, &mut line, Ask::Commit(statements)).await?;
            idle.lock().push(line);
            Ok(())
        })
    }
}

/// Leaves out that a saga turns back, until something was undone.
fn without_abort(mut statements: Statements) -> Statements {
    let turns_back = |row: &[Value]| match row {
        [_, _, Value::Blob(stored)] => record::Record::decode(stored.clone()).is_ok_and(|record| {
            let undone = |step: &Step| step.state() == StepState::Compensated;
            record.saga.phase() == SagaPhase::Compensating && !record.saga.steps.iter().any(undone)
        }),
        _ => false,
    };
    for statement in &mut statements {
        if let Statement::Upsert(table, rows) = statement
            && table.name == "sagas"
        {
            rows.retain(|row| !turns_back(row));
        }
    }
    statements
}
