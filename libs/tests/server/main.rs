//! Servers as their clients see them, over loopback.
#![cfg(feature = "rpc")]

#[path = "../clock/mod.rs"]
mod clock;
mod crowd;
mod deaf;
#[path = "../lines/mod.rs"]
mod lines;
mod raw;
mod resets;
mod shelf;
mod untaken;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future::join_all, stream};
use libs::{
    breaker::Registry,
    refusal::Refusal,
    rpc::{client::Peers, principal::Principal},
    service::App,
};
use parking_lot::Mutex;
use proto::inventory::v1::{
    GetStockRequest, ListStockRequest, WatchStockRequest, inventory_query_service_client::InventoryQueryServiceClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::advance,
};
use tonic::{Code, Request, Status, codegen::http::uri::PathAndQuery};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use clock::{becomes, soon, stop_the_clock};
use lines::Lines;
use raw::Raw;
use shelf::{Served, flags};

const MS: Duration = Duration::from_millis(1);

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("every error has an ErrorInfo");
    assert_eq!(info.domain, "trellis.shelf");
    info.reason
}

async fn health(served: &Served, service: &str) -> Result<i32, Code> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(served.channel.clone()).check(request).await;
    answer.map(|answer| answer.into_inner().status).map_err(|status| status.code())
}

#[tokio::test]
async fn a_taken_port_is_told_in_one_line() {
    let first = App::bind("shelf", &flags()).await.expect("a free port");
    let mut flags = flags();
    flags.listen = first.local_addr();
    let error = App::bind("shelf", &flags).await.expect_err("taken").to_string();
    assert!(error.contains("another process listens there") && !error.contains('\n'), "{error}");
}

#[tokio::test]
async fn every_service_and_the_whole_server_are_healthy_while_they_serve() {
    let served = Served::start(&flags()).await;
    assert_eq!(health(&served, "").await, Ok(1));
    assert_eq!(health(&served, "inventory.v1.InventoryQueryService").await, Ok(1));
    assert_eq!(health(&served, "nobody.v1.Nothing").await, Err(Code::NotFound));
}

#[tokio::test]
async fn reflection_answers_in_both_versions_with_what_is_served_alone() {
    let served = Served::start(&flags()).await;
    macro_rules! services {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let mut client = ServerReflectionClient::new(served.channel.clone());
            let answers = client.server_reflection_info(stream::iter([request])).await.expect("reflection");
            let answer = answers.into_inner().next().await.expect("an answer").expect("an answer");
            let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
                panic!("{answer:?}")
            };
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }};
    }
    let wanted = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inventory.v1.InventoryQueryService",
    ];
    assert_eq!(services!(v1), wanted);
    assert_eq!(services!(v1alpha), wanted);
}

#[tokio::test]
async fn a_panic_ends_its_own_call_alone() {
    let served = Served::start(&flags()).await;
    let status = served.get("panic").await.expect_err("a panic");
    assert_eq!((status.code(), reason(&status)), (Code::Internal, "INTERNAL".to_owned()));
    assert_eq!(status.message(), "internal error");
    assert!(status.metadata().contains_key("x-request-id"));
    served.get("tea").await.expect("the next call is none of it");
}

#[tokio::test]
async fn a_panic_in_a_stream_ends_it_as_an_error() {
    let served = Served::start(&flags()).await;
    // Tonic gathers messages: those not yet sent are lost with what panicked.
    let request = WatchStockRequest { sku: "panic".to_owned(), ..WatchStockRequest::default() };
    let mut stream = served.client().watch_stock(request).await.expect("a stream").into_inner();
    let status = stream.message().await.expect_err("a panic");
    assert_eq!((status.code(), reason(&status)), (Code::Internal, "INTERNAL".to_owned()));
}

