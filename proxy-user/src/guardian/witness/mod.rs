//! The witness's two shells: `tandem witness` itself ([`serve()`]), and the thread that asks one.

mod ask;
mod etcd;
mod serve;
mod tandem;
#[cfg(test)]
mod tests;

pub(super) use ask::{Asker, WitnessThread};
pub use serve::serve;
