use std::time::{Duration, Instant};

use super::*;
use crate::protocol::conformance::{FAMILIES, Row, expand, matches};
use crate::replication::{AckMode, GateRole};
use crate::stats::{Figures, Totals};
use crate::{Layout, Region, StoreConfig, StoreTime};
use proptest::prelude::*;

/// A store with everything around it that a session needs.
struct Bench {
    cache: Cache,
    shared: Shared,
    counters: Counters,
    gate: GateState,
    now: Now,
}

impl Server for Bench {
    fn figures(&self) -> Figures {
        let mut totals = Totals::default();
        self.counters.add_to(&mut totals);
        Figures { role: "MASTER_SOLO", totals, ..Figures::default() }
    }
    fn reset(&self) {}
}

impl Bench {
    fn new(role: GateRole) -> Self {
        let region = Region::leaked(&Layout::for_memory(8 << 20));
        let cache = Cache::create(StoreConfig::default(), region).unwrap();
        cache.promote(2).unwrap();
        let gate = GateState { role, epoch: 2, lease_valid: true, ack_mode: AckMode::Replicated };
        let now = Now { instant: Instant::now(), store: StoreTime(1000), wall: 1_795_000_000 };
        let (shared, counters) = (Shared::default(), Counters::default());
        Self { cache, shared, counters, gate, now }
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

    /// Feeds all and takes what comes, as a shell does.
    fn talk(&self, session: &mut Session, sent: &[u8]) -> (Vec<u8>, Transmit) {
        let mut out = Vec::new();
        session.feed(&self.ctx(), sent);
        loop {
            let transmit = session.poll_transmit(&self.ctx(), &mut out);
            if !session.wants_run() || transmit != Transmit::Idle {
                return (out, transmit);
            }
            session.run(&self.ctx());
        }
    }

    fn advance(&mut self, seconds: u32) {
        self.now.store.0 += seconds;
        self.now.wall += u64::from(seconds);
        self.now.instant += Duration::from_secs(u64::from(seconds));
    }

    fn text(&self, session: &mut Session, sent: &str) -> String {
        String::from_utf8(self.talk(session, sent.as_bytes()).0).unwrap()
    }
}

fn run_row(row: &Row, chunk: usize) {
    let bench = Bench::new(GateRole::MasterSolo);
    let mut session = Session::new();
    let mut unique = String::new();
    let mut closed = false;
    for (sent, expected) in row.steps {
        let mut got = Vec::new();
        for piece in expand(sent, &unique).chunks(chunk) {
            let (bytes, transmit) = bench.talk(&mut session, piece);
            got.extend_from_slice(&bytes);
            closed = matches!(transmit, Transmit::Close(_));
        }
        let found = matches(expected, &got);
        let got = got[..got.len().min(300)].escape_ascii();
        let found = found.unwrap_or_else(|| panic!("{}: {sent:?} gave {got}", row.what));
        unique = found.unwrap_or(unique);
    }
    assert_eq!(closed, row.closes, "{}", row.what);
}

#[test]
fn conformance_table() {
    for (_, rows) in FAMILIES {
        for row in rows {
            run_row(row, usize::MAX);
        }
    }
}

#[test]
fn conformance_table_in_pieces() {
    for (_, rows) in FAMILIES {
        for row in rows {
            let long = row.steps.iter().any(|(sent, _)| sent.contains('*'));
            // A bad key that comes late cannot take back values that have left.
            for chunk in if long { vec![4099] } else { vec![7, 64] } {
                if !row.what.contains("takes the values before it along") {
                    run_row(row, chunk);
                }
            }
        }
    }
}

#[test]
fn expiry_relative_and_absolute() {
    let mut bench = Bench::new(GateRole::MasterSolo);
    let mut session = Session::new();
    let absolute = bench.now.wall + 3;
    let sent = format!("set r 0 2 1\r\n1\r\nset a 0 {absolute} 1\r\n1\r\nset n 0 0 1\r\n1\r\n");
    bench.text(&mut session, &sent);
    for (r, a) in [(true, true), (true, true), (false, true), (false, false)] {
        let got = bench.text(&mut session, "get r a n\r\n");
        assert_eq!(got.contains("VALUE r"), r);
        assert_eq!(got.contains("VALUE a"), a);
        assert!(got.contains("VALUE n"));
        bench.advance(1);
    }
}

#[test]
fn delayed_flush_comes_when_it_is_due() {
    let mut bench = Bench::new(GateRole::MasterSolo);
    let mut session = Session::new();
    bench.text(&mut session, "set a 0 0 1\r\n1\r\nflush_all 5\r\nset b 0 0 1\r\n1\r\n");
    bench.advance(4);
    assert_eq!(bench.text(&mut session, "get a\r\n"), "VALUE a 0 1\r\n1\r\nEND\r\n");
    bench.advance(1);
    assert_eq!(bench.text(&mut session, "get a b\r\n"), "END\r\n");
    bench.text(&mut session, "set a 0 0 1\r\n1\r\n");
    bench.advance(100);
    assert_eq!(bench.text(&mut session, "get a\r\n"), "VALUE a 0 1\r\n1\r\nEND\r\n");
}

#[test]
fn stats_have_the_names_that_monitors_know() {
    let bench = Bench::new(GateRole::MasterSolo);
    let mut session = Session::new();
    bench.text(&mut session, "set a 0 0 1\r\n1\r\nget a b\r\nincr a 1\r\ndelete x\r\n");
    let got = bench.text(&mut session, "stats\r\n");
    for line in [
        "STAT cmd_get 2",
        "STAT cmd_set 1",
        "STAT get_hits 1",
        "STAT get_misses 1",
        "STAT incr_hits 1",
        "STAT delete_misses 1",
        "STAT curr_items 1",
        "STAT total_items 1",
        "STAT bytes_read 52",
        "STAT replication MASTER_SOLO",
        "STAT repcached_qi_free 0",
    ] {
        assert!(got.contains(&format!("{line}\r\n")), "{line} is not in {got}");
    }
    assert!(got.ends_with("END\r\n"));
    for topic in ["settings", "items", "slabs", "replication"] {
        assert!(bench.text(&mut session, &format!("stats {topic}\r\n")).ends_with("END\r\n"));
    }
}

/// Answers that the peer must have first.
mod gate {
    use super::*;

