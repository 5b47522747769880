//! The circuit breaker itself: states, rules, permits. It knows nothing of gRPC, of async, or of where time comes from.
//!
//! ```text
//!            a rule is broken                 open time over, next call asks
//!  ┌────────┐ ─────────────▶ ┌──────┐ ────────────────────────────▶ ┌──────────┐
//!  │ Closed │                │ Open │                               │ HalfOpen │
//!  └────────┘ ◀┐             └──────┘ ◀──────────────────────────── └──────────┘
//!       ▲      │                ▲      too many probes fail or hang      │
//!       │      │   ramp over    │ a rule is broken                       │ enough probes succeed
//!       │      └─────────── ┌───┴────────┐ ◀─────────────────────────────┤ (with a ramp)
//!       │                   │ Recovering │                               │
//!       │                   └────────────┘                               │
//!       └────────────────────────────────────────────────────────────────┘ (without)
//! ```
//!
//! Every arrow, reset and override starts a new *generation*. A permit remembers the generation it was given in, and a result
//! from an older one changes nothing: what left before the trip cannot speak about what comes after it.

mod admission;
mod breaker;
mod class;
mod clock;
mod config;
mod half_open;
mod open_time;
mod permit;
mod recent;
mod record;
mod rules;
mod state;
pub(in crate::breaker) mod sync;
mod totals;

pub use self::{
    admission::{Reason, Rejected},
    breaker::{Breaker, Snapshot},
    class::Class,
    clock::{Clock, ManualClock, MonotonicClock},
    config::{Config, ConfigBuilder, ConfigError, ProbeTimeout, Rate, SlowCalls, Undecided, Window},
    permit::Permit,
    state::{Cause, Override, State, Transition},
    totals::{Probes, Rejections, Totals},
};
