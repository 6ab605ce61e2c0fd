//! The engine process: workers, driver, connections.
