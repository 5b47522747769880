//! Why views are not made anew.

use super::{OtherLog, UnknownEnd, log::NewsError};
use crate::journal::{OpenError, sql};

/// Why views are not made anew. They are as they were, unless that isn't known.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// There is no place for them.
    #[error("the views were not made anew and are as they were: {0}")]
    Open(#[from] OpenError),
    /// The database or the log failed.
    #[error("the views were not made anew and are as they were: {0}")]
    Database(#[from] sql::Error),
    /// What puts them in place was to be committed, and the server has not said that it was.
    #[error("it is not known whether the views were made anew: {0}; make them anew once more")]
    Unknown(sql::Error),
    /// An event can't be folded.
    #[error("the views were not made anew and are as they were: {0}")]
    Poison(String),
    /// Another service's log has become another one meanwhile.
    #[error("the views were not made anew and are as they were: {0}; make them anew once more")]
    OtherLog(OtherLog),
    /// What was folded last is lost, as after a failover.
    #[error(
        "the views were not made anew and are as they were: the server has lost the last of them; make them anew once more"
    )]
    Lost,
    /// Somebody has read the old ones for too long.
    #[error(
        "the views were not made anew and are as they were: somebody goes on reading those, as a dump does or a transaction that was left \
         open (pg_locks says who); make them anew once more when that has ended"
    )]
    Held,
    /// It isn't known whether the stream that they would go on with is a copy of the log.
    #[error("the views were not made anew and are as they were: {0}; make them anew once it can be asked")]
    UnknownEnd(#[from] UnknownEnd),
    /// The stream that they would go on with is no copy of the log that they were made of.
    #[error(
        "the views were not made anew and are as they were: {stream} goes on to {reached} and the log that it is to be a copy of ends at \
         {end}, as after a restored backup; delete it (nats stream rm {stream}), then make them anew"
    )]
    OtherStream {
        /// The stream.
        stream: String,
        /// How far it goes.
        reached: i64,
        /// Where the log ends.
        end: i64,
    },
}

impl From<NewsError> for RebuildError {
    fn from(error: NewsError) -> Self {
        match error {
            NewsError::Database(error) => Self::Database(error),
            NewsError::OtherLog(other) => Self::OtherLog(other),
        }
    }
}
