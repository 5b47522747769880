//! The one place that knows every part: it opens the stores, wires the surfaces to them, and hands all to the server.

use libs::{
    cli::{BoxError, Program, Serve, Store},
    cqrs::Projections,
    service::{App, Stores},
};
use proto::payment::v1::{
    payment_command_service_server::PaymentCommandServiceServer,
    payment_query_service_server::PaymentQueryServiceServer,
};

use crate::{
    commands::Commands,
    projections::{AccountsView, ChargesView},
    queries::Queries,
    surface::{PaymentCommandSurface, PaymentQuerySurface},
};

/// The service as a program.
#[derive(Debug)]
pub enum Service {}

impl Program for Service {
    const NAME: &'static str = "payment";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const PORT: u16 = 50052;
    const ABOUT: &'static str = "What customers have, and what was taken from them.";

    async fn assemble(app: &mut App, flags: &Serve) -> Result<(), BoxError> {
        let most = flags.limits.max_message_bytes;
        let sides = stores().open(Self::NAME, app, flags).await?;
        if let Some(side) = sides.commands {
            app.add(
                PaymentCommandServiceServer::new(PaymentCommandSurface::new(side, Commands))
                    .max_encoding_message_size(most),
            );
        }
        if let Some(read) = sides.queries {
            app.add(
                PaymentQueryServiceServer::new(PaymentQuerySurface::new(read, Queries)).max_encoding_message_size(most),
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
    Stores { projections: Projections::new().with(AccountsView).with(ChargesView), ..Stores::default() }
}
