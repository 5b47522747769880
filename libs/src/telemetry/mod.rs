//! Traces, metrics and logs.

mod args;
mod init;

pub use self::{
    args::{Args, LogFormat},
    init::{Guard, TelemetryError, init},
};
