//! The shape of every decision: state of the named aggregates and a command in, events and a reply or a refusal out.
//!
//! The pattern is Jérémie Chassaing's decider: `decide` and `evolve` are pure. Time, ids and randomness arrive as values.

use bytes::Bytes;
use prost::Message;

use crate::{
    journal::{self, AggregateId, Change, Decided, Loaded, NewEvent},
    refusal::Refusal,
};

/// A kind of aggregate: how its events change its state.
pub trait Aggregate: 'static {
    /// The kind's name in the journal, stable for ever.
    const KIND: &'static str;
    /// The state that decisions look at; its default is the state before the first event.
    type State: Message + Default;
    /// What can happen to it.
    type Event: Message + Default;

    /// The state that follows an event. Total: an event that happened is never refused.
    fn evolve(state: &mut Self::State, event: &Self::Event);

    /// The names of events that were once written in another form, which logs may still hold: once for each such form, so that what was
    /// published in one of them is known from what is in the form of today.
    const OLD_FORMS: &'static [&'static str] = &[];

    /// Brings an event of [`OLD_FORMS`](Self::OLD_FORMS) into the form of today; one that has it is left alone. It is asked wherever a log
    /// is read, so that no projection, here or in another service, sees an old form that is told by this version. What it leaves alone comes
    /// as it was written, with what a newer version added to it; what it changes loses that, so a newer version writes no form that this one
    /// takes for an old one.
    fn upcast(event: &mut Self::Event) {
        let _ = event;
    }

    /// The event's name in the journal, such as `StockReserved`, stable for ever.
    fn event_name(event: &Self::Event) -> &'static str;
}

/// What a decision sees: the aggregates its command names, and the time.
#[derive(Clone, Copy, Debug)]
pub struct State<'a>(&'a Loaded<'a>);

impl<'a> State<'a> {
    /// Looks at what the journal loaded.
    #[must_use]
    pub fn new(loaded: &'a Loaded<'a>) -> Self {
        Self(loaded)
    }

    /// An aggregate's state; the default if nothing happened to it yet.
    ///
    /// # Errors
    /// INTERNAL when the command doesn't name the aggregate, or what is stored can't be read.
    pub fn get<A: Aggregate>(&self, id: &str) -> Result<A::State, Refusal> {
        let Some(stored) = self.0.aggregate(A::KIND, id) else {
            tracing::error!(
                aggregate.kind = A::KIND,
                aggregate.id = id,
                "a decision asked for what its command does not name"
            );
            return Err(Refusal::internal());
        };
        A::State::decode(stored.state.clone()).map_err(|error| {
            tracing::error!(aggregate.kind = A::KIND, aggregate.id = id, %error, "stored state can't be read");
            Refusal::internal()
        })
    }

    /// True if anything ever happened to an aggregate. False, too, of one that the command doesn't name.
    #[must_use]
    pub fn exists<A: Aggregate>(&self, id: &str) -> bool {
        self.0.aggregate(A::KIND, id).is_some_and(|stored| stored.version > 0)
    }

    /// The time of the decision, in microseconds since 1970.
    #[must_use]
    pub fn now_micros(&self) -> i64 {
        self.0.now_micros()
    }

    /// All that the journal loaded, for what is decided beside, such as a saga's start.
    #[must_use]
    pub fn loaded(&self) -> &'a Loaded<'a> {
        self.0
    }

    /// In a compensation behind the barrier: the reply of the action that it undoes.
    #[must_use]
    pub fn action_reply<R: Message + Default>(&self) -> Option<R> {
        self.0.action_reply().and_then(|reply| R::decode(reply.clone()).ok())
    }
}

/// What a command came to: events, in order, and the reply.
#[derive(Debug)]
pub struct Decision<R> {
    reply: R,
    events: Vec<Pending>,
    beside: Decided,
}

/// An event that belongs to one aggregate, with the way to apply it.
#[derive(Debug)]
struct Pending {
    aggregate: AggregateId,
    event: NewEvent,
    evolve: Evolve,
}

/// [`Aggregate::evolve`] over encoded state and event.
type Evolve = fn(&[u8], &[u8]) -> Result<Vec<u8>, prost::DecodeError>;

impl<R: Message> Decision<R> {
    /// A decision that changes nothing yet.
    pub fn reply(reply: R) -> Self {
        Self { reply, events: Vec::new(), beside: Decided::default() }
    }

    /// Adds an event to one of the aggregates the command names.
    #[must_use]
    pub fn event<A: Aggregate>(mut self, id: &str, event: &A::Event) -> Self {
        self.events.push(Pending {
            aggregate: AggregateId::new(A::KIND, id),
            event: NewEvent { name: A::event_name(event), payload: event.encode_to_vec().into() },
            evolve: evolve::<A>,
        });
        self
    }

    /// Adds what must be committed in the same transaction, such as a saga that starts.
    #[must_use]
    pub fn beside(mut self, beside: Decided) -> Self {
        self.beside.absorb(beside);
        self
    }

