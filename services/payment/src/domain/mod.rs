//! The rules of the money: what may happen, and what follows from it. Nothing here waits, reads a clock or knows a wire.

pub mod account;
pub mod charge;

pub use self::{account::Account, charge::Charge};

#[cfg(test)]
mod tests {
    use libs::{
        cqrs::{
            Decision, State,
            testing::{Given, given},
        },
        refusal::Refusal,
    };
    use proptest::prelude::*;
    use proto::payment::v1::{ChargeCustomerRequest, DepositFundsRequest, RefundChargeRequest};

    use super::{account::tests::money, *};

    const CUSTOMERS: [&str; 2] = ["ada", "bob"];
    const CHARGES: [&str; 4] = ["c0", "c1", "c2", "c3"];

    #[derive(Clone, Debug)]
    enum Wish {
        Deposit { customer: usize, units: i64 },
        Charge { id: usize, customer: usize, units: i64 },
        Refund { id: usize, customer: usize },
    }

    fn wishes() -> impl Strategy<Value = Vec<Wish>> {
        // Few customers and few charges, so that wishes meet each other.
        let wish = prop_oneof![
            (0..2_usize, 1..9_i64).prop_map(|(customer, units)| Wish::Deposit { customer, units }),
            (0..4_usize, 0..2_usize, 1..9_i64).prop_map(|(id, customer, units)| Wish::Charge { id, customer, units }),
            (0..4_usize, 0..2_usize).prop_map(|(id, customer)| Wish::Refund { id, customer }),
        ];
        prop::collection::vec(wish, 1..40)
    }

    /// The world after a decision, or the same one after a refusal.
    fn after<R: prost::Message>(
        world: Given,
        decide: impl FnOnce(&State<'_>) -> Result<Decision<R>, Refusal>,
    ) -> Given {
        let Ok(decision) = world.when(decide) else { return world };
        let accounts = decision.events::<Account>();
        let world = accounts.iter().fold(world, |world, (id, event)| world.event::<Account>(id, event));
        let charges = decision.events::<Charge>();
        charges.iter().fold(world, |world, (id, event)| world.event::<Charge>(id, event))
    }

    proptest! {
        #[test]
        fn whatever_is_wished_for_no_cent_appears_or_gets_lost(wishes in wishes()) {
            let world = CUSTOMERS.into_iter().fold(given(), |world, id| world.aggregate::<Account>(id));
            let mut world = CHARGES.into_iter().fold(world, |world, id| world.aggregate::<Charge>(id));
            let mut deposited = [0; 2];
            for wish in wishes {
                world = match wish {
                    Wish::Deposit { customer, units } => {
                        deposited[customer] += units;
                        let (customer_id, amount) = (CUSTOMERS[customer].to_owned(), money("EUR", units));
                        let request = DepositFundsRequest { customer_id, amount, ..DepositFundsRequest::default() };
                        after(world, |state| account::deposit(state, &request))
                    }
                    Wish::Charge { id, customer, units } => {
                        let request = ChargeCustomerRequest {
                            charge_id: CHARGES[id].to_owned(),
                            customer_id: CUSTOMERS[customer].to_owned(),
                            amount: money("EUR", units),
                            ..ChargeCustomerRequest::default()
                        };
                        after(world, |state| charge::charge(state, &request))
                    }
                    Wish::Refund { id, customer } => {
                        let (charge_id, customer_id) = (CHARGES[id].to_owned(), CUSTOMERS[customer].to_owned());
                        let request = RefundChargeRequest { charge_id, customer_id, ..RefundChargeRequest::default() };
                        after(world, |state| charge::refund(state, &request))
                    }
                };
                world.when(|state| {
                    let charges = CHARGES.map(|id| state.get::<Charge>(id).unwrap());
                    for (customer, deposited) in CUSTOMERS.into_iter().zip(deposited) {
                        let held = charges.iter().filter(|charge| charge.customer_id == customer && !charge.refunded);
                        let held: i64 = held.filter_map(|charge| Some(charge.amount.as_ref()?.units)).sum();
                        let balance = state.get::<Account>(customer)?.balance.map_or(0, |balance| balance.units);
                        assert_eq!(balance + held, deposited);
                        assert!(balance >= 0);
                    }
                    Ok(Decision::reply(()))
                }).unwrap();
            }
        }
    }
}
