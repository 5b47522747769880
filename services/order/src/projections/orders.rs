//! Each order, as queries show it.

use libs::{
    cqrs::{Documents, Event, Projection, ProjectionError, events_of},
    journal::{Table, sql::Transaction},
};
use proto::order::v1::{OrderView, order_event};

use crate::domain::{Order, order};

/// One row an order. `placed` is the position at which it was placed: unique, and the larger the newer.
pub static ORDERS: Table = Table {
    name: "orders",
    create: &[
        "CREATE TABLE IF NOT EXISTS orders (
            id TEXT NOT NULL PRIMARY KEY,
            position INTEGER,
            document BLOB,
            customer TEXT,
            state INTEGER,
            placed INTEGER
        ) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS orders_by_position ON orders (position)",
        "CREATE INDEX IF NOT EXISTS orders_by_placed ON orders (placed)",
        "CREATE INDEX IF NOT EXISTS orders_by_customer ON orders (customer, placed)",
        "CREATE INDEX IF NOT EXISTS orders_by_state ON orders (state, placed)",
    ],
    columns: &["id", "position", "document", "customer", "state", "placed"],
    key: 1,
    fixed: &["customer", "placed"],
};

/// Folds order events into [`ORDERS`].
#[derive(Debug)]
pub struct OrdersView;

impl Projection for OrdersView {
    const NAME: &'static str = "orders";
    const TABLES: &'static [&'static Table] = &[&ORDERS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let changes = events_of::<Order>(events)?;
        let mut orders = Documents::load(transaction, &ORDERS, changes.iter().map(|(event, _)| &event.id)).await?;
        for (event, change) in changes {
            orders.update(&event.id, event.position, |view: &mut OrderView| {
                if let Some(order_event::Event::Placed(_)) = change.event {
                    view.placed_position = event.position;
                }
                view.position = event.position;
                let document = view.order.get_or_insert_default();
                document.order_id.clone_from(&event.id);
                order::fold(document, &change);
            });
        }
        let columns = |view: &OrderView| {
            let (customer, state) = view.order.as_ref().map_or(("", 0), |order| (&order.customer_id, order.state));
            vec![customer.into(), state.into(), view.placed_position.into()]
        };
        orders.save(transaction, columns).await
    }
}
