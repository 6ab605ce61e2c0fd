//! Build verbs.
fn main() {}
