//! Processes that start, end and come back: orderly, by a kill, or not at all.

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use proto::{
    breaker::v1::{CircuitState, ListBreakersRequest},
    google::r#type::PostalAddress,
    order::v1::{
        GetOrderRequest, ListOrdersRequest, Order, OrderItem, OrderState, PlaceOrderRequest, WatchOrderRequest,
    },
};
use tests::{Clients, Server, Shop, facts::Facts, invariants, program, refusal::Refused};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::{sleep, timeout},
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

async fn seeded() -> anyhow::Result<Shop> {
    let shop = Shop::start().await?;
    shop.stock("tea", 1_000, 3).await?;
    shop.deposit("ann", 10_000).await?;
    Ok(shop)
}

fn order(id: &str) -> PlaceOrderRequest {
    PlaceOrderRequest {
        request_id: id.to_owned(),
        order_id: id.to_owned(),
        customer_id: "ann".to_owned(),
        items: vec![OrderItem { sku: "tea".to_owned(), quantity: 1 }],
        address: Some(PostalAddress {
            region_code: "CH".to_owned(),
            address_lines: vec!["Bahnhofstrasse 1".to_owned()],
            ..PostalAddress::default()
        }),
        wait_for_completion: false,
    }
}

/// Waits until an order has ended.
async fn ended(clients: &Clients, id: &str) -> anyhow::Result<Order> {
    let watch = WatchOrderRequest { order_id: id.to_owned(), after_position: 0 };
    let mut last = None;
    let watched = async {
        loop {
            let mut changes = clients.order_queries().watch_order(watch.clone()).await?.into_inner();
            loop {
                match changes.message().await {
                    Ok(Some(change)) => last = change.order,
                    Ok(None) => return anyhow::Ok(()),
                    // The order's view is a moment behind its command.
                    Err(status) if status.code() == Code::NotFound => break,
                    Err(status) => return Err(status.into()),
                }
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, watched).await.context("the order has not ended")??;
    last.with_context(|| format!("nothing was said of order {id}"))
}

async fn assert_books_add_up(clients: &Clients) -> anyhow::Result<()> {
    for _ in 0..10_000 {
        if invariants::differences(&Facts::read(clients).await?).is_empty() {
            return Ok(());
        }
    }
    assert_eq!(invariants::differences(&Facts::read(clients).await?), [""; 0]);
    Ok(())
}

/// Runs a service's program to its end.
async fn run(name: &str, folder: &Path, words: &[&str]) -> anyhow::Result<Output> {
    let mut command = program::command(name, folder)?;
    command.args(words);
    program::output(command).await
}

/// Checks that a program said one line, with these words in it, and ended with a code.
#[track_caller]
fn assert_one_line(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

#[tokio::test]
async fn an_order_survives_the_death_of_every_process_that_has_a_part_in_it() -> anyhow::Result<()> {
    let mut shop = seeded().await?;
    let clients = shop.clients();

    // Nobody is there to charge it, so it waits; then the coordinator dies with it.
    shop.payment().kill().await?;
    clients.order_commands().place_order(order("o-1")).await?;
    shop.order().kill().await?;
    shop.inventory().kill().await?;
    shop.order().start().await?;
    let asked = clients.shown(GetOrderRequest { order_id: "o-1".to_owned(), ..GetOrderRequest::default() }).await?;
    assert_eq!(asked.order.context("an order")?.state(), OrderState::Pending);
    shop.inventory().start().await?;
    shop.payment().start().await?;

    let order = ended(&clients, "o-1").await?;
    assert_eq!(order.state(), OrderState::Completed, "{order:?}");
    assert_books_add_up(&clients).await
}

#[tokio::test]
async fn a_process_that_drives_as_many_sagas_as_it_may_refuses_another_until_one_has_ended() -> anyhow::Result<()> {
    let mut shop = Shop::new()?;
    shop.order().flag("--max-sagas", "1");
    for server in shop.servers_mut() {
        server.start().await?;
    }
    shop.stock("tea", 1_000, 3).await?;
    shop.deposit("ann", 10_000).await?;
    let clients = shop.clients();

    shop.inventory().kill().await?;
    clients.order_commands().place_order(order("o-1")).await?;
    let refused = Refused::of(clients.order_commands().place_order(order("o-2")).await);
    assert_eq!(refused, Refused::by("order", Code::ResourceExhausted, "TOO_MANY_SAGAS", &[]));

    shop.inventory().start().await?;
    assert_eq!(ended(&clients, "o-1").await?.state(), OrderState::Completed);
    // Its place is free a moment after its end is durable.
    let placed = async { while clients.order_commands().place_order(order("o-2")).await.is_err() {} };
    timeout(PATIENCE, placed).await.context("the place is never free")?;
    assert_eq!(ended(&clients, "o-2").await?.state(), OrderState::Completed);
    Ok(())
}

#[tokio::test]
async fn a_dead_peer_opens_its_breaker_and_its_return_closes_it() -> anyhow::Result<()> {
    let mut shop = seeded().await?;
    let clients = shop.clients();
    let breaker = async |name: &str| {
        let listed =
            clients.breaker_queries().list_breakers(ListBreakersRequest { name_prefix: name.to_owned() }).await?;
        let breakers = listed.into_inner().breakers;
        anyhow::Ok(
            breakers.iter().find(|breaker| breaker.name == name).map_or(CircuitState::Unspecified, |b| b.state()),
        )
    };
    assert_eq!(breaker("payment").await?, CircuitState::Closed);

    shop.payment().kill().await?;
    for at in 0..20 {
        clients.order_commands().place_order(order(&format!("o-{at}"))).await?;
    }
    let opened = async {
        while breaker("payment").await? != CircuitState::Open {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, opened).await.context("the breaker stays closed")??;
    assert_eq!(breaker("inventory").await?, CircuitState::Closed, "a breaker is one peer's");

    shop.payment().start().await?;
    for order in join_all((0..20).map(|at| format!("o-{at}")).map(async |id| ended(&clients, &id).await)).await {
        assert_eq!(order?.state(), OrderState::Completed);
    }
    assert_eq!(breaker("payment").await?, CircuitState::Closed);
    assert_books_add_up(&clients).await
}

#[tokio::test]
async fn a_server_that_is_asked_to_end_says_so_first_and_leaves_nothing_half_done() -> anyhow::Result<()> {
    let mut shop = Shop::new()?;
    // Who waits for an order and what is under way at the end have as long as this takes.
    shop.order().flag("--max-deadline", "600s");
    shop.order().flag("--drain-timeout", "600s");
    for server in shop.servers_mut() {
        server.start().await?;
    }
    shop.stock("tea", 1_000, 3).await?;
    shop.deposit("ann", 10_000).await?;
    let clients = shop.clients();
    let mut health = HealthClient::new(shop.order().channel());
    let mut watched = health.watch(HealthCheckRequest::default()).await?.into_inner();
    let first = watched.message().await?.context("a status")?;
    assert_eq!(first.status(), ServingStatus::Serving);

    // Orders are under way when the signal comes: shipping stands still, so none of them ends.
    shop.shipping().signal("STOP").await?;
    let under_way = join_all((0..50).map(|at| {
        let mut commands = clients.order_commands();
        async move {
            commands.place_order(PlaceOrderRequest { wait_for_completion: true, ..order(&format!("o-{at}")) }).await
        }
    }));
    let pending = async {
        loop {
            let list = ListOrdersRequest { page_size: 100, ..ListOrdersRequest::default() };
            let listed = clients.order_queries().list_orders(list).await?.into_inner().orders;
            if listed.iter().filter(|order| order.state() == OrderState::Pending).count() == 50 {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let (answers, ended_as) = tokio::join!(under_way, async {
        timeout(PATIENCE, pending).await.context("they are not all PENDING")??;
        shop.order().terminate().await?;
        let status = timeout(PATIENCE, watched.message()).await.context("the health stream says nothing")??;
        assert_eq!(status.map(|status| status.status()), Some(ServingStatus::NotServing));
        shop.shipping().signal("CONT").await?;
        shop.order().ended().await
    });
    assert_eq!(ended_as?.code(), Some(0), "{}", shop.order().log_end());

    shop.order().start().await?;
    for (at, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(answer) => {
                let order = answer.into_inner().order.context("an order")?;
                assert_ne!(order.state(), OrderState::Unspecified);
            }
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
        // Whether it was answered or not: the same request, and it is there once.
        let id = format!("o-{at}");
        clients.order_commands().place_order(order(&id)).await?;
        assert_eq!(ended(&clients, &id).await?.state(), OrderState::Completed);
    }
    assert_books_add_up(&clients).await
}

#[tokio::test]
async fn every_server_ends_with_0_when_asked_to() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    for server in shop.servers_mut() {
        server.terminate().await?;
        assert_eq!(server.ended().await?.code(), Some(0), "{}", server.log_end());
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_waits_for_its_database_ends_with_0_when_asked_to() -> anyhow::Result<()> {
    let shop = Shop::new()?;
    // It takes connections and says nothing.
    let database = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("postgres://me@{}/db", database.local_addr()?);
    let mut command = program::command("inventory", shop.folder())?;
    command.args(["serve", "--listen", "127.0.0.1:0", "--database-url", &url]);
    let mut server = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let _connection = timeout(PATIENCE, database.accept()).await.context("it never asks its database")??;
    program::signal(&server, "TERM").await?;
    let ended = timeout(PATIENCE, server.wait()).await.context("it does not end")??;
    // One that waits on until it loses its patience with its database says so, and ends with 1.
    assert_eq!(ended.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_server_of_postgres_that_need_not_prove_who_it_is_is_told_of_once() -> anyhow::Result<()> {
    let shop = Shop::new()?;
    // Nobody listens there. To whoever looks at the address that is some other machine.
    let held = TcpSocket::new_v4()?;
    held.bind("127.0.0.1:0".parse()?)?;
    let port = held.local_addr()?.port();
    for (word, address, told) in [
        ("serve", format!("0.0.0.0:{port}/db"), 1),
        ("migrate", format!("0.0.0.0:{port}/db?sslmode=require"), 1),
        ("rebuild", format!("0.0.0.0:{port}/db?sslmode=verify-ca"), 1),
        ("migrate", format!("0.0.0.0:{port}/db?sslmode=verify-full"), 0),
        ("migrate", format!("0.0.0.0:{port}/db?sslmode=disable"), 0),
        ("serve", format!("127.0.0.1:{port}/db"), 0),
    ] {
        let url = format!("postgres://me:secret@{address}");
        let mut command = program::command("inventory", shop.folder())?;
        command.arg(word).env("LISTEN", "127.0.0.1:0").env("DATABASE_URL", url);
        let output = program::output(command).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{word} {address}: {said}");
        let lines = said.lines().filter(|line| line.contains("WARN") && line.contains("verify-full"));
        assert_eq!(lines.count(), told, "{word} {address}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_is_one_line_and_exit_1() -> anyhow::Result<()> {
    let shop = Shop::new()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    for name in Shop::NAMES {
        let output = run(name, shop.folder(), &["serve", "--listen", &address]).await?;
        assert_one_line(&output, 1, &[&address]);
        assert!(!shop.folder().join("data").exists(), "{name} touched its data before it had its port");
    }
    Ok(())
}

#[tokio::test]
async fn a_second_process_on_the_same_database_is_one_line_and_exit_1() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    let folder = shop.folder().to_owned();
    for server in shop.servers_mut() {
        let url = server.database_url();
        let output = run(server.name(), &folder, &["serve", "--listen", "127.0.0.1:0", "--database-url", &url]).await?;
        assert_one_line(&output, 1, &[&format!("{}.db", server.name())]);
        server.running()?;
    }
    Ok(())
}

#[tokio::test]
async fn wrong_flags_are_named_with_exit_2() -> anyhow::Result<()> {
    let shop = Shop::new()?;
    let cases: [(&[&str], &str); 5] = [
        (&["serve", "--lisen", "127.0.0.1:1"], "--lisen"),
        (&["serve", "--listen", "nowhere"], "--listen"),
        (&["serve", "--surface", "half"], "--surface"),
        (&["serve", "--peer", "inventory"], "--peer"),
        (&["dance"], "dance"),
    ];
    for name in Shop::NAMES {
        for (words, word) in cases {
            let output = run(name, shop.folder(), words).await?;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{name} {words:?}: {said}");
            assert!(said.contains(word), "{name} {words:?}: {said}");
        }
    }
    for name in ["inventory", "order"] {
        let output =
            run(name, shop.folder(), &["serve", "--listen", "127.0.0.1:0", "--peer", "parcels=http://a:1"]).await?;
        assert_one_line(&output, 2, &["parcels", "shipping"]);
    }
    for name in ["payment", "shipping"] {
        let words = ["serve", "--listen", "127.0.0.1:0", "--peer", "inventory=http://a:1"];
        assert_one_line(&run(name, shop.folder(), &words).await?, 2, &["inventory", "none"]);
    }
    assert!(!shop.folder().join("data").exists(), "nothing is made before the flags are known to be right");
    Ok(())
}

#[tokio::test]
async fn wrong_values_are_one_line_and_exit_2() -> anyhow::Result<()> {
    let shop = Shop::new()?;
    std::fs::write(shop.folder().join("empty.pem"), "")?;
    let cases: [(&str, &str, &str); 30] = [
        ("RUST_LOG", "a=b=c", "RUST_LOG"),
        ("RUST_LOG", "notalevel", "notalevel"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "no uri", "OTEL_"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "write http://"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://collector:4317", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "OTEL_EXPORTER_OTLP_COMPRESSION"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "squash", "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "write grpc"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"),
        ("OTEL_TRACES_SAMPLER", "parentbased_jaeger_remote", "is no sampler"),
        ("OTEL_TRACES_SAMPLER", "traceidratio", "OTEL_TRACES_SAMPLER_ARG"),
        ("DATABASE_URL", "postgres://me:secret@host:notaport/db", "--database-url"),
        ("DATABASE_URL", "postgres://me:secret@host/db?sslmode=nope", "--database-url"),
        ("DATABASE_URL", "postgres://me:secret@host/db?ssl_mode=verify-full", "ssl_mode"),
        ("DATABASE_URL", "postgres://me@host/db?sslpassword=secret", "sslpassword"),
        ("DATABASE_URL", "postgres://me:secret@host/db?sslmode=allow", "sslmode=allow"),
        ("DATABASE_URL", "postgres://me:secret@host/db?sslmode=require&sslrootcert=ca.pem", "verify-full"),
        ("DATABASE_URL", "sqlite:a.db?mode=rwc", "--database-url"),
        ("NATS_URL", "nats://me:secret@a,nats://you:secret@b", "--nats-url"),
        ("NATS_URL", "tls://me:secret@a,nats://me:secret@b", "--nats-url"),
        ("PEER", "inventory=http://localhost:5005l", "no number"),
        ("PEER", "inventory=http://me:secret@localhost:50051", "--peer"),
        ("PEER", "inventory=https://localhost:50051", "--tls-ca"),
        ("TLS_CA", "missing.pem", "missing.pem"),
        ("TLS_CA", "empty.pem", "empty.pem"),
        ("TLS_CERT", "empty.pem", "--tls-cert"),
        ("MAX_HEADER_BYTES", "0", "--max-header-bytes"),
        ("MAX_MESSAGE_BYTES", "0", "--max-message-bytes"),
        ("MAX_REQUEST_BYTES", "0", "--max-request-bytes"),
    ];
    for (variable, value, says) in cases {
        let mut command = program::command("order", shop.folder())?;
        command.env("LISTEN", "127.0.0.1:0").env(variable, value);
        if ["_PROTOCOL", "_SAMPLER", "_COMPRESSION"].iter().any(|end| variable.ends_with(end)) {
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        }
        if variable == "TLS_CERT" {
            command.env("TLS_KEY", "empty.pem");
        }
        let output = program::output(command).await?;
        assert_one_line(&output, 2, &[says]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"), "{output:?}");
    }
    assert!(!shop.folder().join("data").exists(), "nothing is made before the values are known to be right");
    Ok(())
}

#[tokio::test]
async fn a_variable_of_another_program_is_not_read_where_a_flag_is_typed() -> anyhow::Result<()> {
    let shop = Shop::new()?;
    let url = format!("sqlite:{}", shop.folder().join("typed.db").display());
    let cases: [(&[&str], i32); 3] = [
        (&["migrate", "--database-url", &url], 0),
        // Nobody listens there.
        (&["health", "--listen", "127.0.0.1:1"], 1),
        (&["migrate"], 2),
    ];
    for (words, code) in cases {
        let mut command = program::command("inventory", shop.folder())?;
        command.args(words).env("DATABASE_URL", "mysql://me@host/db");
        let output = program::output(command).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_database_that_can_not_be_opened_is_one_line_and_exit_1() -> anyhow::Result<()> {
    let shop = Shop::new()?;
    let file = shop.folder().join("file");
    std::fs::write(&file, "no folder")?;
    let url = format!("sqlite:{}/x.db", file.display());
    let output = run("inventory", shop.folder(), &["serve", "--listen", "127.0.0.1:0", "--database-url", &url]).await?;
    assert_one_line(&output, 1, &[&file.display().to_string()]);

    let junk = shop.folder().join("junk.db");
    std::fs::write(
        &junk,
        "this is no database, but it is long enough to look like one at the first glance ".repeat(100),
    )?;
    let url = format!("sqlite:{}", junk.display());
    let output = run("inventory", shop.folder(), &["serve", "--listen", "127.0.0.1:0", "--database-url", &url]).await?;
    assert_one_line(&output, 1, &["junk.db"]);
    Ok(())
}

#[tokio::test]
async fn help_names_every_flag_its_variable_and_its_default() -> anyhow::Result<()> {
    let shop = Shop::new()?;
    let ports: [&str; Shop::NAMES.len()] = ["50051", "50052", "50053", "50054"];
    for (name, port) in Shop::NAMES.into_iter().zip(ports) {
        let output = run(name, shop.folder(), &["serve", "--help"]).await?;
        ensure!(output.status.success());
        let help = String::from_utf8(output.stdout)?;
        for word in [
            "--listen",
            "--surface",
            "--database-url",
            "--peer",
            "--drain-timeout",
            "--log-format",
            "DATABASE_URL",
            port,
        ] {
            assert!(help.contains(word), "{word:?} is not in {name}'s help:\n{help}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_health_command_tells_a_server_that_serves_from_one_that_does_not() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    let folder = shop.folder().to_owned();
    let server: &mut Server = shop.shipping();
    let words = ["health", "--timeout", "60s", "--listen", &server.address()];
    let output = run("shipping", &folder, &words).await?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    server.kill().await?;
    let output = run("shipping", &folder, &words).await?;
    assert_one_line(&output, 1, &[&server.address()]);
    Ok(())
}
