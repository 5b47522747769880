//! The commands: what is wrong with the shape of each, and which rule decides it.

use libs::{
    address,
    cqrs::{CommandSide, Decision, State},
    items,
    refusal::{Refusal, Violations},
    saga::Coordinator,
};
use proto::order::v1::{CancelOrderRequest, CancelOrderResponse, PlaceOrderRequest, PlaceOrderResponse};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{cancel, domain::order, sagas::place_order::PLACE_ORDER, surface::OrderDecider};

/// The orders' commands.
#[derive(Clone, Debug)]
pub struct Commands {
    side: CommandSide,
    coordinator: Coordinator,
}

impl Commands {
    /// Commands whose sagas this coordinator drives.
    #[must_use]
    pub fn new(side: CommandSide, coordinator: Coordinator) -> Self {
        Self { side, coordinator }
    }
}

impl OrderDecider for Commands {
    fn check_place_order(&self, request: &PlaceOrderRequest, violations: &mut Violations) {
        if !request.order_id.is_empty() {
            violations.id(&request.order_id, "order_id");
        }
        violations.id(&request.customer_id, "customer_id");
        let ordered = request.items.iter().map(|item| (item.sku.as_str(), item.quantity));
        items::check(ordered, "items", violations);
        address::check(request.address.as_ref(), "address", violations);
    }

    fn prepare_place_order(&self, request: &mut PlaceOrderRequest) {
        if request.order_id.is_empty() {
            request.order_id = Uuid::now_v7().to_string();
        }
    }

    fn place_order(
        &self,
        state: &State<'_>,
        request: &PlaceOrderRequest,
    ) -> Result<Decision<PlaceOrderResponse>, Refusal> {
        let decision = order::place(state, request)?;
        let placed = decision.reply_ref().order.clone().unwrap_or_default();
        let saga = self.coordinator.start(PLACE_ORDER, &request.order_id, &placed, state.loaded())?;
        Ok(decision.beside(saga))
    }

    async fn cancel_order(
        &self,
        request: Request<CancelOrderRequest>,
    ) -> Result<Response<CancelOrderResponse>, Status> {
        let cancelled = cancel::cancel(&self.side, &self.coordinator, request.get_ref()).await;
        cancelled.map_err(|refusal| refusal.into_status(self.side.service()))
    }
}
