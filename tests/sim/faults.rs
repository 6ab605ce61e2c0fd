//! What goes wrong, and when: a plan drawn from the seed, and its application to the world.
//!
//! A plan is a list, so that a run can be given one by hand and a failing seed can be read. Faults
//! come alone (then one failure must lose nothing) or in quick succession; at the end everything is
//! mended, and the world has time to become quiet.

use std::time::Duration;

use proxy_user::config::{UnreachableWitness, UnsyncedTakeover};
use proxy_user::node::PeerConfig;

use crate::clients::CLIENTS;
use crate::host::Input;
use crate::network::{Path, Port, Use};
use crate::prng::Prng;
use crate::world::{Ev, MS, Nanos, US, World};

/// One thing that goes wrong (or right again).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The engine is killed; `lost`: its store is found rejected.
    Engine { host: usize, lost: bool },
    /// The guardian is killed, and its engine with it; started again after a while. The keeper
    /// `keeps` the store, or it is killed too.
    Guardian { host: usize, back: Nanos, keeps: bool },
    /// The power is cut; back after a while.
    Power { host: usize, back: Nanos },
    /// The guardian, the engine or both do not run for a while.
    Stop { host: usize, guardian: bool, engine: bool, length: Nanos },
    /// Frames from `from` are lost on a path.
    Cut { path: usize, from: usize },
    /// A path works again.
    Mend { path: usize },
    /// Datagrams are lost on every path; connections work.
    Filter,
    /// Nothing comes in (`deaf`), or nothing goes out, at a host's end of a path.
    Port { host: usize, path: usize, deaf: bool },
    /// The clients' segment falls in two, each with a node and some of the clients; or is whole
    /// again. Other paths go on.
    Split(Option<[usize; CLIENTS]>),
    /// A stronger foreign router's adverts; it `claims`: and its gratuitous ARP.
    Foreign { length: Nanos, claims: bool },
    /// A box in between ends the control connection in order, towards that host only.
    FalseEnd { host: usize },
    /// The witness is not reached by one host, or (`None`) is down; it may come back without its
    /// state.
    Witness { host: Option<usize>, length: Nanos, forgets: bool },
    /// The disk of the state file does not answer for a while.
    Hang { host: usize, length: Nanos },
    /// A connection is reset by something in between.
    Reset(Use),
    /// No connection of that use can be made for a while, and what is there is reset.
    Refuse(Use, Nanos),
    /// The clients' segment loses or regains a host's carrier.
    Carrier { host: usize, up: bool },
    /// The state file cannot, or can again, be written.
    Disk { host: usize, broken: bool },
    /// Acks of the replica's engine come late: its turns are this far apart for a while.
    Slow { host: usize, length: Nanos },
    /// Everything is mended; no fault and no write comes after.
    Calm,
}

impl Fault {
    /// How long it lasts at most; `None`: it mends.
    const fn length(self) -> Option<Nanos> {
        match self {
            Self::Engine { .. } | Self::Reset(_) | Self::FalseEnd { .. } => Some(100 * MS),
            Self::Foreign { length, .. }
            | Self::Hang { length, .. }
            | Self::Witness { length, .. } => Some(length),
            Self::Guardian { back, .. } | Self::Power { back, .. } => Some(back),
            Self::Stop { length, .. } | Self::Slow { length, .. } => Some(length),
            Self::Refuse(_, length) => Some(length),
            Self::Cut { .. }
            | Self::Filter
            | Self::Port { .. }
            | Self::Split(Some(_))
            | Self::Carrier { up: false, .. } => Some(700 * MS),
            Self::Disk { broken: true, .. } => Some(700 * MS),
            Self::Mend { .. }
            | Self::Split(None)
            | Self::Carrier { up: true, .. }
            | Self::Disk { broken: false, .. }
            | Self::Calm => None,
        }
    }
}

/// A host's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) offset: Nanos,
    /// Parts per million too fast.
    pub(crate) ppm: i64,
}

