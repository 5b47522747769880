//! Looks at who owns sagas by now. Thousands that wait for one participant look again and again: those that come while owners are read are
//! read together after that.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{Shared, not_driven};
use crate::{
    refusal::Refusal,
    saga::{machine::later, store},
};

/// How many owners are read at a time.
const MOST: usize = 4096;

/// The looks that wait.
#[derive(Debug, Default)]
pub(super) struct Looks {
    waiting: Mutex<Vec<Look>>,
    /// Whoever has it reads for those that wait, those that came after them included.
    turn: tokio::sync::Mutex<()>,
}

/// At which saga, and whom to tell how often its owner had changed if it is this process.
type Look = (Arc<str>, oneshot::Sender<Option<u64>>);

/// The owners couldn't be read, which is logged.
#[derive(Debug)]
pub(super) struct Unread;

impl Shared {
    /// Whether a call with this timeout must not leave before somebody has looked whose its saga is: it was known to be this process's at
    /// that time, and another may have it by now.
    pub(super) fn must_look(&self, known_micros: i64, timeout: Duration) -> bool {
        self.member.get().is_some() && self.now() > later(known_micros, timeout)
    }

    /// After a saga was taken up, until when calls with this timeout may come from whoever drove it before. On a database of one's own that
    /// one is gone, and leaves what it has called. Where others share it, it may call for as long as it needn't look, waits as long for the
    /// answer, and as long again is left to the way.
    pub(super) fn others_may_call(&self, timeout: Duration) -> Duration {
        timeout.saturating_mul(if self.member.get().is_some() { 3 } else { 1 })
    }

    /// How often a saga's owner has changed if it is this process; None if it is another. Read after this was called.
    pub(super) async fn look_whose(&self, saga_id: &Arc<str>) -> Result<Option<u64>, Unread> {
        let (tell, mut told) = oneshot::channel();
        self.looks.waiting.lock().push((Arc::clone(saga_id), tell));
        let _turn = self.looks.turn.lock().await;
        loop {
            match told.try_recv() {
                Ok(since) => return Ok(since),
                Err(TryRecvError::Closed) => return Err(Unread),
                Err(TryRecvError::Empty) => self.read_owners().await,
            }
        }
    }

    /// Refuses where the owner of a saga has changed since then, or may have.
    pub(super) async fn must_be_mine(&self, saga_id: &str, since: u64) -> Result<(), Refusal> {
        match self.look_whose(&saga_id.into()).await {
            Ok(Some(changes)) if changes == since => Ok(()),
            Ok(_) => Err(not_driven(saga_id)),
            Err(Unread) => {
                let message = "it can't be read whose the saga is by now";
                Err(Refusal::unavailable("OWNER_UNREAD", message, Duration::from_secs(1)))
            }
        }
    }

    /// Reads the owners that were waited for first. If they can't be read, whoever waits hears that their look is gone.
    async fn read_owners(&self) {
        let looks: Vec<Look> = {
            let mut waiting = self.looks.waiting.lock();
            let most = waiting.len().min(MOST);
            waiting.drain(..most).collect()
        };
        let me = self.member.get().map(|member| member.name()).unwrap_or_default();
        match store::owned(&self.journal, looks.iter().map(|(saga_id, _)| &**saga_id), me).await {
            Ok(owned) => {
                for (saga_id, tell) in looks {
                    // Who asked may have left.
                    let _ = tell.send(owned.get(&*saga_id).copied());
                }
            }
            Err(error) => tracing::warn!(sagas = looks.len(), %error, "the owners of sagas can't be read"),
        }
    }
}
