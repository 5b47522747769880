//! What payment's events say of each order's charge. The charge's id is the order's.

use libs::{
    cqrs::{Documents, Event, Projection, ProjectionError, events_of_kind},
    journal::{Table, sql::Transaction},
    time::timestamp,
};
use proto::payment::v1::{Charge, ChargeEvent, ChargeState, charge_event};

/// The kind of payment's aggregates that make this view.
pub const KIND: &str = "charge";

/// One row a charge.
pub static ORDER_CHARGES: Table = Table {
    name: "order_charges",
    create: &["CREATE TABLE IF NOT EXISTS order_charges (
        id TEXT NOT NULL PRIMARY KEY,
        position INTEGER,
        document BLOB
    ) WITHOUT ROWID"],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// Folds payment's events into [`ORDER_CHARGES`].
#[derive(Debug)]
pub(crate) struct ChargesOfOrders;

impl Projection for ChargesOfOrders {
    const NAME: &'static str = "order_charges";
    const TABLES: &'static [&'static Table] = &[&ORDER_CHARGES];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let changes = events_of_kind::<ChargeEvent>(KIND, events)?;
        let ids = changes.iter().map(|(event, _)| &event.id);
        let mut charges = Documents::load(transaction, &ORDER_CHARGES, ids).await?;
        for (event, change) in changes {
            let time = Some(timestamp(event.time_micros));
            charges.update(&event.id, event.position, |charge: &mut Charge| {
                charge.update_time = time;
                match change.event {
                    Some(charge_event::Event::Made(made)) => {
                        charge.charge_id.clone_from(&event.id);
                        charge.customer_id = made.customer_id;
                        charge.amount = made.amount;
                        charge.create_time = time;
                        charge.set_state(ChargeState::Charged);
                    }
                    Some(charge_event::Event::Refunded(_)) => charge.set_state(ChargeState::Refunded),
                    None => {}
                }
            });
        }
        charges.save(transaction, |_| Vec::new()).await
    }
}
