//! The queries: how each is answered from the views.

use futures::{StreamExt as _, TryStreamExt as _};
use libs::{
    cqrs::{Changes, PageOrder, PageQuery, ReadSide},
    refusal::{Refusal, Violations},
};
use proto::inventory::v1::{
    GetStockRequest, GetStockResponse, ListStockRequest, ListStockResponse, Stock, WatchStockRequest,
    WatchStockResponse,
};

use crate::{projections::stock::STOCK, surface::InventoryQueries};

/// The inventory's queries.
#[derive(Debug)]
pub struct Queries;

impl InventoryQueries for Queries {
    async fn get_stock(&self, read: &ReadSide, request: GetStockRequest) -> Result<GetStockResponse, Refusal> {
        let GetStockRequest { sku } = request;
        let mut violations = Violations::default();
        violations.id(&sku, "sku");
        violations.refuse()?;
        let stock = read.document(&STOCK, &sku).await?;
        let unknown = || Refusal::not_found("UNKNOWN_SKU", format!("there is no sku {sku}")).with("sku", &sku);
        Ok(GetStockResponse { stock: Some(stock.ok_or_else(unknown)?) })
    }

    async fn list_stock(&self, read: &ReadSide, request: ListStockRequest) -> Result<ListStockResponse, Refusal> {
        let ListStockRequest { page_size, page_token } = request;
        let (filter, order) = (Vec::new(), PageOrder::Ascending("id"));
        let page = read.page(&STOCK, PageQuery { page_size, page_token: &page_token, filter, order }).await?;
        Ok(ListStockResponse { stock: page.items, next_page_token: page.next_page_token })
    }

    fn watch_stock(&self, read: &ReadSide, request: WatchStockRequest) -> Result<Changes<WatchStockResponse>, Refusal> {
        let WatchStockRequest { sku, after_position } = request;
        let mut violations = Violations::default();
        violations.require(after_position >= 0, "after_position", "must not be negative");
        let mut filter = Vec::new();
        if !sku.is_empty() {
            violations.id(&sku, "sku");
            filter.push(("id", sku.into()));
        }
        violations.refuse()?;
        let changes = read.follow::<Stock>(&STOCK, filter, after_position);
        Ok(changes.map_ok(|(position, stock)| WatchStockResponse { stock: Some(stock), position }).boxed())
    }
}
