//! Lets a caller who asks for it wait for the end of the order that was placed.

use libs::{cqrs::CommandSide, refusal::Refusal, saga::Coordinator};
use proto::order::v1::{
    CancelOrderRequest, CancelOrderResponse, Order as Document, OrderRecord, PlaceOrderRequest, PlaceOrderResponse,
    order_command_service_server::OrderCommandService,
};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::{
    commands::Commands,
    domain::{Order, order},
    surface::OrderCommandSurface,
};

/// The command surface, and after it the wait. Whoever leaves while waiting changes nothing: the saga goes on.
#[derive(Clone, Debug)]
pub struct Completion {
    surface: OrderCommandSurface<Commands>,
    side: CommandSide,
    coordinator: Coordinator,
}

impl Completion {
    /// A surface over the command side, whose sagas this coordinator drives.
    #[must_use]
    pub fn new(side: CommandSide, coordinator: Coordinator) -> Self {
        let commands = Commands::new(side.clone(), coordinator.clone());
        Self { surface: OrderCommandSurface::new(side.clone(), commands), side, coordinator }
    }

    /// Waits until an order has ended, and writes a token that tells of its end.
    async fn ended(&self, order_id: &str, metadata: &mut MetadataMap) -> Result<Document, Refusal> {
        let (_, here) = self.coordinator.finished_by(order_id).await?;
        let mut state = if here { self.side.own_state::<Order>(order_id).await? } else { OrderRecord::default() };
        if state.order.as_ref().is_some_and(order::is_closed) {
            self.side.stamp_own(metadata);
        } else {
            // Another process has written the end.
            self.side.stamp(metadata).await?;
            state = self.side.state::<Order>(order_id).await?;
        }
        let ended = state.order.ok_or_else(|| order::unknown(order_id))?;
        if !order::is_closed(&ended) {
            return Err(order::left_open(order_id));
        }
        Ok(Document { order_id: order_id.to_owned(), ..ended })
    }
}

#[tonic::async_trait]
impl OrderCommandService for Completion {
    async fn place_order(
        &self,
        mut request: Request<PlaceOrderRequest>,
    ) -> Result<Response<PlaceOrderResponse>, Status> {
        // Taken out before the request is keyed: waiting or not, it is the same order.
        let wait = std::mem::take(&mut request.get_mut().wait_for_completion);
        let placed = self.surface.place_order(request).await?;
        let (mut metadata, mut placed, extensions) = placed.into_parts();
        if wait && let Some(order) = &mut placed.order {
            let ended = self.ended(&order.order_id, &mut metadata).await;
            *order = ended.map_err(|refusal| refusal.into_status(self.side.service()))?;
        }
        Ok(Response::from_parts(metadata, placed, extensions))
    }

    async fn cancel_order(
        &self,
        request: Request<CancelOrderRequest>,
    ) -> Result<Response<CancelOrderResponse>, Status> {
        self.surface.cancel_order(request).await
    }
}
