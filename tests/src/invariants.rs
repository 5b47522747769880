//! What must hold of a shop at rest, whatever happened to its processes. Anyone can check it from the queries alone.

use std::collections::{BTreeMap, HashMap};

use proto::{
    google::r#type::Money,
    order::v1::{Order, OrderState},
    payment::v1::{Charge, ChargeState},
    saga::v1::{Saga, SagaPhase},
    shipping::v1::{Shipment, ShipmentState},
};

use crate::facts::Facts;

/// The facts by id, to look from one at its others.
struct Books<'a> {
    facts: &'a Facts,
    /// Of a unit, in nanos.
    prices: HashMap<&'a str, i128>,
    charges: HashMap<&'a str, &'a Charge>,
    shipments: HashMap<&'a str, &'a Shipment>,
    sagas: HashMap<&'a str, &'a Saga>,
    orders: HashMap<&'a str, &'a Order>,
    differences: Vec<String>,
}

/// Says everything that doesn't add up, a sentence each. None when all does.
#[must_use]
pub fn differences(facts: &Facts) -> Vec<String> {
    let mut books = Books {
        facts,
        prices: facts.stock.iter().map(|stock| (stock.sku.as_str(), nanos(stock.unit_price.as_ref()))).collect(),
        charges: facts.charges.iter().map(|charge| (charge.charge_id.as_str(), charge)).collect(),
        shipments: facts.shipments.iter().map(|shipment| (shipment.shipment_id.as_str(), shipment)).collect(),
        sagas: facts.sagas.iter().map(|saga| (saga.saga_id.as_str(), saga)).collect(),
        orders: facts.orders.iter().map(|order| (order.order_id.as_str(), order)).collect(),
        differences: Vec::new(),
    };
    books.check_lists();
    books.check_stock();
    books.check_accounts();
    books.check_orders();
    books.differences
}

