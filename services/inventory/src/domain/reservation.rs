//! A reservation: units of one or many SKUs set aside together, all or none, and put back together.

use libs::{
    cqrs::{Aggregate, Decision, State},
    money::Amount,
    refusal::Refusal,
};
use proto::inventory::v1::{
    Item, ReleaseStockRequest, ReleaseStockResponse, ReservationEvent, ReservationMade, ReservationReleased,
    ReservationState, ReserveStockRequest, ReserveStockResponse, StockEvent, StockReleased, StockReserved,
    reservation_event::Event, stock_event,
};

use super::Stock;

/// The aggregate; its id is the caller's, an order's own.
#[derive(Debug)]
pub enum Reservation {}

impl Aggregate for Reservation {
    const KIND: &'static str = "reservation";
    type State = ReservationState;
    type Event = ReservationEvent;

    fn evolve(state: &mut ReservationState, event: &ReservationEvent) {
        match &event.event {
            Some(Event::Made(made)) => state.items.clone_from(&made.items),
            Some(Event::Released(_)) => state.released = true,
            None => {}
        }
    }

    fn event_name(event: &ReservationEvent) -> &'static str {
        match event.event {
            Some(Event::Made(_)) => "ReservationMade",
            Some(Event::Released(_)) => "ReservationReleased",
            None => "ReservationEvent",
        }
    }
}

/// Sets the units of every item aside, or none, and answers what they cost together.
///
/// # Errors
/// RESERVATION_EXISTS, UNKNOWN_SKU, INSUFFICIENT_STOCK, CURRENCY_MISMATCH when the items are priced in several currencies,
/// AMOUNT_OVERFLOW when they cost more than can be written.
pub fn reserve(state: &State<'_>, request: &ReserveStockRequest) -> Result<Decision<ReserveStockResponse>, Refusal> {
    let id = &request.reservation_id;
    if state.exists::<Reservation>(id) {
        let message = format!("reservation {id} was made before");
        return Err(Refusal::already_exists("RESERVATION_EXISTS", message).with("reservation_id", id));
    }
    let mut total: Option<Amount> = None;
    for item in &request.items {
        let cost = price(state, item)?.times(item.quantity)?;
        total = Some(total.map_or(Ok(cost), |sum| sum.plus(cost))?);
    }
    let total = total.map(Into::into);
    let made = ReservationMade { items: request.items.clone(), total: total.clone() };
    let reply = Decision::reply(ReserveStockResponse { reservation_id: id.clone(), total })
        .event::<Reservation>(id, &ReservationEvent { event: Some(Event::Made(made)) });
    Ok(request.items.iter().fold(reply, |decision, item| {
        let reserved = StockReserved { quantity: item.quantity, reservation_id: id.clone() };
        let event = StockEvent { event: Some(stock_event::Event::Reserved(reserved)) };
        decision.event::<Stock>(&item.sku, &event)
    }))
}

/// The unit price of an item of which there is enough.
fn price(state: &State<'_>, item: &Item) -> Result<Amount, Refusal> {
    let Item { sku, quantity } = item;
    if !state.exists::<Stock>(sku) {
        let message = format!("there is no sku {sku}");
        return Err(Refusal::not_found("UNKNOWN_SKU", message).with("sku", sku));
    }
    let stock = state.get::<Stock>(sku)?;
    if stock.available < *quantity {
        let available = stock.available.to_string();
        let message = format!("sku {sku} has {available} units available, {quantity} are wanted");
        return Err(Refusal::precondition("INSUFFICIENT_STOCK", message)
            .with("sku", sku)
            .with("wanted", quantity.to_string())
            .with("available", available));
    }
    Amount::stored(stock.unit_price.as_ref())
}

