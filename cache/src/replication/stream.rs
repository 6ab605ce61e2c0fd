//! One partition's ordered records.

/// The ordered records of one partition, kept under the lock of its shard.
#[derive(Default, Debug)]
pub struct Stream {}