#[tokio::test]
async fn every_error_has_details_whoever_made_it() {
    let served = Served::start(&flags()).await;
    let bare = served.get("bare").await.expect_err("refused");
    assert_eq!((bare.code(), reason(&bare)), (Code::FailedPrecondition, "FAILED_PRECONDITION".to_owned()));
    let streamed = served.watch("bare").await.message().await.expect_err("refused");
    assert_eq!((streamed.code(), reason(&streamed)), (Code::Aborted, "ABORTED".to_owned()));
    let large = served.get(&"x".repeat(128 << 10)).await.expect_err("too large");
    assert_eq!((large.code(), reason(&large)), (Code::OutOfRange, "MESSAGE_TOO_LARGE".to_owned()));
    assert_eq!(Refusal::from_status(&large).metadata["limit_bytes"], "131072");

    let mut client = tonic::client::Grpc::new(served.channel.clone());
    client.ready().await.expect("ready");
    let codec = tonic_prost::ProstCodec::<GetStockRequest, GetStockRequest>::default();
    let path = PathAndQuery::from_static("/nobody.v1.Nothing/Call");
    let unknown = client.unary(Request::new(GetStockRequest::default()), path, codec).await.expect_err("unknown");
    assert_eq!((unknown.code(), reason(&unknown)), (Code::Unimplemented, "UNIMPLEMENTED".to_owned()));
    assert_eq!(unknown.message(), "/nobody.v1.Nothing/Call is not served here");
}

#[tokio::test]
async fn what_a_stranger_asks_for_is_repeated_to_no_great_length() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };
    let (lines, _keeping) = Lines::keep();
    let served = Served::start(&flags()).await;
    let symbol = MessageRequest::FileContainingSymbol("x".repeat(4_000));
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(symbol) };
    let mut reflection = ServerReflectionClient::new(served.channel.clone());
    let mut answers =
        reflection.server_reflection_info(stream::iter([request])).await.expect("reflection").into_inner();
    let unknown = answers.message().await.expect_err("nobody's");
    assert_eq!((unknown.code(), &*reason(&unknown)), (Code::NotFound, "NOT_FOUND"));
    assert!(unknown.message().contains("xxx") && unknown.message().len() <= 300, "{}", unknown.message().len());

    let mut call = Request::new(GetStockRequest { sku: "tea".to_owned() });
    call.metadata_mut().insert("grpc-encoding", "y".repeat(15 << 10).parse().expect("ASCII"));
    let unread = served.client().get_stock(call).await.expect_err("an encoding that there isn't");
    assert_eq!((unread.code(), &*reason(&unread)), (Code::Unimplemented, "UNIMPLEMENTED"));
    assert!(unread.message().contains("yyy") && unread.message().len() <= 300, "{}", unread.message().len());

    let told = [lines.that_say("xxx"), lines.that_say("yyy")].concat();
    let lengths: Vec<usize> = told.iter().map(String::len).collect();
    assert!(lengths.len() == 2 && lengths.iter().all(|length| *length <= 600), "{lengths:?}");
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_its_senders_mistake_and_no_failure_of_the_server() {
    let served = Served::start(&flags()).await;
    let registry = Registry::new();
    let address = format!("shelf=http://{}", served.address).parse().expect("an address");
    let peers = Peers::new(registry.clone(), &[("shelf", "http://localhost:1")], vec![address]).expect("peers");
    let mut client = tonic::client::Grpc::new(peers.connect("shelf").expect("a peer"));
    client.ready().await.expect("ready");
    // To protobuf these bytes and a text are the same field.
    let not_text = Request::new(vec![0xff_u8]);
    let path = PathAndQuery::from_static("/inventory.v1.InventoryQueryService/GetStock");
    let codec = tonic_prost::ProstCodec::<Vec<u8>, GetStockRequest>::default();
    let malformed = client.unary(not_text, path, codec).await.expect_err("not UTF-8");
    assert_eq!((malformed.code(), &*reason(&malformed)), (Code::InvalidArgument, "MALFORMED_MESSAGE"));
    assert!(malformed.message().contains("UTF-8"), "{malformed}");
    let totals = registry.list("")[0].snapshot().totals;
    assert_eq!((totals.success, totals.failure), (1, 0));

    let inside = served.get("unreadable").await.expect_err("another service's answer was");
    assert_eq!((inside.code(), inside.message()), (Code::Internal, "internal error"));
}

