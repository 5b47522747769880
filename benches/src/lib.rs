//! What several benchmarks share: orders and queries under load, the same calls bare, what became of the orders, what a sync takes, how
//! many processes ask for and what memory they hold, and how this program is started again as a server.

pub mod again;
pub mod bare;
pub mod books;
pub mod disk;
pub mod load;
pub mod memory;
pub mod stock;
pub mod syncs;
