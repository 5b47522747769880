//! `cqrs-peers URL CRATE IN_FLIGHT COMMANDS IDS` runs commands through one crate on a PostgreSQL server, each on one aggregate with one event of about
//! 100 bytes, and prints how many a second were done. Every command is repeated until it is; the events are counted at the end.

mod counter_of_cqrs_es;
mod counter_of_disintegrate;

use std::{env, future::Future, time::Instant};

use anyhow::{Context as _, bail, ensure};
use futures::{TryStreamExt as _, stream};
use sqlx::{PgPool, postgres::PgPoolOptions};

/// What a run is to do.
#[derive(Clone, Copy)]
struct Run {
    in_flight: usize,
    commands: usize,
    ids: usize,
}

impl Run {
    /// Does each command by `command`, which is given an id and says whether it was done; not done, it is repeated.
    async fn rate<F: Future<Output = anyhow::Result<bool>>>(
        self,
        command: impl Fn(String) -> F,
    ) -> anyhow::Result<f64> {
        let begin = Instant::now();
        stream::iter((0..self.commands).map(Ok))
            .try_for_each_concurrent(self.in_flight, |number| {
                let (command, id) = (&command, format!("counter-{}", number % self.ids));
                async move {
                    while !command(id.clone()).await? {}
                    anyhow::Ok(())
                }
            })
            .await?;
        Ok(self.commands as f64 / begin.elapsed().as_secs_f64())
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [url, name, in_flight, commands, ids] = &words[..] else { bail!("URL CRATE IN_FLIGHT COMMANDS IDS") };
    let run = Run { in_flight: in_flight.parse()?, commands: commands.parse()?, ids: ids.parse()? };
    // As many connections as help here: more made both crates slower.
    let pool = PgPoolOptions::new().max_connections(16).connect(url).await.context("no server")?;
    sqlx::raw_sql("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public").execute(&pool).await?;
    let (rate, table) = match name.as_str() {
        "cqrs-es" => (counter_of_cqrs_es::rate(pool.clone(), run).await?, "events"),
        "disintegrate" => (counter_of_disintegrate::rate(pool.clone(), run).await?, "event"),
        _ => bail!("no crate {name}"),
    };
    let events = count(&pool, table).await?;
    ensure!(events == run.commands as i64, "{events} events of {} commands", run.commands);
    println!("{rate:.0}");
    Ok(())
}

async fn count(pool: &PgPool, table: &str) -> anyhow::Result<i64> {
    let (events,) = sqlx::query_as(&format!("SELECT count(*) FROM {table}")).fetch_one(pool).await?;
    Ok(events)
}
