//! One engine at work, and what became of every order that was placed with it.

use std::{ops::Range, time::Duration};

use anyhow::ensure;
use benches::{
    books,
    load::{self, End, Figures, Front},
};
use proto::{
    order::v1::{Order, Rejection},
    saga::v1::{Saga, SagaPhase},
};
use tests::{Shop, facts::Facts};

use crate::{peer::Peer, postgres};

/// How long the participants' views may take to follow.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine that takes orders, and its participants.
pub(crate) struct Subject {
    /// Its version, and how durable it is.
    pub(crate) about: String,
    pub(crate) front: Front,
    // Before the shop, so that it ends before its participants do.
    peer: Option<Peer>,
    pub(crate) shop: Shop,
    /// Where it stores, if that is a PostgreSQL server.
    postgres: Option<String>,
    placed: Vec<(Range<u64>, End)>,
}

impl Subject {
    pub(crate) fn new(about: String, front: Front, shop: Shop) -> Self {
        Self { about, front, peer: None, shop, postgres: None, placed: Vec::new() }
    }

    pub(crate) fn with_peer(self, peer: Peer) -> Self {
        Self { peer: Some(peer), ..self }
    }

    pub(crate) fn on(self, postgres: Option<String>) -> Self {
        Self { postgres, ..self }
    }

    pub(crate) async fn place(&mut self, end: End, in_flight: usize, orders: u64) -> anyhow::Result<Figures> {
        let figures = load::place(&self.front, end, in_flight, orders).await?;
        self.placed.push((figures.placed.clone(), end));
        Ok(figures)
    }

    /// Every process that syncs something for it.
    pub(crate) async fn processes(&mut self) -> anyhow::Result<Vec<u32>> {
        let mut all: Vec<u32> = self.shop.servers_mut().iter().filter_map(|server| server.id()).collect();
        all.extend(self.peer.iter().flat_map(Peer::processes));
        if let Some(url) = &self.postgres {
            all.extend(postgres::processes(url).await?);
        }
        Ok(all)
    }

    /// Ends it, and compares what it and its participants say of every order with how that must have ended.
    pub(crate) async fn end(mut self) -> anyhow::Result<String> {
        let count = |wanted: End| {
            let of = self.placed.iter().filter(|(_, end)| *end == wanted);
            of.map(|(numbers, _)| numbers.end - numbers.start).sum::<u64>()
        };
        let (completed, rejected) = (count(End::Completed), count(End::Rejected));
        let by_peer = self.peer.is_some();
        if let Some(peer) = self.peer.take() {
            let told = peer.end().await?;
            let expected = format!("COMPLETED {completed}, REJECTED {rejected}");
            ensure!(told == expected, "its store has {told}, not {expected}");
        }
        let clients = self.shop.clients();
        let read = async || {
            if !by_peer {
                return Facts::read(&clients).await;
            }
            let (orders, sagas) = self.expected();
            Facts::beside(&clients, orders, sagas).await
        };
        books::balance(PATIENCE, completed, rejected, read).await?;
        Ok(format!("{completed} COMPLETED, {rejected} REJECTED, by its own store and by the participants' books"))
    }

    /// The orders and sagas of another engine: as its callers were answered, and its store has counted.
    fn expected(&self) -> (Vec<Order>, Vec<Saga>) {
        let numbers = self.placed.iter().flat_map(|(numbers, end)| numbers.clone().map(move |number| (number, *end)));
        numbers
            .map(|(number, end)| {
                let mut order = load::order(number, end);
                let mut saga = Saga { saga_id: order.order_id.clone(), ..Saga::default() };
                match end {
                    End::Completed => saga.set_phase(SagaPhase::Completed),
                    End::Rejected => {
                        saga.set_phase(SagaPhase::Compensated);
                        order.rejection = Some(Rejection { reason: "REFUSED".to_owned(), ..Rejection::default() });
                    }
                }
                (order, saga)
            })
            .unzip()
    }
}
