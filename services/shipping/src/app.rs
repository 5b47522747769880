//! The one place that knows every part: it opens the stores, wires the surfaces to them, and hands all to the server.

use libs::{
    cli::{BoxError, Program, Serve, Store},
    cqrs::{Projections, Upcasters},
    service::{App, Stores},
};
use proto::shipping::v1::{
    shipping_command_service_server::ShippingCommandServiceServer,
    shipping_query_service_server::ShippingQueryServiceServer,
};

use crate::{
    commands::Commands,
    domain::Shipment,
    projections::ShipmentsView,
    queries::Queries,
    surface::{ShippingCommandSurface, ShippingQuerySurface},
};

/// The service as a program.
#[derive(Debug)]
pub enum Service {}

impl Program for Service {
    const NAME: &'static str = "shipping";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const PORT: u16 = 50053;
    const ABOUT: &'static str = "What is on its way, and where to.";

    async fn assemble(app: &mut App, flags: &Serve) -> Result<(), BoxError> {
        let most = flags.limits.max_message_bytes;
        let sides = stores().open(Self::NAME, app, flags).await?;
        if let Some(side) = sides.commands {
            app.add(
                ShippingCommandServiceServer::new(ShippingCommandSurface::new(side, Commands))
                    .max_encoding_message_size(most),
            );
        }
        if let Some(read) = sides.queries {
            app.add(
                ShippingQueryServiceServer::new(ShippingQuerySurface::new(read, Queries))
                    .max_encoding_message_size(most),
            );
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
    Stores {
        projections: Projections::new().with(ShipmentsView),
        upcasters: Upcasters::new().with::<Shipment>(),
        ..Stores::default()
    }
}
