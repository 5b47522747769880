//! Runs the order service.
fn main() {}
