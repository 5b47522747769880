//! Traces, metrics and logs.
//!
//! Logs go to stderr. Traces and metrics go where the standard `OTEL_*` variables say, and cost nothing where none is set.

mod args;
mod caller;
mod init;
mod lines;
mod metrics;
mod otlp;
pub mod propagation;
mod watched;

pub use self::{
    args::{Args, LogFormat},
    caller::Caller,
    init::{Guard, TelemetryError, init},
    metrics::{ClientMetrics, ServerMetrics, meter},
};