#[tokio::test]
async fn headers_that_are_too_long_are_refused_with_their_limit() {
    let served = Served::start(&flags()).await;
    let with = |bytes: usize| {
        let mut call = Request::new(GetStockRequest { sku: "tea".to_owned() });
        call.metadata_mut().insert("x-long", "x".repeat(bytes).parse().expect("ASCII"));
        call
    };
    served.client().get_stock(with(15 << 10)).await.expect("short enough");
    let refused = served.client().get_stock(with(17 << 10)).await.expect_err("too long");
    assert_eq!((refused.code(), &*reason(&refused)), (Code::OutOfRange, "HEADERS_TOO_LARGE"));
    assert_eq!(Refusal::from_status(&refused).metadata["limit_bytes"], "16384");
}

#[tokio::test]
async fn a_guard_looks_at_every_call_but_those_of_health() {
    let served = Served::start_with(&flags(), |app| {
        app.guard(|call| match call.headers.contains_key("authorization") {
            true => Ok(()),
            false => Err(Refusal::new(Code::Unauthenticated, "NO_TOKEN", "send a bearer token")),
        });
    })
    .await;
    let refused = served.get("tea").await.expect_err("no token");
    assert_eq!((refused.code(), &*reason(&refused)), (Code::Unauthenticated, "NO_TOKEN"));
    let mut call = Request::new(GetStockRequest { sku: "tea".to_owned() });
    call.metadata_mut().insert("authorization", "Bearer sesame".parse().expect("ASCII"));
    served.client().get_stock(call).await.expect("a token");
    assert_eq!(health(&served, "").await, Ok(1));
}

#[tokio::test]
async fn whom_a_guard_has_found_to_call_is_known_to_what_is_done_for_the_call() {
    let served = Served::start_with(&flags(), |app| {
        app.guard(|call| {
            let name = call.headers.get("x-name").and_then(|name| name.to_str().ok());
            if let Some(principal) = name.and_then(Principal::new) {
                call.extensions.insert(principal);
            }
            Ok(())
        });
    })
    .await;
    let stock = async |name: Option<&'static str>| {
        let mut call = Request::new(GetStockRequest { sku: "tea".to_owned() });
        if let Some(name) = name {
            call.metadata_mut().insert("x-name", name.parse().expect("ASCII"));
        }
        served.client().get_stock(call).await.expect("an answer").into_inner().stock.expect("stock").sku
    };
    assert_eq!(stock(Some("ada")).await, "tea for ada");
    assert_eq!(stock(None).await, "tea");
}

#[tokio::test]
async fn a_guard_that_panics_ends_its_own_call_alone() {
    let served = Served::start_with(&flags(), |app| {
        app.guard(|call| {
            assert!(!call.headers.contains_key("x-panic"), "a guard's mistake");
            Ok(())
        });
    })
    .await;
    let panicking = async {
        served.shelf.waiting.acquire().await.expect("open").forget();
        let mut call = Request::new(GetStockRequest { sku: "tea".to_owned() });
        call.metadata_mut().insert("x-panic", "1".parse().expect("ASCII"));
        let status = served.client().get_stock(call).await.expect_err("a panic");
        served.shelf.release.add_permits(1);
        status
    };
    let (other, status) = tokio::join!(served.get("wait"), panicking);
    other.expect("the connection's other calls are none of it");
    assert_eq!((status.code(), reason(&status)), (Code::Internal, "INTERNAL".to_owned()));
    assert!(status.metadata().contains_key("x-request-id"));
}

