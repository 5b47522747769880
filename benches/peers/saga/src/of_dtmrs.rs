//! dtmrs: its coordinator as a library, driving each saga as soon as it is submitted, as its server does by default. Its gRPC branches
//! carry no request, so the branches are functions of this process that call the participants. It tells nobody of a saga's end, so who waits
//! is answered by the last branch, before that one's end and the saga's are stored.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use dtmrs::{
    BranchCtx, BranchResult, SagaStep, Store,
    server::{api::Api, driver::Driver, registry::Registry},
};
use serde::{Deserialize, Serialize};
use sqlx::{AnyPool, any::install_default_drivers};
use tokio::sync::oneshot;

use crate::{
    order::{Cost, Counts, Ended, Wanted},
    participants::{Answer, Participants},
    server::{self, Engine},
};

/// What each branch is given. A reply feeds no later branch there, so that the price is known beforehand.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Payload {
    wanted: Wanted,
    cost: Cost,
}

/// Those who wait for an order's end, by its id.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<HashMap<String, (oneshot::Sender<Ended>, Option<String>)>>>);

impl Waiting {
    fn enter(&self, id: &str) -> oneshot::Receiver<Ended> {
        let (sender, receiver) = oneshot::channel();
        if let Ok(mut all) = self.0.lock() {
            all.insert(id.to_owned(), (sender, None));
        }
        receiver
    }

    fn refused(&self, id: &str, why: String) {
        if let Ok(mut all) = self.0.lock()
            && let Some((_, reason)) = all.get_mut(id)
        {
            *reason = Some(why);
        }
    }

    /// The last branch is done.
    fn ended(&self, id: &str, completed: Option<Cost>) {
        let Some((sender, why)) = self.0.lock().ok().and_then(|mut all| all.remove(id)) else { return };
        let rejected = || Ended::Rejected { step: "charge".to_owned(), reason: why.unwrap_or_default() };
        let _ = sender.send(completed.map_or_else(rejected, Ended::Completed));
    }
}

struct Dtmrs {
    api: Api,
    waiting: Waiting,
}

impl Engine for Dtmrs {
    async fn place(&self, wanted: Wanted) -> anyhow::Result<Ended> {
        let id = wanted.id.clone();
        let total = wanted.items.iter().map(|(_, quantity)| quantity).sum();
        let cost =
            Cost::of(Some(proto::google::r#type::Money { currency_code: "USD".to_owned(), units: total, nanos: 0 }));
        let payload = serde_json::to_string(&Payload { wanted, cost })?;
        let step = |action: &str, undo: &str| SagaStep::with_payload(action, undo, &payload);
        let steps = [
            step("local://reserve", "local://release"),
            step("local://charge", "local://refund"),
            step("local://ship", "local://nothing"),
        ];
        let ended = self.waiting.enter(&id);
        self.api.submit(&id, "saga", &steps).await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        ended.await.context("nobody drives it")
    }
}

/// The functions that `local://` names.
fn branches(participants: Participants, waiting: Waiting) -> Registry {
    let mut registry = Registry::new();
    let shared = (participants, waiting);
    let mut add = |name: &str, branch: fn(Participants, Waiting, Payload) -> Branch| {
        let shared = shared.clone();
        registry.register(name, move |ctx: BranchCtx| {
            let (participants, waiting) = shared.clone();
            async move {
                match serde_json::from_str(&ctx.payload) {
                    Ok(payload) => branch(participants, waiting, payload).await,
                    Err(_) => BranchResult::Failure,
                }
            }
        });
    };
    add("reserve", |participants, waiting, Payload { wanted, .. }| {
        branch(async move { said(participants.reserve(&wanted).await, &waiting, &wanted) })
    });
    add("charge", |participants, waiting, Payload { wanted, cost }| {
        branch(async move { said(participants.charge(&wanted, &cost).await, &waiting, &wanted) })
    });
    add("ship", |participants, waiting, Payload { wanted, cost }| {
        branch(async move {
            let result = said(participants.ship(&wanted).await, &waiting, &wanted);
            if result == BranchResult::Success {
                waiting.ended(&wanted.id, Some(cost));
            }
            result
        })
    });
    // A saga that turns back undoes every branch, and the participants know which was never done.
    add("refund", |participants, waiting, Payload { wanted, .. }| {
        branch(async move { said(participants.refund(&wanted).await, &waiting, &wanted) })
    });
    add("release", |participants, waiting, Payload { wanted, .. }| {
        branch(async move {
            let result = said(participants.release(&wanted).await, &waiting, &wanted);
            if result == BranchResult::Success {
                waiting.ended(&wanted.id, None);
            }
            result
        })
    });
    add("nothing", |_, _, _| branch(async { BranchResult::Success }));
    registry
}

type Branch = std::pin::Pin<Box<dyn Future<Output = BranchResult> + Send>>;

fn branch(work: impl Future<Output = BranchResult> + Send + 'static) -> Branch {
    Box::pin(work)
}

fn said<T>(answer: Answer<T>, waiting: &Waiting, wanted: &Wanted) -> BranchResult {
    match answer {
        Ok(Ok(_)) => BranchResult::Success,
        Ok(Err(refused)) => {
            waiting.refused(&wanted.id, refused.reason);
            BranchResult::Failure
        }
        Err(_) => BranchResult::Unknown,
    }
}

pub(crate) async fn serve(listen: SocketAddr, store: &str, participants: Participants) -> anyhow::Result<Counts> {
    let waiting = Waiting::default();
    let opened = Store::open(store).await?;
    let registry = Arc::new(branches(participants, waiting.clone()));
    let driver = Driver::from_env(opened.clone(), "bench".to_owned()).with_registry(registry);
    tokio::spawn(driver.clone().run_forever(Duration::from_secs(1)));
    let api = Api::new(opened).with_inline_driver(driver);
    server::serve(listen, Dtmrs { api, waiting }).await?;
    count(store).await
}

/// What the table says, once the last saga is marked: its branches are done before.
async fn count(store: &str) -> anyhow::Result<Counts> {
    install_default_drivers();
    let pool = AnyPool::connect(store).await?;
    let of = async |statuses: &str| -> anyhow::Result<i64> {
        let sql = format!("SELECT COUNT(*) FROM trans_global WHERE status IN ({statuses})");
        Ok(sqlx::query_as::<_, (i64,)>(&sql).fetch_one(&pool).await?.0)
    };
    while of("'submitted', 'aborting'").await? > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Counts { completed: of("'succeed'").await?, rejected: of("'failed'").await? })
}
