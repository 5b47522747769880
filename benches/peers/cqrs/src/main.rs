//! `cqrs-peers URL CRATE IN_FLIGHT COMMANDS` runs commands through one crate on a PostgreSQL server, each on a new aggregate with one event of
//! about 100 bytes, and prints how many a second were done, after a tenth as many that are not timed. Every command is repeated until it is
//! done; the events are counted at the end.

mod counter_of_cqrs_es;
mod counter_of_disintegrate;

use std::{env, future::Future, ops::Range, str::FromStr as _, time::Instant};

use anyhow::{Context as _, bail, ensure};
use futures::{TryStreamExt as _, stream};
use mimalloc::MiMalloc;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// As in the program they are measured beside.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// As many connections as help here: more made both crates slower.
const CONNECTIONS: u32 = 16;

/// What a run is to do.
#[derive(Clone, Copy)]
struct Run {
    in_flight: usize,
    commands: usize,
    /// How many are done before the clock starts, so that every connection has seen them.
    warm_up: usize,
}

impl Run {
    /// Does each command by `command`, which is given an id and says whether it was done; not done, it is repeated.
    async fn rate<F: Future<Output = anyhow::Result<bool>>>(
        self,
        command: impl Fn(String) -> F,
    ) -> anyhow::Result<f64> {
        self.run(0..self.warm_up, &command).await?;
        let begin = Instant::now();
        self.run(self.warm_up..self.warm_up + self.commands, &command).await?;
        Ok(self.commands as f64 / begin.elapsed().as_secs_f64())
    }

    async fn run<F: Future<Output = anyhow::Result<bool>>>(
        self,
        numbers: Range<usize>,
        command: &impl Fn(String) -> F,
    ) -> anyhow::Result<()> {
        let one = |number| async move {
            let id = format!("counter-{number}");
            while !command(id.clone()).await? {}
            anyhow::Ok(())
        };
        stream::iter(numbers.map(Ok)).try_for_each_concurrent(self.in_flight, one).await
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [url, name, in_flight, commands] = &words[..] else { bail!("URL CRATE IN_FLIGHT COMMANDS") };
    let (in_flight, commands) = (in_flight.parse()?, commands.parse()?);
    let run = Run { in_flight, commands, warm_up: commands / 10 };
    // A function's body is read where it is called, not where it is made: one can be mended in between.
    let options = PgConnectOptions::from_str(url)?.options([("check_function_bodies", "off")]);
    // All of them are open before anything is timed.
    let pool = PgPoolOptions::new().min_connections(CONNECTIONS).max_connections(CONNECTIONS);
    let pool = pool.connect_with(options).await.context("no server")?;
    sqlx::raw_sql("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public").execute(&pool).await?;
    let (rate, table) = match name.as_str() {
        "cqrs-es" => (counter_of_cqrs_es::rate(pool.clone(), run).await?, "events"),
        "disintegrate" => (counter_of_disintegrate::rate(pool.clone(), run).await?, "event"),
        _ => bail!("no crate {name}"),
    };
    let events = count(&pool, table).await?;
    let done = run.warm_up + run.commands;
    ensure!(events == done as i64, "{events} events of {done} commands");
    println!("{rate:.0}");
    Ok(())
}

async fn count(pool: &PgPool, table: &str) -> anyhow::Result<i64> {
    let (events,) = sqlx::query_as(&format!("SELECT count(*) FROM {table}")).fetch_one(pool).await?;
    Ok(events)
}
