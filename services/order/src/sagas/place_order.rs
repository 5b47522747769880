//! Gets a customer what was ordered, or leaves everything as it was.
//!
//! | step | kind | does | undone by |
//! |---|---|---|---|
//! | `reserve_inventory` | compensatable | sets the items aside, all or none, and says what they cost | releasing them |
//! | `charge_customer` | compensatable | takes that much from the account | refunding it |
//! | `ship_order` | pivot | hands the parcels to the carrier: no way back | – |
//! | `complete_order` | retriable, local | ends the order well | – |
//!
//! The order's id is the reservation's, the charge's and the shipment's too.

use std::sync::Arc;

use libs::{
    cqrs::{Aggregate as _, Decision, State},
    journal::{AggregateId, Loaded},
    refusal::Refusal,
    saga::{Definition, DefinitionError, LocalWork},
};
use proto::{
    inventory::v1::{Item, ReleaseStockRequest, ReserveStockRequest},
    order::v1::{Order, OrderItem, Rejection},
    payment::v1::{ChargeCustomerRequest, RefundChargeRequest},
    saga::v1::{Saga, SagaPhase, Step, StepState},
    shipping::v1::{CreateShipmentRequest, Parcel},
};

use crate::{
    domain::{self, order},
    steps::{inventory::ReserveStock, payment::ChargeCustomer, shipping::CreateShipment},
};

/// The definition's name, stable for ever.
pub const PLACE_ORDER: &str = "place-order";

/// The step that ends the order well.
const COMPLETE_ORDER: &str = "complete_order";

/// The definition. A saga starts from the order as it was placed.
///
/// # Errors
/// When its shape is wrong, which a test rules out.
pub fn definition() -> Result<Arc<Definition>, DefinitionError> {
    let mut saga = Definition::builder::<Order>(PLACE_ORDER, 1);
    let reserved = saga.compensatable::<ReserveStock>(
        "reserve_inventory",
        |order, _| {
            Ok(ReserveStockRequest {
                reservation_id: order.order_id.clone(),
                items: items(order),
                ..ReserveStockRequest::default()
            })
        },
        |undo| ReleaseStockRequest {
            reservation_id: undo.input.order_id.clone(),
            items: items(undo.input),
            ..ReleaseStockRequest::default()
        },
    );
    saga.compensatable::<ChargeCustomer>(
        "charge_customer",
        move |order, replies| {
            Ok(ChargeCustomerRequest {
                charge_id: order.order_id.clone(),
                customer_id: order.customer_id.clone(),
                amount: replies.get(reserved)?.total,
                ..ChargeCustomerRequest::default()
            })
        },
        |undo| RefundChargeRequest {
            charge_id: undo.input.order_id.clone(),
            customer_id: undo.input.customer_id.clone(),
            ..RefundChargeRequest::default()
        },
    );
    saga.pivot::<CreateShipment>("ship_order", |order, _| {
        Ok(CreateShipmentRequest {
            shipment_id: order.order_id.clone(),
            address: order.address.clone(),
            parcels: parcels(order),
            ..CreateShipmentRequest::default()
        })
    });
    saga.retriable_local(COMPLETE_ORDER, move |order, replies| {
        let (id, total) = (order.order_id.clone(), replies.get(reserved)?.total);
        Ok(on_order(&id.clone(), move |state| order::complete(state, &id, total)))
    });
    saga.on_compensated(|order, reason| {
        let id = order.order_id.clone();
        let rejection =
            Rejection { step: reason.step.clone(), reason: reason.reason.clone(), message: reason.message.clone() };
        Ok(on_order(&id.clone(), move |state| order::reject(state, &id, rejection)))
    });
    saga.build()
}

/// True if an operator has closed the saga in such a way that nothing ends its order any more: as it was, or by skipping the step that
/// would have.
#[must_use]
pub fn left_open(saga: &Saga) -> bool {
    let skipped = |step: &Step| step.name == COMPLETE_ORDER && step.state() == StepState::Skipped;
    match saga.phase() {
        SagaPhase::ForceClosed => true,
        SagaPhase::Completed => saga.steps.iter().any(skipped),
        _ => false,
    }
}

/// A decision over the order, in the transaction of the saga's own step.
fn on_order(
    order_id: &str,
    decide: impl FnOnce(&State<'_>) -> Result<Decision<()>, Refusal> + Send + 'static,
) -> LocalWork {
    LocalWork {
        aggregates: vec![AggregateId::new(domain::Order::KIND, order_id)],
        decide: Box::new(|loaded: &Loaded<'_>| decide(&State::new(loaded))?.into_decided(loaded)),
    }
}

fn items(order: &Order) -> Vec<Item> {
    let item = |OrderItem { sku, quantity }: &OrderItem| Item { sku: sku.clone(), quantity: *quantity };
    order.items.iter().map(item).collect()
}

fn parcels(order: &Order) -> Vec<Parcel> {
    let parcel = |OrderItem { sku, quantity }: &OrderItem| Parcel { sku: sku.clone(), quantity: *quantity };
    order.items.iter().map(parcel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_legal_and_calls_three_peers() {
        let definition = definition().expect("legal");
        assert_eq!(definition.name(), PLACE_ORDER);
        assert_eq!(definition.peers().collect::<Vec<_>>(), ["inventory", "payment", "shipping"]);
    }

    #[test]
    fn a_saga_that_an_operator_closed_leaves_its_order_open() {
        let saga = |phase: SagaPhase, last: StepState| {
            let step = Step { name: "complete_order".to_owned(), state: last.into(), ..Step::default() };
            left_open(&Saga { phase: phase.into(), steps: vec![step], ..Saga::default() })
        };
        assert!(saga(SagaPhase::ForceClosed, StepState::Unspecified));
        assert!(saga(SagaPhase::Completed, StepState::Skipped));
        assert!(!saga(SagaPhase::Completed, StepState::Done));
        assert!(!saga(SagaPhase::Compensated, StepState::Unspecified));
        assert!(!saga(SagaPhase::Stuck, StepState::Unspecified));
    }
}
