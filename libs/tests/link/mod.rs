//! A way to the server that breaks when it is told to.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use libs::journal::Location;
use sqlx::{Connection as _, PgConnection};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::schema::Schema;

/// What happens to the next COMMIT that goes over a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cut {
    Never,
    /// It doesn't arrive.
    Before,
    /// It arrives, and its answer doesn't.
    After,
    /// From what it says on nothing goes over its link any more, and nobody is told: the host is gone, or the cable.
    Silent(&'static str),
    /// So long after it went by, its backend is ended.
    Ended(Duration),
    /// The server says that there was such a backend, and it was ended.
    HasEnded,
    /// It doesn't arrive, and whoever asks for it is answered as by a server that has crashed and begun again: see [`Cut::Crashed`].
    Lost(&'static str),
    /// The question that is asked in the place of the one what became of the commit.
    Crashed(&'static str),
    /// It was asked, and goes on to be.
    Asked(&'static str),
    /// No session is told its schema, as by a pooler that drops the options of those who connect.
    Schemaless,
}

/// As the committer asks.
const ASKED: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN 'in recovery' ELSE pg_xact_status($1::xid8) END";

/// A schema as it is reached by a link, and what happens to that.
pub(crate) async fn to(schema: &Schema) -> (Location, Arc<Mutex<Cut>>) {
    let cut = Arc::new(Mutex::new(Cut::Never));
    let port = link(schema.url.clone(), Arc::clone(&cut)).await;
    let ((before, server), schema) = (schema.url.split_once('@').unwrap(), schema.name.clone());
    let name = server.split_once('/').unwrap().1;
    let url = format!("{before}@127.0.0.1:{port}/{name}?sslmode=disable");
    (Location::Postgres { url, schema }, cut)
}

/// Answers the link's port.
async fn link(url: String, cut: Arc<Mutex<Cut>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_, server) = url.split_once('@').unwrap();
    let server = server.split_once('/').unwrap().0.to_owned();
    let killer = Arc::new(tokio::sync::Mutex::new(PgConnection::connect(&url).await.unwrap()));
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(carry(near, far, Arc::clone(&cut), Arc::clone(&killer)));
        }
    });
    port
}

async fn carry(
    mut near: TcpStream,
    mut far: TcpStream,
    cut: Arc<Mutex<Cut>>,
    killer: Arc<tokio::sync::Mutex<PgConnection>>,
) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut backend = None;
    loop {
        tokio::select! {
            read = near.read(&mut up) => {
                let count = read.unwrap_or(0);
                answer_otherwise(&mut up[..count], &cut);
                if *cut.lock().unwrap() == Cut::Schemaless {
                    put_instead(&mut up[..count], "search_path", "another.way");
                }
                let silent = match *cut.lock().unwrap() {
                    Cut::Silent(from) => up[..count].windows(from.len()).any(|word| word == from.as_bytes()),
                    _ => false,
                };
                if silent {
                    *cut.lock().unwrap() = Cut::Never;
                    // Both ends stay open for as long as the near one is.
                    while near.read(&mut up).await.is_ok_and(|count| count > 0) {}
                    return;
                }
                let commits = up[..count].windows(6).any(|word| word == b"COMMIT");
                let broken = if commits { at_commit(&cut) } else { Cut::Never };
                if let Cut::Lost(instead) | Cut::Crashed(instead) = broken {
                    *cut.lock().unwrap() = Cut::Crashed(instead);
                }
                if matches!(broken, Cut::Lost(_)) {
                    return;
                }
                if count == 0 || broken == Cut::Before || far.write_all(&up[..count]).await.is_err() {
                    return;
                }
                match broken {
                    Cut::Never | Cut::Before | Cut::Silent(_) | Cut::Lost(_) | Cut::Crashed(_) | Cut::Asked(_) => {}
                    Cut::HasEnded | Cut::Schemaless => {}
                    Cut::After => {
                        // It was committed once there is an answer.
                        let _ = far.read(&mut down).await;
                        return;
                    }
                    Cut::Ended(delay) => {
                        tokio::time::sleep(delay).await;
                        let end = sqlx::query_scalar("SELECT pg_terminate_backend($1)").bind(backend.unwrap());
                        // Before its answer goes on, or whoever waits for that would look too soon.
                        if end.fetch_one(&mut *killer.lock().await).await.unwrap() {
                            *cut.lock().unwrap() = Cut::HasEnded;
                        }
                    }
                }
            }
            read = far.read(&mut down) => {
                let count = read.unwrap_or(0);
                backend = backend.or_else(|| backend_of(&down[..count]));
                if count == 0 || near.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What happens to a COMMIT that goes by.
fn at_commit(cut: &Mutex<Cut>) -> Cut {
    let mut cut = cut.lock().unwrap();
    match *cut {
        Cut::Silent(_) | Cut::HasEnded | Cut::Schemaless => Cut::Never,
        _ => std::mem::replace(&mut cut, Cut::Never),
    }
}

/// Puts another question in the place of the one what became of the commit, with blanks for what it is shorter.
fn answer_otherwise(said: &mut [u8], cut: &Mutex<Cut>) {
    let mut cut = cut.lock().unwrap();
    let (Cut::Crashed(instead) | Cut::Asked(instead)) = *cut else { return };
    if put_instead(said, ASKED, instead) {
        *cut = Cut::Asked(instead);
    }
}

/// Puts other words in the place of some, with blanks for what they are shorter. False if those are not said.
fn put_instead(said: &mut [u8], words: &str, instead: &str) -> bool {
    let Some(at) = said.windows(words.len()).position(|these| these == words.as_bytes()) else { return false };
    said[at..at + words.len()].fill(b' ');
    said[at..at + instead.len()].copy_from_slice(instead.as_bytes());
    true
}

/// The backend's id, as the server tells it in BackendKeyData: `K`, the length 12, the id, a secret.
fn backend_of(said: &[u8]) -> Option<i32> {
    let at = said.windows(5).position(|word| word == [b'K', 0, 0, 0, 12])?;
    Some(i32::from_be_bytes(said[at + 5..at + 9].try_into().unwrap()))
}