    /// The reply.
    pub fn reply_ref(&self) -> &R {
        &self.reply
    }

    /// The decoded events of one kind of aggregate, in order, for tests of decisions.
    pub fn events<A: Aggregate>(&self) -> Vec<(String, A::Event)> {
        let of_kind = self.events.iter().filter(|pending| pending.aggregate.kind == A::KIND);
        let decoded = |pending: &Pending| {
            let event = A::Event::decode(pending.event.payload.clone()).ok()?;
            Some((pending.aggregate.id.to_string(), event))
        };
        of_kind.filter_map(decoded).collect()
    }

    /// Whether each event is for an aggregate that the command names, as [`into_decided`](Self::into_decided) asks.
    pub(super) fn check_named(&self, loaded: &Loaded<'_>) -> Result<(), Refusal> {
        self.events.iter().try_for_each(|pending| named(&pending.aggregate, &pending.event, loaded).map(drop))
    }

    /// Folds the events into new states, in the form the journal commits.
    ///
    /// # Errors
    /// INTERNAL when an event is for an aggregate that the command doesn't name, what is beside the decision changes what something else in
    /// it does, such as two sagas that take the same lock, or stored state can't be read.
    pub fn into_decided(self, loaded: &Loaded<'_>) -> Result<Decided, Refusal> {
        let mut changes: Vec<Change> = Vec::new();
        for Pending { aggregate, event, evolve } in self.events {
            let at = match changes.iter().position(|change| change.aggregate == aggregate) {
                Some(at) => at,
                None => {
                    let stored = named(&aggregate, &event, loaded)?;
                    let (state, version) = (Some(stored.state.clone()), stored.version);
                    changes.push(Change { aggregate, state, version, events: Vec::new() });
                    changes.len() - 1
                }
            };
            let change = &mut changes[at];
            let state = change.state.take().unwrap_or_default();
            let next = evolve(&state, &event.payload).map_err(|error| {
                tracing::error!(aggregate.kind = change.aggregate.kind, %error, "stored state can't be read");
                Refusal::internal()
            })?;
            change.state = Some(Bytes::from(next));
            change.version += 1;
            change.events.push(event);
        }
        let own = changes.len();
        let mut decided = Decided { reply: self.reply.encode_to_vec().into(), changes, ..Decided::default() };
        decided.absorb(self.beside);
        let changes = &decided.changes;
        let twice = |at: &usize| changes[..*at].iter().any(|change| change.aggregate == changes[*at].aggregate);
        if let Some(at) = (own..changes.len()).find(twice) {
            // Neither knows of the other: of both changes the later one would stay.
            let AggregateId { kind, id } = &changes[at].aggregate;
            tracing::error!(aggregate.kind = kind, aggregate.id = &**id, "two parts of a decision change the same");
            return Err(Refusal::internal());
        }
        Ok(decided)
    }
}

/// The aggregate that an event is for, as it stands.
fn named<'a>(
    aggregate: &AggregateId,
    event: &NewEvent,
    loaded: &Loaded<'a>,
) -> Result<&'a journal::Aggregate, Refusal> {
    loaded.aggregate(aggregate.kind, &aggregate.id).ok_or_else(|| {
        tracing::error!(
            aggregate.kind,
            aggregate.id = &*aggregate.id,
            event = event.name,
            "a decision changed what its command does not name"
        );
        Refusal::internal()
    })
}

fn evolve<A: Aggregate>(state: &[u8], event: &[u8]) -> Result<Vec<u8>, prost::DecodeError> {
    let mut state = A::State::decode(state)?;
    A::evolve(&mut state, &A::Event::decode(event)?);
    Ok(state.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pot;

    impl Aggregate for Pot {
        const KIND: &'static str = "pot";
        type State = i64;
        type Event = i64;
        fn event_name(_: &i64) -> &'static str {
            "Poured"
        }
        fn evolve(state: &mut i64, event: &i64) {
            *state += event;
        }
    }

    #[test]
    fn what_is_beside_a_decision_changes_nothing_that_it_changes_itself() {
        let seen = ["tea", "milk"].map(|id| (AggregateId::new("pot", id), journal::Aggregate::default()));
        let loaded = Loaded::new(&seen, None, 0);
        let beside = |id: &str| {
            let aggregate = AggregateId::new("pot", id);
            let change = Change { aggregate, state: Some(Bytes::new()), version: 1, events: Vec::new() };
            Decided { changes: vec![change], ..Decided::default() }
        };
        let decided = |other| {
            let twice = Decision::reply(()).event::<Pot>("tea", &1).event::<Pot>("tea", &2);
            twice.beside(beside(other)).into_decided(&loaded)
        };
        assert_eq!(decided("milk").unwrap().changes.len(), 2);
        assert_eq!(decided("tea").unwrap_err().code, tonic::Code::Internal);
    }
}