    fn acknowledge_all(bench: &Bench) {
        for partition in 0..64 {
            let version = bench.cache.lock_partition(usize::from(partition)).partition().version();
            bench.shared.acknowledge(partition, version);
        }
    }

    #[test]
    fn nothing_leaves_before_its_acknowledgement_and_order_holds() {
        let mut bench = Bench::new(GateRole::Master);
        let mut session = Session::new();
        acknowledge_all(&bench);
        let first = bench.now.instant;
        let (out, transmit) = bench.talk(&mut session, b"version\r\nset a 0 0 1\r\n1\r\n");
        assert!(out.starts_with(b"VERSION") && !out.ends_with(b"STORED\r\n"));
        assert_eq!(transmit, Transmit::Held);
        bench.advance(1);
        // A read of what is not acknowledged waits too, and so does all behind it.
        let (out, transmit) = bench.talk(&mut session, b"get a\r\nversion\r\n");
        assert_eq!((out, transmit), (vec![], Transmit::Held));
        assert_eq!(session.oldest_held_since(), Some(first));
        let partition = bench.cache.partition_of(b"a") as u8;
        for other in (0..64).filter(|p| *p != partition) {
            bench.shared.acknowledge(other, u64::MAX);
        }
        assert_eq!(bench.talk(&mut session, b""), (vec![], Transmit::Held));
        acknowledge_all(&bench);
        let (out, transmit) = bench.talk(&mut session, b"");
        assert!(out.starts_with(b"STORED\r\nVALUE a 0 1\r\n1\r\nEND\r\nVERSION"));
        assert_eq!(transmit, Transmit::Idle);
        assert_eq!(session.oldest_held_since(), None);
    }

