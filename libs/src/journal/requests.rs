//! What was asked before, and what that means now: idempotency for clients, the barrier for sagas, one rule for both.
//!
//! The barrier is dtm's sub-transaction barrier with the answers kept: an action is decided once and then replayed, a
//! compensation without its action writes a tombstone, and the action that comes late finds it.

use bytes::Bytes;

use super::{
    entry::{RequestKey, Role, Table},
    sql::{Error, Reader, Record, Value},
};

pub(super) static REQUESTS: Table = Table {
    name: "requests",
    create: &["CREATE TABLE IF NOT EXISTS requests (
        key TEXT NOT NULL PRIMARY KEY,
        hash BLOB NOT NULL,
        outcome INTEGER NOT NULL,
        reply BLOB NOT NULL,
        time INTEGER NOT NULL
    ) WITHOUT ROWID"],
    columns: &["key", "hash", "outcome", "reply", "time"],
    key: 1,
    fixed: &[],
};

/// How a request ended, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Done = 1,
    Rejected = 2,
    /// The action never ran and never will: its compensation came first.
    Tombstone = 3,
}

/// A request that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) hash: [u8; 32],
    pub(super) ending: Ending,
    pub(super) reply: Bytes,
}

impl Known {
    pub(super) fn tombstone() -> Self {
        Self { hash: [0; 32], ending: Ending::Tombstone, reply: Bytes::new() }
    }

    pub(super) fn row(&self, key: &str, now_micros: i64) -> Vec<Value> {
        vec![
            key.into(),
            self.hash.to_vec().into(),
            (self.ending as i64).into(),
            self.reply.clone().into(),
            now_micros.into(),
        ]
    }

    pub(super) fn read(record: &Record) -> Result<(String, Self), Error> {
        let hash = record.blob(1)?.as_ref().try_into().map_err(|_| corrupt("requests.hash"))?;
        let ending = match record.int(2)? {
            1 => Ending::Done,
            2 => Ending::Rejected,
            3 => Ending::Tombstone,
            _ => return Err(corrupt("requests.outcome")),
        };
        Ok((record.text(0)?, Self { hash, ending, reply: record.blob(3)? }))
    }
}

/// A request that is known, and since when: as much as it takes to let go of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its key.
    pub key: String,
    /// When its answer was stored, in microseconds since 1970.
    pub time_micros: i64,
}

/// Reads requests that are known by key, after one of them, at most `limit`.
///
/// # Errors
/// When they can't be read.
pub async fn answered_after(reader: &Reader, key: &str, limit: i64) -> Result<Vec<Answered>, Error> {
    const SQL: &str = "SELECT key, time FROM requests WHERE key > $1 ORDER BY key LIMIT $2";
    let records = reader.fetch(SQL, vec![key.into(), limit.into()]).await?;
    records.iter().map(|record| Ok(Answered { key: record.text(0)?, time_micros: record.int(1)? })).collect()
}

fn corrupt(column: &str) -> Error {
    Error::Corrupt(column.to_owned())
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Decide it. For a compensation: with the reply of the action it undoes.
    Decide { action_reply: Option<Bytes> },
    /// Done before: the same reply again.
    Replay(Bytes),
    /// Refused before: the same refusal again.
    RejectAgain(Bytes),
    /// A compensation of what had no effect. With `tombstone`, write one under the action's key.
    NothingToUndo { tombstone: bool },
    /// A compensation of what may be forgotten: a tombstone would stay for ever.
    TooOld,
    /// An action that was compensated before it came.
    Cancelled,
    /// The same key with another request.
    Conflict,
}

