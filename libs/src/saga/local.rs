//! Steps that the coordinator's own service takes, in the very transaction of the saga's transition.

use std::fmt;

use prost::Message;

use crate::{
    cqrs::{Decision, State},
    journal::{AggregateId, Decided, Loaded},
    refusal::Refusal,
};

/// A decision over the service's own aggregates that is committed together with the transition it belongs to: an order is
/// completed and its saga is COMPLETED at once, or neither.
pub struct LocalWork {
    /// The aggregates it sees and may change. Where one can't have its id, of more than 512 bytes or with a control character, the work is
    /// refused.
    pub aggregates: Vec<AggregateId>,
    /// The decision over them.
    pub decide: DecideLocally,
}

/// A decision of local work. It runs where the transition is committed.
pub type DecideLocally = Box<dyn FnOnce(&Loaded<'_>) -> Result<Decided, Refusal> + Send>;

impl LocalWork {
    /// A decision like any command's, over these aggregates. Its reply is not kept.
    ///
    /// It may be asked more than once. A refusal that says when to try again, such as SAGA_LOCKED, is for now: the decision is asked for a
    /// little after that wait, of 100 ms at the least and a minute at the most. Any other leaves the saga STUCK, and an operator may have it
    /// tried again.
    pub fn new<R: Message>(
        aggregates: impl Into<Vec<AggregateId>>,
        decide: impl FnOnce(&State<'_>) -> Result<Decision<R>, Refusal> + Send + 'static,
    ) -> Self {
        let decide = move |loaded: &Loaded<'_>| decide(&State::new(loaded))?.into_decided(loaded);
        Self { aggregates: aggregates.into(), decide: Box::new(decide) }
    }

    /// Nothing to do.
    #[must_use]
    pub fn nothing() -> Self {
        Self { aggregates: Vec::new(), decide: Box::new(|_| Ok(Decided::default())) }
    }
}

impl fmt::Debug for LocalWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalWork").field("aggregates", &self.aggregates).finish_non_exhaustive()
    }
}
