//! Fuzz target: arbitrary bytes from a client, in arbitrary pieces.

use std::sync::OnceLock;
use std::time::Instant;

use super::{Context, OUTPUT_MARK, Session, Transmit};
use crate::exec::Now;
use crate::replication::{AckMode, GateRole, GateState, Shared};
use crate::stats::{Counters, Figures, Server};
use crate::{Cache, Layout, Region, StoreConfig, StoreTime};

struct Silent;

impl Server for Silent {
    fn figures(&self) -> Figures {
        Figures::default()
    }
    fn reset(&self) {}
}

struct World {
    cache: Cache,
    shared: Shared,
    counters: Counters,
    now: Now,
}

/// The first byte cuts the rest into pieces. What holds whatever comes: answers end in a line end
/// (but for one cut by a close), bounds are kept, a session at rest waits for nothing.
pub fn fuzz_text(bytes: &[u8]) {
    static WORLD: OnceLock<Option<World>> = OnceLock::new();
    let world = WORLD.get_or_init(|| {
        let region = Region::leaked(&Layout::for_memory(4 << 20));
        let cache = Cache::create(StoreConfig::default(), region).ok()?;
        cache.promote(2).ok()?;
        let (shared, counters) = (Shared::default(), Counters::default());
        let now = Now { instant: Instant::now(), store: StoreTime(9), wall: 1_795_000_000 };
        Some(World { cache, shared, counters, now })
    });
    let (Some(world), Some((cut, rest))) = (world, bytes.split_first()) else { return };
    let role = GateRole::MasterSolo;
    let ctx = Context {
        cache: &world.cache,
        shared: &world.shared,
        gate: GateState { role, epoch: 2, lease_valid: true, ack_mode: AckMode::Replicated },
        now: world.now,
        counters: &world.counters,
        server: &Silent,
    };
    let mut session = Session::new();
    let mut out = Vec::new();
    for piece in rest.chunks(usize::from(*cut).max(1)) {
        session.feed(&ctx, piece);
        assert!(session.unsent() < OUTPUT_MARK + (1 << 20) + 1024);
        if let Transmit::Close(_) = session.poll_transmit(&ctx, &mut out) {
            break;
        }
        assert_eq!(session.unsent(), 0);
    }
    assert!(!session.is_at_rest() || out.is_empty() || out.ends_with(b"\r\n"));
}
