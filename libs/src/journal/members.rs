//! The processes that share a database: each under a name of its own, and until when it counts as there.
//!
//! Being counted as there says who should work, never who may: whoever was stopped for a while and goes on finds out by what they
//! then try to write. So the only clock in it is the server's, and it need not be right: of whoever said by one that was ahead until when it
//! is there, nothing is known until its next word.

use std::{sync::Arc, time::Duration};

use tokio::sync::Mutex;

use super::{
    entry::Table,
    postgres::Server,
    sql::{Error, Value},
};

pub(super) static MEMBERS: Table = Table {
    name: "members",
    create: &["CREATE TABLE IF NOT EXISTS members (
        name TEXT NOT NULL PRIMARY KEY,
        seen_until INTEGER
    ) WITHOUT ROWID"],
    columns: &["name", "seen_until"],
    key: 1,
    fixed: &[],
};

/// The server's time in microseconds since 1970, in SQL.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// This process among those that share a database.
#[derive(Clone, Debug)]
pub struct Member {
    server: Server,
    name: String,
    /// True once it has left. One word at a time: a beat that is on its way when it leaves would enter it again.
    has_left: Arc<Mutex<bool>>,
}

impl Member {
    /// How long a process that says nothing counts as there.
    pub const LEASE: Duration = Duration::from_secs(10);
    /// How often it says that it is.
    pub const BEAT: Duration = Duration::from_secs(2);

    /// For how long those whose lease has ended are remembered. To whoever asks who is there they are as gone as those that are forgotten,
    /// and one that was only stopped enters anew with its next word.
    const REMEMBERED: Duration = Duration::from_secs(60);

    /// Enters under a name that nobody had before, and forgets those that are gone: a process that is killed again and again leaves a name
    /// each time, and whose a saga is is looked up among all of them.
    pub(super) async fn enter(server: Server) -> Result<Self, Error> {
        let member = Self { name: server.new_name(), server, has_left: Arc::default() };
        member.beat().await?;
        let sql = format!("DELETE FROM members WHERE seen_until < {NOW} - $1");
        let remembered = i64::try_from(Self::REMEMBERED.as_micros()).unwrap_or(i64::MAX);
        member.server.execute(&sql, &[remembered.into()]).await?;
        Ok(member)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says that this process is there, unless it has [left](Self::leave).
    ///
    /// # Errors
    /// When the server can't be asked.
    pub async fn beat(&self) -> Result<(), Error> {
        let has_left = Arc::clone(&self.has_left).lock_owned().await;
        if *has_left {
            return Ok(());
        }
        let lease = i64::try_from(Self::LEASE.as_micros()).unwrap_or(i64::MAX);
        let sql = format!(
            "INSERT INTO members (name, seen_until) VALUES ($1, {NOW} + $2)
             ON CONFLICT (name) DO UPDATE SET seen_until = excluded.seen_until"
        );
        let (server, values) = (self.server.clone(), [self.name.as_str().into(), lease.into()]);
        // Who beats may leave off in its midst, and the server does it all the same: until that is heard nobody leaves.
        let beat = tokio::spawn(async move {
            let told = server.execute(&sql, &values).await;
            drop(has_left);
            told
        });
        beat.await.unwrap_or(Err(Error::Closed))
    }

    /// Says that this process is gone, for good, once what it says otherwise has been heard.
    ///
    /// # Errors
    /// When the server can't be asked: then the lease runs out by itself.
    pub async fn leave(&self) -> Result<(), Error> {
        let mut has_left = self.has_left.lock().await;
        *has_left = true;
        self.server.execute("DELETE FROM members WHERE name = $1", &[Value::from(self.name.as_str())]).await
    }

    /// A condition in SQL: the `members` row that an alias names counts as there now.
    #[must_use]
    pub fn is_there(alias: &str) -> String {
        // Nobody says more than a lease. The other one is for a clock that is put right by a little.
        let most = 2 * Self::LEASE.as_micros();
        format!("{alias}.seen_until > {NOW} AND {alias}.seen_until <= {NOW} + {most}")
    }
}
