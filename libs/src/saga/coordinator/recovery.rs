//! Taking up what an earlier process left.

use std::sync::Arc;

use super::{
    Coordinator, Driver, Mail, Shared,
    admission::Admissions,
    call::Known,
    driver::Start,
    live::{Parked, Reservation},
    ownership::beating,
};
use crate::{
    journal::sql,
    refusal::Refusal,
    saga::{
        Definition, machine,
        record::{Record, is_final},
        store::{self, Stored},
    },
};

/// How many sagas are read at a time.
const PAGE: usize = 512;

/// Why a coordinator can't take up its work.
#[derive(Debug, thiserror::Error)]
#[error("the sagas can't be read: {0}")]
pub struct RecoverError(#[from] sql::Error);

impl Coordinator {
    /// Takes up every saga that has not ended; on a server, those whose process is gone, as far as there is room: see
    /// [`share`](Self::share). What was called and never answered is called again, with the same bytes. Answers how many there are.
    ///
    /// A saga that can't be read, or whose definition is not among this coordinator's, is parked: left as it is and reported.
    /// The others go on.
    ///
    /// It comes before anything else is asked of a coordinator: a saga that ends while they are read could be taken up once more.
    ///
    /// # Errors
    /// When the sagas can't be read at all.
    pub async fn recover(&self) -> Result<usize, RecoverError> {
        if self.join().await?
            && let Some(member) = self.0.member.get()
        {
            return match beating(&self.0, member, self.adopt()).await {
                // Who writes has reached the primary. They are taken over with a later beat, once who reads has, too.
                Err(RecoverError(error @ sql::Error::Standby)) => {
                    tracing::warn!(%error, "no saga is taken over yet");
                    Ok(0)
                }
                adopted => adopted,
            };
        }
        let (mut last, mut resumed) = (String::new(), 0);
        loop {
            let page = store::open_after(&self.0.journal, &last, PAGE).await?;
            let Some(id) = page.last() else { return Ok(resumed) };
            last.clone_from(id);
            let take = |saga_id: String, stored: Stored| {
                // One that an operator asked about is under way already.
                let Some(place) = self.0.live.reserve(&saga_id) else { return };
                let read = stored.map_err(|error| error.to_string());
                match read.and_then(|record| Ok((self.0.definition_of(&record)?, record))) {
                    // Since it was among those that are open.
                    Ok((_, record)) if is_final(record.saga.phase()) => {}
                    Ok((definition, record)) => {
                        self.0.take_up(definition, record, place, Known::default(), None);
                        resumed += 1;
                    }
                    Err(why) => self.0.park(&saga_id, why),
                }
            };
            store::load_each(&self.0.journal, &page, take).await?;
        }
    }

    /// Takes up one saga that is parked, and has it hear this first.
    pub(super) async fn revive(&self, saga_id: &str, mail: Mail) -> Result<(), Refusal> {
        let read = self.0.loaded(saga_id).await?.map_err(|error| error.to_string());
        let record = read.and_then(|record| self.0.definition_of(&record).map(|_| record)).map_err(|why| {
            let message = format!(
                "saga {saga_id} stays parked: {why}; mend that, or force-close it to leave it as it is for ever"
            );
            Refusal::precondition("SAGA_PARKED", message)
        })?;
        // Where others share the database it may be anybody's by now, or nobody's.
        self.seize(&record, mail).await
    }
}

impl Shared {
    /// Leaves a saga as it is, and says so.
    pub(super) fn park(&self, saga_id: &str, why: String) {
        tracing::error!(saga.id = saga_id, why, "a saga is parked; the others go on");
        self.live.park(saga_id.into(), Parked { why, since_micros: self.now() });
    }

    /// Leaves an orphan to whoever can drive it, and says so once.
    pub(super) fn pass_by(&self, saga_id: &str, why: &str) {
        if self.live.pass_by(saga_id, Parked { why: why.to_owned(), since_micros: self.now() }) {
            tracing::error!(saga.id = saga_id, why, "nobody drives a saga, and it can't be driven here: it is parked");
        }
    }

    /// The definition that a saga began under.
    pub(super) fn definition_of(&self, record: &Record) -> Result<Arc<Definition>, String> {
        let definition = self.definitions.pinned(&record.kept.definition_hash).cloned();
        let saga = &record.saga;
        let definition = definition.ok_or_else(|| {
            let (name, version) = (&saga.r#type, saga.definition_version);
            // The old one can't come beside it: two of one version are refused.
            match self.definitions.find(name, version) {
                Ok(_) => format!(
                    "its definition, {name} version {version}, is here with other steps, another end or another version of a saga below: once \
                     what began under that one has ended, give the newer of the two another version, and keep both"
                ),
                Err(_) => format!("its definition, {name} version {version}, is not here: bring it back"),
            }
        })?;
        if definition.plan.steps.len() != saga.steps.len() {
            return Err("its record has other steps than its definition".to_owned());
        }
        Ok(definition)
    }

    /// Drives a saga from where it stands, whose record was read in this place after that was known of its owner.
    pub(super) fn take_up(
        self: &Arc<Self>,
        definition: Arc<Definition>,
        mut record: Record,
        place: Reservation<'_>,
        known: Known,
        mail: Option<Mail>,
    ) {
        machine::taken_up(&definition.plan, &mut record, self.now());
        let admission = Admissions::admit_again(&self.admissions);
        let start = Start::Again { mailbox: place.drive(), known, mail };
        Driver::launch(Arc::clone(self), definition, record, admission, start);
    }
}