/// A run's circumstances.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) paths: Vec<Path>,
    pub(crate) clocks: [Clock; 2],
    pub(crate) starts: [Nanos; 2],
    pub(crate) faults: Vec<(Nanos, Fault)>,
    pub(crate) end: Nanos,
    pub(crate) peer: PeerConfig,
    /// The store is so small that it evicts.
    pub(crate) evicts: bool,
    /// Lateness of timers, at most.
    pub(crate) jitter: Nanos,
    /// Nobody on the segment answers ARP.
    pub(crate) lonely: bool,
    /// In 1000: a client ignores a gratuitous ARP.
    pub(crate) deaf_clients: u64,
}

/// After the last fault: time to start, sync and become quiet.
const SETTLE: Nanos = 1_700 * MS;

/// The pair's timing in the simulation: as in production, but less patient.
fn timing(rng: &mut Prng) -> PeerConfig {
    let unsynced = match rng.range(0, 8) {
        0 => UnsyncedTakeover::Now,
        1 => UnsyncedTakeover::Never,
        _ => UnsyncedTakeover::After(Duration::from_millis(300)),
    };
    PeerConfig {
        boot_wait: Duration::from_millis(200),
        unsynced_takeover: unsynced,
        resync_hold: Duration::from_millis(100),
        engine_wait: Duration::from_millis(300),
        asymmetry_wait: Duration::from_millis(300),
        witness: match rng.range(0, 5) {
            0 => Some(UnreachableWitness::Hold),
            1 => Some(UnreachableWitness::PreferMaster),
            _ => None,
        },
        ..PeerConfig::default()
    }
}

impl Plan {
    /// A world in which nothing goes wrong for `end`.
    pub(crate) fn calm(end: Nanos) -> Self {
        let path = Path {
            delay: (100 * US, 300 * US),
            loss: 0,
            repeat: 0,
            cut: [false, false],
            filtered: false,
            ports: [Port::default(); 2],
        };
        let clock = Clock { offset: 1_000 * MS, ppm: 0 };
        let peer = timing(&mut Prng::new(5));
        Self {
            paths: vec![path.clone(), path],
            clocks: [clock, clock],
            starts: [MS, 2 * MS],
            faults: Vec::new(),
            end,
            peer: PeerConfig {
                unsynced_takeover: UnsyncedTakeover::After(Duration::from_millis(300)),
                witness: None,
                ..peer
            },
            evicts: false,
            jitter: 0,
            lonely: false,
            deaf_clients: 0,
        }
    }

    /// Whatever the seed says.
    pub(crate) fn draw(rng: &mut Prng) -> Self {
        let mut plan = Self::calm(0);
        plan.peer = timing(rng);
        plan.evicts = rng.chance(200);
        plan.jitter = if rng.chance(300) { 3 * MS } else { 200 * US };
        plan.deaf_clients = if rng.chance(300) { 500 } else { 0 };
        let paths = 2 + usize::from(rng.chance(200));
        plan.paths = (0..paths).map(|_| draw_path(rng)).collect();
        plan.clocks = [0, 1].map(|_| Clock {
            offset: rng.range(0, 1_000_000 * MS),
            ppm: rng.range(0, 400) as i64 - 200,
        });
        plan.starts = [rng.range(MS, 100 * MS), rng.range(MS, 100 * MS)];
        if rng.chance(100) {
            plan.starts[1] = rng.range(300 * MS, 700 * MS);
        }
        let mut at = rng.range(400 * MS, 900 * MS);
        let count = rng.range(1, 7);
        for _ in 0..count {
            let cluster = rng.chance(350);
            draw_fault(rng, at, paths, &mut plan.faults);
            if plan.peer.witness.is_some() && rng.chance(250) {
                let host = rng.chance(600).then(|| rng.index(2));
                let (length, forgets) = (rng.range(20 * MS, 900 * MS), rng.chance(300));
                plan.faults.push((at, Fault::Witness { host, length, forgets }));
            }
            at += if cluster { rng.range(0, 60 * MS) } else { rng.range(300 * MS, 900 * MS) };
        }
        at += rng.range(0, 400 * MS);
        plan.faults.push((at, Fault::Calm));
        plan.faults.sort_by_key(|(at, _)| *at);
        plan.end = at + SETTLE;
        plan
    }
}

