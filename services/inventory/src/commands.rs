//! The commands: what is wrong with the shape of each, and which rule decides it.

use libs::{
    cqrs::{Decision, State},
    items, money,
    refusal::{Refusal, Violations},
};
use proto::inventory::v1::{
    AddStockRequest, AddStockResponse, Item, ReleaseStockRequest, ReleaseStockResponse, ReserveStockRequest,
    ReserveStockResponse,
};

use crate::{
    domain::{reservation, stock},
    surface::InventoryDecider,
};

/// The most units that one command adds.
const MOST_ADDED: i64 = 1_000_000_000;

/// The inventory's commands.
#[derive(Debug)]
pub struct Commands;

impl InventoryDecider for Commands {
    fn check_add_stock(&self, request: &AddStockRequest, violations: &mut Violations) {
        violations.id(&request.sku, "sku");
        violations.require((1..=MOST_ADDED).contains(&request.quantity), "quantity", "must be 1 to 1,000,000,000");
        money::check_positive(request.unit_price.as_ref(), "unit_price", violations);
    }

    fn add_stock(&self, state: &State<'_>, request: &AddStockRequest) -> Result<Decision<AddStockResponse>, Refusal> {
        stock::add(state, request)
    }

    fn check_reserve_stock(&self, request: &ReserveStockRequest, violations: &mut Violations) {
        violations.id(&request.reservation_id, "reservation_id");
        check_items(&request.items, violations);
    }

    fn reserve_stock(
        &self,
        state: &State<'_>,
        request: &ReserveStockRequest,
    ) -> Result<Decision<ReserveStockResponse>, Refusal> {
        reservation::reserve(state, request)
    }

    fn check_release_stock(&self, request: &ReleaseStockRequest, violations: &mut Violations) {
        violations.id(&request.reservation_id, "reservation_id");
        check_items(&request.items, violations);
    }

    fn release_stock(
        &self,
        state: &State<'_>,
        request: &ReleaseStockRequest,
    ) -> Result<Decision<ReleaseStockResponse>, Refusal> {
        reservation::release(state, request)
    }
}

fn check_items(list: &[Item], violations: &mut Violations) {
    items::check(list.iter().map(|item| (item.sku.as_str(), item.quantity)), "items", violations);
}
