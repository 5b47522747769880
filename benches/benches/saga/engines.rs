//! The engines there are, and how each is started.

use std::env;

use tests::Shop;

use benches::load::{self, Front};

use crate::{peer, postgres, restate, subject::Subject};

/// How many orders are under way, and how many are placed for a figure.
pub(crate) type Rows = [(usize, u64); 3];

/// As many as take a second or so, which is what is placed bare beside every engine.
pub(crate) const FAST: Rows = [(1, 300), (64, 5_000), (256, 10_000)];
/// As many as take some seconds.
const SLOW: Rows = [(1, 300), (64, 1_600), (256, 4_000)];

/// An engine with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Ours,
    OursOnPostgres,
    Restate,
    Dtmrs,
    DtmrsOnPostgres,
    Durare,
    DurareOnPostgres,
}

/// Why an engine is left out.
pub(crate) type Missing = String;

impl Engine {
    pub(crate) const ALL: [Self; 7] = [
        Self::Ours,
        Self::OursOnPostgres,
        Self::Restate,
        Self::Dtmrs,
        Self::DtmrsOnPostgres,
        Self::Durare,
        Self::DurareOnPostgres,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "sqlite",
            Self::OursOnPostgres => "postgres",
            Self::Restate => "restate",
            Self::Dtmrs => "dtmrs-sqlite",
            Self::DtmrsOnPostgres => "dtmrs-postgres",
            Self::Durare => "durare-sqlite",
            Self::DurareOnPostgres => "durare-postgres",
        }
    }

    pub(crate) const fn rows(self) -> Rows {
        match self {
            Self::Ours | Self::OursOnPostgres => FAST,
            _ => SLOW,
        }
    }

    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::OursOnPostgres)
    }

    const fn on_postgres(self) -> bool {
        matches!(self, Self::OursOnPostgres | Self::DtmrsOnPostgres | Self::DurareOnPostgres)
    }

    /// Starts it, with participants of its own on fresh data.
    pub(crate) async fn start(self) -> anyhow::Result<Result<Subject, Missing>> {
        let url = env::var("BENCH_POSTGRES").ok();
        if self.on_postgres() && url.is_none() {
            return Ok(Err("BENCH_POSTGRES names no server".to_owned()));
        }
        let url = url.filter(|_| self.on_postgres());
        if self.is_ours() {
            return ours(url).await.map(Ok);
        }
        let Ok(program) = env::var("SAGA_PEERS") else { return Ok(Err("SAGA_PEERS names no program".to_owned())) };
        let shop = participants().await?;
        let (name, about) = match self {
            Self::Restate => return restate::start(&program, shop).await,
            Self::Dtmrs | Self::DtmrsOnPostgres => {
                ("dtmrs", "dtmrs 0.13.0, in its process, inline submit, answered before its end is stored")
            }
            _ => ("durare", "durare 0.5.0, in its process"),
        };
        let (store, durability) = match &url {
            Some(url) => (url.clone(), postgres::about(url).await?),
            None => {
                let file = shop.folder().join(format!("{name}.db"));
                // The crates set it, and have no option for it.
                (format!("sqlite:{}", file.display()), "SQLite, WAL, synchronous=NORMAL: no sync a saga".to_owned())
            }
        };
        let peer = peer::start(&program, name, &store, &shop).await?;
        let front = Front::Grpc(peer.channel()?);
        let about = format!("{about}; {durability}; participants: ours on SQLite FULL");
        Ok(Ok(Subject::new(about, front, shop).with_peer(peer).on(url)))
    }
}

/// All four services.
async fn ours(url: Option<String>) -> anyhow::Result<Subject> {
    let mut shop = Shop::new()?;
    for server in shop.servers_mut() {
        if let Some(url) = &url {
            server.keep_in(url);
        }
        server.start().await?;
    }
    load::prepare(&shop).await?;
    let about = match &url {
        Some(url) => postgres::about(url).await?,
        None => "SQLite, WAL, synchronous=FULL, both read back at start".to_owned(),
    };
    let about = format!("trellis {}; {about}; participants: ours there too", env!("CARGO_PKG_VERSION"));
    let front = Front::Grpc(shop.clients().order);
    Ok(Subject::new(about, front, shop).on(url))
}

/// Inventory, payment and shipping, for somebody else's sagas.
async fn participants() -> anyhow::Result<Shop> {
    let mut shop = Shop::new()?;
    for server in shop.participants_mut() {
        server.start().await?;
    }
    load::prepare(&shop).await?;
    Ok(shop)
}
