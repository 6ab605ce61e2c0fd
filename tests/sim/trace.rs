//! One row per event, for a tired human: time, node, event, role, epoch, sync.

use crate::world::Nanos;

/// The rows of one run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Print rows as they come.
    pub(crate) print: bool,
    /// Hash of all rows: equal runs have equal hashes.
    hash: u64,
    rows: u64,
    /// The last rows, shown when a checker complains.
    tail: std::collections::VecDeque<String>,
}

/// Rows kept for a failure's report.
const TAIL: usize = 60;

impl Trace {
    pub(crate) fn new(print: bool) -> Self {
        Self { print, ..Self::default() }
    }

    pub(crate) fn row(&mut self, at: Nanos, who: &str, view: &str, what: &str) {
        let (ms, us) = (at / 1_000_000, at / 1_000 % 1_000);
        let row = format!("{ms:>6}.{us:03} {who:<3} {view:<34} {what}");
        if self.print {
            println!("{row}");
        }
        for byte in row.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.rows += 1;
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(row);
    }

    pub(crate) const fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) const fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn tail(&self) -> String {
        let rows: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        rows.join("\n")
    }
}
