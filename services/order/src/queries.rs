//! The queries: how each is answered from the views.

use std::pin::pin;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use libs::{
    cqrs::{Changes, Column, PageOrder, PageQuery, ReadSide},
    journal::sql::Value,
    refusal::{Refusal, Violations},
    saga::SagaQueries,
};
use proto::{
    order::v1::{
        GetOrderRequest, GetOrderResponse, ListOrdersRequest, ListOrdersResponse, OrderState, OrderView,
        WatchOrderRequest, WatchOrderResponse,
    },
    shipping::v1::Shipment,
};

use crate::{
    domain::order, neighbours::Neighbours, projections::orders::ORDERS, sagas::place_order, shipments::Shipments,
    surface::OrderQueries,
};

/// The orders' queries.
#[derive(Debug)]
pub struct Queries {
    neighbours: Neighbours,
    shipments: Shipments,
}

impl Queries {
    /// Queries that know what other services' events tell, and ask shipping for what it alone knows now.
    #[must_use]
    pub const fn new(neighbours: Neighbours, shipments: Shipments) -> Self {
        Self { neighbours, shipments }
    }
}

impl OrderQueries for Queries {
    async fn get_order(&self, read: &ReadSide, request: GetOrderRequest) -> Result<GetOrderResponse, Refusal> {
        let GetOrderRequest { order_id: id, include_shipment } = request;
        let mut violations = Violations::default();
        violations.id(&id, "order_id");
        violations.refuse()?;
        let view = read.document::<OrderView>(&ORDERS, &id).await?;
        let order = view.and_then(|view| view.order).ok_or_else(|| order::unknown(&id))?;
        let mut shipment = if include_shipment { Some(self.shipments.standing(&id).await) } else { None };
        let (charge, shipped) = futures::try_join!(self.neighbours.charge(&id), self.neighbours.shipment(&id))?;
        // Ids are anybody's to choose: what was made by hand under the order's may be somebody else's. Of an order that
        // is completed it is its own: its saga, or an operator who has skipped the step, made sure of that.
        let charge = charge.filter(|charge| charge.customer_id == order.customer_id);
        let is_own = |shipment: &Shipment| order.state() == OrderState::Completed || shipment.address == order.address;
        let shipped = shipped.filter(is_own);
        if let Some(standing) = &mut shipment {
            standing.shipment = standing.shipment.take().filter(is_own);
        }
        Ok(GetOrderResponse { order: Some(order), shipment, charge, shipped })
    }

    async fn list_orders(&self, read: &ReadSide, request: ListOrdersRequest) -> Result<ListOrdersResponse, Refusal> {
        let ListOrdersRequest { customer_id, state, page_size, page_token } = request;
        let mut violations = Violations::default();
        let mut filter = Vec::new();
        if !customer_id.is_empty() {
            violations.id(&customer_id, "customer_id");
            filter.push(("customer", customer_id.into()));
        }
        if state != OrderState::Unspecified as i32 {
            violations.require(OrderState::try_from(state).is_ok(), "state", "must be an OrderState");
            filter.push(("state", state.into()));
        }
        violations.refuse()?;
        let order = PageOrder::Descending(Column::Int("placed"));
        let query = PageQuery { page_size, page_token: &page_token, filter, order };
        let page = read.page::<OrderView>(&ORDERS, query).await?;
        let orders = page.items.into_iter().filter_map(|view| view.order).collect();
        Ok(ListOrdersResponse { orders, next_page_token: page.next_page_token })
    }

    fn watch_order(&self, read: &ReadSide, request: WatchOrderRequest) -> Result<Changes<WatchOrderResponse>, Refusal> {
        let WatchOrderRequest { order_id, after_position } = request;
        let mut violations = Violations::default();
        violations.require(after_position >= 0, "after_position", "must not be negative");
        if !order_id.is_empty() {
            violations.id(&order_id, "order_id");
        }
        violations.refuse()?;
        Ok(if order_id.is_empty() {
            changes(read, Vec::new(), after_position).boxed()
        } else {
            until_closed(read.clone(), order_id, after_position).boxed()
        })
    }
}

/// Every change of one order after a position, until the order has ended, or its saga was closed and never ends it.
pub fn until_closed(
    read: ReadSide,
    id: String,
    after_position: i64,
) -> impl Stream<Item = Result<WatchOrderResponse, Refusal>> + Send {
    async_stream::try_stream! {
        read.wait_for_position(after_position).await?;
        let view = read.document::<OrderView>(&ORDERS, &id).await?;
        let OrderView { order, position, .. } = view.ok_or_else(|| order::unknown(&id))?;
        let mut closed = order.as_ref().is_some_and(order::is_closed) && position <= after_position;
        let mut shown = after_position;
        let changes = changes(&read, vec![("id", id.as_str().into())], after_position);
        let mut changes = pin!(changes.take_until(left_open(&read, &id)));
        while !closed {
            let Some(change) = changes.try_next().await? else { break };
            closed = change.order.as_ref().is_some_and(order::is_closed);
            shown = change.position;
            yield change;
        }
        if !closed {
            // Its saga's end may have been seen before the order's last change was.
            let view = read.document::<OrderView>(&ORDERS, &id).await?;
            if let Some(OrderView { order, position, .. }) = view.filter(|view| view.position > shown) {
                yield WatchOrderResponse { order, position };
            }
        }
    }
}

/// Comes back once an operator has closed an order's saga and left the order open; never else.
async fn left_open(read: &ReadSide, id: &str) {
    match SagaQueries::ended(read, id).await {
        Ok(Some(saga)) if place_order::left_open(&saga) => {}
        // The order tells of its end by itself, whether the view of sagas is parked or not.
        _ => std::future::pending().await,
    }
}

/// Every change after a position, for ever.
fn changes(
    read: &ReadSide,
    filter: Vec<(&'static str, Value)>,
    after_position: i64,
) -> impl Stream<Item = Result<WatchOrderResponse, Refusal>> + Send + use<> {
    let changes = read.follow::<OrderView>(&ORDERS, filter, after_position);
    changes.map_ok(|(position, view)| WatchOrderResponse { order: view.order, position })
}
