//! The engine process: workers, driver, connections.

pub mod connections;
pub mod driver;
mod region;
pub mod secure;
#[cfg(test)]
pub(crate) mod testing;
pub mod worker;
