//! Looks at who owns sagas by now. Thousands that wait for one participant look again and again: those that come while owners are read are
//! read together after that.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{PAUSE, Shared, not_driven};
use crate::{
    refusal::Refusal,
    saga::{machine::later, store},
};

/// How many owners are read at a time.
const MOST: usize = 4096;

/// The looks that wait.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    looks: Vec<Look>,
    /// Somebody reads for those that wait, those that come meanwhile included.
    is_read: bool,
}

/// At which saga, and whom to tell how often its owner had changed if it is this process.
type Look = (Arc<str>, oneshot::Sender<Option<u64>>);

/// The owners couldn't be read, which is logged.
#[derive(Debug)]
pub(super) struct Unread;

impl Shared {
    /// Whether a call with this timeout must not leave before somebody has looked whose its saga is: it was known to be this process's at
    /// that time, and another may have it by now. So long, at the least, a call has waited to leave since then.
    pub(super) fn must_look(&self, known_micros: i64, waited: Duration, timeout: Duration) -> bool {
        // A clock that was put back since tells nothing, and doesn't show it where more time has passed than that.
        let known = known_micros..=later(known_micros, timeout);
        self.member.get().is_some() && (waited > timeout || !known.contains(&self.now()))
    }

    /// After a saga was taken up, until when calls with this timeout may come from whoever drove it before. On a database of one's own that
    /// one is gone, and leaves what it has called. Where others share it, it may call for as long as it needn't look, waits as long for the
    /// answer, and as long again is left to the way.
    pub(super) fn others_may_call(&self, timeout: Duration) -> Duration {
        timeout.saturating_mul(if self.member.get().is_some() { 3 } else { 1 })
    }

    /// How often a saga's owner has changed if it is this process; None if it is another. Read after this was called.
    pub(super) async fn look_whose(self: &Arc<Self>, saga_id: &Arc<str>) -> Result<Option<u64>, Unread> {
        let (tell, told) = oneshot::channel();
        let is_read = {
            let mut waiting = self.looks.0.lock();
            waiting.looks.push((Arc::clone(saga_id), tell));
            std::mem::replace(&mut waiting.is_read, true)
        };
        if !is_read {
            // By a task of its own. Whoever asks may be a call, which is dropped with its saga and rests while its driver waits, for a look
            // of its own maybe: none of that may hold up the others.
            tokio::spawn(read_owners(Arc::clone(self)));
        }
        told.await.map_err(|_| Unread)
    }

    /// Refuses where the owner of a saga has changed since then, or may have.
    pub(super) async fn must_be_mine(self: &Arc<Self>, saga_id: &str, since: u64) -> Result<(), Refusal> {
        match self.look_whose(&saga_id.into()).await {
            Ok(Some(changes)) if changes == since => Ok(()),
            Ok(_) => Err(not_driven(saga_id)),
            Err(Unread) => Err(owner_unread()),
        }
    }
}

/// Nobody may be called, for nobody knows whose the saga is.
pub(super) fn owner_unread() -> Refusal {
    Refusal::unavailable("OWNER_UNREAD", "it can't be read whose the saga is by now", Duration::from_secs(1))
}

/// Reads owners until nobody waits any more. If they can't be read, whoever waits hears that their look is gone, and those that come within a
/// while are read together.
async fn read_owners(shared: Arc<Shared>) {
    while let Some(looks) = shared.looks.next() {
        let me = shared.member.get().map(|member| member.name()).unwrap_or_default();
        match store::owned(&shared.journal, looks.iter().map(|(saga_id, _)| &**saga_id), me).await {
            Ok(owned) => {
                for (saga_id, tell) in looks.into_iter().filter(|(saga_id, _)| !owned.unread.contains(&**saga_id)) {
                    // Who asked may have left.
                    let _ = tell.send(owned.since.get(&*saga_id).copied());
                }
            }
            Err(error) => {
                tracing::warn!(sagas = looks.len(), %error, "the owners of sagas can't be read");
                // They hear of it now, and ask again one by one.
                drop(looks);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl Looks {
    /// Those that have waited for longest; None, and nobody reads from then on, if there are none.
    fn next(&self) -> Option<Vec<Look>> {
        let mut waiting = self.0.lock();
        let most = waiting.looks.len().min(MOST);
        waiting.is_read = most > 0;
        waiting.is_read.then(|| waiting.looks.drain(..most).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::{
        super::sub_sagas::tests::{Out, on},
        *,
    };

    /// Each looks again a while after it has heard, so that they come one by one.
    #[tokio::test(start_paused = true)]
    async fn owners_that_cannot_be_read_are_not_read_for_each_who_asks() {
        let out = Arc::new(Out::default());
        let (shared, _) = on(&out).await;
        for saga in 0..500 {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(saga)).await;
                loop {
                    shared.look_whose(&saga.to_string().into()).await.expect_err("it is out of reach");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let reads = out.0.load(Ordering::Relaxed);
        assert!((5..=21).contains(&reads), "{reads}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_an_owner_that_cannot_be_read_hears_so_at_once() {
        let (shared, _) = on(&Arc::new(Out::default())).await;
        let begun = tokio::time::Instant::now();
        shared.look_whose(&"tea".into()).await.expect_err("it is out of reach");
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
