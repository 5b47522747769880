//! The task of one saga: it waits, calls, and hears what happens.

mod age;
mod earlier;
mod in_flight;
mod mail;
mod transition;

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use proto::saga::v1::{Saga, SagaPhase};
use tokio::{sync::oneshot, time::Instant};
use tracing::Span;

use self::{
    age::{Age, sleep},
    earlier::Earlier,
    in_flight::InFlight,
};
use super::{
    Shared,
    admission::{self, Admission},
    apart::apart,
    call::{Call, Known},
    closed,
    live::{Mail, Mailbox},
    not_driven,
    parked::parked,
    spans, spawn, sub_sagas,
};
use crate::{
    refusal::Refusal,
    rpc::cause::of_panic,
    saga::{
        Definition,
        definition::StepCode,
        machine::{self, Attempt, Due, Input, Wish},
        record::{Record, is_final},
        store,
    },
};

/// Takes one saga through its steps.
pub(super) struct Driver {
    shared: Arc<Shared>,
    program: Arc<Definition>,
    saga_id: Arc<str>,
    /// Whose it is, as far as that was last found without a commit.
    known: Known,
    /// How often the log had lost its last events when it was last told of the whole saga.
    told: u64,
    /// True if the next transition is to tell of the whole saga.
    tells_all: bool,
    /// When it last came to a look whether what it has told is still stored.
    looked: Instant,
    /// True if its record's time is one that this process's clock has shown, as it is set now.
    own_time: bool,
    /// What the clock showed when it was last looked at.
    seen_micros: i64,
    /// As it was last committed, and in memory only: calls counted, waits that nobody must know after a restart.
    record: Record,
    mailbox: Arc<Mailbox>,
    calls: FuturesUnordered<BoxFuture<'static, Attempt>>,
    in_flight: InFlight,
    /// None for a saga that nobody drove before.
    earlier: Option<Earlier>,
    waiting: Vec<oneshot::Sender<Saga>>,
    /// Dropped once the saga is done or undone, as far as the one above is concerned.
    above: Vec<oneshot::Sender<()>>,
    /// True once the one above was asked whether it has ended: from then on it tells.
    asked: bool,
    /// True while it could not be asked: it may have told before.
    unheard: bool,
    span: Span,
    /// The phase it is counted under.
    counted: Option<SagaPhase>,
    admission: Admission,
}

/// How a task begins.
pub(super) enum Start {
    /// With a saga that is as new as its record.
    Fresh,
    /// With one that was driven before, here or elsewhere.
    Again {
        /// Its place, taken before its record was read.
        mailbox: Arc<Mailbox>,
        /// Whose it was before its record was read.
        known: Known,
        /// What it is to hear first.
        mail: Option<Mail>,
    },
}

/// Why a task ends.
#[derive(Debug)]
enum End {
    /// The saga is over.
    Over,
    /// The process is going down. The saga goes on at the next start.
    Leaving,
    /// Another process has taken the saga over.
    Taken {
        /// Since then it has become this one's once more.
        mine_again: bool,
    },
    /// The saga can't be driven. It alone stops.
    Parked(String),
}

impl End {
    /// For who asked for what the task has not come to, or has ended over.
    fn refusal(&self, saga_id: &str, wish: &Wish) -> Refusal {
        match self {
            Self::Over => closed(saga_id),
            // That needs nobody who drives it: asked again, it is done.
            Self::Parked(_) if matches!(wish, Wish::ForceClose) => not_driven(saga_id),
            Self::Parked(why) => parked(saga_id, why),
            Self::Leaving | Self::Taken { .. } => not_driven(saga_id),
        }
    }
}

/// Why a move was not made.
enum Stopped {
    /// An operator asked for what can't be.
    Refused(Refusal),
    /// The database is out of reach. Nothing was written; the same transition may be committed again.
    Unavailable,
    /// All of the saga is to be told first. Nothing was written; the same transition may be committed at once.
    Untold,
    End(End),
}

/// What a task has waited for.
enum Happened {
    /// A call came to an end.
    Answered(Attempt),
    /// There is mail, or the process is going down.
    Rung,
    /// Time has passed.
    Time,
}

