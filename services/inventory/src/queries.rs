//! The queries: how each is answered from the views.

use std::pin::pin;

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use libs::{
    cqrs::{Changes, Column, PageOrder, PageQuery, ReadSide},
    refusal::{Refusal, Violations},
};
use proto::inventory::v1::{
    GetStockRequest, GetStockResponse, Item, ListStockRequest, ListStockResponse, Stock, WatchStockRequest,
    WatchStockResponse,
};

use crate::{neighbours::Neighbours, projections::stock::STOCK, surface::InventoryQueries};

/// The inventory's queries.
#[derive(Debug)]
pub struct Queries {
    neighbours: Neighbours,
}

impl Queries {
    /// Queries that know what shipping's events tell.
    #[must_use]
    pub const fn new(neighbours: Neighbours) -> Self {
        Self { neighbours }
    }
}

impl InventoryQueries for Queries {
    async fn get_stock(&self, read: &ReadSide, request: GetStockRequest) -> Result<GetStockResponse, Refusal> {
        let GetStockRequest { sku } = request;
        let mut violations = Violations::default();
        violations.id(&sku, "sku");
        violations.refuse()?;
        let stock = self.neighbours.stock(read, &sku).await?;
        let unknown = || Refusal::not_found("UNKNOWN_SKU", format!("there is no sku {sku}")).with("sku", &sku);
        Ok(GetStockResponse { stock: Some(stock.ok_or_else(unknown)?) })
    }

    async fn list_stock(&self, read: &ReadSide, request: ListStockRequest) -> Result<ListStockResponse, Refusal> {
        let ListStockRequest { page_size, page_token } = request;
        let (filter, order) = (Vec::new(), PageOrder::Ascending(Column::Text("id")));
        let page = read.page(&STOCK, PageQuery { page_size, page_token: &page_token, filter, order }).await?;
        Ok(ListStockResponse { stock: self.neighbours.count(page.items).await?, next_page_token: page.next_page_token })
    }

    fn watch_stock(&self, read: &ReadSide, request: WatchStockRequest) -> Result<Changes<WatchStockResponse>, Refusal> {
        let WatchStockRequest { sku, after_position, after_shipping_position } = &request;
        let mut violations = Violations::default();
        violations.require(*after_position >= 0, "after_position", "must not be negative");
        violations.require(*after_shipping_position >= 0, "after_shipping_position", "must not be negative");
        if !sku.is_empty() {
            violations.id(sku, "sku");
        }
        violations.refuse()?;
        Ok(changes(read.clone(), self.neighbours.clone(), request).boxed())
    }
}

/// What a change is of.
enum Change {
    /// Inventory's own.
    Stock(i64, Stock),
    /// Shipping's.
    Left(i64, Item),
}

/// Every change after the positions, of either log, for ever.
fn changes(
    read: ReadSide,
    neighbours: Neighbours,
    request: WatchStockRequest,
) -> impl Stream<Item = Result<WatchStockResponse, Refusal>> + Send {
    async_stream::try_stream! {
        let WatchStockRequest { sku, after_position, after_shipping_position } = request;
        let (mut position, mut shipping_position) = (after_position, after_shipping_position);
        if position == 0 && shipping_position == 0 {
            // Today's stock comes, counted as it is known now.
            shipping_position = neighbours.position();
        }
        futures::try_join!(read.wait_for_position(position), neighbours.wait_for_position(shipping_position))?;
        let filter = if sku.is_empty() { Vec::new() } else { vec![("id", sku.as_str().into())] };
        let own = read.follow(&STOCK, filter, position).map_ok(|(position, stock)| Change::Stock(position, stock));
        let left = neighbours.leaving(&sku, shipping_position);
        let left = left.map_ok(|(position, item)| Change::Left(position, item));
        let mut changes = pin!(stream::select(own, left));
        while let Some(change) = changes.try_next().await? {
            let stock = match change {
                Change::Stock(at, stock) => {
                    position = at;
                    neighbours.count(vec![stock]).await?.pop()
                }
                Change::Left(at, item) => {
                    shipping_position = at;
                    neighbours.stock(&read, &item.sku).await?
                }
            };
            // A parcel of what inventory doesn't have changes nothing here.
            if stock.is_some() {
                yield WatchStockResponse { stock, position, shipping_position };
            }
        }
    }
}
