//! `k8s/overlays/production` as far as one machine goes: a process for each of its Deployments, with the environment that its pods have
//! there, on a real PostgreSQL and a real NATS. The test gives what a cluster would: addresses for names, and Secrets. Runs where
//! `TEST_POSTGRES_BIN` and `TEST_NATS` name the servers' programs. Whether nobody was forgotten, here and in `overlays/local`, is looked
//! at everywhere.

#[path = "../../libs/tests/broker/mod.rs"]
mod broker;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use broker::Broker;
use futures::future::try_join_all;
use proto::{
    inventory::v1::GetStockRequest,
    order::v1::{GetOrderRequest, OrderState},
};
use tempfile::TempDir;
use tests::{
    Clients, Server, Shop, collector::Collector, manifests::Pods, postgres::Postgres, program, shop, tls::Secrets,
};
use tokio::time::{sleep, timeout};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server for each Deployment, by its name, told what its pods would be. None is started.
fn servers(
    all: &[Pods],
    folder: &TempDir,
    secrets: &Secrets,
    mut places: Vec<(String, String)>,
) -> anyhow::Result<BTreeMap<String, Server>> {
    let mut servers = BTreeMap::new();
    for pods in all {
        let own = folder.path().join(&pods.name);
        fs::create_dir(&own)?;
        let mut server = Server::new(pods.service, &own)?;
        server.ask_by(secrets)?;
        places.push((format!("https://{}:{}", pods.name, pods.port), server.uri()));
        servers.insert(pods.name.clone(), server);
    }
    for pods in all {
        let Some(server) = servers.get_mut(&pods.name) else { continue };
        for (name, value) in &pods.environment {
            let value = places.iter().fold(value.clone(), |value, (from, to)| value.replace(from, to));
            server.variable(name, &value);
        }
    }
    Ok(servers)
}

/// Clients of the services at the Deployments that end so.
fn clients(servers: &BTreeMap<String, Server>, side: &str) -> Clients {
    let channel = |service: &str| servers[&format!("{service}-{side}")].channel();
    Clients {
        inventory: channel("inventory"),
        payment: channel("payment"),
        shipping: channel("shipping"),
        order: channel("order"),
    }
}

/// Whether the queries tell all there is of the order: its charge and shipment, how the parcel stands, and what left the stock.
async fn is_told(queries: &Clients) -> bool {
    let request = GetOrderRequest { order_id: "o-1".to_owned(), include_shipment: true };
    let order = queries.order_queries().get_order(request).await.map(tonic::Response::into_inner);
    let stock = queries.inventory_queries().get_stock(GetStockRequest { sku: "tea".to_owned() }).await;
    let left = stock.ok().and_then(|stock| stock.into_inner().stock).is_some_and(|stock| stock.shipped > 0);
    left && order.is_ok_and(|order| {
        order.charge.is_some() && order.shipped.is_some() && order.shipment.is_some_and(|standing| standing.current)
    })
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) -> anyhow::Result<()> {
    let come = async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, come).await.map_err(|_| anyhow::anyhow!("it never came: {what}"))
}

