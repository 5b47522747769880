//! The stock of one SKU: units come in at a price, are set aside, and are put back.

use libs::{
    cqrs::{Aggregate, Decision, State},
    money::{Amount, MoneyError},
    refusal::Refusal,
};
use proto::inventory::v1::{AddStockRequest, AddStockResponse, StockAdded, StockEvent, StockState, stock_event::Event};

/// The aggregate; its id is the SKU.
#[derive(Debug)]
pub enum Stock {}

impl Aggregate for Stock {
    const KIND: &'static str = "stock";
    type State = StockState;
    type Event = StockEvent;

    fn evolve(state: &mut StockState, event: &StockEvent) {
        match &event.event {
            Some(Event::Added(added)) => {
                state.available += added.quantity;
                state.unit_price.clone_from(&added.unit_price);
            }
            Some(Event::Reserved(reserved)) => {
                state.available -= reserved.quantity;
                state.reserved += reserved.quantity;
            }
            Some(Event::Released(released)) => {
                state.available += released.quantity;
                state.reserved -= released.quantity;
            }
            None => {}
        }
    }

    fn event_name(event: &StockEvent) -> &'static str {
        match event.event {
            Some(Event::Added(_)) => "StockAdded",
            Some(Event::Reserved(_)) => "StockReserved",
            Some(Event::Released(_)) => "StockReleased",
            None => "StockEvent",
        }
    }
}

/// Adds units and sets the unit price.
///
/// # Errors
/// CURRENCY_MISMATCH when the price's currency would change, QUANTITY_OVERFLOW when the units can't be counted any more.
pub fn add(state: &State<'_>, request: &AddStockRequest) -> Result<Decision<AddStockResponse>, Refusal> {
    let mut stock = state.get::<Stock>(&request.sku)?;
    if stock.unit_price.is_some() {
        same_currency(Amount::stored(stock.unit_price.as_ref())?, Amount::stored(request.unit_price.as_ref())?)?;
    }
    // All units ever added, so that no sum over one SKU can overflow.
    let added = (stock.available + stock.reserved).checked_add(request.quantity);
    if added.is_none() {
        let message = format!("sku {} can't hold {} units more", request.sku, request.quantity);
        return Err(Refusal::out_of_range("QUANTITY_OVERFLOW", message).with("sku", &request.sku));
    }
    let added = StockAdded { quantity: request.quantity, unit_price: request.unit_price.clone() };
    let event = StockEvent { event: Some(Event::Added(added)) };
    Stock::evolve(&mut stock, &event);
    let reply = AddStockResponse { sku: request.sku.clone(), available: stock.available, reserved: stock.reserved };
    Ok(Decision::reply(reply).event::<Stock>(&request.sku, &event))
}

fn same_currency(price: Amount, other: Amount) -> Result<(), MoneyError> {
    price.covers(other).map(drop)
}

#[cfg(test)]
pub(super) mod tests {
    use libs::cqrs::testing::{Given, given};
    use proto::google::r#type::Money;
    use tonic::Code;

    use super::*;

    pub(in crate::domain) fn euros(units: i64) -> Option<Money> {
        Some(Money { currency_code: "EUR".to_owned(), units, nanos: 0 })
    }

    pub(in crate::domain) fn added(quantity: i64, price: i64) -> StockEvent {
        StockEvent { event: Some(Event::Added(StockAdded { quantity, unit_price: euros(price) })) }
    }

    fn tea(quantity: i64, unit_price: Option<Money>) -> AddStockRequest {
        AddStockRequest { sku: "tea".to_owned(), quantity, unit_price, ..AddStockRequest::default() }
    }

    fn adding(world: &Given, request: &AddStockRequest) -> Result<(AddStockResponse, Vec<StockEvent>), Refusal> {
        let decision = world.when(|state| add(state, request))?;
        let events = decision.events::<Stock>().into_iter().map(|(_, event)| event).collect();
        Ok((decision.reply_ref().clone(), events))
    }

    #[test]
    fn the_first_addition_makes_the_sku() {
        let (reply, events) = adding(&given().aggregate::<Stock>("tea"), &tea(5, euros(3))).expect("added");
        assert_eq!(reply, AddStockResponse { sku: "tea".to_owned(), available: 5, reserved: 0 });
        assert_eq!(events, [added(5, 3)]);
    }

    #[test]
    fn a_later_addition_adds_and_sets_the_price() {
        let (reply, events) = adding(&given().event::<Stock>("tea", &added(5, 3)), &tea(2, euros(4))).expect("added");
        assert_eq!(reply.available, 7);
        assert_eq!(events, [added(2, 4)]);
    }

    #[test]
    fn the_currency_of_a_price_stays() {
        let dollars = Some(Money { currency_code: "USD".to_owned(), units: 3, nanos: 0 });
        let refusal = adding(&given().event::<Stock>("tea", &added(5, 3)), &tea(2, dollars)).expect_err("refused");
        assert_eq!((refusal.code, &*refusal.reason), (Code::FailedPrecondition, "CURRENCY_MISMATCH"));
    }

    #[test]
    fn more_units_than_can_be_counted_are_refused() {
        let full = given().event::<Stock>("tea", &added(i64::MAX, 3));
        let refusal = adding(&full, &tea(1, euros(3))).expect_err("refused");
        assert_eq!((refusal.code, &*refusal.reason), (Code::OutOfRange, "QUANTITY_OVERFLOW"));
    }
}
