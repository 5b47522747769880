//! The command line that every service has: the same words, the same variables, the same defaults.

mod broker;
mod database;
mod duration;
mod flags;
mod health;
mod program;
mod run;
mod signal;
mod unsaid;

pub use self::{
    broker::{NatsUrl, WrongBroker},
    database::{DatabaseUrl, WrongUrl},
    flags::{Limits, Serve, Store, Surface, Tls},
    program::{BoxError, Program},
    run::{asked, run},
    signal::shutdown,
};
