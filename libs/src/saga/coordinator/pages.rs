//! However many sagas are read, few of their records are in memory at a time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::{Coordinator, Options, sub_sagas::tests::Nobody};
use crate::{
    journal::{
        Journal, Table,
        simulated::{Begun, Database, Engine, Fate, Keys, Statement, Statements, tables, translate},
        sql::{Error, Record, Value},
    },
    saga::store::SAGAS,
};

const MIB: usize = 1 << 20;

/// A database that notes how many bytes it has answered at once.
#[derive(Debug)]
struct Noting {
    engine: Mutex<Engine>,
    most: AtomicUsize,
}

impl Noting {
    fn new(sagas: &[String]) -> Self {
        let mut engine = Engine::new(tables().into_iter().chain([&SAGAS]).collect());
        let row = |id: &String| vec![id.as_str().into(), true.into(), vec![0xff; MIB].into()];
        run(&mut engine, vec![Statement::Insert(&SAGAS, sagas.iter().map(row).collect())]).unwrap();
        Self { engine: Mutex::new(engine), most: AtomicUsize::new(0) }
    }

    fn note(&self, records: Vec<Record>) -> Vec<Record> {
        let bytes =
            |record: &Record| (0..3).filter_map(|at| record.blob(at).ok()).map(|blob| blob.len()).sum::<usize>();
        self.most.fetch_max(records.iter().map(bytes).sum(), Ordering::Relaxed);
        records
    }
}

fn run(engine: &mut Engine, statements: Statements) -> Result<(), Error> {
    let id = engine.begin();
    engine.write(id, statements);
    engine.sync(id).map(drop)
}

impl Database for Noting {
    fn execute(&self, sql: &str, values: &[Value]) -> BoxFuture<'static, Result<(), Error>> {
        let statements = vec![Statement::Execute(translate(sql, 0), values.to_vec())];
        let ran = run(&mut self.engine.lock(), statements);
        Box::pin(async { ran })
    }
    fn fetch(&self, sql: &str, values: &[Value]) -> BoxFuture<'static, Result<Vec<Record>, Error>> {
        let found = self.engine.lock().fetch(0, sql, values).map(|records| self.note(records));
        Box::pin(async { found })
    }
    fn fetch_keys(&self, table: &'static Table, keys: &[Vec<Value>]) -> BoxFuture<'static, Result<Vec<Record>, Error>> {
        let found = self.engine.lock().fetch_keys(table, keys).map(|records| self.note(records));
        Box::pin(async { found })
    }
    fn begin(&self, _: Keys, _: Keys) -> BoxFuture<'static, Result<Begun, Error>> {
        Box::pin(async { Err(Error::Closed) })
    }
    fn fate(&self, _: u64) -> BoxFuture<'static, Result<Fate, Error>> {
        Box::pin(async { Err(Error::Closed) })
    }
    fn new_name(&self) -> String {
        "a".to_owned()
    }
    fn now_micros(&self) -> i64 {
        0
    }
}

#[tokio::test]
async fn of_many_sagas_few_records_are_read_at_once() {
    let sagas: Vec<String> = (10..90).map(|at| format!("saga-{at}")).collect();
    let noting = Arc::new(Noting::new(&sagas));
    let (journal, _committer) = Journal::simulated(Arc::<Noting>::clone(&noting)).await.unwrap();
    let coordinator = Coordinator::new(journal, [], Nobody, Options::default()).unwrap();
    coordinator.recover().await.unwrap();
    let parked: Vec<String> = coordinator.parked_after("", 100).into_iter().map(|parked| parked.saga_id).collect();
    assert_eq!(parked, sagas, "each was read, and is none");
    let most = noting.most.swap(0, Ordering::Relaxed);
    assert!((MIB..=8 * MIB).contains(&most), "{most} when they were taken over");

    coordinator.0.steps("peer", &sagas).await.unwrap();
    let most = noting.most.load(Ordering::Relaxed);
    assert!((MIB..=8 * MIB).contains(&most), "{most} when a peer was told");
}
