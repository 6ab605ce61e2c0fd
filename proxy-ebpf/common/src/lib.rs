//! ABI and verdict.
#![no_std]
