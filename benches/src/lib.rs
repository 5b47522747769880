//! What several benchmarks share: orders and queries under load, the same calls bare, what became of the orders, what a sync takes, how
//! many processes ask for and what memory they hold, how this program is started again as a server, and what rounds come to.

pub mod again;
pub mod bare;
pub mod books;
pub mod disk;
pub mod figures;
pub mod load;
pub mod memory;
pub mod stock;
pub mod syncs;
