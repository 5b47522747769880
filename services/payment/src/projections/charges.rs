//! Each charge, as queries show it.

use libs::{
    cqrs::{Documents, Event, Projection, ProjectionError, events_of},
    journal::{Table, sql::Transaction},
    time::timestamp,
};
use proto::payment::v1::{Charge as Document, ChargeState, charge_event};

use crate::domain::Charge;

/// One row a charge.
pub static CHARGES: Table = Table {
    name: "charges",
    create: &[
        "CREATE TABLE IF NOT EXISTS charges (
            id TEXT NOT NULL PRIMARY KEY,
            position INTEGER,
            document BLOB,
            customer TEXT
        ) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS charges_by_customer ON charges (customer, id)",
    ],
    columns: &["id", "position", "document", "customer"],
    key: 1,
    fixed: &[],
};

/// Folds charge events into [`CHARGES`].
#[derive(Debug)]
pub(crate) struct ChargesView;

impl Projection for ChargesView {
    const NAME: &'static str = "charges";
    const TABLES: &'static [&'static Table] = &[&CHARGES];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let changes = events_of::<Charge>(events)?;
        let mut charges = Documents::load(transaction, &CHARGES, changes.iter().map(|(event, _)| &event.id)).await?;
        for (event, change) in changes {
            let time = Some(timestamp(event.time_micros));
            charges.update(&event.id, event.position, |document: &mut Document| {
                document.update_time = time;
                match change.event {
                    Some(charge_event::Event::Made(made)) => {
                        document.charge_id.clone_from(&event.id);
                        document.customer_id = made.customer_id;
                        document.amount = made.amount;
                        document.create_time = time;
                        document.set_state(ChargeState::Charged);
                    }
                    Some(charge_event::Event::Refunded(_)) => document.set_state(ChargeState::Refunded),
                    None => {}
                }
            });
        }
        charges.save(transaction, |charge| vec![charge.customer_id.as_str().into()]).await
    }
}