#[tokio::test]
async fn the_pods_of_production_serve_orders_together_and_are_probed_as_they_serve() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (secrets, collector) = (Secrets::new(folder.path())?, Collector::start().await?);
    let files: BTreeMap<_, _> = secrets.flags().collect();
    let postgres = Postgres::start_with(files["--tls-cert"].as_ref(), files["--tls-key"].as_ref())?;
    let (Some(postgres), Some(broker)) = (postgres, Broker::start()) else { return Ok(()) };
    let all = Pods::of(&program::repository().join("k8s/overlays/production"))?;
    let mut places = vec![
        ("nats://nats:4222".to_owned(), broker.url()),
        ("http://otel-collector:4317".to_owned(), collector.uri().to_owned()),
    ];
    for (flag, file) in &files {
        let key = match *flag {
            "--tls-cert" => "/tls/tls.crt",
            "--tls-key" => "/tls/tls.key",
            _ => "/tls/ca.crt",
        };
        places.push((key.to_owned(), file.clone()));
    }
    let mut servers = servers(&all, &folder, &secrets, places)?;
    // As the overlay's first lines have it.
    let address = format!("{}?sslmode=verify-full&sslrootcert={}", postgres.url(), files["--tls-ca"]);
    servers.values_mut().for_each(|server| server.keep_in(&address));
    try_join_all(servers.values_mut().map(Server::start)).await?;
    for pods in &all {
        let server = &servers[&pods.name];
        let (called, arguments) = pods.probe.split_first().expect("a probe is a command");
        assert_eq!(called, "service", "what the image calls the program");
        let probed = async || {
            let mut probe = program::command(pods.service, folder.path())?;
            probe.args(arguments).envs(server.variables().iter().cloned()).env("LISTEN", server.address());
            program::output(probe).await
        };
        // One that a busy machine has no time for is made again, as a cluster does.
        until(&format!("{} is well", pods.name), async || probed().await.is_ok_and(|output| output.status.success()))
            .await?;
    }

    let (commands, queries) = (clients(&servers, "commands"), clients(&servers, "queries"));
    commands.inventory_commands().add_stock(shop::stock("tea", 10, 3)).await?;
    commands.payment_commands().deposit_funds(shop::deposit("ann", 100)).await?;
    let placed = commands.order_commands().place_order(shop::order("o-1", "CH")).await?.into_inner();
    assert_eq!(placed.order.map(|order| order.state()), Some(OrderState::Completed));
    until("the order as its queries tell it", async || is_told(&queries).await).await?;

    // No command is left to be asked, and queries answer as before.
    let deciding: Vec<String> = servers.keys().filter(|name| name.ends_with("-commands")).cloned().collect();
    for name in &deciding {
        let Some(server) = servers.get_mut(name) else { continue };
        // In order, as what is held back goes out with the process.
        server.terminate().await?;
        server.ended().await?;
    }
    until("the same, as of those that only decide nothing is needed to answer", async || is_told(&queries).await)
        .await?;
    for name in &deciding {
        assert!(collector.spans().iter().any(|span| span.instance == *name), "{name} says in its traces who it is");
    }
    Ok(())
}

/// The peers that a service's program calls, as it says to whoever types another.
async fn called_by(service: &str) -> anyhow::Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    let mut asked = program::command(service, folder.path())?;
    asked.args(["serve", "--peer", "nobody=http://nobody:1"]);
    let says = String::from_utf8(program::output(asked).await?.stderr)?;
    let (_, peers) = says.split_once("the peers are: ").unwrap_or_else(|| panic!("{service}: {says}"));
    let peers = peers.split_once(" (").map_or(peers, |(peers, _)| peers).trim();
    Ok(peers.split(", ").filter(|peer| *peer != "none").map(str::to_owned).collect())
}

#[tokio::test]
async fn every_service_is_in_both_overlays_and_is_told_where_its_peers_are() -> anyhow::Result<()> {
    let mut services = BTreeSet::new();
    for folder in fs::read_dir(program::repository().join("services"))? {
        let folder = folder?;
        // The shop, which is all of them, generates no surface.
        if folder.path().join("build.rs").is_file() {
            services.insert(folder.file_name().into_string().expect("a plain name"));
        }
    }
    assert_eq!(services, Shop::NAMES.map(str::to_owned).into(), "the folders in services/, and Shop::NAMES");
    for overlay in ["k8s/overlays/local", "k8s/overlays/production"] {
        let all = Pods::of(&program::repository().join(overlay))?;
        let deployed: BTreeSet<_> = all.iter().map(|pods| pods.service.to_owned()).collect();
        assert_eq!(deployed, services, "the services in {overlay}, and the folders in services/");
        for pods in &all {
            let told = pods.environment.iter().find(|(name, _)| name == "PEER").map_or("", |(_, peers)| peers);
            for peer in called_by(pods.service).await? {
                let queries = format!("{peer}.queries");
                let is_told = told
                    .split(',')
                    .filter_map(|part| part.split_once('='))
                    .any(|(name, _)| name == peer || name == queries);
                assert!(is_told, "{overlay}: {} calls {peer}, whose address is not in its PEER: {told}", pods.name);
            }
        }
    }
    Ok(())
}
