//! The witness's two shells: `tandem witness` itself ([`serve()`]), and the thread that asks one.

mod serve;

pub use serve::serve;
