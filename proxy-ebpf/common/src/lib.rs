//! What Tandem's XDP program and its user space share: the ABI of the maps and the pure verdict.
//!
//! The kernel side owns this contract, so the crate lives beside it; the same code is compiled
//! twice. [`decide()`] never touches memory itself: it reads a [`Frame`] (a byte slice in user
//! space,
//! `data..data_end` in the kernel) and looks into [`Tables`] (maps there, a struct in tests). So
//! what the kernel does to a frame is tested, and fuzzed, where debuggers work; BPF_PROG_TEST_RUN
//! then proves that both compilations agree.
//!
//! Not here: attaching, map handles, logging (user space), and helper calls (the program).
#![no_std]
#![deny(unsafe_code)]

pub mod abi;
mod decide;
pub mod packet;

pub use decide::{ArpReply, Tables, Verdict, Withheld, decide};
pub use packet::{Frame, FrameMut};