#[tokio::test]
async fn a_call_that_takes_longer_than_allowed_is_answered_deadline_exceeded() {
    let mut flags = flags();
    flags.limits.max_deadline = Duration::from_millis(20);
    let served = Served::start(&flags).await;
    let status = served.get("wait").await.expect_err("nobody releases it");
    assert_eq!((status.code(), reason(&status)), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
    let mut stream = served.watch("").await;
    let more = tokio::time::timeout(Duration::from_millis(100), stream.message()).await;
    assert!(more.is_err(), "a stream that has begun is not capped: {more:?}");
}

#[tokio::test]
async fn a_timeout_that_tonic_reads_is_answered_as_any() {
    let served = Served::start(&flags()).await;
    let client = Raw::connect(&served, 1 << 20).await;
    let message = GetStockRequest { sku: "wait".to_owned() };
    let answer = client.ask("GetStock", &message, &[("grpc-timeout", "+20m")]).await;
    let status = Status::from_header_map(answer.headers()).expect("no stream");
    assert_eq!((status.code(), reason(&status)), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()), "{status}");
    assert!(status.metadata().contains_key("x-request-id"));
}

#[tokio::test]
async fn what_is_called_while_serving_inherits_the_deadline() {
    let served = Served::start(&flags()).await;
    let mut request = Request::new(ListStockRequest::default());
    request.set_timeout(Duration::from_secs(15));
    let answer = served.client().list_stock(request).await.expect("an answer").into_inner();
    let left: u64 = answer.next_page_token.parse().expect("milliseconds");
    assert!((1..=15_000).contains(&left), "{left} ms");
    let answer = served.client().list_stock(ListStockRequest::default()).await.expect("an answer").into_inner();
    let left: u64 = answer.next_page_token.parse().expect("milliseconds");
    assert!((15_001..=30_000).contains(&left), "{left} ms: ours, where the client has none");
}

#[tokio::test]
async fn as_many_calls_as_allowed_are_in_flight_on_one_connection() {
    let served = Served::start(&flags()).await;
    let calls = join_all((0..256).map(|_| served.get("wait")));
    let release = async {
        // All of them wait at the same time, or this waits for ever.
        served.shelf.waiting.acquire_many(256).await.expect("open").forget();
        served.shelf.release.add_permits(256);
    };
    let (answers, ()) = tokio::join!(calls, release);
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn draining_lets_calls_in_flight_end_and_then_puts_away_what_was_opened_last_first() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let order = Arc::clone(&order);
        move || order.lock().push(what)
    };
    let (sagas, journal) = (note("sagas"), note("journal"));
    let served = Served::start_with(&flags(), |app| {
        app.on_drain("journal", async move { journal() }).on_drain("sagas", async move { sagas() });
    })
    .await;
    let shelf = served.shelf.clone();
    let mut client = served.client();
    let channel = served.channel.clone();
    let call = tokio::spawn(async move { client.get_stock(GetStockRequest { sku: "wait".to_owned() }).await });
    shelf.waiting.acquire().await.expect("open").forget();

    let ended = served.stop();
    // A refused connection is the sign that draining has begun.
    soon(async { while HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.is_ok() {} })
        .await;
    assert!(!ended.is_finished() && order.lock().is_empty(), "a call is in flight");
    shelf.release.add_permits(1);
    call.await.expect("no panic").expect("the call ends well");
    ended.await.expect("no panic").expect("an orderly end");
    assert_eq!(*order.lock(), ["sagas", "journal"]);
}

/// In one thread, so that its lines are kept.
#[tokio::test]
async fn calls_that_do_not_end_in_time_are_cut_off_and_that_is_told() {
    let (lines, _keeping) = Lines::keep();
    let mut flags = flags();
    flags.limits.drain_timeout = Duration::from_millis(20);
    let served = Served::start(&flags).await;
    let shelf = served.shelf.clone();
    let mut client = served.client();
    let call = tokio::spawn(async move { client.get_stock(GetStockRequest { sku: "wait".to_owned() }).await });
    shelf.waiting.acquire().await.expect("open").forget();
    served.stop().await.expect("no panic").expect("an end all the same");
    let status = call.await.expect("no panic").expect_err("cut off");
    assert_ne!(status.code(), Code::DeadlineExceeded, "cut off, not waited out");
    let told = lines.that_say("what had not ended after --drain-timeout was cut off");
    let says = ["WARN", "service=\"shelf\"", "connections=1", "calls=1"];
    assert!(told.len() == 1 && says.iter().all(|said| told[0].contains(said)), "{told:?}");
    // Its task hears of it by itself.
    becomes(|| !lines.that_say("InventoryQueryService/GetStock").is_empty()).await;
    let told = lines.that_say("InventoryQueryService/GetStock");
    let says = ["WARN", "code=\"UNAVAILABLE\"", "cut off"];
    assert!(told.len() == 1 && says.iter().all(|said| told[0].contains(said)), "{told:?}");
}

