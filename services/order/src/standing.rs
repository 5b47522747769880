//! How an order's shipment stands: shipping's own word, or the last one heard when shipping is out.

use std::{fmt, time::Duration};

use libs::{
    breaker::{Answer, CircuitOpen, Fallback, LastKnown},
    cli::BoxError,
    refusal::code_name,
    rpc::{
        client::{Peer, PeerOptions, Peers},
        deadline,
    },
};
use proto::{
    order::v1::ShipmentStanding,
    shipping::v1::{GetShipmentRequest, Shipment, shipping_query_service_client::ShippingQueryServiceClient},
};
use tonic::{Code, Status};

/// A person waits for the order: shipping has this long to add to it.
const PATIENCE: Duration = Duration::from_millis(500);
/// How many shipments are remembered.
const REMEMBERED: usize = 10_000;

/// What shipping says of shipments, behind the breaker of its queries: who gives up soon keeps no order from being shipped.
#[derive(Clone)]
pub struct Shipments {
    client: ShippingQueryServiceClient<Peer>,
    fallback: Fallback,
    /// None stands for "no such shipment", which is an answer too.
    known: LastKnown<String, Option<Shipment>>,
}

impl Shipments {
    /// Asks the peer `shipping`.
    ///
    /// # Errors
    /// When there is no such peer.
    pub fn connect(peers: &Peers) -> Result<Self, BoxError> {
        let peer = peers.connect_with("shipping", &PeerOptions::query().timeout(PATIENCE))?;
        Ok(Self {
            client: ShippingQueryServiceClient::new(peer),
            // No error says anything of the shipment: what was heard before is shown, and said to be that.
            fallback: peers.registry().fallback("shipment").or_on_any(),
            known: LastKnown::new(REMEMBERED),
        })
    }

    /// How the shipment of this id stands. Always answers, and says whose word it is.
    pub async fn standing(&self, shipment_id: &str) -> ShipmentStanding {
        let ask = deadline::with_time_to_answer(self.ask(shipment_id));
        let asked = self.fallback.or_last_known(&self.known, shipment_id.to_owned(), ask);
        match asked.await {
            Ok(Answer::Fresh(shipment)) => ShipmentStanding { shipment, current: true, ..ShipmentStanding::default() },
            Ok(Answer::Fallback { value: shipment, age, because }) => ShipmentStanding {
                shipment,
                current: false,
                age: age.and_then(|age| age.try_into().ok()),
                unavailable_because: said(&because),
            },
            Err(status) => ShipmentStanding { unavailable_because: said(&status), ..ShipmentStanding::default() },
        }
    }

    async fn ask(&self, shipment_id: &str) -> Result<Option<Shipment>, Status> {
        let request = GetShipmentRequest { shipment_id: shipment_id.to_owned() };
        match self.client.clone().get_shipment(request).await {
            Ok(answer) => Ok(answer.into_inner().shipment),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }
}

/// Why there is no answer, in a reader's words.
fn said(status: &Status) -> String {
    match CircuitOpen::from_status(status) {
        Some(_) => "shipping is out: its circuit is open".to_owned(),
        None => format!("shipping gave no answer: {}", code_name(status.code())),
    }
}

impl fmt::Debug for Shipments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shipments").field("known", &self.known).finish_non_exhaustive()
    }
}
