//! A counter by cqrs-es, on postgres-es's plain event store.

use std::convert::Infallible;

use cqrs_es::{Aggregate, AggregateError, DomainEvent, event_sink::EventSink};
use postgres_es::postgres_cqrs;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use crate::Run;

/// As in the crate's `db/init.sql`.
const TABLE: &str = "CREATE TABLE events (
    aggregate_type text NOT NULL,
    aggregate_id text NOT NULL,
    sequence bigint CHECK (sequence >= 0) NOT NULL,
    event_type text NOT NULL,
    event_version text NOT NULL,
    payload json NOT NULL,
    metadata json NOT NULL,
    PRIMARY KEY (aggregate_type, aggregate_id, sequence)
)";

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    count: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Counted {
    note: String,
}

impl DomainEvent for Counted {
    fn event_type(&self) -> String {
        "Counted".to_owned()
    }

    fn event_version(&self) -> String {
        "1".to_owned()
    }
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    type Command = ();
    type Event = Counted;
    type Error = Infallible;
    type Services = ();

    async fn handle(&mut self, (): (), (): &(), sink: &EventSink<Self>) -> Result<(), Infallible> {
        sink.write(Counted { note: "n".repeat(88) }, self).await;
        Ok(())
    }

    fn apply(&mut self, _: Counted) {
        self.count += 1;
    }
}

pub(crate) async fn rate(pool: PgPool, run: Run) -> anyhow::Result<f64> {
    sqlx::query(TABLE).execute(&pool).await?;
    let counters = postgres_cqrs::<Counter>(pool, Vec::new(), ());
    let counters = &counters;
    run.rate(|id| async move {
        match counters.execute(&id, ()).await {
            Ok(()) => Ok(true),
            // Somebody else was first: to be tried again.
            Err(AggregateError::AggregateConflict) => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
    .await
}
