//! An order: placed, then completed or rejected by its saga, and final from then on.
//!
//! ```text
//!             ┌── COMPLETED   reserved, charged, shipped
//! PENDING ────┤
//!             └── REJECTED    refused by a step or cancelled, and undone
//! ```
//!
//! It stays PENDING where an operator closes its saga by hand.

use libs::{
    cqrs::{Aggregate, Decision, State},
    refusal::Refusal,
    time::timestamp,
};
use proto::{
    google::r#type::Money,
    order::v1::{
        Order as Document, OrderCompleted, OrderEvent, OrderPlaced, OrderRecord, OrderRejected, OrderState,
        PlaceOrderRequest, PlaceOrderResponse, Rejection, order_event::Event,
    },
};

/// The aggregate; its id is the order's, and its saga's, reservation's, charge's and shipment's too.
#[derive(Debug)]
pub enum Order {}

impl Aggregate for Order {
    const KIND: &'static str = "order";
    type State = OrderRecord;
    type Event = OrderEvent;

    fn evolve(state: &mut OrderRecord, event: &OrderEvent) {
        fold(state.order.get_or_insert_default(), event);
    }

    fn event_name(event: &OrderEvent) -> &'static str {
        match event.event {
            Some(Event::Placed(_)) => "OrderPlaced",
            Some(Event::Completed(_)) => "OrderCompleted",
            Some(Event::Rejected(_)) => "OrderRejected",
            None => "OrderEvent",
        }
    }
}

/// The order after an event. The write side's state and the view are folded alike; the id is the caller's to set.
pub fn fold(order: &mut Document, event: &OrderEvent) {
    match &event.event {
        Some(Event::Placed(placed)) => {
            order.customer_id.clone_from(&placed.customer_id);
            order.items.clone_from(&placed.items);
            order.address.clone_from(&placed.address);
            order.create_time = placed.time;
            order.update_time = placed.time;
            order.set_state(OrderState::Pending);
        }
        Some(Event::Completed(completed)) => {
            order.total.clone_from(&completed.total);
            order.update_time = completed.time;
            order.set_state(OrderState::Completed);
        }
        Some(Event::Rejected(rejected)) => {
            order.rejection.clone_from(&rejected.rejection);
            order.update_time = rejected.time;
            order.set_state(OrderState::Rejected);
        }
        None => {}
    }
}

/// Places an order whose id is chosen. Its saga starts beside it, in the same transaction.
///
/// # Errors
/// ORDER_EXISTS.
pub fn place(state: &State<'_>, request: &PlaceOrderRequest) -> Result<Decision<PlaceOrderResponse>, Refusal> {
    let id = &request.order_id;
    if state.exists::<Order>(id) {
        let message = format!("order {id} was placed before");
        return Err(Refusal::already_exists("ORDER_EXISTS", message).with("order_id", id));
    }
    let placed = OrderPlaced {
        customer_id: request.customer_id.clone(),
        items: request.items.clone(),
        address: request.address.clone(),
        time: Some(timestamp(state.now_micros())),
    };
    let event = OrderEvent { event: Some(Event::Placed(placed)) };
    let mut order = Document { order_id: id.clone(), ..Document::default() };
    fold(&mut order, &event);
    Ok(Decision::reply(PlaceOrderResponse { order: Some(order) }).event::<Order>(id, &event))
}

/// Ends an order well: it was reserved, charged and shipped. Completing twice changes nothing.
///
/// # Errors
/// UNKNOWN_ORDER, ORDER_CLOSED when it was rejected.
pub fn complete(state: &State<'_>, order_id: &str, total: Option<Money>) -> Result<Decision<()>, Refusal> {
    match stands(state, order_id)? {
        OrderState::Completed => Ok(Decision::reply(())),
        OrderState::Rejected => Err(closed(order_id, OrderState::Rejected)),
        OrderState::Pending | OrderState::Unspecified => {
            let completed = OrderCompleted { total, time: Some(timestamp(state.now_micros())) };
            let event = OrderEvent { event: Some(Event::Completed(completed)) };
            Ok(Decision::reply(()).event::<Order>(order_id, &event))
        }
    }
}