impl Books<'_> {
    fn expect(&mut self, holds: bool, difference: impl FnOnce() -> String) {
        if !holds {
            self.differences.push(difference());
        }
    }

    /// No list names a thing twice, and nothing is anybody's but an order's.
    fn check_lists(&mut self) {
        let facts = self.facts;
        for (what, all, apart) in [
            ("orders", facts.orders.len(), self.orders.len()),
            ("charges", facts.charges.len(), self.charges.len()),
            ("shipments", facts.shipments.len(), self.shipments.len()),
            ("sagas", facts.sagas.len(), self.sagas.len()),
        ] {
            self.expect(all == apart, || format!("{what}: {all} listed, but only {apart} of different ids"));
        }
        let ids = facts.charges.iter().map(|charge| ("charge", &charge.charge_id));
        let ids = ids.chain(facts.shipments.iter().map(|shipment| ("shipment", &shipment.shipment_id)));
        for (what, id) in ids.chain(facts.sagas.iter().map(|saga| ("saga", &saga.saga_id))) {
            let known = self.orders.contains_key(id.as_str());
            self.expect(known, || format!("{what} {id} is no order's"));
        }
    }

    /// Of every SKU: added = available + reserved + shipped. All orders have ended, so nothing is reserved any more, and shipped = sold by
    /// completed orders = what shipping says.
    fn check_stock(&mut self) {
        let facts = self.facts;
        let mut sold: BTreeMap<&str, i64> = BTreeMap::new();
        for order in facts.orders.iter().filter(|order| order.state() == OrderState::Completed) {
            for item in &order.items {
                *sold.entry(&item.sku).or_default() += item.quantity;
            }
        }
        let mut parcels: BTreeMap<&str, i64> = BTreeMap::new();
        for shipment in facts.shipments.iter().filter(|shipment| shipment.state() == ShipmentState::Shipped) {
            for parcel in &shipment.parcels {
                *parcels.entry(&parcel.sku).or_default() += parcel.quantity;
            }
        }
        for stock in &facts.stock {
            let sku = stock.sku.as_str();
            let (added, available, reserved, shipped) = (stock.added, stock.available, stock.reserved, stock.shipped);
            self.expect(added == available + reserved + shipped && available >= 0, || {
                format!(
                    "stock {sku}: {added} added, but {available} available, {reserved} reserved and {shipped} shipped"
                )
            });
            self.expect(reserved == 0, || format!("stock {sku}: {reserved} reserved, but every order has ended"));
            let sold = sold.remove(sku).unwrap_or_default();
            self.expect(shipped == sold, || {
                format!("stock {sku}: {shipped} shipped, but completed orders hold {sold}")
            });
            let parcels = parcels.remove(sku).unwrap_or_default();
            self.expect(shipped == parcels, || {
                format!("stock {sku}: {shipped} shipped, but {parcels} in shipping's parcels")
            });
        }
        for (sku, quantity) in sold.into_iter().chain(parcels) {
            self.expect(false, || format!("stock {sku}: {quantity} left, but it is unknown"));
        }
    }

    /// Of every account: deposited = balance + charged, and charged = the sum of its charges that were not given back.
    fn check_accounts(&mut self) {
        let facts = self.facts;
        let mut charged: BTreeMap<&str, i128> = BTreeMap::new();
        for charge in facts.charges.iter().filter(|charge| charge.state() == ChargeState::Charged) {
            *charged.entry(&charge.customer_id).or_default() += nanos(charge.amount.as_ref());
        }
        for account in &facts.accounts {
            let customer = account.customer_id.as_str();
            let [deposited, balance, taken] =
                [&account.deposited, &account.balance, &account.charged].map(|money| nanos(money.as_ref()));
            self.expect(deposited == balance + taken && balance >= 0, || {
                format!("account {customer}: {deposited} deposited, but {balance} left and {taken} charged (nanos)")
            });
            let charges = charged.remove(customer).unwrap_or_default();
            self.expect(taken == charges, || {
                format!("account {customer}: {taken} charged, but its charges are {charges} (nanos)")
            });
        }
        for (customer, charges) in charged {
            self.expect(false, || format!("account {customer} is unknown, but was charged {charges} (nanos)"));
        }
    }

    /// Every order has ended, and what it left behind is what its end says.
    fn check_orders(&mut self) {
        let facts = self.facts;
        for order in &facts.orders {
            let id = order.order_id.as_str();
            let charge = self.charges.get(id).copied();
            let shipment = self.shipments.get(id).copied();
            let phase = self.sagas.get(id).map(|saga| saga.phase());
            match order.state() {
                OrderState::Completed => {
                    self.expect(order.rejection.is_none(), || {
                        format!("order {id} is completed, but says why it was rejected")
                    });
                    self.expect(phase == Some(SagaPhase::Completed), || {
                        format!("order {id} is completed, its saga {phase:?}")
                    });
                    let paid = charge.is_some_and(|charge| {
                        charge.state() == ChargeState::Charged
                            && charge.customer_id == order.customer_id
                            && nanos(charge.amount.as_ref()) == nanos(order.total.as_ref())
                            && nanos(charge.amount.as_ref()) > 0
                    });
                    self.expect(paid, || {
                        format!("order {id} is completed for {:?}, its charge {charge:?}", order.total)
                    });
                    // Nobody changes a price in a shop that is proved.
                    let total = nanos(order.total.as_ref());
                    let price = |sku: &str| self.prices.get(sku).copied().unwrap_or_default();
                    let cost: i128 = order.items.iter().map(|item| price(&item.sku) * i128::from(item.quantity)).sum();
                    self.expect(total == cost, || {
                        format!("order {id} is completed for {total} (nanos), but its items cost {cost}")
                    });
                    let sent = shipment.is_some_and(|shipment| {
                        let parcels = shipment.parcels.iter().map(|parcel| (&parcel.sku, parcel.quantity));
                        shipment.state() == ShipmentState::Shipped
                            && shipment.address == order.address
                            && parcels.eq(order.items.iter().map(|item| (&item.sku, item.quantity)))
                    });
                    self.expect(sent, || format!("order {id} is completed, its shipment {shipment:?}"));
                }
                OrderState::Rejected => {
                    let reason =
                        order.rejection.as_ref().map(|rejection| rejection.reason.as_str()).unwrap_or_default();
                    self.expect(!reason.is_empty(), || format!("order {id} is rejected, but nothing says why"));
                    let undone = phase == Some(SagaPhase::Compensated);
                    self.expect(undone, || format!("order {id} is rejected ({reason}), its saga {phase:?}"));
                    let kept = charge.is_some_and(|charge| charge.state() != ChargeState::Refunded);
                    self.expect(!kept, || format!("order {id} is rejected ({reason}), its charge {charge:?}"));
                    let sent = shipment.is_some_and(|shipment| shipment.state() != ShipmentState::Cancelled);
                    self.expect(!sent, || format!("order {id} is rejected ({reason}), its shipment {shipment:?}"));
                }
                state => self.expect(false, || format!("order {id} has not ended: {state:?}, its saga {phase:?}")),
            }
        }
    }
}

