//! Runs the inventory service.

use std::process::ExitCode;

fn main() -> ExitCode {
    libs::cli::run::<inventory::Service>()
}
