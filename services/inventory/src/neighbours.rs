//! What shipping's events say of the stock, in a view of this service's own: it answers from it whether shipping is out or not.

use futures::Stream;
use libs::{
    cli::{BoxError, Serve},
    cqrs::{Projections, ReadSide},
    refusal::Refusal,
    rpc::client::{PeerOptions, Peers},
    service::{App, Source, Stores},
};
use proto::inventory::v1::{Item, Stock};

use crate::projections::{
    ShippedStock,
    shipped::{self, SHIPPED_STOCK},
    stock::STOCK,
};

/// The view over shipping's events.
#[derive(Clone, Debug)]
pub struct Neighbours {
    shipping: ReadSide,
}

/// The folds over shipping's events.
fn of_shipping() -> Projections {
    Projections::new().with(ShippedStock)
}

/// The folds over other services' events, by the service's name.
#[must_use]
pub fn views() -> Vec<(&'static str, Projections)> {
    vec![("shipping", of_shipping())]
}

impl Neighbours {
    /// Follows the peer `shipping`.
    ///
    /// # Errors
    /// When there is no such peer, or the database can't be opened.
    pub async fn follow(service: &'static str, app: &mut App, flags: &Serve, peers: &Peers) -> Result<Self, BoxError> {
        let shipping = Source {
            peer: peers.connect_with("shipping", &PeerOptions::stream())?,
            kinds: &[shipped::KIND],
            projections: of_shipping(),
        };
        Ok(Self { shipping: Stores::follow(service, shipping, app, flags).await? })
    }

    /// A SKU's stock, with what has left of it.
    ///
    /// # Errors
    /// INTERNAL when a view can't be read.
    pub async fn stock(&self, read: &ReadSide, sku: &str) -> Result<Option<Stock>, Refusal> {
        let (stock, shipped) = futures::try_join!(
            read.document::<Stock>(&STOCK, sku),
            self.shipping.document::<Item>(&SHIPPED_STOCK, sku)
        )?;
        Ok(stock.map(|stock| without(stock, shipped.as_ref())))
    }

    /// Counts in each stock what has left of it.
    ///
    /// # Errors
    /// INTERNAL when the view can't be read.
    pub async fn count(&self, stock: Vec<Stock>) -> Result<Vec<Stock>, Refusal> {
        let skus = stock.iter().map(|stock| stock.sku.as_str());
        let shipped = self.shipping.documents::<Item>(&SHIPPED_STOCK, skus).await?;
        let counted = |stock: Stock| {
            let left = shipped.get(&stock.sku);
            without(stock, left)
        };
        Ok(stock.into_iter().map(counted).collect())
    }

    /// Up to where shipping's events have come.
    #[must_use]
    pub fn position(&self) -> i64 {
        self.shipping.position()
    }

    /// Waits, for as long as a query may, until shipping's events have come up to a position.
    ///
    /// # Errors
    /// UNAVAILABLE, NOT_CAUGHT_UP when the wait is over.
    pub async fn wait_for_position(&self, after_position: i64) -> Result<(), Refusal> {
        self.shipping.wait_for_position(after_position).await
    }

    /// What has left of every SKU, or of one, whenever that changes after a position of shipping's log.
    pub fn leaving(
        &self,
        sku: &str,
        after_position: i64,
    ) -> impl Stream<Item = Result<(i64, Item), Refusal>> + Send + use<> {
        let filter = if sku.is_empty() { Vec::new() } else { vec![("id", sku.into())] };
        self.shipping.follow(&SHIPPED_STOCK, filter, after_position)
    }
}

/// Of the units set aside, those that have left are counted apart. No more can have left: what shipping tells of may come before the
/// reservation that it is of.
fn without(mut stock: Stock, left: Option<&Item>) -> Stock {
    stock.shipped = left.map_or(0, |left| left.quantity.clamp(0, stock.reserved));
    stock.reserved -= stock.shipped;
    stock
}
