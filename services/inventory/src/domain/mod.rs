//! The rules of the stock: what may happen, and what follows from it. Nothing here waits, reads a clock or knows a wire.

pub mod reservation;
pub mod stock;

pub use self::{reservation::Reservation, stock::Stock};

#[cfg(test)]
mod tests {
    use libs::cqrs::{
        Decision, State,
        testing::{Given, given},
    };
    use libs::refusal::Refusal;
    use proptest::prelude::*;
    use proto::inventory::v1::{AddStockRequest, Item, ReleaseStockRequest, ReserveStockRequest};

    use super::{stock::tests::euros, *};

    const SKUS: [&str; 3] = ["tea", "jam", "bun"];
    const RESERVATIONS: [&str; 4] = ["r0", "r1", "r2", "r3"];

    #[derive(Clone, Debug)]
    enum Wish {
        Add { sku: usize, quantity: i64 },
        Reserve { id: usize, quantities: [i64; 3] },
        Release { id: usize, quantities: [i64; 3] },
    }

    fn wishes() -> impl Strategy<Value = Vec<Wish>> {
        // Few ids and few amounts, so that wishes meet each other.
        let quantities = || [0..3_i64, 0..3, 0..3];
        let wish = prop_oneof![
            (0..3_usize, 1..5_i64).prop_map(|(sku, quantity)| Wish::Add { sku, quantity }),
            (0..4_usize, quantities()).prop_map(|(id, quantities)| Wish::Reserve { id, quantities }),
            (0..4_usize, quantities()).prop_map(|(id, quantities)| Wish::Release { id, quantities }),
        ];
        prop::collection::vec(wish, 1..40)
    }

    fn items(quantities: [i64; 3]) -> Vec<Item> {
        let item = |(sku, quantity): (&str, i64)| Item { sku: sku.to_owned(), quantity };
        SKUS.into_iter().zip(quantities).filter(|(_, quantity)| *quantity > 0).map(item).collect()
    }

    /// The world after a decision, or the same one after a refusal.
    fn after<R: prost::Message>(
        world: Given,
        decide: impl FnOnce(&State<'_>) -> Result<Decision<R>, Refusal>,
    ) -> Given {
        let Ok(decision) = world.when(decide) else { return world };
        let world = decision.events::<Stock>().iter().fold(world, |world, (id, event)| world.event::<Stock>(id, event));
        let reservations = decision.events::<Reservation>();
        reservations.iter().fold(world, |world, (id, event)| world.event::<Reservation>(id, event))
    }

    proptest! {
        #[test]
        fn whatever_is_wished_for_no_unit_appears_or_gets_lost(wishes in wishes()) {
            let world = SKUS.into_iter().fold(given(), |world, sku| world.aggregate::<Stock>(sku));
            let mut world = RESERVATIONS.into_iter().fold(world, |world, id| world.aggregate::<Reservation>(id));
            let mut added = [0; 3];
            for wish in wishes {
                world = match wish {
                    Wish::Add { sku, quantity } => {
                        added[sku] += quantity;
                        let (sku, unit_price) = (SKUS[sku].to_owned(), euros(2));
                        let request = AddStockRequest { sku, quantity, unit_price, ..AddStockRequest::default() };
                        after(world, |state| stock::add(state, &request))
                    }
                    Wish::Reserve { id, quantities } => {
                        let (reservation_id, items) = (RESERVATIONS[id].to_owned(), items(quantities));
                        let request = ReserveStockRequest { reservation_id, items, ..ReserveStockRequest::default() };
                        after(world, |state| reservation::reserve(state, &request))
                    }
                    Wish::Release { id, quantities } => {
                        let (reservation_id, items) = (RESERVATIONS[id].to_owned(), items(quantities));
                        let request = ReleaseStockRequest { reservation_id, items, ..ReleaseStockRequest::default() };
                        after(world, |state| reservation::release(state, &request))
                    }
                };
                world.when(|state| {
                    let reservations = RESERVATIONS.map(|id| state.get::<Reservation>(id).unwrap());
                    for (sku, added) in SKUS.into_iter().zip(added) {
                        let stock = state.get::<Stock>(sku)?;
                        let held = reservations.iter().filter(|reservation| !reservation.released);
                        let held = held.flat_map(|held| &held.items).filter(|item| item.sku == sku);
                        assert_eq!(stock.available + stock.reserved, added);
                        assert_eq!(stock.reserved, held.map(|item| item.quantity).sum::<i64>());
                        assert!(stock.available >= 0);
                    }
                    Ok(Decision::reply(()))
                }).unwrap();
            }
        }
    }
}
