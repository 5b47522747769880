//! What is measured of calls, by the names of the RPC semantic conventions.
//!
//! `docs/operations.md` has them in a table.

use std::time::Duration;

use opentelemetry::{
    InstrumentationScope, KeyValue, global,
    metrics::{Histogram, Meter},
};

use super::init;

/// The conventions' own boundaries.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// The meter of a service, or none where nobody collects metrics. Its scope has the attribute `service`: a process may hold several, and
/// what each observes would else be one another's.
#[must_use]
pub fn meter(service: &'static str) -> Option<Meter> {
    let scope = || InstrumentationScope::builder("trellis").with_attributes([KeyValue::new("service", service)]);
    init::collects_metrics().then(|| global::meter_with_scope(scope().build()))
}

/// What is measured of the calls that a server answers.
#[derive(Clone, Debug)]
pub struct ServerMetrics {
    duration: Histogram<f64>,
}

impl ServerMetrics {
    /// The instruments, or none where nobody collects metrics, so that nothing is spent on them.
    #[must_use]
    pub fn new(service: &'static str) -> Option<Self> {
        meter(service).map(|meter| Self::of(&meter))
    }

    /// The instruments of this meter.
    pub(crate) fn of(meter: &Meter) -> Self {
        let duration = meter
            .f64_histogram("rpc.server.call.duration")
            .with_unit("s")
            .with_description("How long calls took, streams to their end.")
            .with_boundaries(SECONDS.to_vec())
            .build();
        Self { duration }
    }

    /// Records a call by its method, such as `inventory.v1.InventoryQueryService/GetStock`, and its code's name.
    pub fn record(&self, method: &str, code: &'static str, elapsed: Duration) {
        let attributes = [
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method.to_owned()),
            KeyValue::new("rpc.response.status_code", code),
        ];
        self.duration.record(elapsed.as_secs_f64(), &attributes);
    }
}

/// What is measured of the calls that are made to peers.
#[derive(Clone, Debug)]
pub struct ClientMetrics {
    duration: Histogram<f64>,
}

impl ClientMetrics {
    /// The instruments of this meter.
    #[must_use]
    pub fn of(meter: &Meter) -> Self {
        let duration = meter
            .f64_histogram("rpc.client.call.duration")
            .with_unit("s")
            .with_description("How long calls to peers took, every attempt together, streams to their end.")
            .with_boundaries(SECONDS.to_vec())
            .build();
        Self { duration }
    }

    /// Records a call by its peer, its method, such as `inventory.v1.InventoryQueryService/GetStock`, and its code's name.
    pub fn record(&self, peer: &str, method: &str, code: &'static str, elapsed: Duration) {
        let attributes = [
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.peer", peer.to_owned()),
            KeyValue::new("rpc.method", method.to_owned()),
            KeyValue::new("rpc.response.status_code", code),
        ];
        self.duration.record(elapsed.as_secs_f64(), &attributes);
    }
}
