//! Runs the shipping service.

use std::process::ExitCode;

fn main() -> ExitCode {
    libs::cli::run::<shipping::Service>()
}
