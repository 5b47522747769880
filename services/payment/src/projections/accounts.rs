//! The account of each customer, as queries show it.

use libs::{
    cqrs::{Documents, Event, Projection, ProjectionError, events_of},
    journal::{Table, sql::Transaction},
    money::{add_to, take_from},
    time::timestamp,
};
use proto::{
    google::r#type::Money,
    payment::v1::{Account as Document, AccountEvent, account_event},
};

use crate::domain::Account;

/// One row a customer.
pub static ACCOUNTS: Table = Table {
    name: "accounts",
    create: &["CREATE TABLE IF NOT EXISTS accounts (
        id TEXT NOT NULL PRIMARY KEY,
        position INTEGER,
        document BLOB
    ) WITHOUT ROWID"],
    columns: &["id", "position", "document"],
    key: 1,
    fixed: &[],
};

/// Folds account events into [`ACCOUNTS`].
#[derive(Debug)]
pub(crate) struct AccountsView;

impl Projection for AccountsView {
    const NAME: &'static str = "accounts";
    const TABLES: &'static [&'static Table] = &[&ACCOUNTS];

    async fn project(&self, events: &[Event], transaction: &mut Transaction<'_>) -> Result<(), ProjectionError> {
        let changes = events_of::<Account>(events)?;
        let mut accounts = Documents::load(transaction, &ACCOUNTS, changes.iter().map(|(event, _)| &event.id)).await?;
        for (event, change) in changes {
            accounts.update(&event.id, event.position, |document: &mut Document| {
                document.customer_id.clone_from(&event.id);
                document.update_time = Some(timestamp(event.time_micros));
                fold(document, &change);
            });
        }
        accounts.save(transaction, |_| Vec::new()).await
    }
}

fn fold(account: &mut Document, change: &AccountEvent) {
    match &change.event {
        Some(account_event::Event::Deposited(deposited)) => {
            add_to(&mut account.deposited, deposited.amount.as_ref());
            add_to(&mut account.balance, deposited.amount.as_ref());
            if account.charged.is_none() {
                // Nothing, but of the account's currency: the sum of what queries show has no holes.
                account.charged =
                    deposited.amount.as_ref().map(|amount| Money { units: 0, nanos: 0, ..amount.clone() });
            }
        }
        Some(account_event::Event::Charged(charged)) => {
            take_from(&mut account.balance, charged.amount.as_ref());
            add_to(&mut account.charged, charged.amount.as_ref());
        }
        Some(account_event::Event::Refunded(refunded)) => {
            add_to(&mut account.balance, refunded.amount.as_ref());
            take_from(&mut account.charged, refunded.amount.as_ref());
        }
        None => {}
    }
}
