//! What a service tells of itself to get a command line.

use super::{Serve, Store};
use crate::service::App;

/// Any error, for one line on stderr.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A service as a program: a name, a port, and what each subcommand does.
pub trait Program: 'static {
    /// The service's bare name, such as `inventory`.
    const NAME: &'static str;
    /// The program's own version: `env!("CARGO_PKG_VERSION")`, which has to be asked for in its own crate.
    const VERSION: &'static str;
    /// The port it listens on by default.
    const PORT: u16;
    /// What it is, in one line.
    const ABOUT: &'static str;
    /// The services it calls, and where each is unless `--peer` says otherwise. An address for any other is a wrong flag.
    const PEERS: &'static [(&'static str, &'static str)] = &[];

    /// Opens the stores, starts the tasks and adds the surfaces. The listener is bound already; serving begins afterwards.
    fn assemble(app: &mut App, flags: &Serve) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Brings the database to what this version needs.
    fn migrate(store: &Store) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Makes the views anew from the events.
    fn rebuild(store: &Store) -> impl Future<Output = Result<(), BoxError>> + Send;
}
