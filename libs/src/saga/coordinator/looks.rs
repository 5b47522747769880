//! Looks at who owns sagas by now. Thousands that wait for one participant look again and again: those that come while owners are read are
//! read together after that.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::Shared;
use crate::saga::store;

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
