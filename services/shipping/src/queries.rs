//! The queries: how each is answered from the views.

use libs::{
    cqrs::{Column, PageOrder, PageQuery, ReadSide},
    refusal::{Refusal, Violations},
};
use proto::shipping::v1::{GetShipmentRequest, GetShipmentResponse, ListShipmentsRequest, ListShipmentsResponse};

use crate::{projections::shipments::SHIPMENTS, surface::ShippingQueries};

/// The shipments' queries.
#[derive(Debug)]
pub struct Queries;

impl ShippingQueries for Queries {
    async fn get_shipment(&self, read: &ReadSide, request: GetShipmentRequest) -> Result<GetShipmentResponse, Refusal> {
        let id = request.shipment_id;
        let mut violations = Violations::default();
        violations.id(&id, "shipment_id");
        violations.refuse()?;
        let shipment = read.document(&SHIPMENTS, &id).await?;
        let unknown =
            || Refusal::not_found("UNKNOWN_SHIPMENT", format!("there is no shipment {id}")).with("shipment_id", &id);
        Ok(GetShipmentResponse { shipment: Some(shipment.ok_or_else(unknown)?) })
    }

    async fn list_shipments(
        &self,
        read: &ReadSide,
        request: ListShipmentsRequest,
    ) -> Result<ListShipmentsResponse, Refusal> {
        let ListShipmentsRequest { page_size, page_token } = request;
        let (filter, order) = (Vec::new(), PageOrder::Ascending(Column::Text("id")));
        let page = read.page(&SHIPMENTS, PageQuery { page_size, page_token: &page_token, filter, order }).await?;
        Ok(ListShipmentsResponse { shipments: page.items, next_page_token: page.next_page_token })
    }
}
