//! The shop: the four services in one process, to try, to show and to develop against.

pub mod books;
pub mod clients;
pub mod follow;
pub mod screen;
pub mod timeline;
