//! The XDP program in the kernel: a table of frames by BPF_PROG_TEST_RUN, its agreement with the
//! verdict's other compilation in user space, and real ARP over veth in each mode.

#![allow(clippy::expect_used, reason = "a test helper that fails must say so")]

mod fixtures;
mod table;
mod veth;
