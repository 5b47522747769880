//! Cancelling an order: its saga is asked to turn back, and what the order ended as is the answer.

use libs::{
    cqrs::CommandSide,
    refusal::{Refusal, Violations},
    rpc::principal::Principal,
    saga::Coordinator,
};
use proto::order::v1::{CancelOrderRequest, CancelOrderResponse, OrderRecord};
use tonic::Response;

use crate::domain::{Order, order};

/// Turns the order's saga back. Of one that has ended already, what it ended as decides.
pub(crate) async fn cancel(
    side: &CommandSide,
    coordinator: &Coordinator,
    request: &CancelOrderRequest,
) -> Result<Response<CancelOrderResponse>, Refusal> {
    let CancelOrderRequest { request_id, order_id, reason } = request;
    let mut violations = Violations::default();
    violations.request_id(request_id);
    violations.id(order_id, "order_id");
    violations.require(reason.chars().count() <= 512, "reason", "must be at most 512 characters");
    violations.refuse()?;
    let OrderRecord { order: found } = side.state::<Order>(order_id).await?;
    let found = found.ok_or_else(|| order::unknown(order_id))?;
    if !order::is_closed(&found) {
        // The saga's history is to say who, a guard's word before the order's own, and why.
        let caller = Principal::current();
        let actor = caller.as_ref().map_or(&*found.customer_id, Principal::name);
        let reason = if reason.is_empty() { "no reason given" } else { reason };
        match coordinator.cancel(order_id, actor, reason).await {
            // It ended between the look and the word: what it ended as decides.
            Err(refusal) if refusal.reason == "SAGA_CLOSED" => {}
            Err(refusal) if refusal.reason == "SAGA_PARKED" => return Err(order::held_up(order_id)),
            cancelled => {
                cancelled?;
                let mut response = Response::new(CancelOrderResponse { order_id: order_id.clone() });
                // It was done in this process. Nothing that fails after that may make a refusal of it.
                if side.stamp(response.metadata_mut()).await.is_err() {
                    side.stamp_own(response.metadata_mut());
                }
                return Ok(response);
            }
        }
    }
    let OrderRecord { order: ended } = side.state::<Order>(order_id).await?;
    let ended = ended.ok_or_else(|| order::unknown(order_id))?;
    if order::is_cancelled(&ended) {
        let mut response = Response::new(CancelOrderResponse { order_id: order_id.clone() });
        side.stamp(response.metadata_mut()).await?;
        return Ok(response);
    }
    // Its saga's end and its own are one transaction: what is open by now stays so.
    if !order::is_closed(&ended) {
        return Err(order::left_open(order_id));
    }
    Err(order::closed(order_id, ended.state()))
}
