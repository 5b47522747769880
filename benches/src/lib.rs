//! What several benchmarks share: orders placed under load, the same calls bare, and what processes ask of the disk.

pub mod bare;
pub mod load;
pub mod syncs;
