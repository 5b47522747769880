//! A counter by disintegrate.

use std::convert::Infallible;

use disintegrate::{Decision, DecisionError, Event, NoSnapshot, StateMutate, StateQuery, serde::json::Json};
use disintegrate_postgres::{Error, PgEventStore, decision_maker};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use crate::Run;

/// One of the crate's functions has a number in hexadecimal, which PostgreSQL reads since 16: the same function, with the number in decimal.
const IN_DECIMAL: &str =
    "SELECT replace(pg_get_functiondef('event_store_begin_epoch'::regproc), '0xFFFFFFFF', '4294967295')";

#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[stream(CounterEvent, [Counted])]
enum DomainEvent {
    Counted {
        #[id]
        counter_id: String,
        note: String,
    },
}

#[derive(Clone, Default, StateQuery, Serialize, Deserialize)]
#[state_query(CounterEvent)]
struct Counter {
    #[id]
    counter_id: String,
    count: u64,
}

impl StateMutate for Counter {
    fn mutate(&mut self, _: Self::Event) {
        self.count += 1;
    }
}

struct Count {
    counter_id: String,
}

impl Decision for Count {
    type Event = DomainEvent;
    type StateQuery = Counter;
    type Error = Infallible;

    fn state_query(&self) -> Counter {
        Counter { counter_id: self.counter_id.clone(), ..Counter::default() }
    }

    fn process(&self, _: &Counter) -> Result<Vec<DomainEvent>, Infallible> {
        Ok(vec![DomainEvent::Counted { counter_id: self.counter_id.clone(), note: "n".repeat(88) }])
    }
}

pub(crate) async fn rate(pool: PgPool, run: Run) -> anyhow::Result<f64> {
    let store = PgEventStore::try_new(pool.clone(), Json::<DomainEvent>::default()).await?;
    let (in_decimal,): (String,) = sqlx::query_as(IN_DECIMAL).fetch_one(&pool).await?;
    sqlx::raw_sql(&in_decimal).execute(&pool).await?;
    let decisions = decision_maker(store, NoSnapshot);
    let decisions = &decisions;
    run.rate(|counter_id| async move {
        match decisions.make(Count { counter_id }).await {
            Ok(_) => Ok(true),
            Err(DecisionError::EventStore(error) | DecisionError::StateStore(error))
                if is_conflict(error.downcast_ref()) =>
            {
                Ok(false)
            }
            Err(error) => Err(anyhow::anyhow!("{error}")),
        }
    })
    .await
}

/// Somebody else was first, or the server can't tell: to be tried again.
fn is_conflict(error: Option<&Error>) -> bool {
    match error {
        Some(Error::Concurrency) => true,
        Some(Error::Database(error)) => {
            error.as_database_error().is_some_and(|error| matches!(error.code().as_deref(), Some("40001" | "40P01")))
        }
        _ => false,
    }
}
