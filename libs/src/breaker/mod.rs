//! Stops calling a peer that keeps failing, and asks again after a rest.

mod changes;
mod classify;
mod clock;
pub mod core;
mod fallback;
pub mod layer;
#[cfg(feature = "telemetry")]
pub mod metrics;
mod registry;
mod rejection;
pub mod service;
mod window;

#[cfg(feature = "saga")]
pub(crate) use self::rejection::LOCK_QUEUE_FULL;
#[cfg(feature = "cqrs")]
pub(crate) use self::rejection::NOT_CAUGHT_UP;
#[cfg(feature = "rpc")]
pub(crate) use self::rejection::{DRAINING, is_draining};
pub use self::{
    changes::{Change, ChangeKind},
    classify::Classes,
    clock::{CoarseClock, TokioClock},
    core::{
        Breaker, Cause, Class, Clock, Config, ConfigBuilder, ConfigError, ManualClock, MonotonicClock, Override,
        Permit, ProbeTimeout, Probes, Rate, Reason, Rejected, Rejections, SlowCalls, Snapshot, State, Totals,
        Transition, Undecided, Window,
    },
    fallback::{Answer, Fallback, LastKnown},
    layer::{BreakerLayer, Circuit, Methods},
    registry::Registry,
    rejection::{CircuitOpen, DOMAIN},
};
