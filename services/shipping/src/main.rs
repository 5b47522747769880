//! Runs the shipping service.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// What a call allocates is mostly freed by another thread, which the system's allocator pays for dearly.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    libs::cli::run::<shipping::Service>()
}
