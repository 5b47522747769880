//! A counter by disintegrate.

use std::convert::Infallible;

use disintegrate::{Decision, DecisionError, Event, NoSnapshot, StateMutate, StateQuery, serde::json::Json};
use disintegrate_postgres::{Error, PgEventStore, decision_maker};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use crate::Run;

/// What is left to do where setting up stops: one of the crate's functions has a number in a form that PostgreSQL reads since 16. It marks the transaction by
/// the log's end at its begin, in three advisory locks.
const BEFORE_POSTGRES_16: &str = "
CREATE OR REPLACE FUNCTION event_store_begin_epoch() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    last BIGINT := (SELECT last_value FROM seq_event_event_id);
    base INT := (SELECT oid FROM pg_database WHERE datname = current_database());
BEGIN
    PERFORM pg_try_advisory_xact_lock_shared(base, 0);
    PERFORM pg_try_advisory_xact_lock_shared(1, (last & 4294967295)::bit(32)::integer);
    PERFORM pg_try_advisory_xact_lock_shared(2, (last >> 32)::bit(32)::integer);
END
$$;
ALTER TABLE event ADD COLUMN IF NOT EXISTS counter_id TEXT;
CREATE INDEX IF NOT EXISTS idx_event_counter_id_btree ON event (counter_id) WHERE counter_id IS NOT NULL;
";

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
    let store = match PgEventStore::try_new(pool.clone(), Json::<DomainEvent>::default()).await {
        Ok(store) => store,
        Err(_) => {
            sqlx::raw_sql(BEFORE_POSTGRES_16).execute(&pool).await?;
            PgEventStore::new_uninitialized(pool, Json::default())
        }
    };
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
