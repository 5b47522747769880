//! durare: a workflow of steps, each checkpointed, and compensating steps when one is refused, as its example `saga` does it.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use anyhow::Context as _;
use durare::{DurableContext, DurableEngine, Error, PostgresProvider, Result, SqliteProvider, WorkflowOptions};
use sqlx::{AnyPool, any::install_default_drivers, postgres::PgPoolOptions};
use tonic::Status;

use crate::{
    order::{Cost, Counts, Ended, Wanted},
    participants::{Participants, Refused},
    server::{self, Engine},
};

/// Its steps take values only.
static PARTICIPANTS: OnceLock<Participants> = OnceLock::new();

fn participants() -> Result<&'static Participants> {
    PARTICIPANTS.get().ok_or_else(|| Error::app("no participants"))
}

fn failed(status: Status) -> Error {
    Error::app(status.to_string())
}

#[durare::step]
async fn reserve(ctx: &DurableContext, wanted: Wanted) -> Result<std::result::Result<Cost, Refused>> {
    participants()?.reserve(&wanted).await.map_err(failed)
}

#[durare::step]
async fn charge(ctx: &DurableContext, wanted: Wanted, cost: Cost) -> Result<std::result::Result<(), Refused>> {
    participants()?.charge(&wanted, &cost).await.map_err(failed)
}

#[durare::step]
async fn ship(ctx: &DurableContext, wanted: Wanted) -> Result<std::result::Result<(), Refused>> {
    participants()?.ship(&wanted).await.map_err(failed)
}

#[durare::step]
async fn refund(ctx: &DurableContext, wanted: Wanted) -> Result<()> {
    participants()?.refund(&wanted).await.map_err(failed)?.map_err(|refused| Error::app(refused.reason))
}

#[durare::step]
async fn release(ctx: &DurableContext, wanted: Wanted) -> Result<()> {
    participants()?.release(&wanted).await.map_err(failed)?.map_err(|refused| Error::app(refused.reason))
}

#[durare::workflow]
async fn place_order(ctx: DurableContext, wanted: Wanted) -> Result<Ended> {
    let rejected = |step: &str, refused: Refused| Ended::Rejected { step: step.to_owned(), reason: refused.reason };
    let cost = match reserve(&ctx, wanted.clone()).await? {
        Ok(cost) => cost,
        Err(refused) => return Ok(rejected("reserve", refused)),
    };
    if let Err(refused) = charge(&ctx, wanted.clone(), cost.clone()).await? {
        release(&ctx, wanted).await?;
        return Ok(rejected("charge", refused));
    }
    if let Err(refused) = ship(&ctx, wanted.clone()).await? {
        refund(&ctx, wanted.clone()).await?;
        release(&ctx, wanted).await?;
        return Ok(rejected("ship", refused));
    }
    Ok(Ended::Completed(cost))
}

struct Durare(DurableEngine);

impl Engine for Durare {
    async fn place(&self, wanted: Wanted) -> anyhow::Result<Ended> {
        let options = WorkflowOptions::with_id(wanted.id.clone());
        Ok(self.0.start_with(PlaceOrder, wanted, options).await?.await?)
    }
}

pub(crate) async fn serve(listen: SocketAddr, store: &str, participants: Participants) -> anyhow::Result<Counts> {
    PARTICIPANTS.set(participants).ok().context("participants twice")?;
    let (engine, schema) = if store.starts_with("postgres") {
        // As many connections as its guide gives a process that has much to do.
        let pool = PgPoolOptions::new().max_connections(24).connect(store).await?;
        let provider = PostgresProvider::from_pool_with_schema(pool, "dbos")?;
        (DurableEngine::new(Arc::new(provider)).await?, "dbos.")
    } else {
        (DurableEngine::new(Arc::new(SqliteProvider::connect(store).await?)).await?, "")
    };
    engine.recover().await?;
    server::serve(listen, Durare(engine)).await?;
    count(store, schema).await
}

/// What the tables say: how many workflows are SUCCESS, and how many of them released what they had reserved.
async fn count(store: &str, schema: &str) -> anyhow::Result<Counts> {
    install_default_drivers();
    let pool = AnyPool::connect(store).await?;
    let ask = async |sql: String| anyhow::Ok(sqlx::query_as::<_, (i64,)>(&sql).fetch_one(&pool).await?.0);
    let succeeded = ask(format!("SELECT COUNT(*) FROM {schema}workflow_status WHERE status = 'SUCCESS'")).await?;
    let released = format!("SELECT COUNT(*) FROM {schema}operation_outputs WHERE function_name = 'release'");
    let rejected = ask(released).await?;
    Ok(Counts { completed: succeeded - rejected, rejected })
}
