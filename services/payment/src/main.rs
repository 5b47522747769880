//! Runs the payment service.

use std::process::ExitCode;

fn main() -> ExitCode {
    libs::cli::run::<payment::Service>()
}
