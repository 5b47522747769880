//! For tests of one's own sagas: participants that exist in memory, and the failures that a saga must come through.

mod participants;

pub use self::participants::{Call, Effect, Fault, Participants};
