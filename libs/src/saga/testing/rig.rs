//! A saga that is run again and again, from nothing, on a real journal.

use std::{
    error::Error,
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message;
use proto::saga::v1::{Saga, SagaPhase, SagaTransition};
use tokio::{sync::Notify, time::timeout};
use tonic::{Status, metadata::MetadataMap};

use super::{Broken, Participants};
use crate::{
    journal::{Cause, Decided, Entry, Journal, Loaded, events_after},
    saga::{Attempt, Coordinator, Definition, Options, TABLES, Transport, fold, record::is_final, store},
};

/// Far longer than any saga of a test takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The id of the saga that was begun, or why none was.
pub type Begun = Result<String, Box<dyn Error + Send + Sync>>;
type Begin = Box<dyn Fn(Journal, Coordinator) -> BoxFuture<'static, Begun> + Send + Sync>;

/// A saga, and all that it takes to run it.
pub struct Rig {
    pub(super) definition: Arc<Definition>,
    participants: Box<dyn Fn() -> Participants + Send + Sync>,
    begin: Begin,
    folder: PathBuf,
    runs: AtomicUsize,
}

impl fmt::Debug for Rig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rig").field("definition", &self.definition).field("runs", &self.runs).finish_non_exhaustive()
    }
}

/// How a run ended.
pub(super) struct Ended {
    pub(super) saga: Saga,
    pub(super) participants: Participants,
}

impl Rig {
    /// Runs sagas of a definition from an input, with participants made anew for each run. The journals go into `folder`, one a run.
    /// Where the definition starts from another message, each run breaks and names both.
    #[must_use]
    pub fn new<I: Message + Clone + 'static>(
        folder: impl Into<PathBuf>,
        definition: Arc<Definition>,
        input: I,
        participants: impl Fn() -> Participants + Send + Sync + 'static,
    ) -> Self {
        let begun = Arc::clone(&definition);
        let begin = move |journal, coordinator| -> BoxFuture<'static, Begun> {
            Box::pin(begin_alone(journal, coordinator, Arc::clone(&begun), input.clone()))
        };
        Self {
            definition,
            participants: Box::new(participants),
            begin: Box::new(begin),
            folder: folder.into(),
            runs: AtomicUsize::new(0),
        }
    }

    /// Begins each saga as its service does, such as by its command surface: then what is decided beside it is tested too.
    #[must_use]
    pub fn begin_by<F>(mut self, begin: impl Fn(Journal, Coordinator) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Begun> + Send + 'static,
    {
        self.begin = Box::new(move |journal, coordinator| Box::pin(begin(journal, coordinator)));
        self
    }

    /// Runs the saga to its end, or until it is STUCK. `prepare` says how its calls fare.
    pub(super) async fn run(&self, run: &str, prepare: impl FnOnce(&Participants)) -> Result<Ended, Broken> {
        let participants = (self.participants)();
        prepare(&participants);
        let process = self.open(run, self.path(), participants.clone()).await?;
        let saga_id = process.begin(self, run).await?;
        let saga = process.settled(run, &saga_id).await?;
        process.end(run).await?;
        Ok(Ended { saga, participants })
    }

    /// Runs the saga, ends its process around the call with this number, and goes on with another process on the same journal. None if
    /// there is no such call.
    pub(super) async fn run_cut(
        &self,
        run: &str,
        cut: Cut,
        prepare: impl FnOnce(&Participants),
    ) -> Result<Option<Ended>, Broken> {
        let (participants, path) = ((self.participants)(), self.path());
        prepare(&participants);
        let cuts = Cuts { participants: participants.clone(), calls: Arc::default(), cut, happened: Arc::default() };
        let process = self.open(run, path.clone(), cuts.clone()).await?;
        let saga_id = process.begin(self, run).await?;
        let reached = tokio::select! {
            settled = process.settled(run, &saga_id) => settled.map(|_| false)?,
            () = cuts.happened.notified() => true,
        };
        process.end(run).await?;
        if !reached {
            return Ok(None);
        }
        let process = self.open(run, path, participants.clone()).await?;
        process.coordinator.recover().await.map_err(|error| Broken::setup(run, &error))?;
        let saga = process.settled(run, &saga_id).await?;
        process.end(run).await?;
        Ok(Some(Ended { saga, participants }))
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("run-{}.db", self.runs.fetch_add(1, Ordering::Relaxed)))
    }

    async fn open(&self, run: &str, path: PathBuf, transport: impl Transport) -> Result<Process, Broken> {
        let journal = Journal::open(&path, TABLES).await.map_err(|error| Broken::setup(run, &error))?;
        let definitions = [Arc::clone(&self.definition)];
        let coordinator = Coordinator::new(journal.clone(), definitions, transport, Options::default());
        let coordinator = coordinator.map_err(|error| Broken::setup(run, &error))?;
        Ok(Process { journal, coordinator })
    }
}

