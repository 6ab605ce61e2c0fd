//! Counters of commands, and the `stats` answers: memcached's names in memcached's order.
//!
//! Each worker has its own [`Counters`] and is the only one that writes them. What the process
//! knows and the cache does not (pid, connections, role) comes by [`Server`].

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Cache;
use crate::command::StatsTopic;
use crate::exec::Now;

/// What `version` answers: the protocol's level as clients parse it, then our own name.
pub const VERSION: &str = concat!("1.6.0-tandem-", env!("CARGO_PKG_VERSION"));

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $name,)*
        }

        const COUNTERS: usize = [$(Counter::$name,)*].len();
    };
}

counters! {
    /// Keys asked for by get, gets, gat, gats.
    CmdGet,
    /// Storage commands.
    CmdSet,
    /// flush_all.
    CmdFlush,
    /// touch, and keys of gat, gats.
    CmdTouch,
    /// Keys found.
    GetHits,
    /// Keys not found.
    GetMisses,
    /// delete without an item.
    DeleteMisses,
    /// delete of an item.
    DeleteHits,
    /// incr without an item.
    IncrMisses,
    /// incr of an item.
    IncrHits,
    /// decr without an item.
    DecrMisses,
    /// decr of an item.
    DecrHits,
    /// cas without an item.
    CasMisses,
    /// cas that stored.
    CasHits,
    /// cas of an item of another version.
    CasBadval,
    /// touch, gat, gats of an item.
    TouchHits,
    /// touch, gat, gats without an item.
    TouchMisses,
    /// Refused for size.
    StoreTooLarge,
    /// Refused for memory.
    StoreNoMemory,
    /// Items stored since the start.
    TotalItems,
    /// Bytes that clients sent.
    BytesRead,
    /// Bytes given out for clients.
    BytesWritten,
    /// Answers that were never sent because role or epoch changed.
    AnswersDropped,
}

/// One worker's counters. Written by that worker alone, read by all.
#[derive(Debug)]
pub struct Counters([AtomicU64; COUNTERS]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTERS])
    }
}

