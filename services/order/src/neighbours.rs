//! What other services' events say of orders, in views of this service's own: it answers from them whether those are out or not.

use libs::{
    cli::{BoxError, Serve},
    cqrs::{Projections, ReadSide},
    refusal::Refusal,
    rpc::client::{PeerOptions, Peers},
    service::{App, Source, Stores},
};
use proto::{payment::v1::Charge, shipping::v1::Shipment};

use crate::projections::{
    ChargesOfOrders, ShipmentsOfOrders,
    charges::{self, ORDER_CHARGES},
    shipments::{self, ORDER_SHIPMENTS},
};

/// The views over payment's and shipping's events.
#[derive(Debug)]
pub struct Neighbours {
    payment: ReadSide,
    shipping: ReadSide,
}

/// The folds over payment's events.
fn of_payment() -> Projections {
    Projections::new().with(ChargesOfOrders)
}

/// The folds over shipping's events.
fn of_shipping() -> Projections {
    Projections::new().with(ShipmentsOfOrders)
}

/// The folds over other services' events, by the service's name.
#[must_use]
pub fn views() -> Vec<(&'static str, Projections)> {
    vec![("payment", of_payment()), ("shipping", of_shipping())]
}

impl Neighbours {
    /// Follows the peers `payment` and `shipping`.
    ///
    /// # Errors
    /// When there is no such peer, or a database can't be opened.
    pub async fn follow(service: &'static str, app: &mut App, flags: &Serve, peers: &Peers) -> Result<Self, BoxError> {
        let payment = Source {
            peer: peers.connect_with("payment", &PeerOptions::stream())?,
            kinds: &[charges::KIND],
            projections: of_payment(),
        };
        let shipping = Source {
            peer: peers.connect_with("shipping", &PeerOptions::stream())?,
            kinds: &[shipments::KIND],
            projections: of_shipping(),
        };
        Ok(Self {
            payment: Stores::follow(service, payment, app, flags).await?,
            shipping: Stores::follow(service, shipping, app, flags).await?,
        })
    }

    /// An order's charge, as far as payment's events have come.
    ///
    /// # Errors
    /// UNAVAILABLE when the database can't be reached, INTERNAL when the view can't be read.
    pub async fn charge(&self, order_id: &str) -> Result<Option<Charge>, Refusal> {
        self.payment.document(&ORDER_CHARGES, order_id).await
    }

    /// An order's shipment, as far as shipping's events have come.
    ///
    /// # Errors
    /// UNAVAILABLE when the database can't be reached, INTERNAL when the view can't be read.
    pub async fn shipment(&self, order_id: &str) -> Result<Option<Shipment>, Refusal> {
        self.shipping.document(&ORDER_SHIPMENTS, order_id).await
    }
}