/// A wait that is worth packing the record for: some thousand times what that takes.
const LONG: Duration = Duration::from_millis(50);
/// How often a saga looks for itself whether it is its turn, where another process may be the one that frees a lock.
const LOOK_AROUND: Duration = Duration::from_secs(1);
/// How often one that is done as a step looks whether that is still stored. Only after a failover it may not be, and many may wait so.
const LOOK_FOR_LOSS: Duration = Duration::from_secs(10);
impl Driver {
    /// Sets a task on a saga whose record is committed. A fresh one whose place is taken is put among those that are claimed instead.
    pub(super) fn launch(
        shared: Arc<Shared>,
        program: Arc<Definition>,
        record: Record,
        mut admission: Admission,
        start: Start,
    ) {
        admission.keeps(admission::bytes(&record));
        let saga_id: Arc<str> = record.saga.saga_id.as_str().into();
        let (again, mailbox, known, mail) = match start {
            Start::Fresh => match shared.live.enter(&saga_id) {
                Some(mailbox) => (false, mailbox, Known { since: store::FIRST_OWNER, micros: 0 }, None),
                // Somebody who was quicker than the word of its commit has its place. They may give it up.
                None => {
                    shared.claimed.lock().insert(saga_id.to_string());
                    return;
                }
            },
            Start::Again { mailbox, known, mail } => (true, mailbox, known, mail),
        };
        let (told, span) = (shared.journal.losses().count(), spans::stretch(&record, again));
        let earlier = again.then(|| Earlier::of(&record));
        let driver = Box::new(Self {
            shared,
            program,
            saga_id,
            known,
            told,
            tells_all: false,
            looked: Instant::now(),
            own_time: !again,
            seen_micros: 0,
            record,
            mailbox,
            calls: FuturesUnordered::new(),
            in_flight: InFlight::default(),
            earlier,
            waiting: Vec::new(),
            above: Vec::new(),
            asked: false,
            unheard: false,
            span,
            counted: None,
            admission,
        });
        mail.into_iter().for_each(|mail| driver.mailbox.post(mail));
        spawn(driver.run(again));
    }

    async fn run(mut self: Box<Self>, again: bool) {
        // What is new has its locks or queues for them, unless the decision that started it saw neither.
        let again = again || machine::asks_for_locks(&self.record);
        let driven = async {
            let begun = if again { Box::pin(self.begin_again()).await } else { Ok(()) };
            match begun {
                Err(Stopped::End(end)) => end,
                Ok(()) | Err(Stopped::Refused(_) | Stopped::Unavailable | Stopped::Untold) => self.drive().await,
            }
        };
        // What a transport does, and a layer under it, is not ours. Whoever asks about the saga must not wait for a task that is gone.
        let end = AssertUnwindSafe(driven).catch_unwind().await;
        let end = end.unwrap_or_else(|panic| End::Parked(format!("its task panicked: {}", of_panic(&*panic))));
        self.leave(&end);
    }

    /// What somebody has to say is heard first, then begins what was ready when the last process left.
    async fn begin_again(&mut self) -> Result<(), Stopped> {
        self.read_mail().await?;
        self.step(Input::Tick).await
    }

    async fn drive(&mut self) -> End {
        loop {
            self.count(Some(self.record.saga.phase()));
            if is_final(self.record.saga.phase()) {
                return End::Over;
            }
            let draining = self.is_draining();
            // A saga below goes on or leaves by itself: it is not waited for.
            if draining && self.in_flight.is_empty(self.program.plan.sagas()) {
                return End::Leaving;
            }
            if self.record.kept.awaits_parent {
                self.above.clear();
                if let Err(Stopped::End(end)) = Box::pin(self.ask_parent_once()).await {
                    return end;
                }
                if is_final(self.record.saga.phase()) {
                    continue;
                }
            }
            self.heed_clock();
            if !draining {
                if let Err(Stopped::End(end)) = self.renew().await {
                    return end;
                }
                self.call_due();
            }
            let wake = if draining { None } else { self.next_wake() };
            let long = wake.is_none_or(|wait| wait >= LONG);
            let packed = (long && self.calls.is_empty()).then(|| self.record.pack());
            let happened = tokio::select! {
                // In this order, so that what happens at once happens in one order: a simulation can be repeated.
                biased;
                Some(attempt) = self.calls.next(), if !self.calls.is_empty() => Happened::Answered(attempt),
                () = self.mailbox.rung() => Happened::Rung,
                () = sleep(&self.shared, &mut self.seen_micros, wake), if wake.is_some() => Happened::Time,
            };
            if let Some(packed) = packed {
                match packed.unpack() {
                    Ok(record) => self.record = record,
                    Err(error) => return End::Parked(error.to_string()),
                }
            }
            if let Err(Stopped::End(end)) = self.hear(happened).await {
                return end;
            }
        }
    }

    /// Does what must be done before a call may leave.
    async fn renew(&mut self) -> Result<(), Stopped> {
        match self.age() {
            Age::Young => Ok(()),
            Age::OfRecord => Box::pin(self.commit_anew()).await,
            Age::OfOwner => {
                Box::pin(self.look_whose()).await?;
                // The database may have been out for long, and more be due by now.
                match self.age() {
                    Age::Young | Age::OfOwner => Ok(()),
                    Age::OfRecord => Box::pin(self.commit_anew()).await,
                }
            }
        }
    }