/// Money of one currency as a number. Absent money is none.
fn nanos(money: Option<&Money>) -> i128 {
    money.map_or(0, |money| i128::from(money.units) * 1_000_000_000 + i128::from(money.nanos))
}

#[cfg(test)]
mod tests {
    use proto::{
        google::r#type::PostalAddress,
        inventory::v1::Stock,
        order::v1::{OrderItem, Rejection},
        payment::v1::Account,
        shipping::v1::Parcel,
    };

    use super::*;
    use crate::shop::usd;

    fn home() -> PostalAddress {
        PostalAddress { region_code: "CH".to_owned(), ..PostalAddress::default() }
    }

    /// Ten teas at 3 USD: `a` bought two of them, `b`'s order was rejected after the charge.
    fn sound() -> Facts {
        let order = |id: &str, state: OrderState| Order {
            order_id: id.to_owned(),
            customer_id: "ann".to_owned(),
            address: Some(home()),
            items: vec![OrderItem { sku: "tea".to_owned(), quantity: 2 }],
            state: state.into(),
            ..Order::default()
        };
        let charge = |id: &str, state: ChargeState| Charge {
            charge_id: id.to_owned(),
            customer_id: "ann".to_owned(),
            amount: Some(usd(6)),
            state: state.into(),
            ..Charge::default()
        };
        let saga = |id: &str, phase: SagaPhase| Saga { saga_id: id.to_owned(), phase: phase.into(), ..Saga::default() };
        let rejection = Rejection { reason: "UNDELIVERABLE_ADDRESS".to_owned(), ..Rejection::default() };
        Facts {
            stock: vec![Stock {
                sku: "tea".to_owned(),
                unit_price: Some(usd(3)),
                added: 10,
                available: 8,
                shipped: 2,
                ..Stock::default()
            }],
            accounts: vec![Account {
                customer_id: "ann".to_owned(),
                deposited: Some(usd(100)),
                balance: Some(usd(94)),
                charged: Some(usd(6)),
                ..Account::default()
            }],
            charges: vec![charge("a", ChargeState::Charged), charge("b", ChargeState::Refunded)],
            shipments: vec![Shipment {
                shipment_id: "a".to_owned(),
                address: Some(home()),
                parcels: vec![Parcel { sku: "tea".to_owned(), quantity: 2 }],
                state: ShipmentState::Shipped.into(),
                ..Shipment::default()
            }],
            orders: vec![
                Order { total: Some(usd(6)), ..order("a", OrderState::Completed) },
                Order { rejection: Some(rejection), ..order("b", OrderState::Rejected) },
            ],
            sagas: vec![saga("a", SagaPhase::Completed), saga("b", SagaPhase::Compensated)],
        }
    }