/// Ends an order badly, once everything done for it is undone. Rejecting twice changes nothing.
///
/// # Errors
/// UNKNOWN_ORDER, ORDER_CLOSED when it was completed.
pub fn reject(state: &State<'_>, order_id: &str, rejection: Rejection) -> Result<Decision<()>, Refusal> {
    match stands(state, order_id)? {
        OrderState::Rejected => Ok(Decision::reply(())),
        OrderState::Completed => Err(closed(order_id, OrderState::Completed)),
        OrderState::Pending | OrderState::Unspecified => {
            let rejected = OrderRejected { rejection: Some(rejection), time: Some(timestamp(state.now_micros())) };
            let event = OrderEvent { event: Some(Event::Rejected(rejected)) };
            Ok(Decision::reply(()).event::<Order>(order_id, &event))
        }
    }
}

/// True once nothing can happen to the order any more.
#[must_use]
pub fn is_closed(order: &Document) -> bool {
    matches!(order.state(), OrderState::Completed | OrderState::Rejected)
}

/// True if it ended because somebody cancelled it, rather than by a step's refusal. A deadline that passed names no step either, and a
/// step may be refused as CANCELLED.
#[must_use]
pub fn is_cancelled(order: &Document) -> bool {
    order.rejection.as_ref().is_some_and(|rejection| rejection.step.is_empty() && rejection.reason == "CANCELLED")
}

/// There is no such order.
#[must_use]
pub fn unknown(order_id: &str) -> Refusal {
    Refusal::not_found("UNKNOWN_ORDER", format!("there is no order {order_id}")).with("order_id", order_id)
}

/// The order has ended.
#[must_use]
pub fn closed(order_id: &str, state: OrderState) -> Refusal {
    let how = if state == OrderState::Completed { "completed" } else { "rejected" };
    Refusal::precondition("ORDER_CLOSED", format!("order {order_id} is {how}")).with("order_id", order_id)
}

/// Its saga is parked. Why is its operator's to know.
#[must_use]
pub fn held_up(order_id: &str) -> Refusal {
    let message = format!("order {order_id} is held up: it can be cancelled once an operator has mended its saga");
    Refusal::precondition("SAGA_PARKED", message).with("order_id", order_id)
}

/// An operator has closed its saga as it was, and nothing ends the order any more.
#[must_use]
pub fn left_open(order_id: &str) -> Refusal {
    let message = format!(
        "order {order_id} stays pending: its saga was closed by an operator; GetSaga tells what was done and why: settle that by hand, \
         and place the order again under another id"
    );
    Refusal::precondition("SAGA_CLOSED_BY_OPERATOR", message).with("order_id", order_id)
}

fn stands(state: &State<'_>, order_id: &str) -> Result<OrderState, Refusal> {
    let order = state.get::<Order>(order_id)?.order;
    order.map(|order| order.state()).ok_or_else(|| unknown(order_id))
}

#[cfg(test)]
mod tests {
    use libs::cqrs::testing::{Given, given};
    use prost_types::Timestamp;
    use proto::{google::r#type::PostalAddress, order::v1::OrderItem};
    use tonic::Code;

    use super::*;

    const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanos: 5_000 };

    fn tea() -> PlaceOrderRequest {
        PlaceOrderRequest {
            order_id: "o1".to_owned(),
            customer_id: "ada".to_owned(),
            items: vec![OrderItem { sku: "tea".to_owned(), quantity: 2 }],
            address: Some(PostalAddress { region_code: "CH".to_owned(), ..PostalAddress::default() }),
            ..PlaceOrderRequest::default()
        }
    }

    fn placed() -> OrderEvent {
        let PlaceOrderRequest { customer_id, items, address, .. } = tea();
        OrderEvent { event: Some(Event::Placed(OrderPlaced { customer_id, items, address, time: Some(NOW) })) }
    }

    fn completed() -> OrderEvent {
        OrderEvent { event: Some(Event::Completed(OrderCompleted { total: total(), time: Some(NOW) })) }
    }

