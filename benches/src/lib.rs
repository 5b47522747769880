//! What several benchmarks share: orders and queries under load, the same calls bare, what a sync takes, and how many processes ask for.

pub mod bare;
pub mod disk;
pub mod load;
pub mod stock;
pub mod syncs;
