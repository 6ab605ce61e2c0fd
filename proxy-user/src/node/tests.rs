//! One node against a peer made of beats: the order of effects, and each rule's refusals. What two
//! nodes do together, in a hostile world, is in `tests/sim`.

use std::net::IpAddr;

use super::*;
use crate::config::{LonelySegment, Side, UnreachableWitness, UnsyncedTakeover};

const MS: Duration = Duration::from_millis(1);
const VIA: Via = Via { ours: 0, theirs: 0 };

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
    /// Third hosts answer our ARP requests; the peer's kernel does.
    life: bool,
    peer_host: bool,
    disk_hangs: bool,
    /// Beats come by another path than the segment.
    cut_lan: bool,
    questions: Vec<Question>,
    /// Effects but beats and leases, in short.
    log: Vec<String>,
    beats: Vec<Beat>,
    lease: Lease,
    peer: Beat,
}

impl Bench {
    fn new(peer: Option<PeerConfig>, persisted: u16) -> Self {
        Self::new_with(peer, persisted, None)
    }

    fn new_with(peer: Option<PeerConfig>, persisted: u16, legacy: Option<Legacy>) -> Self {
        let now = Instant::now();
        let config = NodeConfig {
            side: Side::B,
            boot: BootId(1),
            persisted: epoch(persisted),
            peer,
            segments: vec![Some(0)],
            legacy,
        };
        let claim = Claim { lineage: Lineage::Empty, alone: Alone(0), side: Side::A };
        let peer = Beat {
            boot: BootId(2),
            number: 0,
            state: State::Boot,
            epoch: Epoch::NONE,
            seen: Epoch::NONE,
            claim,
            able: true,
            disk: true,
            carrier: true,
            reach: Reach::Whole,
            hears: Paths(1),
            asks: false,
            echo: None,
            session: Session(1),
            ready: false,
            tell: Tell::Nothing,
            generation: 0,
        };
        let mut bench = Self {
            node: Node::new(now, config, vec![router(2, 1)]),
            now,
            disk_works: true,
            engine_answers: true,
            life: true,
            peer_host: false,
            disk_hangs: false,
            cut_lan: false,
            questions: Vec::new(),
            log: Vec::new(),
            beats: Vec::new(),
            lease: Lease::Expired,
            peer,
        };
        bench.node.start(now);
        bench.perform(); // the reserve of epochs is made here
        bench.node.handle_targets(now, 0, true);
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
                Effect::Address(present) => {
                    self.log.push(format!("address {present}"));
                    self.node.handle_address(self.now, present);
                }
                Effect::Probe { instance } => {
                    if self.life {
                        self.node.handle_life(self.now, instance);
                    }
                    if self.peer_host {
                        self.node.handle_contact(self.now, instance, Contact::PeerArp);
                    }
                }
                Effect::AskWitness(question) => self.questions.push(question),
                Effect::Remember(_) => {}
                Effect::PersistEpoch(epoch) => {
                    self.log.push(format!("persist {epoch}"));
                    if !self.disk_hangs {
                        self.node.handle_epoch_persisted(self.now, epoch, self.disk_works);
                    }
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
                Effect::Strays(strays) => self.log.push(format!("strays {strays:?}")),
                Effect::Gate(gate) => self.log.push(format!("gate {gate}")),
                Effect::SendBeat(beat) => self.beats.push(beat),
                Effect::EngineTarget(target) => self.log.push(format!("{target:?}")),
                Effect::Event(Event::RoleChanged { cause, .. }) => {
                    self.log.push(format!("by {}", cause.as_str()));
                }
                Effect::Event(
                    Event::PeerHeard(_)
                    | Event::PeerBoot(_)
                    | Event::Reach(_)
                    | Event::PeerReach(_)
                    | Event::Witness(_),
                ) => {}
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
        let via = if self.cut_lan { Via { ours: 1, theirs: 1 } } else { VIA };
        self.node.handle_beat(self.now, &beat, Some(via));
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
        Self::synced_with(PeerConfig::default())
    }

    fn synced_with(config: PeerConfig) -> Self {
        let mut bench = Self::new(Some(config), 0);
        bench.up();
        bench.hear(|peer| {
            peer.state = State::MasterSolo;
            peer.epoch = epoch(2);
            peer.seen = epoch(2);
            peer.claim.lineage = Lineage::Apart(epoch(2));
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
        Self::master_with(PeerConfig::default())
    }

    fn master_with(config: PeerConfig) -> Self {
        let mut bench = Self::new(Some(config), 0);
        bench.up();
        bench.pass(3_100 * MS, false);
        if let Some(question) = bench.questions.last() {
            let answer = Answer::Granted { number: question.number, generation: 7 };
            bench.node.handle_witness(bench.now, answer);
            bench.perform();
        }
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
        "prepare 3",
        "address true",
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
    let order = ["BOOT 3", "answer false", "stop garp", "address false", "by store_lost"];
    assert_eq!(log[..5], order);
    assert_eq!(bench.node.epoch(), epoch(5));
    assert_eq!(bench.node.state(), State::MasterSolo);
}

#[test]
fn a_disk_that_cannot_be_written_lasts_for_a_reserve_and_is_tried_again() {
    let mut bench = Bench::single();
    bench.disk_works = false;
    bench.up();
    assert_eq!(bench.node.state(), State::MasterSolo, "no promotion waits for a disk");
    let mut reigns = 1;
    for _ in 0..6 {
        bench.engine(EngineEvent::Died);
        bench.up(); // with an empty store: a new epoch
        reigns += usize::from(bench.node.state() == State::MasterSolo);
    }
    assert_eq!(reigns, 4, "what was reserved");
    let log = bench.took();
    assert_eq!(log.iter().filter(|line| *line == "DiskFailed").count(), 1, "{log:?}");
    assert_eq!(bench.node.state(), State::Boot);
    bench.pass(5 * DISK_RETRY, false);
    let writes = bench.took().iter().filter(|line| line.starts_with("persist")).count();
    assert_eq!(writes, 5, "at a slow pace");
    bench.disk_works = true;
    bench.pass(DISK_RETRY, false);
    assert_eq!(bench.node.state(), State::MasterSolo);
    assert!(bench.took().contains(&"DiskRecovered".to_owned()));
}

#[test]
fn a_hung_disk_is_told_and_stops_nothing_that_has_an_epoch() {
    let mut bench = Bench::synced();
    bench.disk_hangs = true;
    bench.hear(|peer| peer.seen = epoch(6)); // half of the reserve is gone: a write
    assert!(bench.beats.last().unwrap().disk);
    bench.pass(100 * MS, true);
    assert!(!bench.beats.last().unwrap().disk, "within 100 ms");
    assert!(bench.beats.last().unwrap().able);
    bench.hear(|peer| {
        peer.state = State::Boot;
        peer.able = false;
    });
    assert_eq!(bench.node.state(), State::MasterSolo);
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
    let fork = Lineage::Fork { base: epoch(2), epoch: epoch(5) };
    assert_eq!(bench.node.claim().lineage, fork, "the other may have gone on too");
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
    for (event, beats, refused, state) in [
        (ControlEvent::ClosedByPeer, false, true, State::MasterSolo),
        (ControlEvent::ClosedByPeer, true, true, State::Synced),
        (ControlEvent::ClosedByPeer, false, false, State::Synced),
        (ControlEvent::Lost, false, true, State::Synced),
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
        if refused {
            bench.node.handle_control(bench.now, ControlEvent::Refused);
        }
        for _ in 0..4 {
            bench.now += MS;
            bench.node.handle_timeout(bench.now);
            bench.perform();
        }
        assert_eq!(bench.node.state(), state, "{event:?} {beats} {refused}");
        assert!(bench.beats.len() > before, "whoever lives says so at once");
    }
    // it has a connection by each path: whichever ends first, the others' ends deny nothing, and
    // no beat from before the end does
    for later in [ControlEvent::Connected, ControlEvent::Lost, ControlEvent::ClosedByPeer] {
        let mut bench = Bench::synced();
        bench.node.handle_control(bench.now, ControlEvent::Connected);
        let old = bench.peer.echo;
        let before = bench.beats.last().map(|beat| Echo { boot: BootId(1), number: beat.number });
        bench.node.handle_control(bench.now, ControlEvent::ClosedByPeer);
        bench.node.handle_control(bench.now, later);
        bench.hear(|peer| peer.echo = before);
        bench.node.handle_control(bench.now, ControlEvent::Refused);
        bench.perform();
        assert_eq!(bench.node.state(), State::MasterSolo, "{later:?}");
        bench.peer.echo = old;
    }
    // a reset and a refusal may be a filter's: everything else must be silent as well, but for
    // what a dead guardian's kernel goes on to say
    for adverts in [false, true] {
        let mut bench = Bench::synced();
        bench.peer_host = true;
        bench.node.handle_control(bench.now, ControlEvent::Connected);
        bench.node.handle_control(bench.now, ControlEvent::Lost);
        bench.node.handle_control(bench.now, ControlEvent::Refused);
        for _ in 0..16 {
            bench.node.handle_contact(bench.now, 0, Contact::Claim);
            bench.pass(10 * MS, false);
        }
        assert_eq!(bench.node.state(), State::Synced);
        if adverts {
            let advert = peer_advert(bench.now);
            let received = vrrp::Received::multicast(IpAddr::from([192, 0, 2, 1]), 255, &advert);
            bench.node.handle_advert(bench.now, 0, &received).unwrap();
        }
        bench.pass(20 * MS, false);
        assert_eq!(bench.node.state() == State::MasterSolo, !adverts);
    }
    // a farewell says that its end will prove nothing
    let mut bench = Bench::synced();
    bench.node.handle_control(bench.now, ControlEvent::Connected);
    bench.node.handle_message(bench.now, &PeerMessage::Bye, None);
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
    bench.node.handle_control(bench.now, ControlEvent::Connected);
    let echo = bench.beats.last().unwrap().echo;
    bench.node.handle_control(bench.now, ControlEvent::ClosedByPeer);
    bench.node.handle_control(bench.now, ControlEvent::Refused);
    bench.perform();
    let log = bench.took();
    assert!(log.contains(&"prepare 5".to_owned()), "{log:?}");
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
    let order =
        ["BOOT 3", "answer false", "stop garp", "address false", "by engine_died", "Nobody"];
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
    bench.perform();
    bench.pass(20 * MS, false);
    assert_eq!(bench.node.state(), State::Boot, "somebody answers again");
}

#[test]
fn a_dead_boot_is_not_believed_again() {
    let mut bench = Bench::synced();
    // a beat of another boot that echoes nothing of ours is no proof while the known one lives
    let echo = bench.beats.last().map(|beat| Echo { boot: BootId(1), number: beat.number });
    let other = Beat { boot: BootId(3), number: 1, echo: None, ..bench.peer };
    bench.node.handle_beat(bench.now, &other, Some(VIA));
    assert_eq!(bench.node.state(), State::Synced);
    // one that heard us later than the known one ever did is
    let fresh = Beat { state: State::Boot, echo, ..other };
    bench.node.handle_timeout(bench.now + 15 * MS);
    bench.perform();
    let echo = bench.beats.last().map(|beat| Echo { boot: BootId(1), number: beat.number });
    bench.node.handle_beat(bench.now + 15 * MS, &Beat { echo, ..fresh }, Some(VIA));
    bench.perform();
    assert!(bench.took().contains(&"by rebooted".to_owned()));
    let late = Beat { number: 1_000, echo, ..bench.peer };
    bench.node.handle_beat(bench.now + 16 * MS, &late, Some(VIA));
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

/// An advert of a foreign router, stronger than we are.
fn foreign_advert(now: Instant) -> Vec<u8> {
    let mut foreign = router(9, 8);
    foreign.startup(now);
    foreign.promote(now);
    let advert = std::iter::from_fn(|| foreign.poll_output()).find_map(|output| match output {
        vrrp::Output::SendAdvert { payload, .. } => Some(payload),
        _ => None,
    });
    advert.unwrap()
}

/// An advert of the peer.
fn peer_advert(now: Instant) -> Vec<u8> {
    let mut peer = router(1, 2);
    peer.startup(now);
    peer.promote(now);
    let advert = std::iter::from_fn(|| peer.poll_output()).find_map(|output| match output {
        vrrp::Output::SendAdvert { payload, .. } => Some(payload),
        _ => None,
    });
    advert.unwrap()
}

#[test]
fn a_foreign_master_fences_until_it_is_silent() {
    let mut bench = Bench::single();
    bench.up();
    bench.took();
    let advert = foreign_advert(bench.now);
    let received = vrrp::Received::multicast(IpAddr::from([192, 0, 2, 9]), 255, &advert);
    for _ in 0..3 {
        bench.node.handle_advert(bench.now, 0, &received).unwrap();
        bench.perform();
    }
    assert_eq!(bench.took(), ["ForeignAdverts"], "who only says so is not believed; said once");
    bench.node.handle_contact(bench.now, 0, Contact::Claim);
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
fn no_stranger_burns_an_epoch_while_beats_come() {
    for synced in [false, true] {
        let mut bench = if synced { Bench::synced() } else { Bench::master() };
        let (state, seen) = (bench.node.state(), bench.node.seen());
        let advert = foreign_advert(bench.now);
        let received = vrrp::Received::multicast(IpAddr::from([192, 0, 2, 9]), 255, &advert);
        for _ in 0..100 {
            bench.node.handle_advert(bench.now, 0, &received).unwrap();
            bench.node.handle_contact(bench.now, 0, Contact::Claim);
            bench.pass(10 * MS, true);
        }
        assert_eq!((bench.node.state(), bench.node.seen()), (state, seen));
    }
}

#[test]
fn a_dead_masters_adverts_sent_again_cost_nothing() {
    let mut bench = Bench::synced();
    let advert = peer_advert(bench.now);
    let received = vrrp::Received::multicast(IpAddr::from([192, 0, 2, 1]), 255, &advert);
    for _ in 0..500 {
        bench.node.handle_advert(bench.now, 0, &received).unwrap();
        bench.pass(10 * MS, false);
    }
    let log = bench.took();
    assert!(log.contains(&"by silent".to_owned()), "{log:?}");
    assert_eq!(bench.node.state(), State::MasterSolo);
    assert_eq!(bench.node.epoch(), epoch(5), "one promotion");
}

#[test]
fn silence_needs_an_answer_of_the_segment() {
    // who is isolated is FENCED, comes back when somebody answers, and is not in sync then
    for master in [false, true] {
        let mut bench = if master { Bench::master() } else { Bench::synced() };
        bench.life = false;
        bench.pass(45 * MS, false);
        assert!([State::Synced, State::Master].contains(&bench.node.state()), "not yet");
        bench.pass(30 * MS, false);
        assert_eq!(bench.node.state(), State::Fenced);
        bench.pass(10_000 * MS, false);
        assert_eq!(bench.node.state(), State::Fenced, "without flapping");
        bench.life = true;
        bench.pass(1_000 * MS, false);
        assert_eq!(bench.node.state(), State::Boot);
        bench.hear(|peer| peer.state = State::MasterSolo);
        assert_eq!(bench.node.state(), State::Join);
    }
}

#[test]
fn a_lonely_segment_is_as_configured() {
    for (lonely, state) in
        [(LonelySegment::Takeover, State::MasterSolo), (LonelySegment::Hold, State::Fenced)]
    {
        let mut bench = Bench::synced_with(PeerConfig { lonely, ..PeerConfig::default() });
        bench.life = false;
        bench.node.handle_targets(bench.now, 0, false);
        bench.pass(80 * MS, false);
        assert_eq!(bench.node.state(), state, "{lonely:?}");
    }
}

#[test]
fn a_silent_guardian_on_a_living_host_is_given_time() {
    let mut bench = Bench::synced();
    bench.peer_host = true;
    bench.pass(200 * MS, false);
    assert_eq!(bench.node.state(), State::Synced, "its kernel answers");
    bench.pass(50 * MS, false);
    assert_eq!(bench.node.state(), State::MasterSolo, "but nothing else does");
    let mut bench = Bench::master();
    bench.peer_host = true;
    bench.pass(95 * MS, false);
    assert_eq!(bench.node.state(), State::Master);
    bench.pass(10 * MS, false);
    assert_eq!(bench.node.state(), State::MasterSolo, "before a client loses its patience");
}

#[test]
fn whoever_owns_the_addresses_is_not_taken_for_dead() {
    // beats are filtered; the master's host answers, and so does it for the address
    let mut bench = Bench::synced();
    bench.peer_host = true;
    for _ in 0..1_000 {
        bench.node.handle_contact(bench.now, 0, Contact::Claim);
        bench.pass(10 * MS, false);
    }
    let log = bench.took();
    assert!(log.contains(&"by no_beats".to_owned()), "{log:?}");
    assert_eq!(log.iter().filter(|line| *line == "Blocked(true)").count(), 1, "{log:?}");
    assert_eq!(bench.node.state(), State::Join, "it stays out");
    assert_eq!(bench.node.seen(), epoch(2));
    // nor at a start
    let mut bench = Bench::pair();
    bench.up();
    for _ in 0..1_000 {
        bench.node.handle_contact(bench.now, 0, Contact::Claim);
        bench.pass(10 * MS, false);
    }
    assert_eq!(bench.node.state(), State::Boot);
    bench.pass(5_000 * MS, false);
    assert_eq!(bench.node.state(), State::MasterSolo, "when it is gone");
}

#[test]
fn a_master_without_its_segment_hands_over_to_who_has_it() {
    // the peer is heard by another path; nobody on the segment answers, and the peer is answered
    let mut bench = Bench::master();
    bench.life = false;
    bench.cut_lan = true;
    bench.pass(50 * MS, true);
    bench.sync(SyncEvent::AckLate { epoch: epoch(3) });
    assert_eq!(bench.beats.last().unwrap().tell, Tell::InSync(BootId(2), Session(1)), "patience");
    bench.pass(30 * MS, true);
    let said = bench.beats.last().unwrap();
    assert_eq!((said.state, said.able, said.reach), (State::Boot, false, Reach::Lost));
    assert_eq!(said.tell, Tell::InSync(BootId(2), Session(1)));
    assert!(bench.took().contains(&"by segment_lost".to_owned()));
    // the peer is not better off: the master stays, and a late stream is late
    let mut bench = Bench::master();
    bench.life = false;
    bench.cut_lan = true;
    bench.hear(|peer| peer.reach = Reach::Unknown);
    bench.pass(50 * MS, true);
    bench.sync(SyncEvent::AckLate { epoch: epoch(3) });
    bench.pass(100 * MS, true);
    assert_eq!(bench.node.state(), State::Master);
    assert_eq!(bench.beats.last().unwrap().tell, Tell::OutOfSync(BootId(2), Session(1)));
    // its own segment answers: it is the backup that lost it
    let mut bench = Bench::master();
    bench.cut_lan = true;
    bench.pass(200 * MS, true);
    assert_eq!(bench.node.state(), State::Master);
    assert_eq!(bench.beats.last().unwrap().reach, Reach::Whole);
}

#[test]
fn a_witness_is_asked_once_at_each_silence() {
    let granted = |number| Answer::Granted { number, generation: 8 };
    let refused = |number| Answer::Refused { number, generation: 8, holder_is_us: false };
    let unreachable = |number| Answer::Unreachable { number };
    type Row = (UnreachableWitness, fn(u64) -> Answer, State, State);
    let answers: [Row; 4] = [
        (UnreachableWitness::Hold, granted, State::MasterSolo, State::MasterSolo),
        (UnreachableWitness::Hold, refused, State::Fenced, State::Fenced),
        (UnreachableWitness::Hold, unreachable, State::Fenced, State::Fenced),
        (UnreachableWitness::PreferMaster, unreachable, State::Fenced, State::MasterSolo),
    ];
    for (policy, answer, backup, master) in answers {
        let config = PeerConfig { witness: Some(policy), ..PeerConfig::default() };
        for (mut bench, state) in [
            (Bench::synced_with(config.clone()), backup),
            (Bench::master_with(config.clone()), master),
        ] {
            bench.hear(|peer| peer.generation = 7);
            bench.questions.clear();
            let before = bench.node.state();
            bench.pass(60 * MS, false);
            assert_eq!(bench.node.state(), before, "nothing without an answer");
            let [question] = bench.questions[..] else { panic!("{:?}", bench.questions) };
            assert_eq!((question.expected, question.by_contact), (7, false));
            bench.node.handle_witness(bench.now, granted(question.number - 1));
            assert_eq!(bench.node.state(), before, "an answer to another question");
            bench.node.handle_witness(bench.now, answer(question.number));
            bench.perform();
            assert_eq!(bench.node.state(), state, "{policy:?} {before}");
            bench.node.handle_witness(bench.now, answer(question.number));
            bench.pass(20 * MS, false);
            assert_eq!(bench.node.state(), state, "a doubled answer");
        }
    }
}

#[test]
fn a_master_sees_that_the_witness_still_knows() {
    let config = PeerConfig { witness: Some(UnreachableWitness::Hold), ..PeerConfig::default() };
    let mut bench = Bench::master_with(config);
    let asked = |bench: &mut Bench, time| {
        bench.questions.clear();
        bench.pass(time, true);
        bench.questions.clone()
    };
    bench.hear(|peer| peer.generation = 7);
    let rest = asked(&mut bench, 8_000 * MS);
    assert!(rest.is_empty(), "{rest:?}");
    let [again] = asked(&mut bench, 3_000 * MS)[..] else { panic!("once in ten seconds") };
    assert_eq!((again.expected, again.by_contact), (7, true));
    // it has lost its register, and knows again: nothing else changes
    bench.node.handle_witness(bench.now, Answer::Granted { number: again.number, generation: 8 });
    assert_eq!(bench.node.state(), State::Master);
    assert_eq!(bench.node.generation(), 8);
}

#[test]
fn a_fork_closes_when_both_hold_it() {
    let mut bench = Bench::master();
    bench.node.handle_alone(100);
    bench.pass(60 * MS, false);
    let fork = Lineage::Fork { base: epoch(3), epoch: epoch(3) };
    assert_eq!(bench.node.state(), State::MasterSolo);
    bench.node.handle_alone(103);
    assert_eq!(bench.node.claim(), Claim { lineage: fork, alone: Alone::of(103), side: Side::B });
    bench.hear(|peer| {
        peer.state = State::Catchup;
        peer.ready = true;
        peer.session = Session(2);
    });
    let shared = Lineage::Shared(epoch(3));
    let claim = Claim { lineage: shared, alone: Alone::of(103), side: Side::B };
    assert_eq!(bench.node.claim(), claim, "it has a full sync, but not the last answers");
    bench.sync(SyncEvent::CaughtUp { epoch: epoch(3) });
    bench.pass(1_000 * MS, true);
    bench.sync(SyncEvent::Gated { gate: 2 });
    assert_eq!(bench.node.claim(), Claim { alone: Alone(0), ..claim }, "and now it has them");
}

#[test]
fn a_store_that_outlived_its_guardian_claims_what_that_one_knew() {
    let legacy = |lineage| Some(Legacy { lineage, alone: Alone(4), solo: false });
    let fork = Lineage::Fork { base: epoch(2), epoch: epoch(5) };
    for (legacy, fresh, claimed) in [
        (legacy(fork), false, (fork, Alone(4))),
        (legacy(fork), true, (Lineage::Empty, Alone(0))),
        (legacy(Lineage::Apart(epoch(4))), false, (Lineage::Apart(epoch(4)), Alone(4))),
        (None, false, (Lineage::Apart(epoch(5)), Alone(0))),
    ] {
        let mut bench = Bench::new_with(Some(PeerConfig::default()), 0, legacy);
        let early = legacy.map_or(Lineage::Empty, |legacy| legacy.lineage);
        assert_eq!(bench.node.claim().lineage, early, "before the engine is up");
        bench.engine(EngineEvent::Up { fresh, data_epoch: epoch(5) });
        let claim = bench.node.claim();
        assert_eq!((claim.lineage, claim.alone), claimed, "{legacy:?}");
    }
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
    bench.node.handle_command(bench.now, Command::Stop);
    bench.perform();
    let log = bench.took();
    assert_eq!(log[..3], ["BOOT 3", "answer false", "advert Resigning"]);
    bench.up();
    assert_eq!(bench.node.state(), State::Boot, "for good");

    let mut bench = Bench::master();
    bench.node.handle_command(bench.now, Command::Stop);
    bench.perform();
    let said = bench.beats.last().unwrap();
    assert_eq!((said.state, said.tell), (State::Handover, Tell::InSync(BootId(2), Session(1))));
    let log = bench.took();
    assert!(!log.iter().any(|line| line.starts_with("address")), "{log:?}: it still answers there");
    let own = bench.node.epoch();
    assert_eq!(bench.node.target(), Target::Here(own), "nobody is sent away yet");
    bench.hear(|beat| (beat.state, beat.epoch) = (State::MasterSolo, epoch(6)));
    assert_eq!(
        (bench.node.state(), bench.node.target()),
        (State::Handover, Target::Peer(epoch(6)))
    );
    bench.up();
    assert_eq!(bench.node.state(), State::Handover, "for good");
}

#[test]
fn the_router_follows_its_interfaces_address() {
    let mut bench = Bench::master();
    let [source, peer] = [[10, 0, 1, 9], [10, 0, 1, 2]].map(std::net::IpAddr::from);
    bench.node.handle_source(bench.now, 0, source, (Some(peer), Some(1)));
    let config = bench.node.vrrp()[0].config();
    assert_eq!((config.source, config.mode), (source, vrrp::Mode::Coupled { peer: Some(peer) }));
    assert_eq!(bench.node.segments[0].path, Some(1));
}

/// A stop is not answered by a gap: the peer is let in at once, whatever was held against it.
#[test]
fn who_is_to_leave_waits_for_its_replica() {
    let mut bench = Bench::single();
    bench.up();
    assert!(!bench.node.awaits_replica(bench.now), "nobody to wait for");
    let mut bench = Bench::master();
    assert!(!bench.node.awaits_replica(bench.now), "in sync");
    bench.sync(SyncEvent::AckLate { epoch: epoch(3) });
    bench.hear(|beat| {
        (beat.state, beat.session, beat.ready) = (State::Catchup, Session(2), false);
    });
    assert_eq!(bench.node.state(), State::MasterSolo);
    assert!(bench.node.awaits_replica(bench.now));
    bench.sync(SyncEvent::CaughtUp { epoch: epoch(3) });
    bench.hear(|beat| beat.ready = true);
    assert_eq!(bench.node.state(), State::MasterSolo, "held for a second");
    bench.node.handle_command(bench.now, Command::Leave);
    bench.perform();
    assert_eq!(bench.node.state(), State::Master);
    assert!(bench.node.awaits_replica(bench.now), "it is not told yet");
    let gate = bench.node.master.gate;
    bench.sync(SyncEvent::Gated { gate });
    bench.hear(|beat| beat.state = State::Synced);
    assert!(!bench.node.awaits_replica(bench.now));
    bench.node.handle_command(bench.now, Command::Stop);
    assert_eq!(bench.node.state(), State::Handover);
}

/// What comes for another node's connection goes back to it from before the first packet comes here
/// until it has ended.
#[test]
fn strays_go_to_who_hands_over() {
    let mut bench = Bench::synced();
    bench.took();
    bench.hear(|beat| beat.state = State::Handover);
    let log = bench.took();
    let at = |what: &str| log.iter().position(|line| line.starts_with(what));
    let relayed = at("strays Relayed").expect("relayed");
    let here = at("address true").expect("the address");
    assert!(relayed < here, "{log:?}");
    bench.hear(|beat| beat.state = State::Boot);
    assert!(bench.took().contains(&"strays Refused".to_owned()), "it has started anew");

    let mut bench = Bench::synced();
    bench.hear(|beat| beat.state = State::Boot);
    assert!(!bench.took().iter().any(|line| line.starts_with("strays")), "its engine died");
}