    fn rejected() -> OrderEvent {
        let rejected = OrderRejected { rejection: Some(no_money()), time: Some(NOW) };
        OrderEvent { event: Some(Event::Rejected(rejected)) }
    }

    fn total() -> Option<Money> {
        Some(Money { currency_code: "EUR".to_owned(), units: 6, nanos: 0 })
    }

    fn no_money() -> Rejection {
        Rejection {
            step: "charge_customer".to_owned(),
            reason: "INSUFFICIENT_FUNDS".to_owned(),
            message: "ada has nothing".to_owned(),
        }
    }

    fn today() -> Given {
        given().now_micros(1_700_000_000_000_005).aggregate::<Order>("o1")
    }

    #[test]
    fn a_placed_order_is_pending_and_knows_when() {
        let decision = today().when(|state| place(state, &tea())).expect("placed");
        assert_eq!(decision.events::<Order>(), [("o1".to_owned(), placed())]);
        let order = decision.reply_ref().order.clone().expect("an order");
        assert_eq!((order.order_id.as_str(), order.state()), ("o1", OrderState::Pending));
        assert_eq!((order.create_time, order.update_time), (Some(NOW), Some(NOW)));
        assert_eq!(order.items, tea().items);
    }

    #[test]
    fn an_order_id_is_taken_once() {
        let world = today().event::<Order>("o1", &placed());
        let refusal = world.when(|state| place(state, &tea())).expect_err("taken");
        assert_eq!((refusal.code, &*refusal.reason), (Code::AlreadyExists, "ORDER_EXISTS"));
    }

    #[test]
    fn a_pending_order_can_end_well_or_badly() {
        let world = today().event::<Order>("o1", &placed());
        let decision = world.when(|state| complete(state, "o1", total())).expect("it is pending");
        assert_eq!(decision.events::<Order>(), [("o1".to_owned(), completed())]);
        let decision = world.when(|state| reject(state, "o1", no_money())).expect("it is pending");
        assert_eq!(decision.events::<Order>(), [("o1".to_owned(), rejected())]);
    }

    #[test]
    fn ending_an_order_twice_the_same_way_changes_nothing() {
        let world = today().event::<Order>("o1", &placed());
        let done = world.clone().event::<Order>("o1", &completed());
        let decision = done.when(|state| complete(state, "o1", total())).expect("it is completed");
        assert_eq!(decision.events::<Order>(), []);
        let undone = world.event::<Order>("o1", &rejected());
        let decision = undone.when(|state| reject(state, "o1", no_money())).expect("it is rejected");
        assert_eq!(decision.events::<Order>(), []);
    }

    #[test]
    fn an_order_that_ended_one_way_never_ends_the_other() {
        let world = today().event::<Order>("o1", &placed());
        let done = world.clone().event::<Order>("o1", &completed());
        assert_eq!(done.when(|state| reject(state, "o1", no_money())).expect_err("final").reason, "ORDER_CLOSED");
        let undone = world.event::<Order>("o1", &rejected());
        assert_eq!(undone.when(|state| complete(state, "o1", total())).expect_err("final").reason, "ORDER_CLOSED");
    }

    #[test]
    fn only_what_somebody_cancelled_is_cancelled() {
        let rejected = |step: &str, reason: &str| {
            let rejection = Rejection { step: step.to_owned(), reason: reason.to_owned(), message: String::new() };
            is_cancelled(&Document { rejection: Some(rejection), ..Document::default() })
        };
        assert!(rejected("", "CANCELLED"));
        assert!(!rejected("", "DEADLINE_PASSED"));
        assert!(!rejected("charge_customer", "INSUFFICIENT_FUNDS"));
        assert!(!rejected("charge_customer", "CANCELLED"));
        assert!(!is_cancelled(&Document::default()));
    }

    #[test]
    fn an_order_that_was_never_placed_can_not_end() {
        assert_eq!(today().when(|state| complete(state, "o1", total())).expect_err("unknown").reason, "UNKNOWN_ORDER");
    }
}
