//! Each process killed with SIGKILL at one write, sync and message after another, on the way there and on the way back: after a restart every
//! order ends as it must, and the books add up. The points are system calls, so none can be forgotten; strace kills at them. Runs where
//! `TEST_STRACE` names it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use proto::{
    breaker::v1::{ResetBreakerRequest, breaker_command_service_client::BreakerCommandServiceClient},
    order::v1::{Order, OrderState},
};
use tests::{Clients, Shop, facts::Facts, invariants, shop::order};
use tokio::time::{sleep, timeout};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const CALLS: [&str; 3] = ["fsync", "pwrite64", "writev"];

/// A saga that is completed, and one that is turned back after the charge.
const ORDERS: [(&str, OrderState); 2] = [("CH", OrderState::Completed), ("AQ", OrderState::Rejected)];

/// Places both and asks again until they are answered: a killed process answers nobody.
async fn place(clients: &Clients, run: &str) -> Vec<Order> {
    let placed = ORDERS.map(|(region, _)| {
        let request = order(&format!("{run}-{region}"), region);
        async move {
            loop {
                match clients.order_commands().place_order(request.clone()).await {
                    Ok(placed) => return placed.into_inner().order.unwrap_or_default(),
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
        }
    });
    join_all(placed).await
}

/// Runs both orders with a service killed at its so manieth call, in any of its threads. False if it was not called so often.
async fn kill_at(shop: &mut Shop, strace: &str, service: usize, call: &str, count: u32) -> anyhow::Result<bool> {
    let clients = shop.clients();
    let run = format!("{}-{call}-{count}", Shop::NAMES[service]);
    let inject = format!("inject={call}:signal=SIGKILL:when={count}");
    let words = ["-D", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
    let strace: Vec<String> = std::iter::once(strace).chain(words).map(str::to_owned).collect();
    let server = &mut shop.servers_mut()[service];
    server.kill().await?;
    server.spawn_under(&strace)?;
    let killed = {
        let mut placing = std::pin::pin!(place(&clients, &run));
        loop {
            if let Some(status) = server.has_ended()? {
                ensure!(status.code().is_none(), "{run}: it ended by itself, {status}\n{}", server.log_end());
                server.start().await?;
                break true;
            }
            if timeout(Duration::from_millis(5), &mut placing).await.is_ok() {
                // From here on it is not to be killed by surprise.
                let survived = server.has_ended()?.is_none();
                if survived {
                    server.kill().await?;
                }
                server.start().await?;
                break !survived;
            }
        }
    };
    // Killed so often, it is left alone for longer and longer: that is proved elsewhere, and waited for nowhere.
    let mut breakers = BreakerCommandServiceClient::new(shop.order().channel());
    breakers.reset_breaker(ResetBreakerRequest { name: Shop::NAMES[service].to_owned() }).await.ok();
    let Ok(ended) = timeout(PATIENCE, place(&clients, &run)).await else {
        let logs: Vec<String> = shop.servers_mut().iter_mut().map(|server| server.log_end()).collect();
        anyhow::bail!("{run}: it never ends\n{}", logs.join("\n"));
    };
    for (order, (_, state)) in ended.iter().zip(ORDERS) {
        ensure!(order.state() == state, "{run}: {order:?}");
    }
    Ok(killed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_write_sync_or_message_a_process_goes_on() -> anyhow::Result<()> {
    let Ok(strace) = std::env::var("TEST_STRACE") else { return Ok(()) };
    let mut shop = Shop::start().await?;
    shop.stock("tea", 1_000_000, 3).await?;
    shop.deposit("ann", 1_000_000).await?;
    let mut kills = 0;
    for service in 0..Shop::NAMES.len() {
        for call in CALLS {
            let mut count = 1;
            while kill_at(&mut shop, &strace, service, call, count).await? {
                kills += 1;
                // Writes come in dozens, and those at the start are the same every time.
                count += if call == "pwrite64" { 3 } else { 1 };
            }
            println!("{} {call}: killed up to number {}", Shop::NAMES[service], count - 1);
            ensure!(count > 2, "{} is never killed at {call}", Shop::NAMES[service]);
        }
    }
    let books = async {
        loop {
            let differences = invariants::differences(&Facts::read(&shop.clients()).await?);
            if differences.is_empty() {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, books).await.context("the books don't add up")??;
    println!("killed {kills} times");
    Ok(())
}
