//! Customers who place order after order and, when no answer comes, ask again with the same request until one does.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use proto::order::v1::{CancelOrderRequest, PlaceOrderRequest};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::{Clients, wish::Wish};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two attempts: a service that is down says so at once, again and again.
const PAUSE: Duration = Duration::from_millis(20);

/// Customers at work.
#[derive(Debug)]
pub struct Load {
    customers: JoinSet<anyhow::Result<Vec<(String, Wish)>>>,
    closing: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

/// How far a load has come.
#[derive(Debug, Default)]
pub struct Counts {
    /// Orders accepted.
    pub orders: AtomicU64,
    /// Attempts that got no answer.
    pub retries: AtomicU64,
}

impl Load {
    /// Begins with a number of customers, who differ by the seed.
    #[must_use]
    pub fn begin(clients: &Clients, customers: u64, seed: u64) -> Self {
        let closing = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let mut set = JoinSet::new();
        for customer in 0..customers {
            let customer = Customer {
                clients: clients.clone(),
                random: StdRng::seed_from_u64(seed ^ (customer + 1).rotate_left(32)),
                closing: closing.clone(),
                counts: counts.clone(),
            };
            set.spawn(customer.shop());
        }
        Self { customers: set, closing, counts }
    }

    /// How far it has come.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Lets every customer get the answer that is outstanding, and says what order each wish became.
    ///
    /// # Errors
    /// When an answer doesn't come `within` the time, or was one that no customer should get.
    pub async fn end(mut self, within: Duration) -> anyhow::Result<BTreeMap<String, Wish>> {
        self.closing.store(true, Ordering::Relaxed);
        let all = async {
            let mut wishes = BTreeMap::new();
            while let Some(customer) = self.customers.join_next().await {
                for (order, wish) in customer?? {
                    if wishes.insert(order.clone(), wish).is_some() {
                        bail!("two requests were answered with the order {order}");
                    }
                }
            }
            Ok(wishes)
        };
        timeout(within, all).await.with_context(|| format!("some orders were not answered within {within:?}"))?
    }
}

struct Customer {
    clients: Clients,
    random: StdRng,
    closing: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

impl Customer {
    async fn shop(mut self) -> anyhow::Result<Vec<(String, Wish)>> {
        let mut wishes = Vec::new();
        while !self.closing.load(Ordering::Relaxed) {
            let wish = Wish::draw(&mut self.random);
            let request = wish.request(&mut self.random);
            let order = self.place(request).await?;
            if wish == Wish::Regretted {
                self.cancel(&order).await?;
            }
            wishes.push((order, wish));
        }
        Ok(wishes)
    }

    async fn place(&self, request: PlaceOrderRequest) -> anyhow::Result<String> {
        let mut commands = self.clients.order_commands();
        loop {
            let attempt = timed(request.clone());
            let Some(answer) = self.answered(commands.place_order(attempt).await)? else {
                sleep(PAUSE).await;
                continue;
            };
            let id = answer.into_inner().order.context("PlaceOrder answered no order")?.order_id;
            if !request.order_id.is_empty() && id != request.order_id {
                bail!("order {} was asked for, but {id} answered", request.order_id);
            }
            self.counts.orders.fetch_add(1, Ordering::Relaxed);
            return Ok(id);
        }
    }

    /// Cancels until there is an answer; that it is too late is one too.
    async fn cancel(&self, order: &str) -> anyhow::Result<()> {
        let mut commands = self.clients.order_commands();
        loop {
            let request = CancelOrderRequest {
                request_id: format!("cancel-{order}"),
                order_id: order.to_owned(),
                reason: "changed my mind".to_owned(),
            };
            let answer = commands.cancel_order(timed(request)).await;
            if let Err(status) = &answer
                && status.code() == Code::FailedPrecondition
            {
                return Ok(());
            }
            if self.answered(answer)?.is_some() {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
    }

    /// The answer; none when the attempt may be repeated; an error when it should not have been given.
    fn answered<T>(&self, answer: Result<T, Status>) -> anyhow::Result<Option<T>> {
        let status = match answer {
            Ok(answer) => return Ok(Some(answer)),
            Err(status) => status,
        };
        let said = status.get_details_error_info().is_some();
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted => {}
            // Of a broken connection, from this end of it. A server that says so itself must not.
            Code::Internal | Code::Unknown if !said => {}
            _ => bail!("an order was answered {:?}: {}", status.code(), status.message()),
        }
        self.counts.retries.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ATTEMPT);
    request
}
