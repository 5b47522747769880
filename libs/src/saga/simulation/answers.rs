//! What participants keep of sagas' operations: until their sagas have ended for long enough, and no longer.

use super::world::{DIFFERS, PARTICIPANTS, World, since};
use crate::{
    journal::{simulated::Statement, sql::Value},
    rpc::verdict::OPERATION_KEYS,
};

/// The key of an answer that a statement lets go of.
pub(super) fn forgotten(statement: &Statement) -> Option<&str> {
    match statement {
        Statement::Execute(sql, values) if sql.starts_with("DELETE FROM requests") => match values.as_slice() {
            [Value::Text(key), ..] => Some(key),
            _ => None,
        },
        _ => None,
    }
}

/// An answer was let go of just now: nobody may ask for it any more.
pub(super) fn may_be_forgotten(world: &World, key: &str) {
    let id = key.trim_start_matches(OPERATION_KEYS).split('/').next().unwrap_or_default();
    let kept = world.keep_answers - world.keep_answers / DIFFERS;
    match world.store.ended(id).map(since) {
        None => world.broken(format!("{key} is forgotten and its saga has not ended")),
        Some(since) if since < kept => {
            world.broken(format!("{key} is forgotten {} ms after its saga's end", since.as_millis()));
        }
        Some(_) => {}
    }
}

/// What participants keep, and who.
pub(super) fn kept(world: &World) -> Vec<(&'static str, String)> {
    const SQL: &str = "SELECT key FROM requests ORDER BY key";
    let of = |name: &'static str| {
        let found = world.participant(name).fetch(0, SQL, &[]).unwrap_or_default();
        found.into_iter().map(move |record| (name, record.text(0).unwrap_or_default()))
    };
    PARTICIPANTS.into_iter().flat_map(of).collect()
}

/// Everything is over: nothing is kept any more.
pub(super) fn check(world: &World) {
    for (name, key) in kept(world) {
        world.broken(format!("{name} keeps {key} for ever"));
    }
}
