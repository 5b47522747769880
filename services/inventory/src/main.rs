//! Runs the inventory service.
fn main() {}