    /// What follows is in a box each: a saga waits most of its life, and then holds no room for what it does when it goes on.
    fn hear(&mut self, happened: Happened) -> BoxFuture<'_, Result<(), Stopped>> {
        match happened {
            Happened::Answered(attempt) => {
                let due = Due { step: attempt.step, op: attempt.op };
                self.in_flight.end(due);
                Box::pin(async move {
                    self.step(Input::Attempted(attempt)).await?;
                    self.shared.metrics.stepped(&self.record.saga, due);
                    Ok(())
                })
            }
            Happened::Rung => Box::pin(self.read_mail()),
            Happened::Time => Box::pin(self.look_around()),
        }
    }

    fn count(&mut self, phase: Option<SagaPhase>) {
        self.shared.metrics.moved(self.counted, phase);
        self.counted = phase;
    }

    fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Acquire)
    }

    /// Makes the calls that the committed record asks for.
    fn call_due(&mut self) {
        let known = Known { micros: self.known_micros(), ..self.known };
        let Self { record, in_flight, .. } = self;
        for due in machine::due(record, |due| in_flight.contains(due), self.shared.now()) {
            let attempt = machine::leaves(&mut self.record, due);
            self.in_flight.begin(due);
            if let StepCode::Saga { definition, .. } = &self.program.steps[due.step] {
                let (shared, saga_id) =
                    (Arc::clone(&self.shared), self.record.saga.steps[due.step].sub_saga_id.clone());
                let answered = Box::pin(sub_sagas::answered(shared, Arc::clone(definition), saga_id, due));
                self.calls.push(Box::pin(apart(answered)));
                continue;
            }
            let call = Call::new(&self.shared, &self.program, &self.record, due, attempt, known);
            self.calls.push(call.run(&self.span));
        }
    }

    /// How long until the record asks for something by itself.
    fn next_wake(&self) -> Option<Duration> {
        let plan = &self.program.plan;
        let at = machine::next_wake(plan, &self.record, |due| self.in_flight.contains(due));
        // A little late rather than a little early, which would be for nothing.
        let until = |at: i64| {
            let wait = at.saturating_sub(self.shared.now());
            Duration::from_micros(u64::try_from(wait).unwrap_or_default()) + Duration::from_millis(1)
        };
        let waits = self.record.queued || self.record.kept.awaits_parent;
        let look = (waits && (self.unheard || self.shared.member.get().is_some())).then_some(LOOK_AROUND);
        at.map(until).into_iter().chain(look).min()
    }

    /// Time has passed, and with it maybe what the saga waits for.
    async fn look_around(&mut self) -> Result<(), Stopped> {
        self.ask_parent().await?;
        // The one above may be another process's, which can't ask here.
        if self.looked.elapsed() >= LOOK_FOR_LOSS {
            self.looked = Instant::now();
            self.commit_what_is_lost().await?;
        }
        let is_next = self.record.queued && self.shared.is_next(&self.record).await;
        self.step(if is_next { Input::Woken } else { Input::Tick }).await
    }

    async fn ask_parent_once(&mut self) -> Result<(), Stopped> {
        if std::mem::replace(&mut self.asked, true) {
            return Ok(());
        }
        self.ask_parent().await
    }

    /// Looks whether the saga above has ended, where this one waits for that.
    async fn ask_parent(&mut self) -> Result<(), Stopped> {
        if !self.record.kept.awaits_parent {
            return Ok(());
        }
        let ended = self.shared.parent_end(&self.record).await;
        self.unheard = ended.is_err();
        match ended {
            Ok(Some(phase)) => self.step(Input::ParentEnded(phase)).await,
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn leave(mut self: Box<Self>, end: &End) {
        self.count(None);
        let over = match end {
            End::Parked(why) => {
                self.shared.park(&self.saga_id, why.clone());
                false
            }
            End::Over | End::Leaving | End::Taken { .. } => {
                if matches!(end, End::Taken { .. }) {
                    tracing::info!(saga.id = &*self.saga_id, "taken over by another process");
                }
                self.shared.live.leave(&self.saga_id);
                if matches!(end, End::Taken { mine_again: true }) {
                    // Not before its place is free: whoever takes it up finds none else, and forgets it.
                    self.shared.claimed.lock().insert(self.saga_id.to_string());
                }
                matches!(end, End::Over)
            }
        };
        // Nothing can be posted any more: what is in the mailbox now is all there will ever be.
        for mail in self.mailbox.take() {
            match mail {
                Mail::Finished(answer) => self.waiting.push(answer),
                Mail::Woken | Mail::Taken | Mail::Settled(_) => {}
                Mail::Operator(command, asker) => asker.answer(Err(end.refusal(&self.saga_id, &command.wish))),
            }
        }
        if over {
            self.shared.metrics.ended(&self.record.saga.r#type, self.record.saga.phase());
            let last = self.waiting.pop();
            for answer in self.waiting.drain(..) {
                let _ = answer.send(self.record.saga.clone());
            }
            if let Some(answer) = last {
                let _ = answer.send(self.record.saga);
            }
        }
    }
}
