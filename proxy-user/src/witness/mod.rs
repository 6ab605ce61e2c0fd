//! The witness: a third voter that holds one register, so that of two nodes which cannot hear each
//! other at most one goes on. Pure: the shells are in `guardian::witness`.

mod desk;
mod message;
mod register;

pub use desk::Desk;
pub use message::{DATAGRAM_MAX, KEY_LABEL, NONCE, PORT, Reply, Request, Seal};
pub use register::{Held, Register, RegisterError};
