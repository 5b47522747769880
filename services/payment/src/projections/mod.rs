//! The views that queries read, folded from the events.

pub mod accounts;
pub mod charges;

pub(crate) use self::{accounts::AccountsView, charges::ChargesView};
