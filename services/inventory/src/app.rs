//! The one place that knows every part: it opens the stores, wires the surfaces to them, and hands all to the server.

use std::sync::Arc;

use libs::{
    breaker::{CoarseClock, Registry, service::BreakerService},
    cli::{BoxError, Program, Serve, Store},
    cqrs::Projections,
    service::{App, Stores},
};
use proto::inventory::v1::{
    inventory_command_service_server::InventoryCommandServiceServer,
    inventory_query_service_server::InventoryQueryServiceServer,
};

use crate::{
    commands::Commands,
    neighbours::{self, Neighbours},
    projections::StockView,
    queries::Queries,
    surface::{InventoryCommandSurface, InventoryQuerySurface},
};

/// The service as a program.
#[derive(Debug)]
pub enum Service {}

impl Program for Service {
    const NAME: &'static str = "inventory";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const PORT: u16 = 50051;
    const ABOUT: &'static str = "How much of what there is, what it costs, and who has set some aside.";
    const PEERS: &'static [(&'static str, &'static str)] = &[("shipping", "http://localhost:50053")];

    async fn assemble(app: &mut App, flags: &Serve) -> Result<(), BoxError> {
        let most = flags.limits.max_message_bytes;
        let breakers = Registry::with_clock(Arc::new(CoarseClock::new()));
        let peers = flags.known_peers(Self::NAME, breakers.clone(), Self::PEERS)?;
        let sides = stores().open(Self::NAME, app, flags).await?;
        if let Some(side) = sides.commands {
            app.add(
                InventoryCommandServiceServer::new(InventoryCommandSurface::new(side, Commands))
                    .max_encoding_message_size(most),
            );
        }
        if let Some(read) = sides.queries {
            let queries = Queries::new(Neighbours::follow(Self::NAME, app, flags, &peers).await?);
            app.add(
                InventoryQueryServiceServer::new(InventoryQuerySurface::new(read, queries))
                    .max_encoding_message_size(most),
            );
            let breakers = BreakerService::new(Self::NAME, breakers);
            app.add(breakers.queries()).add(breakers.commands());
        }
        Ok(())
    }

    async fn migrate(store: &Store) -> Result<(), BoxError> {
        stores().migrate(Self::NAME, store).await
    }

    async fn rebuild(store: &Store) -> Result<(), BoxError> {
        stores().rebuild(Self::NAME, store).await
    }
}

fn stores() -> Stores {
    Stores { projections: Projections::new().with(StockView), others: neighbours::views(), ..Stores::default() }
}