    #[test]
    fn each_kind_of_answer_waits_for_what_it_saw() {
        let table: [(&str, &str); 12] = [
            ("set k 0 0 1\r\n1\r\n", "get k\r\n"),
            ("set k 0 0 1\r\n1\r\n", "add k 0 0 1\r\n2\r\n"),
            ("set k 0 0 1\r\n1\r\n", "cas k 0 0 1 7\r\n2\r\n"),
            ("set k 0 0 1\r\nx\r\n", "incr k 1\r\n"),
            ("set k 0 0 1\r\n1\r\ndelete k\r\n", "get k\r\n"),
            ("set k 0 0 1\r\n1\r\ndelete k\r\n", "delete k\r\n"),
            ("set k 0 0 1\r\n1\r\ndelete k\r\n", "incr k 1\r\n"),
            ("set k 0 0 1\r\n1\r\ndelete k\r\n", "touch k 1\r\n"),
            ("set k 0 0 1\r\n1\r\ndelete k\r\n", "replace k 0 0 1\r\n1\r\n"),
            ("set k 0 0 1\r\n1\r\nset k 0 -1 1\r\n1\r\n", "get k\r\n"),
            ("set k 0 0 1\r\n1\r\nflush_all\r\n", "get k\r\n"),
            ("set k 0 0 1\r\n1\r\nset k 0 0 2000000\r\n<x*2000000>\r\n", "get k\r\n"),
        ];
        for (change, question) in table {
            let bench = Bench::new(GateRole::Master);
            let (mut writer, mut reader) = (Session::new(), Session::new());
            acknowledge_all(&bench);
            assert_eq!(bench.talk(&mut writer, &expand(change, "")).0, b"", "{change}");
            let held = (vec![], Transmit::Held);
            assert_eq!(bench.talk(&mut reader, question.as_bytes()), held, "{change} {question}");
            acknowledge_all(&bench);
            assert_eq!(bench.talk(&mut reader, b"").1, Transmit::Idle);
            assert_eq!(bench.talk(&mut writer, b"").1, Transmit::Idle);
        }
    }

    #[test]
    fn each_answer_waits_for_its_own_version() {
        let bench = Bench::new(GateRole::Master);
        let mut session = Session::new();
        let partition = bench.cache.partition_of(b"a") as u8;
        bench.talk(&mut session, b"set a 0 0 1\r\n1\r\n");
        let first = bench.cache.lock(b"a").partition().version();
        bench.talk(&mut session, b"append a 0 0 1\r\n1\r\nget a\r\n");
        bench.shared.acknowledge(partition, first);
        let (out, transmit) = bench.talk(&mut session, b"");
        assert_eq!((&out[..], transmit), (&b"STORED\r\n"[..], Transmit::Held));
        bench.shared.acknowledge(partition, first + 1);
        let rest = b"STORED\r\nVALUE a 0 2\r\n11\r\nEND\r\n";
        assert_eq!(bench.talk(&mut session, b""), (rest.to_vec(), Transmit::Idle));
    }

    #[test]
    fn marks_of_values_taken_back_hold_what_comes_in_their_place() {
        let bench = Bench::new(GateRole::Master);
        let (mut writer, mut session) = (Session::new(), Session::new());
        let keys = ["a", "b"];
        assert_ne!(bench.cache.partition_of(b"a"), bench.cache.partition_of(b"b"));
        for key in keys {
            let line = format!("set {key} 0 0 300\r\n{}\r\n", "x".repeat(300));
            bench.talk(&mut writer, line.as_bytes());
        }
        let sent = expand("get a b <k*251>\r\nget b\r\n", "");
        assert_eq!(bench.talk(&mut session, &sent), (vec![], Transmit::Held));
        bench.shared.acknowledge(bench.cache.partition_of(b"a") as u8, u64::MAX);
        assert_eq!(bench.talk(&mut session, b""), (vec![], Transmit::Held));
        bench.shared.acknowledge(bench.cache.partition_of(b"b") as u8, u64::MAX);
        let (out, transmit) = bench.talk(&mut session, b"");
        assert!(out.starts_with(b"CLIENT_ERROR bad command line format\r\nVALUE b 0 300"));
        assert_eq!(transmit, Transmit::Idle);
    }

