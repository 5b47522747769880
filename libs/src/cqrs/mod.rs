//! Command and query responsibility segregation: surfaces generated from the contracts, each with its own model.
//!
//! `request → command surface → decider → journal → projection → query surface`. The command side is handed the journal and
//! never the views; the query side is handed the views and cannot write.

mod decider;
pub mod testing;

pub use self::decider::{Aggregate, Decision, State};
