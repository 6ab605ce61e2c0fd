//! The engine process: workers, driver, connections.

pub mod connections;
pub mod driver;
#[cfg(test)]
pub(crate) mod testing;
pub mod worker;