/// The service's process, as far as sagas are concerned.
struct Process {
    journal: Journal,
    coordinator: Coordinator,
}

impl Process {
    async fn begin(&self, rig: &Rig, run: &str) -> Result<String, Broken> {
        let begun = (rig.begin)(self.journal.clone(), self.coordinator.clone()).await;
        begun.map_err(|error| Broken::setup(run, &*error))
    }

    /// Waits until the saga has ended or is STUCK, by its own log.
    async fn settled(&self, run: &str, saga_id: &str) -> Result<Saga, Broken> {
        let saga = Mutex::new(Saga::default());
        match timeout(PATIENCE, self.follow(saga_id, &saga)).await {
            Ok(followed) => followed.map_err(|error| Broken::setup(run, &*error))?,
            Err(_) => return Err(Broken::rule(run, format!("it has not ended after {PATIENCE:?}"), saga.into_inner())),
        }
        Ok(saga.into_inner())
    }

    async fn follow(&self, saga_id: &str, saga: &Mutex<Saga>) -> Result<(), Box<dyn Error + Send + Sync>> {
        let (mut head, mut position) = (self.journal.head(), 0);
        loop {
            head.borrow_and_update();
            for event in events_after(self.journal.reader(), position, 10_000).await? {
                position = event.position;
                if event.kind == store::KIND && event.id == saga_id {
                    fold(&mut saga.lock(), SagaTransition::decode(event.payload)?);
                }
            }
            let phase = saga.lock().phase();
            if is_final(phase) || phase == SagaPhase::Stuck {
                return Ok(());
            }
            head.changed().await?;
        }
    }

    /// As `kill -9` leaves it: what is committed stays, all else is gone.
    async fn end(self, run: &str) -> Result<(), Broken> {
        self.journal.close();
        self.journal.ended().await.map_err(|error| Broken::setup(run, &error))
    }
}

async fn begin_alone<I: Message + 'static>(
    journal: Journal,
    coordinator: Coordinator,
    definition: Arc<Definition>,
    input: I,
) -> Begun {
    const ID: &str = "saga-under-test";
    // The coordinator says it in the log alone.
    definition.check_input::<I>()?;
    let refused = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&refused);
    let decide = move |loaded: &Loaded<'_>| match coordinator.start(definition.name(), ID, &input, loaded) {
        Ok(decided) => decided,
        Err(refusal) => {
            *slot.lock() = Some(refusal);
            Decided { rejected: true, ..Decided::default() }
        }
    };
    let entry =
        Entry { request: None, aggregates: Vec::new(), cause: Cause::default(), decide: Box::new(decide), size: 1024 };
    journal.submit(entry).await?;
    let refused = refused.lock().take();
    match refused {
        Some(refusal) => Err(refusal.into()),
        None => Ok(ID.to_owned()),
    }
}

/// Where a process ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// At which call, counted from 0.
    pub(super) call: usize,
    /// True if the call has taken effect, and only its answer is lost with the process; false if it never left.
    pub(super) delivered: bool,
}

/// Calls that go through until the one at which the process ends.
#[derive(Clone)]
struct Cuts {
    participants: Participants,
    calls: Arc<AtomicUsize>,
    cut: Cut,
    happened: Arc<Notify>,
}

impl Transport for Cuts {
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if call < self.cut.call {
            return self.participants.call(attempt);
        }
        if call == self.cut.call {
            if self.cut.delivered {
                drop(self.participants.call(attempt));
            }
            self.happened.notify_one();
        }
        // The process is as good as gone.
        Box::pin(std::future::pending())
    }
}