/// Puts a reservation's units back. Once they are back, asking again changes nothing.
///
/// # Errors
/// UNKNOWN_RESERVATION, RESERVATION_DIFFERS when the items named are not the reserved ones.
pub fn release(state: &State<'_>, request: &ReleaseStockRequest) -> Result<Decision<ReleaseStockResponse>, Refusal> {
    let id = &request.reservation_id;
    if !state.exists::<Reservation>(id) {
        let message = format!("there is no reservation {id}");
        return Err(Refusal::not_found("UNKNOWN_RESERVATION", message).with("reservation_id", id));
    }
    let reservation = state.get::<Reservation>(id)?;
    if by_sku(&reservation.items) != by_sku(&request.items) {
        let message = format!("reservation {id} is of other items");
        return Err(Refusal::precondition("RESERVATION_DIFFERS", message).with("reservation_id", id));
    }
    let reply = Decision::reply(ReleaseStockResponse { reservation_id: id.clone() });
    if reservation.released {
        return Ok(reply);
    }
    let released = ReservationEvent { event: Some(Event::Released(ReservationReleased {})) };
    Ok(request.items.iter().fold(reply.event::<Reservation>(id, &released), |decision, item| {
        let released = StockReleased { quantity: item.quantity, reservation_id: id.clone() };
        let event = StockEvent { event: Some(stock_event::Event::Released(released)) };
        decision.event::<Stock>(&item.sku, &event)
    }))
}

/// The items in an order of their own, since callers may name them in any.
fn by_sku(items: &[Item]) -> Vec<(&str, i64)> {
    let mut items: Vec<_> = items.iter().map(|item| (item.sku.as_str(), item.quantity)).collect();
    items.sort_unstable();
    items
}

#[cfg(test)]
mod tests {
    use libs::cqrs::testing::{Given, given};
    use proto::google::r#type::Money;
    use tonic::Code;

    use super::{
        super::stock::tests::{added, euros},
        *,
    };

    fn items(items: &[(&str, i64)]) -> Vec<Item> {
        items.iter().map(|&(sku, quantity)| Item { sku: sku.to_owned(), quantity }).collect()
    }

    /// Ten of tea at 3 and five of jam at 4, and nobody wants them yet.
    fn shelf() -> Given {
        given()
            .aggregate::<Reservation>("r1")
            .event::<Stock>("tea", &added(10, 3))
            .event::<Stock>("jam", &added(5, 4))
            .aggregate::<Stock>("gold")
    }

    fn made(wanted: &[(&str, i64)], total: i64) -> ReservationEvent {
        ReservationEvent { event: Some(Event::Made(ReservationMade { items: items(wanted), total: euros(total) })) }
    }

    fn released() -> ReservationEvent {
        ReservationEvent { event: Some(Event::Released(ReservationReleased {})) }
    }

    fn reserving(world: &Given, wanted: &[(&str, i64)]) -> Result<Decision<ReserveStockResponse>, Refusal> {
        let request = ReserveStockRequest {
            reservation_id: "r1".to_owned(),
            items: items(wanted),
            ..ReserveStockRequest::default()
        };
        world.when(|state| reserve(state, &request))
    }

    fn releasing(world: &Given, named: &[(&str, i64)]) -> Result<Decision<ReleaseStockResponse>, Refusal> {
        let request = ReleaseStockRequest {
            reservation_id: "r1".to_owned(),
            items: items(named),
            ..ReleaseStockRequest::default()
        };
        world.when(|state| release(state, &request))
    }

    /// What a decision changed: units set aside (positive) or put back (negative), by SKU.
    fn moved<R: prost::Message>(decision: &Decision<R>) -> Vec<(String, i64)> {
        let units = |(sku, event): (String, StockEvent)| match event.event {
            Some(stock_event::Event::Reserved(reserved)) => Some((sku, reserved.quantity)),
            Some(stock_event::Event::Released(released)) => Some((sku, -released.quantity)),
            _ => None,
        };
        decision.events::<Stock>().into_iter().filter_map(units).collect()
    }

    #[test]
    fn all_items_are_set_aside_together_and_their_cost_is_answered() {
        let decision = reserving(&shelf(), &[("tea", 10), ("jam", 2)]).expect("there is enough");
        assert_eq!(decision.reply_ref().total, euros(38));
        assert_eq!(moved(&decision), [("tea".to_owned(), 10), ("jam".to_owned(), 2)]);
        assert_eq!(decision.events::<Reservation>(), [("r1".to_owned(), made(&[("tea", 10), ("jam", 2)], 38))]);
    }