    /// Checks that a change of what is sound is seen, by a sentence that contains `words`.
    #[track_caller]
    fn finds(words: &str, change: impl FnOnce(&mut Facts)) {
        let mut facts = sound();
        change(&mut facts);
        let differences = differences(&facts);
        assert!(differences.iter().any(|difference| difference.contains(words)), "{words:?} is not in {differences:?}");
    }

    #[test]
    fn what_is_sound_has_no_differences() {
        assert_eq!(differences(&sound()), [""; 0]);
    }

    #[test]
    fn units_that_leaked_or_appeared_are_seen() {
        finds("10 added, but 7 available", |facts| facts.stock[0].available = 7);
        finds("8 available, 1 reserved and 2 shipped", |facts| facts.stock[0].reserved = 1);
        finds("1 reserved, but every order has ended", |facts| facts.stock[0].reserved = 1);
        finds("3 shipped, but completed orders hold 2", |facts| facts.stock[0].shipped = 3);
        finds("2 shipped, but 4 in shipping's parcels", |facts| facts.shipments[0].parcels[0].quantity = 4);
        finds("stock tea: 2 left, but it is unknown", |facts| facts.stock.clear());
    }

    #[test]
    fn money_that_leaked_or_appeared_is_seen() {
        finds("deposited, but", |facts| facts.accounts[0].balance = Some(usd(95)));
        finds("its charges are 12000000000", |facts| facts.charges[1].state = ChargeState::Charged.into());
        finds("account ann is unknown", |facts| facts.accounts.clear());
    }

    #[test]
    fn an_order_that_has_not_ended_is_seen() {
        finds("order a has not ended", |facts| facts.orders[0].state = OrderState::Pending.into());
        finds("order a is completed, its saga Some(Forward)", |facts| facts.sagas[0].phase = SagaPhase::Forward.into());
        finds("order b is rejected (UNDELIVERABLE_ADDRESS), its saga None", |facts| drop(facts.sagas.pop()));
    }

    #[test]
    fn a_completed_order_without_all_of_it_is_seen() {
        finds("its charge None", |facts| drop(facts.charges.remove(0)));
        finds("order a is completed for", |facts| facts.orders[0].total = Some(usd(7)));
        finds("its shipment None", |facts| facts.shipments.clear());
    }

    #[test]
    fn a_completed_order_that_cost_something_else_or_went_elsewhere_is_seen() {
        finds("order a is completed for 7000000000 (nanos), but its items cost 6000000000", |facts| {
            facts.orders[0].total = Some(usd(7));
            facts.charges[0].amount = Some(usd(7));
        });
        finds("but its items cost 8000000000", |facts| facts.stock[0].unit_price = Some(usd(4)));
        finds("order a is completed, its shipment", |facts| {
            facts.shipments[0].address = Some(PostalAddress { region_code: "DE".to_owned(), ..home() });
        });
    }

    #[test]
    fn a_rejected_order_that_left_something_is_seen() {
        finds("order b is rejected (UNDELIVERABLE_ADDRESS), its charge", |facts| {
            facts.charges[1].state = ChargeState::Charged.into();
        });
        finds("order b is rejected (UNDELIVERABLE_ADDRESS), its shipment", |facts| {
            let shipment = Shipment { shipment_id: "b".to_owned(), ..facts.shipments[0].clone() };
            facts.shipments.push(shipment);
        });
        finds("nothing says why", |facts| facts.orders[1].rejection = None);
    }

    #[test]
    fn what_belongs_to_no_order_and_what_is_listed_twice_is_seen() {
        finds("charge c is no order's", |facts| facts.charges[1].charge_id = "c".to_owned());
        finds("orders: 3 listed", |facts| facts.orders.push(facts.orders[0].clone()));
    }
}
