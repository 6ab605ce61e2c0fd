//! Two stores joined by a sender and a receiver over a pipe that cuts wherever it likes.

use std::collections::BTreeMap;
use std::time::Instant;

use super::*;
use crate::exec::Now;
use crate::replication::frame::PeerMisbehaved;
use crate::session::{Context, Session, Transmit};
use crate::stats::{Counters, Figures, Server};
use crate::{Cache, Cursor, Layout, PARTITIONS, Region, StoreConfig, StoreTime};
use proptest::prelude::*;

/// Small numbers from a seed: xorshift.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }
}

struct Node {
    cache: Cache,
    shared: Shared,
    counters: Counters,
    gate: GateState,
    now: Now,
}

impl Server for Node {
    fn figures(&self) -> Figures {
        Figures::default()
    }
    fn reset(&self) {}
}

impl Node {
    fn new(memory: u64, epoch: u16) -> Self {
        let region = Region::leaked(&Layout::for_memory(memory));
        let config = StoreConfig { item_limit: 64 << 10, ..StoreConfig::default() };
        let cache = Cache::create(config, region).unwrap();
        cache.promote(epoch).unwrap();
        let gate = GateState {
            role: GateRole::MasterSolo,
            epoch,
            lease_valid: true,
            ack_mode: AckMode::Replicated,
        };
        let now = Now { instant: Instant::now(), store: StoreTime(1000), wall: 1_795_000_000 };
        Self { cache, shared: Shared::default(), counters: Counters::default(), gate, now }
    }

