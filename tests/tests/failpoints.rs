//! Each process killed with SIGKILL at one write, sync and message after another, on the way there and on the way back: after a restart every
//! order ends as it must, and the books add up. The points are system calls, so none can be forgotten; strace kills at them. Runs where
//! `TEST_STRACE` names it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use prost::Message as _;
use proto::{
    breaker::v1::{ResetBreakerRequest, breaker_command_service_client::BreakerCommandServiceClient},
    events::v1::{SubscribeRequest, event_service_client::EventServiceClient},
    order::v1::{Order, OrderState},
    saga::v1::{HistoryEntry, SagaPhase, SagaTransition, Step},
};
use tests::{Clients, Server, Shop, facts::Facts, invariants, shop::order};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use uuid::Uuid;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const CALLS: [&str; 3] = ["fdatasync", "pwrite64", "writev"];

/// The order service's place.
const ORDER: usize = 3;

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

/// Who was killed at which call in which step, and whether that was being undone.
type Interrupted = (usize, &'static str, String, bool);

/// The operations of both sagas that a participant takes part in: what a kill may interrupt.
const OPERATIONS: [(usize, &str, bool); 5] = [
    (0, "reserve_inventory", false),
    (1, "charge_customer", false),
    (2, "ship_order", false),
    (1, "charge_customer", true),
    (0, "reserve_inventory", true),
];

/// What a call says that finds nobody listening.
const REFUSED: &str = "tcp connect error";

/// A saga as order's log tells of it: its steps as they were at its end, and every line that its history ever had. Queries show of calls
/// that fail in a row the last alone.
#[derive(Default)]
struct Told {
    steps: BTreeMap<u32, Step>,
    history: Vec<HistoryEntry>,
    has_ended: bool,
}

/// Reads on from a position in order's log until the run's sagas have ended.
async fn read_on(clients: &Clients, position: &mut i64, run: &str) -> anyhow::Result<Vec<Told>> {
    let request = SubscribeRequest { after_position: *position, kinds: vec!["saga".to_owned()] };
    let mut stretches = EventServiceClient::new(clients.order.clone()).subscribe(request).await?.into_inner();
    let mut sagas: BTreeMap<String, Told> = BTreeMap::new();
    while sagas.values().filter(|saga| saga.has_ended).count() < ORDERS.len() {
        let stretch = stretches.message().await?.context("its log ends")?;
        *position = stretch.position;
        for event in stretch.events.into_iter().filter(|event| event.id.starts_with(run)) {
            let told = sagas.entry(event.id).or_default();
            let SagaTransition { saga, steps, history, .. } = SagaTransition::decode(event.payload)?;
            told.steps.extend(steps.into_iter().map(|change| (change.index, change.step.unwrap_or_default())));
            told.history.extend(history);
            told.has_ended |= matches!(saga.unwrap_or_default().phase(), SagaPhase::Completed | SagaPhase::Compensated);
        }
    }
    Ok(sagas.into_values().collect())
}

/// The operations that were called again when a service was killed at a call, and whether the first call found nobody listening: whoever
/// was killed need not have heard of that one. Later ones may find nobody as well, for as long as the service takes to be back.
async fn called_again(
    clients: &Clients,
    position: &mut i64,
    run: &str,
    (service, call): (usize, &'static str),
) -> anyhow::Result<Vec<(Interrupted, bool)>> {
    let mut again = Vec::new();
    for saga in timeout(PATIENCE, read_on(clients, position, run)).await.context("no such saga")?? {
        for step in saga.steps.values() {
            let refused = |what| {
                let mut lines = saga.history.iter().filter(|line| line.what == what && line.step == step.name);
                lines.any(|line| line.attempt == 1 && line.detail.contains(REFUSED))
            };
            for (attempts, undone, failed) in
                [(step.attempts, false, "action failed"), (step.compensation_attempts, true, "compensation failed")]
            {
                let interrupted = (service, call, step.name.clone(), undone);
                again.extend((attempts > 1).then(|| (interrupted, refused(failed))));
            }
        }
    }
    Ok(again)
}

/// From when on a service's calls are counted, in each of its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    /// From its start, which makes many itself. Whoever calls it meanwhile finds nobody listening.
    FromStart,
    /// From when it serves: what is interrupted then is what was asked of it.
    FromServing,
}

/// Has strace kill a process that runs, and waits until it would, or has.
async fn attach(strace: &[String], process: u32) -> anyhow::Result<Child> {
    let (program, words) = strace.split_first().context("no strace")?;
    let tracer = Command::new(program).args(words).args(["-p", &process.to_string()]).kill_on_drop(true).spawn()?;
    // It may be killed before all of it is looked at: of a task that is dead nobody is the tracer.
    let is_traced_or_dead = |task: &Path| {
        let Ok(status) = fs::read_to_string(task.join("status")) else { return true };
        let has = |name: &str, is: fn(&str) -> bool| {
            status.lines().any(|line| line.strip_prefix(name).is_some_and(|value| is(value.trim())))
        };
        has("TracerPid:", |by| by != "0") || has("State:", |state| state.starts_with(['Z', 'X']))
    };
    let attached = async {
        loop {
            let tasks = fs::read_dir(format!("/proc/{process}/task"))?;
            let tasks = tasks.map(|task| Ok(task?.path())).collect::<io::Result<Vec<_>>>()?;
            if tasks.iter().all(|task| is_traced_or_dead(task)) {
                return io::Result::Ok(());
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, attached).await.context("strace doesn't attach")??;
    Ok(tracer)
}

fn log_ends(shop: &mut Shop) -> String {
    shop.servers_mut().each_ref().map(Server::log_end).join("\n")
}

/// Runs both orders with a service killed at its so manieth call, in any of its threads, and answers under which name. None if it was not
/// called so often.
async fn kill_at(
    shop: &mut Shop,
    strace: &str,
    (service, call, count): (usize, &'static str, u32),
    counted: Counted,
) -> anyhow::Result<Option<String>> {
    let clients = shop.clients();
    let run = format!("{}-{call}-{count}-{}", Shop::NAMES[service], Uuid::new_v4());
    let inject = format!("inject={call}:signal=SIGKILL:when={count}");
    let words = ["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
    let mut strace: Vec<String> = std::iter::once(strace).chain(words).map(str::to_owned).collect();
    let server = &mut shop.servers_mut()[service];
    server.kill().await?;
    let tracer = if counted == Counted::FromStart {
        strace.insert(1, "-D".to_owned());
        server.spawn_under(&strace)?;
        None
    } else {
        server.start().await?;
        Some(attach(&strace, server.id().context("it has started")?).await?)
    };
    let known = async {
        let mut placing = std::pin::pin!(place(&clients, &run));
        loop {
            if let Some(status) = server.has_ended()? {
                ensure!(status.code().is_none(), "{run}: it ended by itself, {status}\n{}", server.log_end());
                drop(tracer);
                server.start().await?;
                return Ok(true);
            }
            if timeout(Duration::from_millis(5), &mut placing).await.is_ok() {
                drop(tracer);
                let survived = server.has_ended()?.is_none();
                if survived {
                    // Who was not attached may kill it still.
                    server.end().await?;
                }
                server.start().await?;
                return anyhow::Ok(!survived);
            }
        }
    };
    let Ok(killed) = timeout(PATIENCE, known).await else {
        anyhow::bail!("{run}: it is neither killed nor answered\n{}", log_ends(shop));
    };
    let killed = killed?;
    // Killed so often, it is left alone for longer and longer: that is proved elsewhere, and waited for nowhere.
    let mut breakers = BreakerCommandServiceClient::new(shop.order().channel());
    let reset = breakers.reset_breaker(ResetBreakerRequest { name: Shop::NAMES[service].to_owned() });
    timeout(PATIENCE, reset).await.context("no breaker is reset")?.ok();
    let Ok(ended) = timeout(PATIENCE, place(&clients, &run)).await else {
        anyhow::bail!("{run}: it never ends\n{}", log_ends(shop));
    };
    for (order, (_, state)) in ended.iter().zip(ORDERS) {
        ensure!(order.state() == state, "{run}: {order:?}");
    }
    Ok(killed.then_some(run))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_write_sync_or_message_a_process_goes_on() -> anyhow::Result<()> {
    let Ok(strace) = std::env::var("TEST_STRACE") else {
        eprintln!("skipped: needs strace, and TEST_STRACE names none (tests/strace.sh)");
        return Ok(());
    };
    let mut shop = Shop::start().await?;
    shop.stock("tea", 1_000_000, 3).await?;
    shop.deposit("ann", 1_000_000).await?;
    let (mut kills, mut position, mut refused, mut interrupted) = (0, 0, 0, BTreeSet::new());
    let heard =
        |again: Vec<(Interrupted, bool)>| again.into_iter().filter_map(|(at, refused)| (!refused).then_some(at));
    for service in 0..Shop::NAMES.len() {
        for call in CALLS {
            let mut count = 1;
            while let Some(run) = kill_at(&mut shop, &strace, (service, call, count), Counted::FromStart).await? {
                kills += 1;
                let again = called_again(&shop.clients(), &mut position, &run, (service, call)).await?;
                refused += again.iter().filter(|(_, refused)| *refused).count();
                // The others' first call may have come before they listened, or by a connection of before.
                if service == ORDER {
                    interrupted.extend(heard(again));
                }
                // Writes come in dozens, and those at the start are the same every time.
                count += if call == "pwrite64" { 3 } else { 1 };
            }
            println!("{} {call}: killed up to number {}", Shop::NAMES[service], count - 1);
            ensure!(count > 2, "{} is never killed at {call}", Shop::NAMES[service]);
        }
    }
    ensure!(refused > 0, "nobody says {REFUSED:?}: what is interrupted can't be told from what was not heard");
    // Each operation is interrupted there and back at each of the calls, by its participant's end and by that of the order service that waits
    // for it. What has been passed over is looked for call by call, and from the first on again once there are no more: two orders may
    // share a commit or not.
    let points = OPERATIONS.into_iter().flat_map(|(participant, step, undone)| {
        let by = [participant, ORDER].into_iter().flat_map(|service| CALLS.map(|call| (service, call)));
        by.map(move |(service, call)| (service, call, step.to_owned(), undone))
    });
    for point in points {
        let (service, call, ..) = point;
        let (mut tries, mut count) = (0, 0);
        while !interrupted.contains(&point) {
            (tries, count) = (tries + 1, count + 1);
            ensure!(tries <= 200, "{} is never killed in {point:?}: {interrupted:?}", Shop::NAMES[service]);
            if let Some(run) = kill_at(&mut shop, &strace, (service, call, count), Counted::FromServing).await? {
                kills += 1;
                let again = called_again(&shop.clients(), &mut position, &run, (service, call)).await?;
                interrupted.extend(heard(again));
            } else {
                count = 0;
            }
        }
        let (name, way) = (Shop::NAMES[service], if point.3 { "back" } else { "there" });
        println!("{name} was killed at {call} in {} on the way {way}, after {tries} tries", point.2);
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
