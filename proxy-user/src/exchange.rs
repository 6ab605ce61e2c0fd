//! One HTTP exchange: downstream to upstream state machine. Pure.
