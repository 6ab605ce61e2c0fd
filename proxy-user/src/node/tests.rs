//! One node against a peer made of beats: the order of effects, and each rule's refusals. What two
//! nodes do together, in a hostile world, is in `tests/sim`.

use std::net::IpAddr;

use super::*;
use crate::config::{Side, UnsyncedTakeover};

const MS: Duration = Duration::from_millis(1);

fn epoch(value: u16) -> Epoch {
    Epoch::new(value).unwrap()
}

fn router(own: u8, peer: u8) -> vrrp::Instance {
    let address = |last: u8| IpAddr::from([192, 0, 2, last]);
    let mut config = vrrp::InstanceConfig::coupled(
        vrrp::Vrid::new(51).unwrap(),
        vrrp::AdvertInterval::from_duration(100 * MS).unwrap(),
        vec![address(100)],
        address(own),
    );
    config.mode = vrrp::Mode::Coupled { peer: Some(address(peer)) };
    vrrp::Instance::new(config).unwrap()
}

/// A node of side b, its shell (disk and engine do at once what they are asked, unless told
/// otherwise), and its peer's last beat.
struct Bench {
    node: Node,
    now: Instant,
    disk_works: bool,
    engine_answers: bool,
    /// Effects but beats and leases, in short.
    log: Vec<String>,
    beats: Vec<Beat>,
    lease: Lease,
    peer: Beat,
}

impl Bench {
    fn new(peer: Option<PeerConfig>, persisted: u16) -> Self {
        let now = Instant::now();
        let config =
            NodeConfig { side: Side::B, boot: BootId(1), persisted: epoch(persisted), peer };
        let claim = Claim { lineage: Lineage::Empty, led: false, side: Side::A };
        let peer = Beat {
            boot: BootId(2),
            number: 0,
            state: State::Boot,
            epoch: Epoch::NONE,
            seen: Epoch::NONE,
            claim,
            able: true,
            carrier: true,
            echo: None,
            session: Session(1),
            ready: false,
            tell: Tell::Nothing,
        };
        let mut bench = Self {
            node: Node::new(now, config, vec![router(2, 1)]),
            now,
            disk_works: true,
            engine_answers: true,
            log: Vec::new(),
            beats: Vec::new(),
            lease: Lease::Expired,
            peer,
        };
        bench.node.start(now);
        bench.perform();
        bench.log.clear();
        bench
    }

    fn single() -> Self {
        Self::new(None, 0)
    }

    fn pair() -> Self {
        Self::new(Some(PeerConfig::default()), 0)
    }

    fn perform(&mut self) {
        while let Some(effect) = self.node.poll_effect() {
            match effect {
                Effect::PersistEpoch(epoch) => {
                    self.log.push(format!("persist {epoch}"));
                    self.node.handle_epoch_persisted(self.now, epoch, self.disk_works);
                }
                Effect::PrepareEngine(epoch) => {
                    self.log.push(format!("prepare {epoch}"));
                    if self.engine_answers {
                        self.node.handle_engine(self.now, EngineEvent::Prepared(epoch));
                    }
                }
                Effect::SetRole { state, epoch } => self.log.push(format!("{state} {epoch}")),
                Effect::SetLease(lease) => self.lease = lease,
                Effect::Answer(answers) => self.log.push(format!("answer {answers}")),
                Effect::Vrrp { output, .. } => match output {
                    vrrp::Output::SendAdvert {
                        reason: vrrp::fsm::AdvertReason::Periodic, ..
                    } => {}
                    vrrp::Output::SendAdvert { reason, .. } => {
                        self.log.push(format!("advert {reason:?}"));
                    }
                    vrrp::Output::Garp { .. } => self.log.push("garp".to_owned()),
                    vrrp::Output::StopGarp => self.log.push("stop garp".to_owned()),
                    _ => {}
                },
                Effect::Gate(gate) => self.log.push(format!("gate {gate}")),
                Effect::SendBeat(beat) => self.beats.push(beat),
                Effect::EngineTarget(target) => self.log.push(format!("{target:?}")),
                Effect::Event(Event::RoleChanged { cause, .. }) => {
                    self.log.push(format!("by {}", cause.as_str()));
                }
                Effect::Event(Event::PeerHeard(_) | Event::PeerBoot(_)) => {}
                Effect::Event(event) => self.log.push(format!("{event:?}")),
            }
        }
    }