    #[test]
    fn too_little_of_one_item_sets_nothing_aside() {
        let refusal = reserving(&shelf(), &[("tea", 1), ("jam", 6)]).expect_err("only five of jam");
        assert_eq!((refusal.code, &*refusal.reason), (Code::FailedPrecondition, "INSUFFICIENT_STOCK"));
        let facts = ["sku", "wanted", "available"].map(|fact| refusal.metadata[fact].as_str());
        assert_eq!(facts, ["jam", "6", "5"]);
    }

    #[test]
    fn an_unknown_sku_is_not_found() {
        let refusal = reserving(&shelf(), &[("tea", 1), ("gold", 1)]).expect_err("no gold here");
        assert_eq!((refusal.code, &*refusal.reason), (Code::NotFound, "UNKNOWN_SKU"));
        assert_eq!(refusal.metadata["sku"], "gold");
    }

    #[test]
    fn a_reservation_is_made_once_even_after_its_release() {
        let world = shelf().event::<Reservation>("r1", &made(&[("tea", 1)], 3));
        for world in [world.clone(), world.event::<Reservation>("r1", &released())] {
            let refusal = reserving(&world, &[("tea", 1)]).expect_err("it was made before");
            assert_eq!((refusal.code, &*refusal.reason), (Code::AlreadyExists, "RESERVATION_EXISTS"));
        }
    }

    #[test]
    fn items_of_two_currencies_have_no_total() {
        let price = Some(Money { currency_code: "USD".to_owned(), units: 9, nanos: 0 });
        let dollars = stock_event::Event::Added(proto::inventory::v1::StockAdded { quantity: 9, unit_price: price });
        let world = shelf().event::<Stock>("gold", &StockEvent { event: Some(dollars) });
        let refusal = reserving(&world, &[("tea", 1), ("gold", 1)]).expect_err("two currencies");
        assert_eq!(refusal.reason, "CURRENCY_MISMATCH");
    }

    #[test]
    fn a_total_that_can_not_be_written_is_refused() {
        let world = shelf().event::<Stock>("gold", &added(10, i64::MAX));
        let refusal = reserving(&world, &[("gold", 2)]).expect_err("too dear");
        assert_eq!((refusal.code, &*refusal.reason), (Code::OutOfRange, "AMOUNT_OVERFLOW"));
    }

    #[test]
    fn a_release_puts_everything_back_whatever_the_order_of_its_items() {
        let world = shelf().event::<Reservation>("r1", &made(&[("tea", 10), ("jam", 2)], 38));
        let decision = releasing(&world, &[("jam", 2), ("tea", 10)]).expect("the same items");
        assert_eq!(moved(&decision), [("jam".to_owned(), -2), ("tea".to_owned(), -10)]);
        assert_eq!(decision.events::<Reservation>(), [("r1".to_owned(), released())]);
    }

    #[test]
    fn releasing_twice_changes_nothing() {
        let world =
            shelf().event::<Reservation>("r1", &made(&[("tea", 10)], 30)).event::<Reservation>("r1", &released());
        let decision = releasing(&world, &[("tea", 10)]).expect("it is released");
        assert_eq!(moved(&decision), []);
        assert_eq!(decision.events::<Reservation>(), []);
    }

    #[test]
    fn only_the_reserved_items_can_be_released() {
        let refusal = releasing(&shelf(), &[("tea", 10)]).expect_err("nothing was reserved");
        assert_eq!((refusal.code, &*refusal.reason), (Code::NotFound, "UNKNOWN_RESERVATION"));

        let world = shelf().event::<Reservation>("r1", &made(&[("tea", 10)], 30));
        for named in [&[("tea", 9)][..], &[("jam", 10)], &[("tea", 10), ("jam", 1)]] {
            let refusal = releasing(&world, named).expect_err("other items");
            assert_eq!((refusal.code, &*refusal.reason), (Code::FailedPrecondition, "RESERVATION_DIFFERS"));
        }
    }
}
