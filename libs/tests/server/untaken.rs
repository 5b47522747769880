//! Clients that don't take what they asked for, though their connection lives.

use proto::inventory::v1::{GetStockRequest, WatchStockRequest};
use tokio::time::{Duration, advance};
use tonic::Code;

use crate::{
    clock::{soon, stop_the_clock},
    lines::Lines,
    raw::Raw,
    reason,
    shelf::{Served, flags},
};

/// In one thread, so that its lines are kept.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_keeps_its_place_until_its_connection_is_cut() {
    let stopped = stop_the_clock();
    let (lines, _keeping) = Lines::keep();
    // With a window of nothing HTTP/2 isn't even given the answer; with any it is, and keeps what doesn't fit.
    for (window, sku) in [(0, "tea".to_owned()), (1, "x".repeat(64 << 10))] {
        let mut flags = flags();
        flags.limits.max_calls = 1;
        let served = Served::start(&flags).await;
        let deaf = Raw::connect(&served, window).await;
        let _stream = deaf.ask("WatchStock", &WatchStockRequest::default(), &[]).await;
        served.get("tea").await.expect("a stream that has begun has no place");

        let _untaken = deaf.ask("GetStock", &GetStockRequest { sku }, &[]).await;
        let refused = served.get("tea").await.expect_err("an answer has the place");
        assert_eq!((refused.code(), &*reason(&refused)), (Code::ResourceExhausted, "OVERLOADED"));
        soon(async {
            while served.get("tea").await.is_err() {
                advance(Duration::from_secs(1)).await;
            }
        })
        .await;
        soon(deaf.left()).await;
    }
    let told = lines.that_say("whose client doesn't take what it asked for is cut off");
    // The stream's and the untaken answer's.
    let says = ["INFO", "service=\"shelf\"", "client=127.0.0.1:", "calls=2"];
    assert!(told.len() == 2 && told.iter().all(|told| says.iter().all(|said| told.contains(said))), "{told:?}");
    drop(stopped);
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_taken_keep_their_connection() {
    let stopped = stop_the_clock();
    let served = Served::start(&flags()).await;
    let client = Raw::connect(&served, 1 << 20).await;
    let _stream = client.ask("WatchStock", &WatchStockRequest::default(), &[]).await;
    for _ in 0..120 {
        let mut answer = client.ask("GetStock", &GetStockRequest { sku: "x".repeat(64 << 10) }, &[]).await.into_body();
        soon(async {
            while let Some(data) = answer.data().await {
                data.expect("all of it");
            }
        })
        .await;
        advance(Duration::from_secs(1)).await;
    }
    drop(stopped);
}
