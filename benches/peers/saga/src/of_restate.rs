//! Restate: a handler whose calls are journaled by `ctx.run`, and journaled compensations when one is refused, as its guide to sagas
//! does it. Orders go to its server, which calls this process.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use restate_sdk::prelude::*;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};

use crate::{
    order::{Counts, Ended, Wanted},
    participants::{Participants, Refused},
};

struct Orders(Participants);

#[service]
impl Orders {
    #[handler]
    async fn place(&self, ctx: Context<'_>, wanted: Json<Wanted>) -> Result<Json<Ended>, HandlerError> {
        let wanted = wanted.into_inner();
        let rejected =
            |step: &str, refused: Refused| Ok(Json(Ended::Rejected { step: step.to_owned(), reason: refused.reason }));
        let reserved = ctx.run(|| async { Ok(Json(self.0.reserve(&wanted).await?)) }).name("reserve").await?;
        let cost = match reserved.into_inner() {
            Ok(cost) => cost,
            Err(refused) => return rejected("reserve", refused),
        };
        let charged = ctx.run(|| async { Ok(Json(self.0.charge(&wanted, &cost).await?)) }).name("charge").await?;
        if let Err(refused) = charged.into_inner() {
            self.undo_reservation(&ctx, &wanted).await?;
            return rejected("charge", refused);
        }
        let shipped = ctx.run(|| async { Ok(Json(self.0.ship(&wanted).await?)) }).name("ship").await?;
        if let Err(refused) = shipped.into_inner() {
            ctx.run(|| async { Ok(Json(self.0.refund(&wanted).await?)) }).name("refund").await?;
            self.undo_reservation(&ctx, &wanted).await?;
            return rejected("ship", refused);
        }
        Ok(Json(Ended::Completed(cost)))
    }
}

impl Orders {
    async fn undo_reservation(&self, ctx: &Context<'_>, wanted: &Wanted) -> Result<(), HandlerError> {
        ctx.run(|| async { Ok(Json(self.0.release(wanted).await?)) }).name("release").await?;
        Ok(())
    }
}

pub(crate) async fn serve(listen: SocketAddr, store: &str, participants: Participants) -> anyhow::Result<Counts> {
    let (_, admin) = store.split_once(',').context("INGRESS,ADMIN")?;
    let listener = without_delay(listen)?;
    let endpoint = HttpServer::new(Endpoint::builder().bind(Orders(participants)).build());
    let served = tokio::spawn(endpoint.serve_with_cancel(listener, crate::dismissed()));
    register(admin, listen).await?;
    println!("ready");
    served.await?;
    count(admin).await
}

/// Listens for connections that send at once, as all others here do: each inherits it. The SDK doesn't ask for it, and waits of 40 ms for an
/// acknowledgement would be most of what a saga takes.
fn without_delay(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.bind(listen)?;
    Ok(socket.listen(1024)?)
}

/// Tells the server where this process is, as soon as it listens.
async fn register(admin: &str, listen: SocketAddr) -> anyhow::Result<()> {
    let client = reqwest::Client::new();
    let body = json!({ "uri": format!("http://{listen}"), "force": true });
    let mut last = None;
    for _ in 0..300 {
        match client.post(format!("http://{admin}/deployments")).json(&body).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => last = Some(anyhow::anyhow!("{}: {}", answer.status(), answer.text().await?)),
            Err(error) => last = Some(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(last.context("never asked")?).context("the Restate server takes no deployment")
}

/// What the server says of its invocations: all completed, and as many as its clients were told ended so.
async fn count(admin: &str) -> anyhow::Result<Counts> {
    let ask = async |condition: &str| -> anyhow::Result<i64> {
        let query = format!("SELECT COUNT(*) AS n FROM sys_invocation WHERE {condition}");
        let request = reqwest::Client::new().post(format!("http://{admin}/query")).json(&json!({ "query": query }));
        let answer = request.header("accept", "application/json").send().await?;
        ensure!(answer.status().is_success(), "{}: {}", answer.status(), answer.text().await?);
        let answer: Value = answer.json().await?;
        answer["rows"][0]["n"].as_i64().with_context(|| answer.to_string())
    };
    // Its journal keeps a compensation as a run of that name.
    let all = ask("status = 'completed' AND completion_result = 'success'").await?;
    let turned = ask("id IN (SELECT id FROM sys_journal WHERE name = 'release')").await?;
    Ok(Counts { completed: all - turned, rejected: turned })
}
