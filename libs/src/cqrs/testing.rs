//! Given, when, then: how to write down what a decision must do.
//!
//! ```
//! # use libs::{cqrs::{testing::given, Aggregate, Decision, State}, refusal::Refusal};
//! # enum Light {}
//! # impl Aggregate for Light {
//! #     const KIND: &'static str = "light";
//! #     type State = bool;
//! #     type Event = bool;
//! #     fn evolve(state: &mut bool, event: &bool) { *state = *event; }
//! #     fn event_name(_: &bool) -> &'static str { "Switched" }
//! # }
//! fn switch_on(state: &State<'_>, id: &str) -> Result<Decision<()>, Refusal> {
//!     if state.get::<Light>(id)? {
//!         return Err(Refusal::precondition("ALREADY_ON", "the light is on"));
//!     }
//!     Ok(Decision::reply(()).event::<Light>(id, &true))
//! }
//!
//! let decision = given().aggregate::<Light>("hall").when(|state| switch_on(state, "hall"));
//! assert_eq!(decision.expect("it was off").events::<Light>(), [("hall".to_owned(), true)]);
//!
//! let refusal = given().event::<Light>("hall", &true).when(|state| switch_on(state, "hall"));
//! assert_eq!(refusal.expect_err("it is on").reason, "ALREADY_ON");
//! ```

use prost::Message as _;

use super::{Aggregate, Decision, State};
use crate::{
    journal::{self, AggregateId, Loaded},
    refusal::Refusal,
};

/// Starts a world in which nothing happened.
#[must_use]
pub fn given() -> Given {
    Given::default()
}

/// What happened before.
#[derive(Clone, Debug, Default)]
pub struct Given {
    aggregates: Vec<(AggregateId, journal::Aggregate)>,
    now_micros: i64,
}

impl Given {
    /// The command under test names this aggregate, to which nothing happened yet.
    #[must_use]
    pub fn aggregate<A: Aggregate>(mut self, id: &str) -> Self {
        self.slot::<A>(id);
        self
    }

    /// This happened to an aggregate.
    ///
    /// # Panics
    /// When earlier events of the aggregate left a state that can't be read back.
    #[must_use]
    pub fn event<A: Aggregate>(mut self, id: &str, event: &A::Event) -> Self {
        let stored = self.slot::<A>(id);
        let mut state = A::State::decode(stored.state.clone()).expect("the state was encoded here");
        A::evolve(&mut state, event);
        *stored = journal::Aggregate { version: stored.version + 1, state: state.encode_to_vec().into() };
        self
    }

    /// The time of the decision, in microseconds since 1970.
    #[must_use]
    pub fn now_micros(mut self, now_micros: i64) -> Self {
        self.now_micros = now_micros;
        self
    }

    /// Lets a decision look at this world.
    ///
    /// # Errors
    /// The decision's refusal; INTERNAL, as a service answers, for an event of an aggregate that is not given here by
    /// [`aggregate`](Self::aggregate) or [`event`](Self::event): the command doesn't name it.
    pub fn when<R: prost::Message>(
        &self,
        decide: impl FnOnce(&State<'_>) -> Result<Decision<R>, Refusal>,
    ) -> Result<Decision<R>, Refusal> {
        let loaded = Loaded::new(&self.aggregates, None, self.now_micros);
        let decision = decide(&State::new(&loaded))?;
        decision.check_named(&loaded)?;
        Ok(decision)
    }

    fn slot<A: Aggregate>(&mut self, id: &str) -> &mut journal::Aggregate {
        let name = AggregateId::new(A::KIND, id);
        let at = self.aggregates.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            self.aggregates.push((name, journal::Aggregate::default()));
            self.aggregates.len() - 1
        });
        &mut self.aggregates[at].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pot;

    impl Aggregate for Pot {
        const KIND: &'static str = "pot";
        type State = i64;
        type Event = i64;

        fn evolve(state: &mut i64, event: &i64) {
            *state += event;
        }

        fn event_name(_: &i64) -> &'static str {
            "Poured"
        }
    }

    #[test]
    fn what_a_service_always_refuses_is_refused() {
        let pour = |_: &State<'_>| Ok(Decision::reply(()).event::<Pot>("tea", &1).event::<Pot>("milk", &1));
        let refusal = given().event::<Pot>("tea", &1).when(pour).unwrap_err();
        assert_eq!(refusal.code, tonic::Code::Internal);
        let decision = given().event::<Pot>("tea", &1).aggregate::<Pot>("milk").when(pour).unwrap();
        assert_eq!(decision.events::<Pot>().len(), 2);
    }
}
