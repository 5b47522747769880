//! Stops calling a peer that keeps failing, and asks again after a rest.

mod classify;
mod clock;
pub mod core;
pub mod layer;
mod registry;
mod rejection;
pub mod service;
mod window;

pub use self::{
    classify::Classes,
    clock::{CoarseClock, TokioClock},
    core::{
        Breaker, Cause, Class, Clock, Config, ConfigBuilder, ConfigError, ManualClock, MonotonicClock, Override,
        Permit, ProbeTimeout, Rate, Reason, Rejected, SlowCalls, Snapshot, State, Totals, Transition, Undecided,
        Window,
    },
    layer::{BreakerLayer, Circuit},
    registry::{Change, Registry},
    rejection::{CircuitOpen, DOMAIN},
};