/// The rule. `own` is what is known under the request's key, `action` what is known under its action's, for compensations.
///
/// An action is answered as it was, undone since or not: a coordinator that lost its last commits goes over it to the refusal that has turned
/// the saga back, and ends as it did.
pub(super) fn judge(request: &RequestKey, own: Option<&Known>, action: Option<&Known>, now_micros: i64) -> Judgement {
    if let Some(known) = own {
        return match known.ending {
            Ending::Tombstone => Judgement::Cancelled,
            _ if !request.is_same(&known.hash) => Judgement::Conflict,
            Ending::Done => Judgement::Replay(known.reply.clone()),
            Ending::Rejected => Judgement::RejectAgain(known.reply.clone()),
        };
    }
    match (&request.role, action.map(|known| known.ending)) {
        (Role::Action, _) => Judgement::Decide { action_reply: None },
        (Role::Compensation { expires_micros, .. }, None) if (1..now_micros).contains(expires_micros) => {
            Judgement::TooOld
        }
        (Role::Compensation { .. }, None) => Judgement::NothingToUndo { tombstone: true },
        (Role::Compensation { .. }, Some(Ending::Rejected | Ending::Tombstone)) => {
            Judgement::NothingToUndo { tombstone: false }
        }
        (Role::Compensation { .. }, Some(Ending::Done)) => {
            Judgement::Decide { action_reply: action.map(|known| known.reply.clone()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: [u8; 32] = [1; 32];
    const NOW: i64 = 1_000;

    fn judge(role: &Role, hash: &[u8; 32], own: Option<&Known>, action: Option<&Known>) -> Judgement {
        let request = RequestKey { key: "a".to_owned(), hash: *hash, other_hash: None, role: role.clone() };
        super::judge(&request, own, action, NOW)
    }

    fn known(ending: Ending) -> Known {
        Known { hash: HASH, ending, reply: Bytes::from_static(b"reply") }
    }

    fn undo_until(expires_micros: i64) -> Role {
        Role::Compensation { action: "a".to_owned(), expires_micros }
    }

    fn undo() -> Role {
        undo_until(NOW)
    }

    #[test]
    fn an_action_is_decided_once_and_then_replayed() {
        let decide = Judgement::Decide { action_reply: None };
        assert_eq!(judge(&Role::Action, &HASH, None, None), decide);
        let reply = Bytes::from_static(b"reply");
        assert_eq!(judge(&Role::Action, &HASH, Some(&known(Ending::Done)), None), Judgement::Replay(reply.clone()));
        assert_eq!(judge(&Role::Action, &HASH, Some(&known(Ending::Rejected)), None), Judgement::RejectAgain(reply));
    }

    #[test]
    fn another_request_under_the_same_key_is_a_conflict() {
        for ending in [Ending::Done, Ending::Rejected] {
            assert_eq!(judge(&Role::Action, &[2; 32], Some(&known(ending)), None), Judgement::Conflict);
        }
    }

    #[test]
    fn a_compensation_without_its_action_leaves_a_tombstone_that_the_late_action_meets() {
        assert_eq!(judge(&undo(), &HASH, None, None), Judgement::NothingToUndo { tombstone: true });
        assert_eq!(judge(&Role::Action, &HASH, Some(&Known::tombstone()), None), Judgement::Cancelled);
    }

    #[test]
    fn a_compensation_that_is_too_old_leaves_nothing_where_nothing_is_known() {
        let (old, done) = (undo_until(NOW - 1), known(Ending::Done));
        assert_eq!(judge(&old, &HASH, None, None), Judgement::TooOld);
        let reply = Bytes::from_static(b"reply");
        assert_eq!(judge(&old, &HASH, None, Some(&done)), Judgement::Decide { action_reply: Some(reply.clone()) });
        assert_eq!(judge(&old, &HASH, Some(&done), Some(&done)), Judgement::Replay(reply));
        let always = undo_until(0);
        assert_eq!(judge(&always, &HASH, None, None), Judgement::NothingToUndo { tombstone: true });
    }

    #[test]
    fn a_compensation_of_what_was_refused_undoes_nothing() {
        let nothing = Judgement::NothingToUndo { tombstone: false };
        assert_eq!(judge(&undo(), &HASH, None, Some(&known(Ending::Rejected))), nothing);
    }

    #[test]
    fn a_compensation_sees_the_reply_it_undoes() {
        let decide = Judgement::Decide { action_reply: Some(Bytes::from_static(b"reply")) };
        assert_eq!(judge(&undo(), &HASH, None, Some(&known(Ending::Done))), decide);
    }
}