#[tokio::test]
async fn an_endless_stream_does_not_keep_a_server_from_ending() {
    let served = Served::start(&flags()).await;
    let mut stream = served.watch("").await;
    let ended = served.stop();
    let status = stream.message().await.expect_err("the server leaves");
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".to_owned()));
    assert!(Refusal::from_status(&status).retry_after.is_some());
    ended.await.expect("no panic").expect("an orderly end");
}

#[tokio::test]
async fn a_connection_that_says_nothing_does_not_keep_a_server_from_ending() {
    let mut flags = flags();
    flags.limits.drain_timeout = Duration::from_secs(60 * 60);
    let served = Served::start(&flags).await;
    let mut silent = TcpStream::connect(served.address).await.expect("taken");
    let mut preface = TcpStream::connect(served.address).await.expect("taken");
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("heard");
    served.get("tea").await.expect("taken after the others");
    served.stop().await.expect("no panic").expect("an orderly end, or this waits for an hour");
    for connection in [&mut silent, &mut preface] {
        // What the server said before is read first.
        soon(async { while connection.read_u8().await.is_ok() {} }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_left_for_a_new_one() {
    let stopped = stop_the_clock();
    let mut flags = flags();
    flags.limits.max_connection_age = 1000 * MS;
    flags.limits.drain_timeout = 20 * MS;
    flags.limits.max_deadline = 20 * MS;
    let served = Served::start(&flags).await;
    let mut stream = served.watch("").await;
    let passes = async {
        loop {
            advance(10 * MS).await;
        }
    };
    let left = async {
        tokio::select! {
            said = stream.message() => said.expect_err("the connection is old"),
            () = passes => unreachable!("time goes on"),
        }
    };
    assert_eq!(soon(left).await.code(), Code::Unavailable);
    served.get("tea").await.expect("a new connection");
    drop(stopped);
}

#[tokio::test(start_paused = true)]
async fn an_old_connections_calls_have_all_the_time_that_a_call_has() {
    let stopped = stop_the_clock();
    let mut flags = flags();
    flags.limits.max_connection_age = 20 * MS;
    flags.limits.drain_timeout = Duration::ZERO;
    flags.limits.max_deadline = 200 * MS;
    let served = Served::start(&flags).await;
    let passes = async {
        served.shelf.waiting.acquire().await.expect("open").forget();
        // Bit by bit, so that what happens first is seen to first.
        for _ in 0..200 {
            advance(MS).await;
        }
    };
    let (answer, ()) = soon(async { tokio::join!(served.get("wait"), passes) }).await;
    let status = answer.expect_err("nobody releases it");
    assert_eq!(status.code(), Code::DeadlineExceeded, "waited out, not cut off with its connection: {status}");
    drop(stopped);
}

#[tokio::test]
async fn a_failed_task_ends_the_service() {
    let failing = Served::start_with(&flags(), |app| {
        app.task("projection", async { Ok::<_, std::io::Error>(()) });
        app.task("committer", async { Err(std::io::Error::other("no space left")) });
    })
    .await;
    assert_eq!(failing.ended().await.expect_err("a task failed").to_string(), "committer: no space left");
    let panicking = Served::start_with(&flags(), |app| {
        app.task("committer", async { if true { panic!("on purpose") } else { Ok::<_, std::io::Error>(()) } });
    })
    .await;
    assert_eq!(panicking.ended().await.expect_err("a task panicked").to_string(), "committer: panicked");
}

/// In one thread, so that its lines are kept: a task fails with a call in flight, once `until` has come.
async fn a_call_that_a_failed_task_cuts_off_is_told(until: impl AsyncFnOnce(&mut Served)) {
    let (lines, _keeping) = Lines::keep();
    let (fail, failing) = tokio::sync::oneshot::channel::<()>();
    let mut served = Served::start_with(&flags(), |app| {
        app.task("committer", async {
            let _ = failing.await;
            Err::<(), _>("no space left")
        });
    })
    .await;
    let mut client = served.client();
    let call = tokio::spawn(async move { client.get_stock(GetStockRequest { sku: "wait".to_owned() }).await });
    served.shelf.waiting.acquire().await.expect("open").forget();
    until(&mut served).await;
    fail.send(()).expect("it runs");
    assert_eq!(served.ended().await.expect_err("a task failed").to_string(), "committer: no space left");
    let told = lines.that_say("InventoryQueryService/GetStock");
    let says = ["WARN", "code=\"UNAVAILABLE\"", "cut off"];
    assert!(told.len() == 1 && says.iter().all(|said| told[0].contains(said)), "{told:?}");
    let told = lines.that_say("what was in flight was cut off");
    let says = ["WARN", "service=\"shelf\"", "connections=1", "calls=1"];
    assert!(told.len() == 1 && says.iter().all(|said| told[0].contains(said)), "{told:?}");
    call.await.expect("no panic").expect_err("cut off");
}

#[tokio::test]
async fn what_is_in_flight_when_a_task_fails_is_cut_off_and_that_is_told() {
    a_call_that_a_failed_task_cuts_off_is_told(async |_| {}).await;
}

#[tokio::test]
async fn what_is_in_flight_when_a_task_fails_in_the_midst_of_draining_is_cut_off_and_that_is_told() {
    a_call_that_a_failed_task_cuts_off_is_told(async |served| {
        served.drain();
        // A refused connection is the sign that draining has begun.
        soon(async { while health(served, "").await.is_ok() {} }).await;
    })
    .await;
}

#[tokio::test]
async fn a_task_that_fails_while_all_is_put_away_is_told_of() {
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let served = Served::start_with(&flags(), |app| {
        let lost = async { closed.await.map_err(|_| "not told").and(Err("the last batch is lost")) };
        app.task_until_drained("journal", lost, || close.send(()).expect("it runs"));
    })
    .await;
    let ended = served.stop().await.expect("no panic");
    assert_eq!(ended.expect_err("a task failed").to_string(), "journal: the last batch is lost");
}

#[tokio::test]
async fn what_finds_no_place_is_refused_at_once_and_health_still_answers() {
    let mut flags = flags();
    flags.limits.max_calls = 1;
    let served = Served::start(&flags).await;
    let mut client = served.client();
    let waiting = tokio::spawn(async move { client.get_stock(GetStockRequest { sku: "wait".to_owned() }).await });
    served.shelf.waiting.acquire().await.expect("open").forget();

    let refused = served.get("tea").await.expect_err("no place");
    assert_eq!((refused.code(), &*reason(&refused)), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(refused.get_details_retry_info().is_some() && refused.metadata().contains_key("grpc-retry-pushback-ms"));
    assert_eq!(health(&served, "").await, Ok(1));

    // A client's breaker takes it for overload: it waits as long as it is asked to, and counts no failure.
    let registry = Registry::new();
    let address = format!("shelf=http://{}", served.address);
    let peers =
        Peers::new(registry.clone(), &[("shelf", "http://localhost:1")], vec![address.parse().expect("an address")]);
    let peer = peers.expect("peers").connect("shelf").expect("a peer");
    let mut client = InventoryQueryServiceClient::new(peer);
    let refused = client.get_stock(GetStockRequest { sku: "tea".to_owned() }).await.expect_err("no place");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let totals = registry.list("")[0].snapshot().totals;
    assert_eq!((totals.overload, totals.failure), (1, 0));

    served.shelf.release.add_permits(1);
    waiting.await.expect("ends").expect("answered");
    served.get("tea").await.expect("a place again");
}
