//! Each saga, as queries show it: the fold of its transitions.

use proto::saga::v1::{SagaTransition, SagaView};

use super::{record::fold, store::KIND};
use crate::{
    cqrs::{Documents, Projection, ProjectionError, events_of_kind},
    journal::{Event, Table, sql::Transaction},
};

/// One row a saga. `started` is the position of its first transition: unique, and the larger the newer.
pub(super) static SAGA_VIEWS: Table = Table {
    name: "saga_views",
    create: &[
        "CREATE TABLE IF NOT EXISTS saga_views (
            id TEXT NOT NULL PRIMARY KEY,
            position INTEGER,
            document BLOB,
            type TEXT,
            phase INTEGER,
            started INTEGER
        ) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS saga_views_by_position ON saga_views (position)",
        "CREATE INDEX IF NOT EXISTS saga_views_by_started ON saga_views (started)",
        "CREATE INDEX IF NOT EXISTS saga_views_by_phase ON saga_views (phase, started)",
    ],
    columns: &["id", "position", "document", "type", "phase", "started"],
    key: 1,
    fixed: &["type", "started"],
};

/// Folds saga events into the view that [`SagaQueries`](super::SagaQueries) reads.
#[derive(Debug)]
pub struct SagasView;

impl Projection for SagasView {
    const NAME: &'static str = "sagas";
    const TABLES: &'static [&'static Table] = &[&SAGA_VIEWS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let transitions: Vec<(&Event, SagaTransition)> = events_of_kind(KIND, events)?;
        let mut views =
            Documents::load(transaction, &SAGA_VIEWS, transitions.iter().map(|(event, _)| &event.id)).await?;
        for (event, transition) in transitions {
            views.update(&event.id, event.position, |view: &mut SagaView| {
                if view.started_position == 0 {
                    view.started_position = event.position;
                }
                view.position = event.position;
                fold(view.saga.get_or_insert_default(), transition);
            });
        }
        let columns = |view: &SagaView| {
            let (saga_type, phase) = view.saga.as_ref().map_or(("", 0), |saga| (&saga.r#type, saga.phase));
            vec![saga_type.into(), phase.into(), view.started_position.into()]
        };
        views.save(transaction, columns).await
    }
}
