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
    domain::order, neighbours::Neighbours, projections::orders::ORDERS, sagas::place_order, standing::Shipments,
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

#[cfg(test)]
mod tests {
    use libs::{address, cli::Limits, items};
    use prost::Message as _;
    use proto::{
        google::r#type::{Money, PostalAddress},
        order::v1::{Order, OrderItem, ShipmentStanding},
        payment::v1::Charge,
        shipping::v1::Parcel,
    };

    use super::*;

    /// How much is wrong with an order.
    fn wrong(address: &PostalAddress, items: &[OrderItem]) -> usize {
        let mut violations = Violations::default();
        address::check(Some(address), "address", &mut violations);
        items::check(items.iter().map(|item| (item.sku.as_str(), item.quantity)), "items", &mut violations);
        violations.refuse().err().map_or(0, |refusal| refusal.violations.len())
    }

    fn address(characters: usize, lines: usize) -> PostalAddress {
        let line = "\u{10348}".repeat(characters);
        PostalAddress {
            revision: 0,
            region_code: "CH".to_owned(),
            language_code: line.clone(),
            postal_code: line.clone(),
            sorting_code: line.clone(),
            administrative_area: line.clone(),
            locality: line.clone(),
            sublocality: line.clone(),
            address_lines: vec![line.clone(); lines],
            recipients: vec![line.clone(); lines],
            organization: line,
        }
    }

    fn items(count: usize, letters: usize) -> Vec<OrderItem> {
        (0..count).map(|at| OrderItem { sku: format!("{at:0letters$}"), quantity: items::MOST_UNITS }).collect()
    }

    #[test]
    fn what_is_answered_of_the_largest_order_is_no_larger_than_any_message_may_be() {
        let (address, items) = (address(200, 10), items(100, 64));
        assert_eq!(wrong(&address, &items), 0);
        let (id, time) = ("x".repeat(64), Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 999_999_999 }));
        let money = Some(Money { currency_code: "CHF".to_owned(), units: i64::MAX, nanos: 999_999_999 });
        let parcels = items.iter().map(|item| Parcel { sku: item.sku.clone(), quantity: item.quantity }).collect();
        let shipment = Shipment {
            shipment_id: id.clone(),
            address: Some(address.clone()),
            parcels,
            state: 1,
            create_time: time,
            update_time: time,
        };
        let charge = Charge {
            charge_id: id.clone(),
            customer_id: id.clone(),
            amount: money.clone(),
            state: 1,
            create_time: time,
            update_time: time,
        };
        let order = Order {
            order_id: id.clone(),
            customer_id: id,
            items,
            address: Some(address),
            state: 1,
            total: money,
            rejection: None,
            create_time: time,
            update_time: time,
        };
        let standing =
            ShipmentStanding { shipment: Some(shipment.clone()), current: true, ..ShipmentStanding::default() };
        let answer = GetOrderResponse {
            order: Some(order),
            shipment: Some(standing),
            charge: Some(charge),
            shipped: Some(shipment),
        };
        let length = answer.encoded_len();
        assert!(Limits::LEAST_MESSAGE_BYTES >= length as u64, "{length} bytes");
    }

    #[test]
    fn no_order_is_larger() {
        let (right, few) = (address(200, 10), items(100, 64));
        for (address, items) in
            [(&address(201, 10), &few), (&address(200, 11), &few), (&right, &items(101, 64)), (&right, &items(100, 65))]
        {
            assert!(wrong(address, items) > 0);
        }
    }
}