    fn took(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn engine(&mut self, event: EngineEvent) {
        self.node.handle_engine(self.now, event);
        self.perform();
    }

    fn sync(&mut self, event: SyncEvent) {
        self.engine(EngineEvent::Sync(event));
    }

    fn up(&mut self) {
        self.engine(EngineEvent::Up { fresh: true, data_epoch: Epoch::NONE });
    }

    /// The peer's next beat, echoing our last, changed by `f` for good.
    fn hear(&mut self, f: impl FnOnce(&mut Beat)) {
        f(&mut self.peer);
        self.peer.number += 1;
        let last = self.beats.last().map(|beat| Echo { boot: BootId(1), number: beat.number });
        let beat = Beat { echo: self.peer.echo.or(last), ..self.peer };
        self.node.handle_beat(self.now, &beat);
        self.perform();
    }

    /// Time passes in small steps; with `beats` the peer goes on beating.
    fn pass(&mut self, time: Duration, beats: bool) {
        let end = self.now + time;
        while self.now < end {
            self.now += 5 * MS;
            if beats {
                self.hear(|_| {});
            }
            if self.node.poll_timeout().is_some_and(|at| at <= self.now) {
                self.node.handle_timeout(self.now);
                self.perform();
            }
        }
    }

    /// SYNCED under the peer's epoch 2.
    fn synced() -> Self {
        let mut bench = Self::pair();
        bench.up();
        bench.hear(|peer| {
            peer.state = State::MasterSolo;
            peer.epoch = epoch(2);
            peer.seen = epoch(2);
            peer.claim.lineage = Lineage::Apart(epoch(2));
            peer.claim.led = true;
        });
        bench.sync(SyncEvent::Receiving { epoch: epoch(2) });
        bench.sync(SyncEvent::Received { epoch: epoch(2) });
        assert_eq!(bench.node.state(), State::Catchup);
        let session = bench.beats.last().unwrap().session;
        bench.hear(|peer| {
            peer.state = State::Master;
            peer.claim.lineage = Lineage::Shared(epoch(2));
            peer.tell = Tell::InSync(BootId(1), session);
        });
        assert_eq!(bench.node.state(), State::Synced);
        bench.log.clear();
        bench
    }

    /// MASTER of epoch 3, the peer told that it is in sync and showing it.
    fn master() -> Self {
        let mut bench = Self::pair();
        bench.up();
        bench.pass(3_100 * MS, false);
        assert_eq!(bench.node.state(), State::MasterSolo);
        bench.hear(|peer| {
            peer.state = State::Catchup;
            peer.epoch = epoch(3);
            peer.seen = epoch(3);
            peer.claim.lineage = Lineage::Shared(epoch(3));
            peer.ready = true;
        });
        bench.hear(|_| {});
        bench.sync(SyncEvent::CaughtUp { epoch: epoch(3) });
        bench.sync(SyncEvent::Gated { gate: 1 });
        bench.hear(|peer| peer.state = State::Synced);
        assert_eq!(bench.node.state(), State::Master);
        assert_eq!(bench.beats.last().unwrap().tell, Tell::InSync(BootId(2), Session(1)));
        bench.log.clear();
        bench
    }
}

#[test]
fn a_single_node_is_promoted_in_order() {
    let mut bench = Bench::single();
    bench.up();
    let order = [
        "Nobody",
        "Promoting { epoch: Epoch(3), cause: Single }",
        "persist 3",
        "prepare 3",
        "by single",
        "MASTER_SOLO 3",
        "Here(Epoch(3))",
        "answer true",
        "advert Promoted",
        "garp",
    ];
    assert_eq!(bench.took(), order);
    assert_eq!(bench.lease, Lease::Unlimited);
    assert!(bench.beats.is_empty(), "nobody to beat for");
}

#[test]
fn a_single_nodes_engine_is_restarted_in_place_and_a_lost_store_takes_a_new_epoch() {
    let mut bench = Bench::single();
    bench.up();
    bench.took();
    bench.engine(EngineEvent::Died);
    assert_eq!(bench.took(), [""; 0]);
    bench.engine(EngineEvent::Up { fresh: false, data_epoch: epoch(3) });
    assert_eq!(bench.took(), ["prepare 3", "MASTER_SOLO 3", "Here(Epoch(3))"]);
    bench.engine(EngineEvent::Died);
    bench.up();
    let log = bench.took();
    assert_eq!(log[..4], ["BOOT 3", "answer false", "stop garp", "by store_lost"]);
    assert_eq!(bench.node.epoch(), epoch(5));
    assert_eq!(bench.node.state(), State::MasterSolo);
}

#[test]
fn a_disk_that_cannot_be_written_makes_no_master_and_is_tried_again() {
    let mut bench = Bench::single();
    bench.disk_works = false;
    bench.up();
    let log = bench.took();
    assert!(log.contains(&"DiskFailed".to_owned()), "{log:?}");
    assert!(log.last().unwrap().starts_with("PromotionFailed"), "{log:?}");
    bench.pass(5 * DISK_RETRY, false);
    assert_eq!(bench.took(), ["persist 3"; 5], "at a slow pace");
    assert_eq!(bench.node.state(), State::Boot);
    bench.disk_works = true;
    bench.pass(DISK_RETRY, false);
    assert_eq!(bench.node.state(), State::MasterSolo);
    assert_eq!(bench.node.epoch(), epoch(5), "3 was named, so it is not used");
}

#[test]
fn epochs_run_out_loudly() {
    let mut bench = Bench::new(None, 29_999);
    bench.up();
    assert_eq!(bench.node.epoch(), epoch(30_001));
    assert!(bench.took().contains(&"EpochsLow { left: 1383 }".to_owned()));
    let mut bench = Bench::new(None, 0x7fff);
    bench.up();
    assert_eq!(bench.node.state(), State::Boot);
}

#[test]
fn a_synced_node_takes_over_on_silence_and_not_before() {
    let mut bench = Bench::synced();
    bench.pass(35 * MS, false);
    assert_eq!(bench.node.state(), State::Synced);
    bench.pass(5 * MS, false);
    let log = bench.took();
    assert_eq!(bench.node.state(), State::MasterSolo);
    assert!(log.contains(&"by silent".to_owned()), "{log:?}");
    assert_eq!(bench.node.claim().lineage, Lineage::Shared(epoch(5)));
}

#[test]
fn a_resignation_is_taken_at_once_if_it_is_ours() {
    for (told_to, state) in [(BootId(1), State::MasterSolo), (BootId(9), State::Boot)] {
        let mut bench = Bench::synced();
        let session = bench.beats.last().unwrap().session;
        bench.hear(|peer| {
            peer.state = State::Boot;
            peer.able = false;
            peer.tell = Tell::InSync(told_to, session);
        });
        assert_eq!(bench.node.state(), state);
    }
}

#[test]
fn a_closed_connection_is_a_death_unless_a_beat_denies_it() {
    for (event, beats, state) in [
        (ControlEvent::ClosedByPeer, false, State::MasterSolo),
        (ControlEvent::ClosedByPeer, true, State::Synced),
        (ControlEvent::Lost, false, State::Synced),
    ] {
        let mut bench = Bench::synced();
        bench.node.handle_control(bench.now, ControlEvent::Connected);
        let before = bench.beats.len();
        bench.node.handle_control(bench.now, event);
        bench.perform();
        bench.now += MS;
        if beats {
            bench.hear(|_| {});
        }
        for _ in 0..4 {
            bench.now += MS;
            bench.node.handle_timeout(bench.now);
            bench.perform();
        }
        assert_eq!(bench.node.state(), state, "{event:?} {beats}");
        assert!(bench.beats.len() > before, "whoever lives says so at once");
    }
    // a farewell says that its end will prove nothing
    let mut bench = Bench::synced();
    bench.node.handle_control(bench.now, ControlEvent::Connected);
    bench.node.handle_message(bench.now, &PeerMessage::Bye);
    bench.node.handle_control(bench.now, ControlEvent::ClosedByPeer);
    bench.now += 5 * MS;
    bench.node.handle_timeout(bench.now);
    assert_eq!(bench.node.state(), State::Synced);
}

#[test]
fn a_stall_of_ours_is_not_the_peers_silence() {
    let mut bench = Bench::synced();
    bench.now += 38 * MS;
    bench.hear(|_| {});
    bench.now += 38 * MS;
    bench.node.handle_timeout(bench.now);
    bench.perform();
    assert_eq!(bench.node.state(), State::Synced);
    bench.pass(15 * MS, false);
    assert_eq!(bench.node.state(), State::Synced);
    bench.pass(10 * MS, false);
    assert_eq!(bench.node.state(), State::MasterSolo);
    // a long one: the master may have gone on alone, so this is no takeover without a loss
    let mut bench = Bench::synced();
    bench.now += Duration::from_secs(10);
    bench.node.handle_timeout(bench.now);
    bench.perform();
    assert_eq!(bench.took()[..1], ["Stalled(9.98s)"]);
    assert_eq!(bench.node.state(), State::Catchup);
    assert_eq!(bench.beats.last().unwrap().session, Session(3));
    bench.pass(2_900 * MS, false);
    assert_eq!(bench.node.state(), State::Catchup);
}

#[test]
fn whoever_decided_to_take_over_echoes_nothing_new() {
    let mut bench = Bench::synced();
    bench.engine_answers = false;
    let echo = bench.beats.last().unwrap().echo;
    bench.pass(45 * MS, false);
    assert!(bench.took().contains(&"prepare 5".to_owned()));
    bench.hear(|_| {});
    bench.pass(20 * MS, true);
    let last = bench.beats.last().unwrap();
    assert_eq!((last.state, last.echo), (State::Synced, echo.max_by_number(last.echo, 2)));
    bench.engine(EngineEvent::Prepared(epoch(5)));
    assert_eq!(bench.node.state(), State::MasterSolo);
}

trait MaxByNumber {
    fn max_by_number(self, now: Self, heard: u64) -> Self;
}

impl MaxByNumber for Option<Echo> {
    /// The echo of the last beat heard before silence (`heard`), which may have been sent since.
    fn max_by_number(self, now: Self, heard: u64) -> Self {
        if now.is_some_and(|echo| echo.number == heard) { now } else { self }
    }
}

#[test]
fn a_lease_counts_from_the_sending_of_the_echoed_beat() {
    let mut bench = Bench::master();
    let sent = bench.now;
    bench.beats.clear();
    bench.node.handle_timeout(bench.now + 10 * MS);
    bench.perform();
    let number = bench.beats.last().expect("a beat each 10 ms").number;
    bench.now += 15 * MS;
    bench.hear(|peer| peer.echo = Some(Echo { boot: BootId(1), number }));
    assert_eq!(bench.lease, Lease::Until(sent + 10 * MS + 30 * MS));
    // echoes of other boots, of the future and of the past change nothing
    for (boot, number) in [(7, number), (1, number + 50), (1, number - 1)] {
        bench.hear(|peer| peer.echo = Some(Echo { boot: BootId(boot), number }));
        assert_eq!(bench.lease, Lease::Until(sent + 40 * MS));
    }
}

#[test]
fn out_of_sync_is_confirmed_before_anything_is_answered_alone() {
    let mut bench = Bench::master();
    bench.sync(SyncEvent::AckLate { epoch: epoch(3) });
    assert_eq!(bench.beats.last().unwrap().tell, Tell::OutOfSync(BootId(2), Session(1)));
    bench.pass(100 * MS, true);
    assert_eq!(bench.node.state(), State::Master, "held for as long as the peer may be SYNCED");
    bench.took();
    bench.hear(|peer| {
        peer.state = State::Catchup;
        peer.session = Session(2);
    });
    assert_eq!(bench.took(), ["by out_of_sync", "MASTER_SOLO 3"]);
    bench.sync(SyncEvent::CaughtUp { epoch: epoch(3) });
    assert_eq!(bench.node.state(), State::MasterSolo, "not again at once");
    bench.pass(1_000 * MS, true);
    assert_eq!(bench.took().last().map(String::as_str), Some("gate 2"));
    bench.sync(SyncEvent::Gated { gate: 1 });
    assert_eq!(bench.beats.last().unwrap().tell, Tell::Nothing, "an old gate's word");
    bench.sync(SyncEvent::Gated { gate: 2 });
    assert_eq!(bench.beats.last().unwrap().tell, Tell::InSync(BootId(2), Session(2)));
}

#[test]
fn a_dead_engine_resigns_to_a_synced_peer_in_order() {
    let mut bench = Bench::master();
    bench.beats.clear();
    bench.engine(EngineEvent::Died);
    let order = ["BOOT 3", "answer false", "stop garp", "by engine_died", "Nobody"];
    assert_eq!(bench.took(), order);
    assert_eq!(bench.lease, Lease::Expired);
    let said = bench.beats.last().unwrap();
    assert_eq!((said.state, said.able), (State::Boot, false));
    assert_eq!(said.tell, Tell::InSync(BootId(2), Session(1)));
    // the peer is gone: only the rules of BOOT make this node master again, with a new epoch
    bench.engine(EngineEvent::Up { fresh: false, data_epoch: epoch(3) });
    bench.pass(3_100 * MS, false);
    assert_eq!((bench.node.state(), bench.node.epoch()), (State::MasterSolo, epoch(5)));
}

#[test]
fn a_carrier_lost_resigns_or_fences() {
    let mut bench = Bench::master();
    bench.node.handle_carrier(bench.now, 0, false);
    bench.perform();
    assert!(bench.took().contains(&"by carrier_lost".to_owned()));
    let mut bench = Bench::master();
    bench.hear(|peer| peer.carrier = false);
    bench.node.handle_carrier(bench.now, 0, false);
    bench.perform();
    assert_eq!(bench.node.state(), State::Master, "the peer's is lost too");
    bench.pass(50 * MS, false);
    assert_eq!(bench.node.state(), State::Fenced, "unheard and without carrier: isolated");
    bench.node.handle_carrier(bench.now, 0, true);
    assert_eq!(bench.node.state(), State::Boot);
}

#[test]
fn a_dead_boot_is_not_believed_again() {
    let mut bench = Bench::synced();
    // a beat of another boot that echoes nothing of ours is no proof while the known one lives
    let echo = bench.beats.last().map(|beat| Echo { boot: BootId(1), number: beat.number });
    let other = Beat { boot: BootId(3), number: 1, echo: None, ..bench.peer };
    bench.node.handle_beat(bench.now, &other);
    assert_eq!(bench.node.state(), State::Synced);
    // one that heard us later than the known one ever did is
    let fresh = Beat { state: State::Boot, echo, ..other };
    bench.node.handle_timeout(bench.now + 15 * MS);
    bench.perform();
    let echo = bench.beats.last().map(|beat| Echo { boot: BootId(1), number: beat.number });
    bench.node.handle_beat(bench.now + 15 * MS, &Beat { echo, ..fresh });
    bench.perform();
    assert!(bench.took().contains(&"by rebooted".to_owned()));
    let late = Beat { number: 1_000, echo, ..bench.peer };
    bench.node.handle_beat(bench.now + 16 * MS, &late);
    assert_eq!(bench.node.peer(bench.now + 16 * MS).map(|beat| beat.boot), Some(BootId(3)));
}

#[test]
fn the_better_of_two_masters_stays_and_says_so() {
    let mut bench = Bench::master();
    let rival = |lineage| {
        move |peer: &mut Beat| {
            peer.state = State::MasterSolo;
            peer.epoch = epoch(8);
            peer.seen = epoch(8);
            peer.claim.lineage = lineage;
            peer.session = Session(2);
        }
    };
    bench.hear(rival(Lineage::Apart(epoch(8))));
    let log = bench.took();
    assert!(log.contains(&"garp".to_owned()), "{log:?}");
    assert!(bench.node.state().is_master());
    bench.hear(|peer| peer.state = State::Fenced);
    let log = bench.took();
    assert!(log.contains(&"by epoch_raised".to_owned()), "above both: {log:?}");
    assert_eq!(bench.node.epoch(), epoch(11));
    // an elder, shared content wins
    bench.hear(rival(Lineage::Shared(epoch(12))));
    let log = bench.took();
    assert!(log.contains(&"by better_claim".to_owned()), "{log:?}");
    assert_eq!(bench.node.state(), State::Join);
}

#[test]
fn a_foreign_master_fences_until_it_is_silent() {
    let mut bench = Bench::single();
    bench.up();
    bench.took();
    let mut foreign = router(9, 8);
    foreign.startup(bench.now);
    foreign.promote(bench.now);
    let advert = std::iter::from_fn(|| foreign.poll_output()).find_map(|output| match output {
        vrrp::Output::SendAdvert { payload, .. } => Some(payload),
        _ => None,
    });
    let advert = advert.unwrap();
    let received = vrrp::Received::multicast(IpAddr::from([192, 0, 2, 9]), 255, &advert);
    bench.node.handle_advert(bench.now, 0, &received).unwrap();
    bench.perform();
    let log = bench.took();
    assert!(log.contains(&"ForeignMaster".to_owned()) && log.contains(&"answer false".to_owned()));
    assert_eq!(bench.node.state(), State::Fenced);
    bench.now += Duration::from_secs(1);
    bench.node.handle_timeout(bench.now);
    bench.perform();
    assert_eq!(bench.node.state(), State::MasterSolo, "the addresses are free again");
}

#[test]
fn an_unsynced_node_waits_and_gives_up_when_the_peer_is_heard() {
    let policies = [
        (UnsyncedTakeover::Never, None),
        (UnsyncedTakeover::Now, Some(40)),
        (UnsyncedTakeover::After(500 * MS), Some(500)),
    ];
    for (unsynced_takeover, wait) in policies {
        let config = PeerConfig { unsynced_takeover, ..PeerConfig::default() };
        let mut bench = Bench::new(Some(config), 0);
        bench.up();
        bench.hear(|peer| {
            peer.state = State::MasterSolo;
            peer.epoch = epoch(2);
            peer.seen = epoch(2);
        });
        assert_eq!(bench.node.state(), State::Join);
        bench.engine_answers = false;
        bench.pass((wait.unwrap_or(10_000) - 5) * MS, false);
        assert_eq!(bench.node.promotion.map(|p| p.cause), None);
        bench.pass(20 * MS, false);
        let begun = bench.node.promotion.map(|p| p.cause);
        assert_eq!(begun, wait.map(|_| Cause::Unsynced));
        bench.hear(|_| {});
        assert!(bench.node.promotion.is_none(), "not while it is heard");
        bench.engine(EngineEvent::Prepared(epoch(5)));
        assert_eq!(bench.node.state(), State::Join);
    }
}

#[test]
fn commands() {
    let mut bench = Bench::single();
    bench.up();
    bench.took();
    bench.node.handle_command(bench.now, Command::Resign);
    bench.perform();
    assert_eq!(bench.took(), ["ResignRefused"]);
    bench.node.handle_command(bench.now, Command::Stop);
    bench.perform();
    let log = bench.took();
    assert_eq!(log[..3], ["BOOT 3", "answer false", "advert Resigning"]);
    bench.up();
    assert_eq!(bench.node.state(), State::Boot, "for good");

    let mut bench = Bench::master();
    bench.node.handle_command(bench.now, Command::Resign);
    bench.perform();
    let said = bench.beats.last().unwrap();
    assert_eq!((said.state, said.tell), (State::Boot, Tell::InSync(BootId(2), Session(1))));
}
