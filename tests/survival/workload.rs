//! Writers whose values say what they are, and what each may be found to hold.

use std::collections::VecDeque;

use anyhow::{Result, ensure};
use tests::clients::Memcached;

/// Keys of each writer.
const KEYS: u64 = 400;

/// SplitMix64: the same numbers for the same seed everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// The one value that `key` may hold as its write number `number`: every byte depends on both.
pub(crate) fn expected(key: &str, number: u64) -> Vec<u8> {
    let mut random =
        Random::new(key.bytes().fold(number, |a, b| a.wrapping_mul(31) ^ u64::from(b)));
    // Mostly sessions of some hundred bytes, now and then one that is chained over pages.
    let length = if number.is_multiple_of(97) { 40_000 } else { 20 + random.below(2_000) };
    let mut value = format!("{key} {number} ").into_bytes();
    while (value.len() as u64) < length {
        value.extend_from_slice(&random.next().to_le_bytes());
    }
    value
}

/// Commands of one pipeline: the more the engine has to do at once, the likelier a kill hits it
/// between two stores.
const BATCH: usize = 16;

/// A write by its key and its number; `None` is a delete.
type Write = (usize, Option<u64>);

/// One connection's writes. Each key has one writer, so what it may hold is known exactly.
pub(crate) struct Writer {
    index: usize,
    random: Random,
    next: u64,
    /// Per key: the last answered write (`None` = deleted or never written).
    answered: Vec<Option<u64>>,
    /// Writes that were sent and not answered, of different keys.
    in_doubt: VecDeque<Write>,
}

impl Writer {
    pub(crate) fn new(index: usize, seed: u64) -> Self {
        Self {
            index,
            random: Random::new(seed ^ (index as u64) << 32),
            next: 0,
            answered: vec![None; KEYS as usize],
            in_doubt: VecDeque::new(),
        }
    }

    pub(crate) fn key(&self, number: usize) -> String {
        format!("writer{}:key{number}", self.index)
    }

    /// Keys with what was answered last.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (usize, String)> {
        (0..self.answered.len()).map(|number| (number, self.key(number)))
    }

    /// One pipeline of sets and deletes, each answered or left in doubt.
    pub(crate) fn step(&mut self, client: &mut Memcached) -> Result<()> {
        let first = self.random.below(KEYS) as usize;
        let mut pipeline = Vec::new();
        for offset in 0..BATCH {
            // Neighbours from a random key on: different within one pipeline.
            let number = (first + offset) % self.answered.len();
            let key = self.key(number);
            let write = (self.random.below(8) != 0).then(|| {
                self.next += 1;
                self.next
            });
            match write {
                Some(write) => {
                    let value = expected(&key, write);
                    pipeline.extend(format!("set {key} 0 0 {}\r\n", value.len()).bytes());
                    pipeline.extend(value);
                    pipeline.extend(b"\r\n");
                }
                None => pipeline.extend(format!("delete {key}\r\n").bytes()),
            }
            self.in_doubt.push_back((number, write));
        }
        client.send(&pipeline)?;
        while let Some(&(number, write)) = self.in_doubt.front() {
            let answer = client.line()?;
            let allowed: &[&str] =
                if write.is_some() { &["STORED"] } else { &["DELETED", "NOT_FOUND"] };
            ensure!(allowed.contains(&answer.as_str()), "{write:?} answered {answer}");
            self.answered[number] = write;
            self.in_doubt.pop_front();
        }
        Ok(())
    }

    /// Is `found` what this key may hold?
    ///
    /// # Errors
    /// With what was expected: a wrong byte, or an answered write that is gone.
    pub(crate) fn judge(&self, number: usize, found: Option<&[u8]>) -> Result<()> {
        let key = self.key(number);
        let mut allowed = vec![self.answered[number]];
        let doubtful = self.in_doubt.iter().filter(|doubt| doubt.0 == number);
        allowed.extend(doubtful.map(|doubt| doubt.1));
        let fits = |write: &Option<u64>| match (write, found) {
            (None, None) => true,
            (Some(write), Some(found)) => expected(&key, *write) == found,
            _ => false,
        };
        let head =
            found.map(|bytes| String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned());
        ensure!(allowed.iter().any(fits), "{key}: may be {allowed:?}, found {head:?}");
        Ok(())
    }

    /// What was found is the truth from now on.
    pub(crate) fn adopt(&mut self, number: usize, found: Option<&[u8]>) {
        let Some(at) = self.in_doubt.iter().position(|doubt| doubt.0 == number) else { return };
        let Some((_, write)) = self.in_doubt.remove(at) else { return };
        let happened = match (write, found) {
            (None, None) => true,
            (Some(write), Some(found)) => expected(&self.key(number), write) == found,
            _ => false,
        };
        if happened {
            self.answered[number] = write;
        }
    }
}