    fn ctx(&self) -> Context<'_> {
        Context {
            cache: &self.cache,
            shared: &self.shared,
            gate: self.gate,
            now: self.now,
            counters: &self.counters,
            server: self,
        }
    }

    fn command(&self, line: &str) -> String {
        let mut session = Session::new();
        let mut out = Vec::new();
        session.feed(&self.ctx(), line.as_bytes());
        session.poll_transmit(&self.ctx(), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn content(&self) -> BTreeMap<Vec<u8>, (u64, u32, u32, Vec<u8>)> {
        let mut all = BTreeMap::new();
        for partition in 0..PARTITIONS {
            let mut locked = self.cache.lock_partition(partition);
            let mut cursor = Some(Cursor::START);
            while let Some(at) = cursor {
                cursor = locked.walk(at, 100, self.now.store, |item, _, _| {
                    let value = item.value.to_vec();
                    let what = (item.version, item.expiry, item.flags, value);
                    all.insert(item.key.to_vec(), what);
                });
            }
        }
        all
    }
}

/// One link with what is on the way.
struct Link {
    sender: Sender,
    receiver: Receiver,
    down: Vec<u8>,
    up: Vec<u8>,
    sent: Vec<SenderEvent>,
    received: Vec<ReceiverEvent>,
}

fn sender_config(epoch: u16, number: u64) -> SenderConfig {
    SenderConfig {
        cluster: "test".to_owned(),
        node: "a".to_owned(),
        link_index: 0,
        link_count: 1,
        session: LinkSession { epoch, number },
        backlog: 1 << 20,
    }
}

fn receiver_config(epoch: u16) -> ReceiverConfig {
    ReceiverConfig { cluster: "test".to_owned(), node: "b".to_owned(), epoch }
}

impl Link {
    fn new(a: &Node, b: &Node, number: u64) -> Self {
        Self::with(a, b, sender_config(a.gate.epoch, number), receiver_config(a.gate.epoch))
    }

    fn with(a: &Node, b: &Node, sender: SenderConfig, receiver: ReceiverConfig) -> Self {
        Self {
            sender: Sender::new(sender, &a.ctx()),
            receiver: Receiver::new(receiver, &b.cache),
            down: Vec::new(),
            up: Vec::new(),
            sent: Vec::new(),
            received: Vec::new(),
        }
    }

    /// Moves up to so many bytes each way. Returns whether anything moved.
    fn step(&mut self, a: &Node, b: &Node, down: usize, up: usize) -> bool {
        let room = 4096usize.saturating_sub(self.down.len());
        if room > 0 {
            self.sender.poll_transmit(&a.ctx(), &mut self.down, room);
        }
        self.receiver.poll_transmit(&mut self.up);
        let down: Vec<u8> = self.down.drain(..down.min(self.down.len())).collect();
        let up: Vec<u8> = self.up.drain(..up.min(self.up.len())).collect();
        if !down.is_empty() {
            self.receiver.handle_bytes(&b.cache, b.now.store, &down);
        }
        if !up.is_empty() {
            self.sender.handle_bytes(&a.ctx(), &up);
        }
        self.sent.extend(std::iter::from_fn(|| self.sender.poll_event()));
        self.received.extend(std::iter::from_fn(|| self.receiver.poll_event()));
        !down.is_empty() || !up.is_empty()
    }

    fn settle(&mut self, a: &Node, b: &Node) {
        while self.step(a, b, usize::MAX, usize::MAX) {}
    }

    fn lost(&self) -> Option<LinkLost> {
        let sent = self.sent.iter().find_map(|event| match event {
            SenderEvent::Lost(lost) => Some(*lost),
            _ => None,
        });
        let received = self.received.iter().find_map(|event| match event {
            ReceiverEvent::Lost(lost) => Some(*lost),
            _ => None,
        });
        received.or(sent)
    }
}

/// One random change.
fn change(node: &Node, dice: &mut Dice, keys: usize) {
    let key = format!("key-{}", dice.roll(keys));
    let value = "v".repeat(dice.roll(60));
    let line = match dice.roll(40) {
        0..18 => format!("set {key} {} 0 {}\r\n{value}\r\n", dice.roll(99), value.len()),
        18..21 => format!("set {key} 0 {} 1\r\n1\r\n", 10 + dice.roll(1000)),
        21..25 => format!("delete {key}\r\n"),
        25..28 => format!("append {key} 0 0 {}\r\n{value}\r\n", value.len()),
        28..31 => format!("incr {key} 7\r\n"),
        31..34 => format!("add {key} 0 0 2\r\n42\r\n"),
        34..36 => format!("touch {key} {}\r\n", dice.roll(3) * 500),
        36..38 => format!("gat 1000 {key}\r\n"),
        38 => format!("set {key} 0 -1 1\r\n1\r\n"),
        _ if dice.roll(20) == 0 => "flush_all\r\n".to_owned(),
        _ => format!("set {key} 0 0 2000\r\n{}\r\n", "w".repeat(2000)),
    };
    node.command(&line);
}

/// The peer holds what was acknowledged and nothing else, but for what it has evicted.
fn check_equal(a: &Node, b: &Node, evicting: bool) {
    let (ours, theirs) = (a.content(), b.content());
    for (key, item) in &theirs {
        assert_eq!(ours.get(key), Some(item), "{}", key.escape_ascii());
    }
    if !evicting {
        assert_eq!(ours.len(), theirs.len());
    }
    for partition in 0..PARTITIONS {
        let (mut ours, mut theirs) =
            (a.cache.lock_partition(partition), b.cache.lock_partition(partition));
        let version = ours.partition().version();
        assert_eq!(version, theirs.partition().version());
        assert_eq!(version, a.shared.acked(partition as u8));
        assert_eq!(ours.partition().last_delete(), theirs.partition().last_delete());
        assert_eq!(ours.partition().flush_at(), theirs.partition().flush_at());
    }
}

fn full_sync_under_writes(seed: u64, memory_b: u64, keys: usize, changes: usize) {
    let mut dice = Dice(seed | 1);
    let (a, b) = (Node::new(16 << 20, 2), Node::new(memory_b, 1));
    for _ in 0..changes {
        change(&a, &mut dice, keys);
        if dice.roll(3) == 0 {
            // What a former primary had and nobody knows any more.
            let exec = crate::exec::Exec::new(&b.cache, &b.shared, 1, b.now);
            exec.store(
                &crate::command::Store {
                    verb: crate::command::StoreVerb::Set,
                    key: format!("key-{}", dice.roll(keys * 2)).as_bytes(),
                    flags: 0,
                    exptime: 0,
                    length: 3,
                    noreply: false,
                },
                b"old",
            )
            .unwrap();
        }
    }
    let evicting = memory_b < 16 << 20;
    let mut link = Link::new(&a, &b, 1);
    // During the sync, on a slow link.
    while !link.sent.contains(&SenderEvent::CaughtUp) {
        change(&a, &mut dice, keys);
        // Now and then another worker's change is not yet marked when the sender looks.
        let late = if dice.roll(3) == 0 { a.shared.take_dirty(u64::MAX) } else { 0 };
        link.step(&a, &b, 1 + dice.roll(400), 1 + dice.roll(50));
        sender::bits(late).for_each(|partition| a.shared.mark_dirty(partition));
        if !evicting && dice.roll(20) == 0 {
            check_acknowledged(&a, &b);
        }
        assert_eq!(link.lost(), None, "seed {seed}");
    }
    link.settle(&a, &b);
    check_equal(&a, &b, evicting);
    for _ in 0..changes / 4 {
        change(&a, &mut dice, keys);
        link.step(&a, &b, 1 + dice.roll(3000), 1 + dice.roll(50));
    }
    link.settle(&a, &b);
    assert_eq!(link.lost(), None, "seed {seed}");
    assert!(link.received.contains(&ReceiverEvent::Received { epoch: 2 }), "seed {seed}");
    assert_eq!(link.sender.lag(&a.ctx()), (0, 0));
    assert!(!link.sender.wants_transmit(&a.ctx()));
    check_equal(&a, &b, evicting);
}

/// Whatever is acknowledged, the replica holds, in the middle of everything.
fn check_acknowledged(a: &Node, b: &Node) {
    let theirs = b.content();
    for (key, item) in a.content() {
        let partition = a.cache.partition_of(&key) as u8;
        if a.shared.has(Depends { partition, version: item.0 }) {
            let held = theirs.get(&key).unwrap_or_else(|| panic!("{}", key.escape_ascii()));
            assert_eq!((held.0, &held.3), (item.0, &item.3));
        }
    }
}

#[test]
fn stores_are_equal_after_a_sync_under_writes() {
    for seed in 1..8 {
        full_sync_under_writes(seed * 0x9e37_79b9, 16 << 20, 400, 1500);
    }
}

#[test]
fn an_evicting_replica_never_differs_it_only_lacks() {
    for seed in 1..4 {
        full_sync_under_writes(seed * 0x51ed_270b, 512 << 10, 3000, 4000);
    }
}

/// What the primary has evicted and then deleted must not come back with a change of role.
#[test]
fn a_delete_that_finds_nothing_reaches_the_replica() {
    for command in ["delete k\r\n", "set k 0 -1 1\r\nv\r\n"] {
        let (a, b) = (Node::new(1 << 20, 2), Node::new(1 << 20, 1));
        let mut link = Link::new(&a, &b, 1);
        a.command("set k 0 0 3\r\nold\r\n");
        link.settle(&a, &b);
        assert_eq!(b.content().len(), 1);
        a.cache.lock(b"k").remove(a.now.store); // as an eviction does: without a record
        a.command(command);
        link.settle(&a, &b);
        assert_eq!(b.content().len(), 0, "{command}");
        check_acknowledged(&a, &b);
    }
}

#[test]
fn delayed_flush_is_done_by_the_primary_of_the_moment() {
    let (mut a, mut b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
    a.command("set a 0 0 1\r\n1\r\nflush_all 10\r\n");
    let mut link = Link::new(&a, &b, 1);
    link.settle(&a, &b);
    a.command("set b 0 0 1\r\n1\r\nflush_all 20\r\n");
    link.settle(&a, &b);
    check_equal(&a, &b, false);
    a.now.store.0 += 30;
    b.now.store.0 += 30;
    b.cache.promote(5).unwrap();
    b.gate.epoch = 5;
    assert_eq!(b.command("get a b\r\n"), "END\r\n");
    let exec = crate::exec::Exec::new(&b.cache, &b.shared, 5, b.now);
    assert!(exec.run_due_flushes().unwrap());
    assert!(!exec.run_due_flushes().unwrap());
}

#[test]
fn remaining_time_travels_not_the_clock() {
    let (a, mut b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
    b.now.store = StoreTime(77_000);
    a.command("set a 0 50 1\r\n1\r\nset n 0 0 1\r\n1\r\n");
    let mut link = Link::new(&a, &b, 1);
    link.settle(&a, &b);
    a.command("set c 0 60 1\r\n1\r\ntouch n 70\r\n");
    link.settle(&a, &b);
    let expiry = |key: &[u8]| b.cache.lock(key).peek(b.now.store).unwrap().expiry;
    assert_eq!([expiry(b"a"), expiry(b"c"), expiry(b"n")], [77_050, 77_060, 77_070]);
}

#[test]
fn a_promoted_replica_takes_and_acknowledges_nothing_more() {
    let (a, b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
    let mut link = Link::new(&a, &b, 1);
    link.settle(&a, &b);
    b.cache.promote(5).unwrap();
    a.command("set k 0 0 1\r\n1\r\n");
    link.settle(&a, &b);
    let stale = PeerMisbehaved::StaleEpoch { got: 2, have: 5 };
    assert_eq!(link.lost(), Some(LinkLost::Peer(stale)));
    assert!(b.content().is_empty());
    let partition = a.cache.partition_of(b"k");
    let version = a.cache.lock_partition(partition).partition().version();
    assert!(a.shared.acked(partition as u8) < version);
}

/// What the peer of another life has acknowledged says nothing of the peer of this one.
#[test]
fn a_new_link_knows_of_no_ack() {
    let (a, b) = (Node::new(1 << 20, 2), Node::new(1 << 20, 1));
    a.command("set k 0 0 1\r\nv\r\n");
    Link::new(&a, &b, 1).settle(&a, &b);
    assert!(a.shared.has_all(&positions(&a.cache)));
    let empty = Node::new(1 << 20, 1);
    let link = Link::new(&a, &empty, 2);
    assert!((0..PARTITIONS as u8).all(|partition| a.shared.acked(partition) == 0));
    assert_eq!(link.lost(), None);
}

/// The master's gate opens to the pair on this word: it must not come before the last ack.
#[test]
fn caught_up_is_said_after_the_last_ack() {
    let (a, b) = (Node::new(1 << 20, 2), Node::new(1 << 20, 1));
    (0..500).for_each(|n| drop(a.command(&format!("set key-{n} 0 0 1\r\nv\r\n"))));
    let mut link = Link::new(&a, &b, 1);
    while !link.sent.contains(&SenderEvent::CaughtUp) {
        assert!(link.step(&a, &b, 500, 7), "it stands still");
    }
    assert!(a.shared.has_all(&positions(&a.cache)));
}

/// A sender serves one reign: what a later one wrote must not look like this one's.
#[test]
fn a_promotion_ends_the_links_of_the_reign_before() {
    let (mut a, b) = (Node::new(1 << 20, 2), Node::new(1 << 20, 1));
    let mut link = Link::new(&a, &b, 1);
    link.settle(&a, &b);
    a.cache.promote(4).unwrap();
    a.gate.epoch = 4;
    a.command("set k 0 0 1\r\nv\r\n");
    let before = link.down.len();
    link.sender.poll_transmit(&a.ctx(), &mut link.down, 4096);
    let partition = a.cache.partition_of(b"k") as u8;
    let lost = SenderEvent::Lost(LinkLost::EpochChanged(partition));
    assert_eq!(link.sender.poll_event(), Some(lost));
    assert_eq!(link.down.len(), before, "nothing of it has left");
}

#[test]
fn a_newer_link_shuts_the_older_out() {
    let (a, b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
    let mut old = Link::new(&a, &b, 1);
    old.settle(&a, &b);
    a.command("set k 0 0 1\r\n1\r\n");
    old.sender.poll_transmit(&a.ctx(), &mut old.down, 4096);
    let mut new = Link::new(&a, &b, 2);
    new.settle(&a, &b);
    a.command("delete k\r\n");
    new.settle(&a, &b);
    old.settle(&a, &b);
    assert_eq!(old.lost(), Some(LinkLost::Peer(PeerMisbehaved::StaleSession)));
    assert!(b.content().is_empty());
    // The old sender finds out as soon as it has something to say.
    a.shared.mark_dirty(a.cache.partition_of(b"k") as u8);
    old.settle(&a, &b);
    assert!(old.sent.iter().any(|e| matches!(e, SenderEvent::Lost(LinkLost::Replaced(_)))));
    old.sender.close(&a.cache);
    a.command("set k 0 0 1\r\n1\r\n");
    new.settle(&a, &b);
    check_equal(&a, &b, false);
}

#[test]
fn hellos_that_do_not_fit_are_refused() {
    let (a, b) = (Node::new(4 << 20, 4), Node::new(4 << 20, 1));
    let table: [(&str, SenderConfig, u16, message::Refusal); 4] = [
        (
            "cluster",
            SenderConfig { cluster: "x".to_owned(), ..sender_config(4, 1) },
            4,
            message::Refusal::Cluster,
        ),
        ("lower epoch", sender_config(4, 1), 6, message::Refusal::Epoch),
        ("higher epoch", sender_config(4, 1), 2, message::Refusal::Epoch),
        (
            "link number",
            SenderConfig { link_index: 3, link_count: 2, ..sender_config(4, 1) },
            4,
            message::Refusal::LinkNumber,
        ),
    ];
    for (what, config, follows, reason) in table {
        let mut link = Link::with(&a, &b, config, receiver_config(follows));
        link.settle(&a, &b);
        assert_eq!(link.lost(), Some(LinkLost::Refusing(reason)), "{what}");
        let told = SenderEvent::Lost(LinkLost::Refused(reason));
        assert_eq!(link.sent, [told], "{what}");
    }
}

#[test]
fn a_peer_that_does_not_read_costs_the_backlog_and_no_more() {
    let (a, b) = (Node::new(16 << 20, 2), Node::new(16 << 20, 1));
    let mut link = Link::new(&a, &b, 1);
    link.settle(&a, &b);
    let value = "x".repeat(50_000);
    for _ in 0..40 {
        a.command(&format!("set k 0 0 50000\r\n{value}\r\n"));
        let (_, backlog) = link.sender.lag(&a.ctx());
        assert!(backlog <= 1 << 20);
    }
    link.settle(&a, &b);
    assert!(matches!(link.lost(), Some(LinkLost::Overrun(_))));
    link.sender.close(&a.cache);
    let mut link = Link::new(&a, &b, 2);
    link.settle(&a, &b);
    assert_eq!(link.lost(), None);
    check_equal(&a, &b, false);
}

#[test]
fn records_need_not_be_kept_without_a_link() {
    let a = Node::new(4 << 20, 2);
    a.command("set k 0 0 1\r\n1\r\n");
    let partition = a.cache.partition_of(b"k");
    assert_eq!(a.cache.lock_partition(partition).stream_mut().backlog(), 0);
    assert_eq!(a.shared.dirty(), 0);
}

#[test]
fn missing_and_repeated_records_are_noticed() {
    let (a, b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
    for repeat in [false, true] {
        let mut link = Link::new(&a, &b, 1 + u64::from(repeat));
        link.settle(&a, &b);
        a.command("set k 0 0 1\r\n1\r\n");
        link.sender.poll_transmit(&a.ctx(), &mut link.down, 4096);
        if repeat {
            link.down = link.down.repeat(2);
        } else {
            link.down.clear();
        }
        a.command("set k 0 0 1\r\n2\r\n");
        link.settle(&a, &b);
        assert!(matches!(link.lost(), Some(LinkLost::Peer(PeerMisbehaved::Gap { .. }))));
        link.sender.close(&a.cache);
    }
}

#[test]
fn several_links_share_the_partitions() {
    let (a, b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
    let mut dice = Dice(99);
    let mut links: Vec<Link> = (0..3)
        .map(|link_index| {
            let config = SenderConfig { link_index, link_count: 3, ..sender_config(2, 1) };
            Link::with(&a, &b, config, receiver_config(2))
        })
        .collect();
    assert_eq!(links.iter().fold(0, |mask, link| mask | link.sender.partitions()), u64::MAX);
    for _ in 0..3000 {
        change(&a, &mut dice, 200);
        links[dice.roll(3)].step(&a, &b, 1 + dice.roll(2000), 100);
    }
    for link in &mut links {
        link.settle(&a, &b);
        assert!(link.sent.contains(&SenderEvent::CaughtUp));
    }
    check_equal(&a, &b, false);
}

mod forwarding {
    use super::*;

    fn replies(link: &mut Link) -> (String, bool) {
        let mut all = Vec::new();
        let mut closed = false;
        for event in link.received.drain(..) {
            if let ReceiverEvent::Reply(reply) = event {
                assert_eq!(reply.connection, 7);
                all.extend_from_slice(&reply.bytes);
                closed |= reply.close;
            }
        }
        (String::from_utf8(all).unwrap(), closed)
    }

    #[test]
    fn answers_come_back_when_their_gate_has_opened() {
        let (mut a, b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
        let mut link = Link::new(&a, &b, 1);
        link.settle(&a, &b);
        a.gate.role = GateRole::Master;
        link.receiver.forward().send(7, b"set k 0 0 1\r\n1\r\nge");
        // The command reaches the primary, the record does not reach the replica yet.
        link.receiver.poll_transmit(&mut link.up);
        let up = std::mem::take(&mut link.up);
        link.sender.handle_bytes(&a.ctx(), &up);
        link.sender.poll_transmit(&a.ctx(), &mut link.down, 0);
        assert!(link.sender.oldest_held_since().is_some() && link.down.is_empty());
        link.settle(&a, &b);
        assert_eq!(replies(&mut link), ("STORED\r\n".to_owned(), false));
        assert!(link.receiver.forward().is_outstanding(7), "half a command is there");
        link.receiver.forward().send(7, b"t k\r\n");
        link.settle(&a, &b);
        assert_eq!(replies(&mut link).0, "VALUE k 0 1\r\n1\r\nEND\r\n");
        assert!(!link.receiver.forward().is_outstanding(7));
        assert!(b.content().contains_key(&b"k"[..]));
        assert!(link.receiver.forward().end().is_empty());
    }

    #[test]
    fn who_has_no_answer_is_closed_with_the_link() {
        let (a, b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
        let mut link = Link::new(&a, &b, 1);
        link.settle(&a, &b);
        link.receiver.forward().send(7, b"version\r\n");
        link.settle(&a, &b);
        link.receiver.forward().send(8, b"get a\r\n");
        link.receiver.forward().send(9, b"noreply is no answer");
        link.receiver.forward().close(9);
        assert_eq!(link.receiver.forward().end(), [8]);
    }

    #[test]
    fn a_change_of_role_closes_the_forwarded() {
        let (mut a, b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
        let mut link = Link::new(&a, &b, 1);
        link.settle(&a, &b);
        a.gate.role = GateRole::Closed;
        link.receiver.forward().send(7, b"set k 0 0 1\r\n1\r\n");
        link.settle(&a, &b);
        assert_eq!(replies(&mut link), (String::new(), true));
        assert!(a.content().is_empty());
    }

    #[test]
    fn quit_and_large_values_pass() {
        let (a, b) = (Node::new(16 << 20, 2), Node::new(16 << 20, 1));
        let mut link = Link::new(&a, &b, 1);
        link.settle(&a, &b);
        let value = "y".repeat(60_000);
        let sent = format!("set k 0 0 60000\r\n{value}\r\nget k k k\r\nquit\r\n");
        let mut rest = sent.as_bytes();
        while !rest.is_empty() {
            assert!(link.receiver.forward().wants_read(7));
            let (now, later) = rest.split_at(rest.len().min(20_000));
            link.receiver.forward().send(7, now);
            link.settle(&a, &b);
            rest = later;
        }
        let one = format!("VALUE k 0 60000\r\n{value}\r\n");
        let expected = format!("STORED\r\n{one}{one}{one}END\r\n");
        assert_eq!(replies(&mut link), (expected, true));
        assert!(!link.receiver.forward().is_outstanding(7));
    }

    #[test]
    fn a_client_that_only_sends_is_stopped() {
        let (mut a, b) = (Node::new(16 << 20, 2), Node::new(16 << 20, 1));
        let mut link = Link::new(&a, &b, 1);
        link.settle(&a, &b);
        a.gate.lease_valid = false;
        let line = b"version\r\n".repeat(2000);
        let mut sent = 0;
        while link.receiver.forward().wants_read(7) {
            link.receiver.forward().send(7, &line);
            link.settle(&a, &b);
            sent += line.len();
            assert!(sent < 4 << 20);
        }
        a.gate.lease_valid = true;
        link.settle(&a, &b);
        link.settle(&a, &b);
        let (text, closed) = replies(&mut link);
        assert!(!closed);
        assert_eq!(text.lines().count(), sent / 9);
        assert!(link.receiver.forward().wants_read(7));
    }
}

/// Fuzz-like: a receiver and a sender fed with damaged streams refuse, and never panic.
fn damaged(seed: u64, flips: usize) {
    let mut dice = Dice(seed | 1);
    let (a, b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
    for _ in 0..50 {
        change(&a, &mut dice, 20);
    }
    let mut link = Link::new(&a, &b, 1);
    for _ in 0..60 {
        change(&a, &mut dice, 20);
        link.step(&a, &b, 500, 500);
        for _ in 0..flips {
            if !link.down.is_empty() {
                let at = dice.roll(link.down.len());
                link.down[at] ^= 1 << dice.roll(8);
            }
        }
    }
    link.settle(&a, &b);
    if link.lost().is_none() {
        // The damage hit nothing, or the link's length fields wait for bytes that never come.
        let ours = a.content();
        for (key, item) in b.content() {
            let current = ours.get(&key);
            assert!(current.is_none_or(|now| now.0 >= item.0), "seed {seed}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn damaged_links_are_refused(seed: u64, flips in 1usize..3) {
        damaged(seed, flips);
    }

    #[test]
    fn arbitrary_bytes_on_a_link(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (a, b) = (Node::new(1 << 20, 2), Node::new(1 << 20, 1));
        let mut link = Link::new(&a, &b, 1);
        link.sender.handle_bytes(&a.ctx(), &bytes);
        link.receiver.handle_bytes(&b.cache, b.now.store, &bytes);
        link.settle(&a, &b);
    }
}

#[test]
fn a_gated_answer_leaves_only_when_the_replica_has_it() {
    let (mut a, b) = (Node::new(4 << 20, 2), Node::new(4 << 20, 1));
    let mut link = Link::new(&a, &b, 1);
    link.settle(&a, &b);
    a.gate.role = GateRole::Master;
    let mut dice = Dice(5);
    for n in 0..200 {
        let mut session = Session::new();
        let (key, value) = (format!("k{}", dice.roll(20)), format!("{n}"));
        let line = format!("set {key} 0 0 {}\r\n{value}\r\n", value.len());
        session.feed(&a.ctx(), line.as_bytes());
        let mut out = Vec::new();
        while session.poll_transmit(&a.ctx(), &mut out) == Transmit::Held {
            assert!(out.is_empty());
            link.step(&a, &b, 1 + dice.roll(40), 1 + dice.roll(20));
            assert_eq!(link.lost(), None);
        }
        assert_eq!(out, b"STORED\r\n");
        let held = b.cache.lock(key.as_bytes()).peek(b.now.store).unwrap().value.to_vec();
        assert_eq!(held, value.as_bytes());
    }
}
