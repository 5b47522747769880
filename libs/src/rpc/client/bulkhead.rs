//! No more than so many calls to a peer at once: one that is slow does not take every task and buffer with it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A bound on calls under way. It never queues: what does not fit is refused at once.
#[derive(Clone, Debug)]
pub(super) struct Bulkhead {
    peer: Arc<str>,
    places: Arc<Semaphore>,
}

impl Bulkhead {
    pub(super) fn new(peer: Arc<str>, calls: usize) -> Self {
        Self { peer, places: Arc::new(Semaphore::new(calls.clamp(1, Semaphore::MAX_PERMITS))) }
    }

    /// A place, held until the call's body has ended.
    pub(super) fn enter(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| self.full())
    }

    #[cold]
    fn full(&self) -> Status {
        let about = HashMap::from([("peer".to_owned(), self.peer.to_string())]);
        let mut details = ErrorDetails::with_error_info("BULKHEAD_FULL", crate::breaker::DOMAIN, about);
        details.set_retry_info(Some(Duration::from_millis(100)));
        let message = format!("too many calls to {} are under way here", self.peer);
        Status::with_error_details(Code::ResourceExhausted, message, details)
    }
}