    #[test]
    fn flush_waits_for_every_partition() {
        let bench = Bench::new(GateRole::Master);
        let mut session = Session::new();
        assert_eq!(bench.talk(&mut session, b"flush_all 10\r\n").1, Transmit::Held);
        for partition in 0..64 {
            assert_eq!(bench.talk(&mut session, b"").1, Transmit::Held, "{partition}");
            bench.shared.acknowledge(partition, u64::MAX);
        }
        assert_eq!(bench.talk(&mut session, b"").0, b"OK\r\n");
    }

    #[test]
    fn solo_needs_the_lease_too() {
        let mut bench = Bench::new(GateRole::MasterSolo);
        let mut session = Session::new();
        bench.gate.lease_valid = false;
        assert_eq!(bench.talk(&mut session, b"get a\r\n").1, Transmit::Held);
        bench.gate.lease_valid = true;
        assert_eq!(bench.talk(&mut session, b"").0, b"END\r\n");
    }

    #[test]
    fn no_lease_holds_and_local_waits_for_nobody() {
        let mut bench = Bench::new(GateRole::Master);
        let mut session = Session::new();
        bench.gate.lease_valid = false;
        assert_eq!(bench.talk(&mut session, b"version\r\n").1, Transmit::Held);
        assert_eq!(session.oldest_held_since(), Some(bench.now.instant));
        bench.gate.lease_valid = true;
        assert_eq!(bench.talk(&mut session, b"").1, Transmit::Idle);
        bench.gate.ack_mode = AckMode::Local;
        assert_eq!(bench.talk(&mut session, b"set a 0 0 1\r\n1\r\n").0, b"STORED\r\n");
    }

    #[test]
    fn answers_of_another_role_or_epoch_never_leave() {
        for (role, epoch) in
            [(GateRole::Closed, 2), (GateRole::Master, 4), (GateRole::MasterSolo, 4)]
        {
            let mut bench = Bench::new(GateRole::Master);
            let mut session = Session::new();
            bench.talk(&mut session, b"set a 0 0 1\r\n1\r\n");
            bench.gate.role = role;
            bench.gate.epoch = epoch;
            let (out, transmit) = bench.talk(&mut session, b"");
            assert_eq!((out, transmit), (vec![], Transmit::Close(CloseReason::RoleChanged)));
            assert_eq!(bench.counters.value(Counter::AnswersDropped), 1);
        }
    }

    #[test]
    fn solo_of_the_same_epoch_lets_go_what_master_held() {
        let mut bench = Bench::new(GateRole::Master);
        let mut session = Session::new();
        assert_eq!(bench.talk(&mut session, b"set a 0 0 1\r\n1\r\n").1, Transmit::Held);
        bench.gate.role = GateRole::MasterSolo;
        assert_eq!(bench.talk(&mut session, b"").0, b"STORED\r\n");
    }

    #[test]
    fn what_solo_produced_waits_once_the_node_is_master() {
        let mut bench = Bench::new(GateRole::MasterSolo);
        let mut session = Session::new();
        session.feed(&bench.ctx(), b"set a 0 0 1\r\n1\r\n");
        bench.gate.role = GateRole::Master;
        assert_eq!(bench.talk(&mut session, b"").1, Transmit::Held);
        acknowledge_all(&bench);
        assert_eq!(bench.talk(&mut session, b"").0, b"STORED\r\n");
    }

    #[test]
    fn a_node_that_is_no_master_runs_nothing() {
        let bench = Bench::new(GateRole::Closed);
        let mut session = Session::new();
        let (out, transmit) = bench.talk(&mut session, b"set a 0 0 1\r\n1\r\n");
        assert_eq!((out, transmit), (vec![], Transmit::Close(CloseReason::NotPrimary)));
        assert!(bench.cache.lock(b"a").get(bench.now.store).is_none());
    }

