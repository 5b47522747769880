//! The one place that knows every part: it opens the stores, wires surfaces, sagas and peers to them, and hands all to the
//! server.

use std::sync::Arc;

use libs::{
    breaker::{CoarseClock, Registry, service::BreakerService},
    cli::{BoxError, Program, Serve, Store},
    cqrs::{CommandSide, Projections},
    journal::Journal,
    rpc::client::Peers,
    saga::{
        self, Coordinator, Definition, DefinitionError, Grpc, Options, ParkedSagas, SagaCommands, SagaQueries,
        SagasView,
    },
    service::{App, Stores},
    telemetry,
};
use proto::order::v1::{
    order_command_service_server::OrderCommandServiceServer, order_query_service_server::OrderQueryServiceServer,
};

use crate::{
    completion::Completion,
    neighbours::{self, Neighbours},
    projections::OrdersView,
    queries::Queries,
    sagas::place_order,
    standing::Shipments,
    surface::OrderQuerySurface,
};

/// The service as a program.
#[derive(Debug)]
pub enum Service {}

impl Program for Service {
    const NAME: &'static str = "order";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const PORT: u16 = 50054;
    const ABOUT: &'static str = "What customers want, and the saga that gets it for them.";
    const PEERS: &'static [(&'static str, &'static str)] = &[
        ("inventory", "http://localhost:50051"),
        ("payment", "http://localhost:50052"),
        ("shipping", "http://localhost:50053"),
    ];

    async fn assemble(app: &mut App, flags: &Serve) -> Result<(), BoxError> {
        let most = flags.limits.max_message_bytes;
        let breakers = Registry::with_clock(Arc::new(CoarseClock::new()));
        let peers = flags.known_peers(Self::NAME, breakers.clone(), Self::PEERS)?;
        let sides = stores().open(Self::NAME, app, flags).await?;
        // Before any saga is taken up: what can't begin, as by a view of another version's, has called nobody by then.
        let neighbours = match sides.queries {
            Some(_) => Some(Neighbours::follow(Self::NAME, app, flags, &peers).await?),
            None => None,
        };
        let coordinator = match sides.commands.zip(sides.journal) {
            Some((side, journal)) => Some(serve_commands(app, flags, &peers, side, journal).await?),
            None => None,
        };
        if let Some((read, neighbours)) = sides.queries.zip(neighbours) {
            let sagas = SagaQueries::new(read.clone(), definitions()?)?;
            app.add(match coordinator {
                Some(coordinator) => sagas.beside(coordinator).into_server(),
                None => sagas.into_server(),
            });
            let queries = Queries::new(neighbours, Shipments::connect(&peers)?);
            app.add(
                OrderQueryServiceServer::new(OrderQuerySurface::new(read, queries)).max_encoding_message_size(most),
            );
        }
        let breakers = BreakerService::new(Self::NAME, breakers);
        app.add(breakers.queries());
        app.add(breakers.commands());
        Ok(())
    }

    async fn migrate(store: &Store) -> Result<(), BoxError> {
        stores().migrate(Self::NAME, store).await
    }

    async fn rebuild(store: &Store) -> Result<(), BoxError> {
        stores().rebuild(Self::NAME, store).await
    }
}

/// What the coordinator drives and queries describe: the newest, and those of before while sagas of theirs are open.
fn definitions() -> Result<Vec<Arc<Definition>>, DefinitionError> {
    Ok(vec![place_order::definition()?])
}

async fn serve_commands(
    app: &mut App,
    flags: &Serve,
    peers: &Peers,
    side: CommandSide,
    journal: Journal,
) -> Result<Coordinator, BoxError> {
    let definitions = definitions()?;
    let transport = Grpc::connect(&definitions, |peer| peers.connect(peer))?;
    let most_live = usize::try_from(flags.limits.max_sagas).unwrap_or(usize::MAX);
    let options = Options { most_live, keep_answers: flags.limits.keep_answers, ..Options::default() };
    let coordinator = Coordinator::new(journal, definitions, transport, options)?;
    if let Some(meter) = telemetry::meter(Service::NAME) {
        coordinator.observe(&meter);
    }
    let (left, drained, grace) = (coordinator.clone(), coordinator.clone(), flags.limits.drain_timeout);
    // A hook of its own, and registered before the other so that it comes after it: calls that take too long to end must not keep the
    // sagas from the other processes. Both before it takes any: it may be told to stop in the midst of that.
    app.on_drain("its share of the sagas", async move { left.leave().await });
    app.on_drain("sagas", async move { drained.drain(grace).await });
    let taken_up = coordinator.recover().await?;
    if taken_up > 0 {
        tracing::info!(sagas = taken_up, "taken up where they stood");
    }
    app.task("its share of the sagas", coordinator.clone().share());
    app.task("what participants may forget", coordinator.clone().sweep());
    // Anybody may place an order, and nobody would have it forgotten what was answered to a saga.
    let side = side.carrying(coordinator.carries()).for_clients_alone();
    let most = flags.limits.max_message_bytes;
    app.add(SagaCommands::new(side.clone(), coordinator.clone()).into_server());
    app.add(ParkedSagas::new(Service::NAME, coordinator.clone()).into_server());
    app.add(OrderCommandServiceServer::new(Completion::new(side, coordinator.clone())).max_encoding_message_size(most));
    Ok(coordinator)
}

fn stores() -> Stores {
    let projections = Projections::new().with(OrdersView).with(SagasView);
    Stores { tables: saga::TABLES.to_vec(), projections, others: neighbours::views(), ..Stores::default() }
}
