//! Runs the order service.

use std::process::ExitCode;

fn main() -> ExitCode {
    libs::cli::run::<order::Service>()
}
