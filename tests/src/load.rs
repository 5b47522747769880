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
use proto::order::v1::{CancelOrderRequest, Order, OrderState, PlaceOrderRequest};
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
    customers: JoinSet<anyhow::Result<Vec<(String, Told)>>>,
    closing: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

/// What a customer was told of an order.
#[derive(Clone, Debug)]
pub struct Told {
    /// What was hoped for.
    pub wish: Wish,
    /// What was asked for.
    pub asked: PlaceOrderRequest,
    /// The order as it ended, for who waited for that.
    pub end: Option<Order>,
    /// How a cancel was answered, where one was asked for: that it is done, or that it is too late.
    pub cancelled: Option<bool>,
}

impl Told {
    /// Says what is wrong with the order's end, given what was hoped for and what was told.
    #[must_use]
    pub fn disappointment(&self, order: &Order) -> Option<String> {
        let id = &order.order_id;
        let PlaceOrderRequest { customer_id, items, address, .. } = &self.asked;
        if (customer_id, items, address) != (&order.customer_id, &order.items, &order.address) {
            return Some(format!("order {id} was asked for as {:?}, but is {order:?}", self.asked));
        }
        let is_cancelled = order.rejection.as_ref().is_some_and(|rejection| rejection.reason == "CANCELLED");
        match self.cancelled {
            Some(true) if order.state() == OrderState::Completed => {
                return Some(format!("order {id} was answered as cancelled, but is completed"));
            }
            // Nobody else cancels it.
            Some(false) if is_cancelled => {
                return Some(format!("order {id} was answered as past cancelling, but is cancelled"));
            }
            _ => {}
        }
        if let Some(told) = &self.end {
            let end = |order: &Order| (order.state(), order.total.clone(), order.rejection.clone());
            if end(told) != end(order) || told.state() == OrderState::Pending {
                return Some(format!("order {id} was answered to end {:?}, but ended {:?}", end(told), end(order)));
            }
        }
        self.wish.disappointment(order)
    }
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

    /// Lets every customer get the answer that is outstanding, and says what each was told of which order.
    ///
    /// # Errors
    /// When an answer doesn't come `within` the time, or was one that no customer should get.
    pub async fn end(mut self, within: Duration) -> anyhow::Result<BTreeMap<String, Told>> {
        self.closing.store(true, Ordering::Relaxed);
        let all = async {
            let mut orders = BTreeMap::new();
            while let Some(customer) = self.customers.join_next().await {
                for (order, told) in customer?? {
                    if orders.insert(order.clone(), told).is_some() {
                        bail!("two requests were answered with the order {order}");
                    }
                }
            }
            Ok(orders)
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
    async fn shop(mut self) -> anyhow::Result<Vec<(String, Told)>> {
        let mut orders = Vec::new();
        while !self.closing.load(Ordering::Relaxed) {
            let wish = Wish::draw(&mut self.random);
            let request = wish.request(&mut self.random);
            let waits = request.wait_for_completion;
            let order = self.place(&request).await?;
            let id = order.order_id.clone();
            let cancelled = if wish == Wish::Regretted { Some(self.cancel(&id).await?) } else { None };
            orders.push((id, Told { wish, asked: request, end: waits.then_some(order), cancelled }));
        }
        Ok(orders)
    }

    async fn place(&self, request: &PlaceOrderRequest) -> anyhow::Result<Order> {
        let mut commands = self.clients.order_commands();
        loop {
            let attempt = timed(request.clone());
            let Some(answer) = self.answered(commands.place_order(attempt).await)? else {
                sleep(PAUSE).await;
                continue;
            };
            let order = answer.into_inner().order.context("PlaceOrder answered no order")?;
            let id = &order.order_id;
            if !request.order_id.is_empty() && *id != request.order_id {
                bail!("order {} was asked for, but {id} answered", request.order_id);
            }
            self.counts.orders.fetch_add(1, Ordering::Relaxed);
            return Ok(order);
        }
    }

    /// Cancels until there is an answer, and says whether that was accepted. That it is too late is an answer too.
    async fn cancel(&self, order: &str) -> anyhow::Result<bool> {
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
                let why = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
                if !["PAST_PIVOT", "ORDER_CLOSED"].contains(&why.as_str()) {
                    bail!("order {order} can't be cancelled: {why}, {}", status.message());
                }
                return Ok(false);
            }
            if self.answered(answer)?.is_some() {
                return Ok(true);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shop::usd;

    fn ended(state: OrderState) -> Order {
        Order { order_id: "a".to_owned(), customer_id: "ann".to_owned(), state: state.into(), ..Order::default() }
    }

    fn told(wish: Wish, end: Option<Order>, cancelled: Option<bool>) -> Told {
        let asked = PlaceOrderRequest { customer_id: "ann".to_owned(), ..PlaceOrderRequest::default() };
        Told { wish, asked, end, cancelled }
    }

    #[test]
    fn an_order_ends_as_its_cancel_was_answered() {
        let rejection = Some(proto::order::v1::Rejection { reason: "CANCELLED".to_owned(), ..Default::default() });
        let (completed, cancelled) = (ended(OrderState::Completed), Order { rejection, ..ended(OrderState::Rejected) });
        for (answer, end, is_so) in [
            (Some(true), &cancelled, true),
            (Some(true), &completed, false),
            (Some(false), &completed, true),
            (Some(false), &cancelled, false),
        ] {
            let disappointment = told(Wish::Regretted, None, answer).disappointment(end);
            assert_eq!(disappointment.is_none(), is_so, "{answer:?}: {disappointment:?}");
        }
    }

    #[test]
    fn an_end_that_was_told_is_the_order_s_end() {
        let told = |end| told(Wish::Fine, Some(end), None);
        let completed = Order { total: Some(usd(6)), ..ended(OrderState::Completed) };
        assert_eq!(told(completed.clone()).disappointment(&completed), None);
        let dearer = Order { total: Some(usd(7)), ..completed.clone() };
        for other in [dearer, ended(OrderState::Rejected), ended(OrderState::Pending)] {
            assert!(told(other.clone()).disappointment(&completed).is_some(), "{other:?}");
        }
        let pending = ended(OrderState::Pending);
        assert!(told(pending.clone()).disappointment(&pending).is_some());
    }

    #[test]
    fn an_order_is_what_was_asked_for() {
        let told = told(Wish::Fine, None, None);
        let completed = ended(OrderState::Completed);
        let item = proto::order::v1::OrderItem { sku: "tea".to_owned(), quantity: 1 };
        for other in [
            Order { customer_id: "bob".to_owned(), ..completed.clone() },
            Order { items: vec![item], ..completed.clone() },
            Order { address: Some(Default::default()), ..completed },
        ] {
            assert!(told.disappointment(&other).is_some(), "{other:?}");
        }
    }
}