fn draw_path(rng: &mut Prng) -> Path {
    let least = rng.range(30 * US, 400 * US);
    let most = least + if rng.chance(250) { rng.range(MS, 8 * MS) } else { 200 * US };
    let loss = if rng.chance(400) { rng.range(5, 80) } else { 0 };
    let repeat = if rng.chance(300) { 50 } else { 0 };
    let (cut, filtered, ports) = ([false, false], false, [Port::default(); 2]);
    Path { delay: (least, most), loss, repeat, cut, filtered, ports }
}

fn draw_fault(rng: &mut Prng, at: Nanos, paths: usize, faults: &mut Vec<(Nanos, Fault)>) {
    let host = rng.index(2);
    let short = rng.chance(500);
    let length = if short { rng.range(5 * MS, 60 * MS) } else { rng.range(60 * MS, 700 * MS) };
    let back = rng.range(2 * MS, 600 * MS);
    let path = rng.index(paths);
    let kind = rng.range(0, 30);
    if kind >= 22 {
        return draw_segment_fault(rng, at, paths, faults);
    }
    let mut put = |delay: Nanos, fault| faults.push((at + delay, fault));
    match kind {
        0..=2 => put(0, Fault::Engine { host, lost: rng.chance(60) }),
        3..=5 => put(0, Fault::Guardian { host, back, keeps: rng.chance(600) }),
        6..=7 => put(0, Fault::Power { host, back }),
        8..=9 => put(0, Fault::Stop { host, guardian: true, engine: true, length }),
        10 => put(0, Fault::Stop { host, guardian: true, engine: false, length }),
        11 => put(0, Fault::Stop { host, guardian: false, engine: true, length }),
        12 => {
            put(0, Fault::Cut { path, from: host });
            put(length, Fault::Mend { path });
        }
        13..=14 => {
            // everything from one side
            for path in 0..paths {
                put(0, Fault::Cut { path, from: host });
                put(length, Fault::Mend { path });
            }
        }
        15..=16 => {
            for path in 0..paths {
                put(0, Fault::Cut { path, from: 0 });
                put(0, Fault::Cut { path, from: 1 });
                put(length, Fault::Mend { path });
            }
        }
        17 => {
            put(0, Fault::Carrier { host, up: false });
            put(length, Fault::Carrier { host, up: true });
        }
        18 => {
            put(0, Fault::Disk { host, broken: true });
            put(length, Fault::Disk { host, broken: false });
        }
        19 => {
            put(0, Fault::Filter);
            put(length, Fault::Mend { path: 0 });
            put(length + 10 * MS, Fault::Mend { path: 1 });
        }
        20 => {
            let kinds = [Use::Control, Use::Link(0), Use::Link(1)];
            put(0, Fault::Refuse(kinds[rng.index(3)], length));
        }
        _ if short => {
            let kinds = [Use::Control, Use::Link(0), Use::Link(1)];
            put(0, Fault::Reset(kinds[rng.index(3)]));
        }
        _ => put(0, Fault::Slow { host, length }),
    }
}

/// Faults of the clients' segment, of ears, of strangers and of disks.
fn draw_segment_fault(rng: &mut Prng, at: Nanos, paths: usize, faults: &mut Vec<(Nanos, Fault)>) {
    let host = rng.index(2);
    let length = rng.range(5 * MS, 700 * MS);
    let path = rng.index(paths);
    let mut put = |delay: Nanos, fault| faults.push((at + delay, fault));
    match rng.range(0, 8) {
        0..=2 => {
            let deaf = rng.chance(500);
            let all = rng.chance(500);
            for path in (0..paths).filter(|at| all || *at == path) {
                put(0, Fault::Port { host, path, deaf });
                put(length, Fault::Mend { path });
            }
        }
        3..=4 => {
            let sides = [0; CLIENTS].map(|_| rng.index(2));
            put(0, Fault::Split(Some(sides)));
            put(length, Fault::Split(None));
            if rng.chance(600) {
                for path in 1..paths {
                    put(0, Fault::Cut { path, from: 0 });
                    put(0, Fault::Cut { path, from: 1 });
                    put(length, Fault::Mend { path });
                }
            }
        }
        5 => put(0, Fault::Foreign { length, claims: rng.chance(300) }),
        6 => put(0, Fault::FalseEnd { host }),
        _ => put(0, Fault::Hang { host, length }),
    }
}

