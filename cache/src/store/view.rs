//! A stored item as its reader sees it.

use super::slab::Pieces;

/// One item, borrowed from its shard while the lock is held.
#[derive(Clone, Debug)]
pub struct ItemView<'a> {
    /// The key.
    pub key: &'a [u8],
    /// 0 | epoch:15 | seq:48.
    pub version: u64,
    /// Store time in seconds; 0 = never.
    pub expiry: u32,
    /// The client's flags.
    pub flags: u32,
    /// The value: one slice, or several for a large item.
    pub value: Value<'a>,
}

/// The slices of a value, in order.
#[derive(Clone, Debug)]
pub struct Value<'a> {
    first: Option<&'a [u8]>,
    left: usize,
    rest: Option<Pieces<'a>>,
}

impl<'a> Value<'a> {
    pub(crate) const fn contiguous(value: &'a [u8]) -> Self {
        Self { first: Some(value), left: value.len(), rest: None }
    }

    pub(crate) const fn chained(first: &'a [u8], len: usize, rest: Pieces<'a>) -> Self {
        Self { first: Some(first), left: len, rest: Some(rest) }
    }

    /// Bytes not yet returned.
    pub const fn len(&self) -> usize {
        self.left
    }

    /// Nothing left?
    pub const fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// What is left, copied.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.left);
        for part in self.clone() {
            out.extend_from_slice(part);
        }
        out
    }
}

impl<'a> Iterator for Value<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let part = match self.first.take() {
            Some(first) => first,
            None => self.rest.as_mut()?.next_part()?.1,
        };
        self.left = self.left.saturating_sub(part.len());
        Some(part)
    }
}