impl Counters {
    /// Counts one.
    pub fn bump(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts `n`. A plain load and store: there is one writer.
    pub fn add(&self, counter: Counter, n: u64) {
        let cell = &self.0[counter as usize];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// What one counter stands at.
    #[must_use]
    pub fn value(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    /// Adds this worker's to a sum.
    pub fn add_to(&self, totals: &mut Totals) {
        for (sum, cell) in totals.0.iter_mut().zip(&self.0) {
            *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
        }
    }
}

/// Sum of all workers' counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals([u64; COUNTERS]);

impl Default for Totals {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl Totals {
    /// One of them.
    #[must_use]
    pub fn value(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// What was counted since `earlier`: how `stats reset` is done without a second writer.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut out = *self;
        for (now, then) in out.0.iter_mut().zip(&earlier.0) {
            *now = now.wrapping_sub(*then);
        }
        out
    }
}

/// What the process knows for `stats`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Figures {
    /// Process id of the engine.
    pub pid: u32,
    /// Since the engine's start.
    pub uptime: Duration,
    /// CPU time in user mode.
    pub rusage_user: Duration,
    /// CPU time in the kernel.
    pub rusage_system: Duration,
    /// Connections allowed.
    pub max_connections: u64,
    /// Connections open.
    pub curr_connections: u64,
    /// Connections since the start.
    pub total_connections: u64,
    /// Connections refused.
    pub rejected_connections: u64,
    /// Workers.
    pub threads: u64,
    /// TCP port of the cache.
    pub tcp_port: u16,
    /// State name: MASTER, MASTER_SOLO, SYNCED...
    pub role: &'static str,
    /// Sum of the workers' counters since the start or the last reset.
    pub totals: Totals,
    /// Lines for `stats replication`: role, epoch, peer, mode, lag and so on, in order.
    pub replication: Vec<(&'static str, String)>,
}

/// The process around the cache, as far as `stats` asks for it.
pub trait Server {
    /// What is known now.
    fn figures(&self) -> Figures;
    /// `stats reset`.
    fn reset(&self);
}

/// Appends the answer to `stats`, whole.
pub fn answer(out: &mut Vec<u8>, topic: StatsTopic, cache: &Cache, server: &dyn Server, now: Now) {
    let mut lines = Lines(out);
    match topic {
        StatsTopic::Reset => {
            server.reset();
            out.extend_from_slice(b"RESET\r\n");
            return;
        }
        StatsTopic::General => general(&mut lines, cache, &server.figures(), now),
        StatsTopic::Settings => settings(&mut lines, cache, &server.figures()),
        StatsTopic::Items => items(&mut lines, cache),
        StatsTopic::Slabs => slabs(&mut lines, cache),
        StatsTopic::Sizes => lines.stat("sizes_status", "disabled"),
        StatsTopic::Replication => replication(&mut lines, &server.figures()),
    }
    out.extend_from_slice(b"END\r\n");
}

struct Lines<'a>(&'a mut Vec<u8>);

impl fmt::Write for Lines<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl Lines<'_> {
    fn stat(&mut self, name: impl fmt::Display, value: impl fmt::Display) {
        // Writing to a Vec does not fail.
        write!(self, "STAT {name} {value}\r\n").ok();
    }

    fn count(&mut self, totals: &Totals, name: &str, counter: Counter) {
        self.stat(name, totals.value(counter));
    }
}

fn general(lines: &mut Lines<'_>, cache: &Cache, figures: &Figures, now: Now) {
    process(lines, figures, now);
    commands(lines, &figures.totals);
    store(lines, cache, figures);
    lines.stat("replication", figures.role);
    lines.stat("repcached_version", VERSION);
    lines.stat("repcached_qi_free", 0);
}

fn process(lines: &mut Lines<'_>, figures: &Figures, now: Now) {
    let seconds = |d: Duration| format!("{}.{:06}", d.as_secs(), d.subsec_micros());
    lines.stat("pid", figures.pid);
    lines.stat("uptime", figures.uptime.as_secs());
    lines.stat("time", now.wall);
    lines.stat("version", VERSION);
    lines.stat("pointer_size", usize::BITS);
    lines.stat("rusage_user", seconds(figures.rusage_user));
    lines.stat("rusage_system", seconds(figures.rusage_system));
    lines.stat("max_connections", figures.max_connections);
    lines.stat("curr_connections", figures.curr_connections);
    lines.stat("total_connections", figures.total_connections);
    lines.stat("rejected_connections", figures.rejected_connections);
    lines.stat("connection_structures", figures.curr_connections);
}

fn commands(lines: &mut Lines<'_>, totals: &Totals) {
    const FIRST: [(&str, Counter); 4] = [
        ("cmd_get", Counter::CmdGet),
        ("cmd_set", Counter::CmdSet),
        ("cmd_flush", Counter::CmdFlush),
        ("cmd_touch", Counter::CmdTouch),
    ];
    const THEN: [(&str, Counter); 13] = [
        ("delete_misses", Counter::DeleteMisses),
        ("delete_hits", Counter::DeleteHits),
        ("incr_misses", Counter::IncrMisses),
        ("incr_hits", Counter::IncrHits),
        ("decr_misses", Counter::DecrMisses),
        ("decr_hits", Counter::DecrHits),
        ("cas_misses", Counter::CasMisses),
        ("cas_hits", Counter::CasHits),
        ("cas_badval", Counter::CasBadval),
        ("touch_hits", Counter::TouchHits),
        ("touch_misses", Counter::TouchMisses),
        ("store_too_large", Counter::StoreTooLarge),
        ("store_no_memory", Counter::StoreNoMemory),
    ];
    for (name, counter) in FIRST {
        lines.count(totals, name, counter);
    }
    lines.stat("cmd_meta", 0);
    lines.count(totals, "get_hits", Counter::GetHits);
    lines.count(totals, "get_misses", Counter::GetMisses);
    lines.stat("get_expired", 0);
    lines.stat("get_flushed", 0);
    for (name, counter) in THEN {
        lines.count(totals, name, counter);
    }
    lines.stat("auth_cmds", 0);
    lines.stat("auth_errors", 0);
    lines.count(totals, "bytes_read", Counter::BytesRead);
    lines.count(totals, "bytes_written", Counter::BytesWritten);
}

fn store(lines: &mut Lines<'_>, cache: &Cache, figures: &Figures) {
    let counters = cache.counters();
    lines.stat("limit_maxbytes", counters.memory);
    lines.stat("accepting_conns", 1);
    lines.stat("listen_disabled_num", 0);
    lines.stat("threads", figures.threads);
    lines.stat("conn_yields", 0);
    lines.stat("hash_power_level", 0);
    lines.stat("hash_bytes", 0);
    lines.stat("hash_is_expanding", 0);
    lines.stat("slab_reassign_running", 0);
    lines.stat("slabs_moved", counters.page_moves);
    lines.stat("bytes", counters.bytes);
    lines.stat("curr_items", counters.items);
    lines.count(&figures.totals, "total_items", Counter::TotalItems);
    lines.stat("slab_global_page_pool", counters.pages_free);
    lines.stat("expired_unfetched", 0);
    lines.stat("evicted_unfetched", counters.evicted_unfetched);
    lines.stat("evicted_active", 0);
    lines.stat("evictions", counters.evictions);
    lines.stat("reclaimed", counters.reclaimed + counters.expired);
    lines.stat("crawler_reclaimed", 0);
    lines.stat("direct_reclaims", 0);
}

fn settings(lines: &mut Lines<'_>, cache: &Cache, figures: &Figures) {
    lines.stat("maxbytes", cache.counters().memory);
    lines.stat("maxconns", figures.max_connections);
    lines.stat("tcpport", figures.tcp_port);
    lines.stat("udpport", 0);
    lines.stat("verbosity", 0);
    lines.stat("num_threads", figures.threads);
    lines.stat("item_size_max", cache.item_limit());
    lines.stat("cas_enabled", "yes");
    lines.stat("flush_enabled", "yes");
    lines.stat("binding_protocol", "ascii");
    lines.stat("hash_algorithm", "siphash13");
}

/// Classes are numbered from 1, as memcached's are; what is not known of one is not said.
fn items(lines: &mut Lines<'_>, cache: &Cache) {
    for (class, counters) in (1..).zip(cache.classes()) {
        if counters.used > 0 {
            lines.stat(format_args!("items:{class}:number"), counters.used);
            lines.stat(format_args!("items:{class}:evicted"), counters.evictions);
        }
    }
}

fn slabs(lines: &mut Lines<'_>, cache: &Cache) {
    let (mut active, mut pages) = (0, 0);
    for (class, counters) in (1..).zip(cache.classes()) {
        if counters.pages == 0 {
            continue;
        }
        active += 1;
        pages += counters.pages;
        lines.stat(format_args!("{class}:chunk_size"), counters.chunk);
        lines.stat(format_args!("{class}:total_pages"), counters.pages);
        lines.stat(format_args!("{class}:total_chunks"), counters.used + counters.free);
        lines.stat(format_args!("{class}:used_chunks"), counters.used);
        lines.stat(format_args!("{class}:free_chunks"), counters.free);
    }
    lines.stat("active_slabs", active);
    lines.stat("total_malloced", pages * cache.counters().page_size);
}

fn replication(lines: &mut Lines<'_>, figures: &Figures) {
    for (name, value) in &figures.replication {
        lines.stat(name, value);
    }
}
