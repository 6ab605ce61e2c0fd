//! The engine process: workers, driver, connections.

pub mod connections;
pub mod driver;
pub mod worker;
