//! The witness: a third voter that holds one register, so that of two nodes which cannot hear each
//! other at most one goes on. Pure: the shells are `guardian::witness`.

mod register;

pub use register::{Held, Register, RegisterError};
