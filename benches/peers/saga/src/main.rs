//! `saga-peers ENGINE LISTEN STORE INVENTORY PAYMENT SHIPPING` serves orders by another engine's sagas, with the three participants of
//! this project at those addresses. It prints `ready` when it does. When its standard input ends it prints `COMPLETED n, REJECTED n` as the engine's own store has
//! them, and ends.
//!
//! | engine | store | listens for |
//! |---|---|---|
//! | `dtmrs` | a database's URL | `order.v1.OrderCommandService` |
//! | `durare` | a database's URL | the same |
//! | `restate` | the addresses of a Restate server, `INGRESS,ADMIN` | that server, which orders are sent to |

mod of_dtmrs;
mod of_durare;
mod of_restate;
mod order;
mod participants;
mod server;

use std::{env, net::SocketAddr};

use anyhow::{Context as _, bail};
use mimalloc::MiMalloc;
use tokio::io::AsyncReadExt as _;

use crate::{order::Counts, participants::Participants};

/// As in the services they are measured beside.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [engine, listen, store, inventory, payment, shipping] = &words[..] else {
        bail!("ENGINE LISTEN STORE INVENTORY PAYMENT SHIPPING")
    };
    let listen: SocketAddr = listen.parse().context("LISTEN")?;
    let participants = Participants::connect(inventory, payment, shipping)?;
    let Counts { completed, rejected } = match engine.as_str() {
        "dtmrs" => of_dtmrs::serve(listen, store, participants).await?,
        "durare" => of_durare::serve(listen, store, participants).await?,
        "restate" => of_restate::serve(listen, store, participants).await?,
        _ => bail!("no engine {engine}"),
    };
    println!("COMPLETED {completed}, REJECTED {rejected}");
    Ok(())
}

/// Waits until whoever started this program has no more to ask of it.
async fn dismissed() {
    let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
}
