//! The shop: the four services in one process, to try, to show and to develop against.

pub mod screen;
pub mod timeline;