    #[test]
    fn a_late_command_does_not_get_into_a_newer_epoch() {
        let bench = Bench::new(GateRole::MasterSolo);
        let mut session = Session::new();
        bench.cache.promote(5).unwrap();
        let (out, transmit) = bench.talk(&mut session, b"set a 0 0 1\r\n1\r\n");
        assert_eq!((out, transmit), (vec![], Transmit::Close(CloseReason::NotPrimary)));
        assert!(bench.cache.lock(b"a").get(bench.now.store).is_none());
    }
}

#[test]
fn ten_thousand_gets_in_one_pipeline() {
    let bench = Bench::new(GateRole::Master);
    let mut session = Session::new();
    for partition in 0..64 {
        bench.shared.acknowledge(partition, u64::MAX);
    }
    bench.text(&mut session, "set a 0 0 3\r\nabc\r\n");
    let (out, transmit) = bench.talk(&mut session, &b"get a\r\n".repeat(10_000));
    assert_eq!(out, b"VALUE a 0 3\r\nabc\r\nEND\r\n".repeat(10_000));
    assert_eq!(transmit, Transmit::Idle);
    assert!(session.is_at_rest());
}

#[test]
fn output_that_waits_stops_execution_and_reading() {
    let bench = Bench::new(GateRole::Master);
    let mut session = Session::new();
    let value = "x".repeat(100_000);
    let (_, transmit) =
        bench.talk(&mut session, format!("set a 0 0 100000\r\n{value}\r\n").as_bytes());
    assert_eq!(transmit, Transmit::Held);
    bench.talk(&mut session, &b"get a\r\n".repeat(10));
    assert!(!session.wants_read() && session.wants_run());
    assert!(session.unsent() < OUTPUT_MARK + 100_100);
    for partition in 0..64 {
        bench.shared.acknowledge(partition, u64::MAX);
    }
    let (out, _) = bench.talk(&mut session, b"");
    assert_eq!(out.len(), 8 + 10 * (100_000 + b"VALUE a 0 100000\r\n\r\nEND\r\n".len()));
    assert!(session.wants_read() && session.is_at_rest());
}

#[test]
fn a_caller_that_does_not_stop_is_closed() {
    let bench = Bench::new(GateRole::Master);
    let mut session = Session::new();
    bench.talk(&mut session, b"set a 0 0 1\r\n1\r\n");
    let mut fed = 0;
    let line = b"version\r\n".repeat(10_000);
    loop {
        if let (_, Transmit::Close(reason)) = bench.talk(&mut session, &line) {
            assert_eq!(reason, CloseReason::InputOverrun);
            break;
        }
        fed += line.len();
        assert!(fed < 4 * INPUT_MAX);
    }
}

proptest! {
    /// Wherever the input is cut, the answers are the same and nothing is left over.
    #[test]
    fn cuts_do_not_matter(
        steps in proptest::collection::vec(0usize..12, 1..30),
        cuts in proptest::collection::vec(1usize..40, 1..200),
    ) {
        const COMMANDS: [&str; 12] = [
            "set a 1 0 5\r\nabcde\r\n", "get a b c\r\n", "set b 0 0 1\r\n7\r\n", "incr b 12\r\n",
            "append a 0 0 2\r\n\r\n\r\n", "gat 100 a\r\n", "delete b\r\n", "nonsense words\r\n",
            "set a 0 0 2\r\ntoolong\r\n", "add c 0 0 0\r\n\r\n", "touch a 5 noreply\r\n",
            "  get   a  \r\n",
        ];
        let input: String = steps.iter().map(|s| COMMANDS[*s]).collect();
        let whole = Bench::new(GateRole::MasterSolo);
        let expected = whole.talk(&mut Session::new(), input.as_bytes()).0;
        let bench = Bench::new(GateRole::MasterSolo);
        let mut session = Session::new();
        let (mut got, mut rest) = (Vec::new(), input.as_bytes());
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            got.extend_from_slice(&bench.talk(&mut session, now).0);
            rest = later;
            if rest.is_empty() { break; }
        }
        prop_assert_eq!(got.escape_ascii().to_string(), expected.escape_ascii().to_string());
        prop_assert!(session.is_at_rest());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
        fuzz_text(&bytes);
    }

    #[test]
    fn arbitrary_lines_never_panic(
        cut: u8,
        text in "(get |gat |set |cas |incr |[ a-f0-9]|\r\n){0,80}",
    ) {
        fuzz_text(&[&[cut], text.as_bytes()].concat());
    }
}
