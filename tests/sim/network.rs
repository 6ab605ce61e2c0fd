//! Wires: two paths between the nodes, with delay, loss, repetition, reorder between and on them,
//! cut in one direction or both; and connections over them, ordered, stalled by a cut, given up
//! after a while or reset.

use crate::prng::Prng;
use crate::world::{MS, Nanos, US};

/// A connection that gets nothing through for so long is given up by both ends.
pub(crate) const GIVE_UP: Nanos = 250 * MS;
/// Retransmission of what was lost on a connection.
const RTO: Nanos = 15 * MS;

/// One wire between the nodes. Path 0 is the clients' segment too.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    pub(crate) delay: (Nanos, Nanos),
    pub(crate) loss: u64,
    pub(crate) repeat: u64,
    /// Cut from side 0, from side 1.
    pub(crate) cut: [bool; 2],
    /// Datagrams are lost, connections work: a filter in between.
    pub(crate) filtered: bool,
    /// Per host: its own end of the wire.
    pub(crate) ports: [Port; 2],
}

/// A host's interface on a wire, with carrier up all the time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Port {
    /// Nothing comes in.
    pub(crate) deaf: bool,
    /// Nothing goes out.
    pub(crate) mute: bool,
}

impl Port {
    /// A question leaves and its answer comes in.
    pub(crate) const fn works(self) -> bool {
        !self.deaf && !self.mute
    }
}

impl Path {
    pub(crate) fn delay(&self, rng: &mut Prng) -> Nanos {
        rng.range(self.delay.0, self.delay.1)
    }

    /// Do frames of `from` reach the other host?
    pub(crate) const fn passes(&self, from: usize) -> bool {
        !self.cut[from] && !self.ports[from].mute && !self.ports[1 - from].deaf
    }

    /// When copies of a datagram sent now arrive, after now.
    pub(crate) fn datagram(&self, rng: &mut Prng, from: usize) -> Vec<Nanos> {
        let copies = 1 + usize::from(rng.chance(self.repeat));
        let mut arrivals = Vec::new();
        for _ in 0..copies {
            let (lost, delay) = (rng.chance(self.loss), self.delay(rng));
            if !lost && self.passes(from) && !self.filtered {
                arrivals.push(delay);
            }
        }
        arrivals
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    /// Between the guardians.
    Control,
    /// Between the engines, by number.
    Link(usize),
}

/// A connection between the nodes. The world keeps one per [`Use`]; a new one has a new `id`.
#[derive(Debug, Clone)]
pub(crate) struct Conn {
    pub(crate) id: u64,
    pub(crate) path: usize,
    /// Per direction, by sender: what is on the way, in order, with the time of its arrival.
    pub(crate) queue: [std::collections::VecDeque<(Nanos, Vec<u8>)>; 2],
    /// Since when a direction is stalled by a cut.
    pub(crate) stalled: [Option<Nanos>; 2],
    /// The end of that side is gone; the other is told when all before it has arrived.
    pub(crate) closed: [bool; 2],
    /// A host went without a word: nothing arrives any more.
    pub(crate) silent: bool,
}

impl Conn {
    pub(crate) const fn new(id: u64, path: usize) -> Self {
        Self {
            id,
            path,
            queue: [std::collections::VecDeque::new(), std::collections::VecDeque::new()],
            stalled: [None, None],
            closed: [false, false],
            silent: false,
        }
    }

    /// Puts bytes on the way; returns when they arrive if nothing is cut.
    pub(crate) fn send(
        &mut self,
        rng: &mut Prng,
        path: &Path,
        now: Nanos,
        from: usize,
        bytes: Vec<u8>,
    ) -> Nanos {
        let mut at = now + path.delay(rng);
        while rng.chance(path.loss) {
            at += RTO;
        }
        let last = self.queue[from].back().map_or(0, |(at, _)| *at);
        let at = at.max(last + US);
        self.queue[from].push_back((at, bytes));
        at
    }
}

/// When to look again at a stalled direction.
pub(crate) const fn retry(now: Nanos) -> Nanos {
    now + RTO
}