impl World {
    pub(crate) fn apply_fault(&mut self, fault: Fault) {
        let now = self.now;
        self.note(None, &format!("{fault:?}"));
        if let Some(length) = fault.length() {
            self.checker.failure(now, length);
        }
        match fault {
            Fault::Engine { host, lost } => {
                self.kill_engine(host, 50 * MS);
                if lost {
                    self.lose_store(host);
                }
            }
            Fault::Guardian { host, back, keeps } => {
                self.kill_guardian(host, keeps);
                self.after(back, Ev::Start { host });
            }
            Fault::Power { host, back } => {
                self.kill_host(host);
                self.after(back, Ev::Fault(Fault::Carrier { host, up: true }));
                self.after(back, Ev::Start { host });
            }
            Fault::Stop { host, guardian, engine, length } => {
                let until = now + length;
                if guardian {
                    self.hosts[host].guardian_paused = until;
                }
                if engine {
                    self.hosts[host].engine_paused = until;
                }
            }
            Fault::Cut { .. }
            | Fault::Mend { .. }
            | Fault::Filter
            | Fault::Port { .. }
            | Fault::Split(_) => self.apply_to_wires(fault),
            Fault::Foreign { length, claims } => self.foreign_advert(now + length, claims),
            Fault::FalseEnd { host } => {
                if self.conns.contains_key(&Use::Control) {
                    self.control_ended(host, true);
                    self.after(5 * MS, Ev::Fault(Fault::Reset(Use::Control)));
                }
            }
            Fault::Witness { host: Some(host), length, .. } => {
                self.witness.cut_until[host] = now + length;
            }
            Fault::Witness { host: None, length, forgets } => {
                self.witness.restart(now, length, forgets);
            }
            Fault::Hang { host, length } => self.hosts[host].disk_hangs_until = now + length,
            Fault::Refuse(kind, length) => {
                self.refused.insert(kind, now + length);
                self.break_conn(kind);
            }
            Fault::Reset(kind) => self.break_conn(kind),
            Fault::Carrier { host, up } => {
                self.hosts[host].powered = true;
                self.hosts[host].carrier = up;
                // netlink is not always quick
                self.tell_guardian(host, Input::Carrier(up));
            }
            Fault::Disk { host, broken } => self.hosts[host].disk_broken = broken,
            Fault::Slow { host, length } => self.hosts[host].slow_until = now + length,
            Fault::Calm => self.calm(),
        }
    }

    fn apply_to_wires(&mut self, fault: Fault) {
        match fault {
            Fault::Cut { path, from } => self.paths[path].cut[from] = true,
            Fault::Mend { path } => {
                self.paths[path].cut = [false, false];
                self.paths[path].filtered = false;
                self.paths[path].ports = [Port::default(); 2];
            }
            Fault::Filter => self.paths.iter_mut().for_each(|path| path.filtered = true),
            Fault::Port { host, path, deaf } => {
                let port = &mut self.paths[path].ports[host];
                *(if deaf { &mut port.deaf } else { &mut port.mute }) = true;
            }
            Fault::Split(sides) => {
                self.split = sides;
                self.paths[0].cut = [sides.is_some(); 2];
            }
            _ => {}
        }
    }

    fn calm(&mut self) {
        self.quiet = true;
        self.refused.clear();
        self.split = None;
        self.witness.cut_until = [0; 2];
        self.witness.down_until = 0;
        for path in &mut self.paths {
            path.cut = [false, false];
            path.filtered = false;
            path.ports = [Port::default(); 2];
            path.loss = 0;
        }
        for host in 0..2 {
            self.hosts[host].disk_broken = false;
            self.hosts[host].disk_hangs_until = 0;
            self.hosts[host].carrier = true;
            self.hosts[host].powered = true;
            self.tell_guardian(host, Input::Carrier(true));
            self.start_guardian(host);
        }
    }
}
