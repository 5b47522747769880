//! The commands: what is wrong with the shape of each, and which rule decides it.

use libs::{
    address,
    cqrs::{CommandSide, Decision, State},
    items,
    refusal::{Refusal, Violations},
    saga::Coordinator,
};
use proto::order::v1::{CancelOrderRequest, CancelOrderResponse, OrderRecord, PlaceOrderRequest, PlaceOrderResponse};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{
    domain::{Order, order},
    sagas::place_order::PLACE_ORDER,
    surface::OrderDecider,
};

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

    async fn cancel(&self, request: &CancelOrderRequest) -> Result<Response<CancelOrderResponse>, Refusal> {
        let CancelOrderRequest { request_id, order_id, reason } = request;
        let mut violations = Violations::default();
        violations.request_id(request_id);
        violations.id(order_id, "order_id");
        violations.require(reason.chars().count() <= 512, "reason", "must be at most 512 characters");
        violations.refuse()?;
        let OrderRecord { order: found } = self.side.state::<Order>(order_id).await?;
        let found = found.ok_or_else(|| order::unknown(order_id))?;
        if !order::is_closed(&found) {
            // The saga's history is to say why.
            let reason = if reason.is_empty() { "no reason given" } else { reason };
            match self.coordinator.cancel(order_id, &found.customer_id, reason).await {
                // It ended between the look and the word: what it ended as decides.
                Err(refusal) if refusal.reason == "SAGA_CLOSED" => {}
                Err(refusal) if refusal.reason == "SAGA_PARKED" => return Err(order::held_up(order_id)),
                cancelled => {
                    cancelled?;
                    let mut response = Response::new(CancelOrderResponse { order_id: order_id.clone() });
                    // It was done in this process. Nothing that fails after that may make a refusal of it.
                    if self.side.stamp(response.metadata_mut()).await.is_err() {
                        self.side.stamp_own(response.metadata_mut());
                    }
                    return Ok(response);
                }
            }
        }
        let OrderRecord { order: ended } = self.side.state::<Order>(order_id).await?;
        let ended = ended.ok_or_else(|| order::unknown(order_id))?;
        if order::is_cancelled(&ended) {
            let mut response = Response::new(CancelOrderResponse { order_id: order_id.clone() });
            self.side.stamp(response.metadata_mut()).await?;
            return Ok(response);
        }
        // Its saga's end and its own are one transaction: what is open by now stays so.
        if !order::is_closed(&ended) {
            return Err(order::left_open(order_id));
        }
        Err(order::closed(order_id, ended.state()))
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
        let cancelled = self.cancel(request.get_ref()).await;
        cancelled.map_err(|refusal| refusal.into_status(self.side.service()))
    }
}
