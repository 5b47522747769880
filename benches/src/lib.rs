//! What several benchmarks share: orders placed under load, the same calls bare, what a sync takes, and how many processes ask for.

pub mod bare;
pub mod disk;
pub mod load;
pub mod syncs;
