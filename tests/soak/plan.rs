//! Which fault comes next: chosen from the seed and its number alone, so that one can be played
//! again by itself.

use std::fmt;
use std::time::Duration;

use tests::filter::{Network, Way};
use tests::random::Random;
use tests::stall::Program;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL; another one is started by itself.
    Kill(Program),
    /// SIGSTOP, and SIGCONT after a time.
    Stop(Program, Duration),
    /// SIGTERM and a start.
    Restart,
    /// All its frames vanish, then everything on it dies; it is started again.
    Lost,
    /// The carrier goes for a time.
    Carrier(Vec<Network>, Duration),
    /// Deaf or mute.
    Silence(Way, Vec<Network>, Duration),
    /// Both cables cut, carrier up.
    Cut(Duration),
    /// One cable cut, carrier up.
    CutOne(Network, Duration),
    /// One packet in so many lost, both ways, on every path.
    Loss(u16, Duration),
    /// A port filtered on every path.
    Port(u16, Duration),
    /// Connections to all its ports, as fast as they can be made.
    Flood(Duration),
    /// Adverts of priority 255 from a stranger.
    Adverts(Duration),
}

impl Fault {
    /// The row of the summary that it belongs to.
    pub(crate) fn kind(&self) -> String {
        let networks = |list: &[Network]| match list {
            [one] => format!("{one:?}").to_lowercase(),
            _ => "both".to_owned(),
        };
        match self {
            Self::Kill(program) => format!("kill {program:?}"),
            Self::Stop(program, _) => format!("stop {program:?}"),
            Self::Restart => "restart".to_owned(),
            Self::Lost => "node lost".to_owned(),
            Self::Carrier(list, _) => format!("carrier {}", networks(list)),
            Self::Silence(Way::In, list, _) => format!("deaf {}", networks(list)),
            Self::Silence(Way::Out, list, _) => format!("mute {}", networks(list)),
            Self::Cut(_) => "cut both".to_owned(),
            Self::CutOne(network, _) => format!("cut {}", networks(&[*network])),
            Self::Loss(..) => "loss".to_owned(),
            Self::Port(port, _) => format!("port {port}"),
            Self::Flood(_) => "flood".to_owned(),
            Self::Adverts(_) => "adverts".to_owned(),
        }
    }
}

/// What one step plays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Its number; with the seed it is everything below.
    pub(crate) index: u64,
    /// `native`, `generic` or `off`.
    pub(crate) xdp: &'static str,
    /// `uring` or `epoll`.
    pub(crate) io: &'static str,
    /// It happens to the master; else to the backup.
    pub(crate) at_master: bool,
    pub(crate) fault: Fault,
    /// A stated double fault: the other node's engine is killed meanwhile.
    pub(crate) double: bool,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = if self.at_master { "master" } else { "backup" };
        let double = if self.double { " + the other's engine killed" } else { "" };
        write!(f, "{} {:?} at the {at}{double}, {} {}", self.index, self.fault, self.xdp, self.io)
    }
}

/// Steps in a row with the same pair.
const SAME_PAIR: u64 = 10;
const MODES: [(&str, &str); 6] = [
    ("native", "uring"),
    ("off", "uring"),
    ("generic", "uring"),
    ("native", "epoll"),
    ("off", "epoll"),
    ("generic", "epoll"),
];

/// The step of this number.
pub(crate) fn step(seed: u64, index: u64) -> Step {
    let mut random = Random::new(seed, index);
    let mode = (index / SAME_PAIR) % MODES.len() as u64;
    let (xdp, io) = MODES[usize::try_from(mode).unwrap_or(0)];
    Step {
        index,
        xdp,
        io,
        at_master: random.range(0, 100) < 60,
        fault: fault(&mut random),
        double: random.range(0, 100) < 4,
    }
}

fn fault(random: &mut Random) -> Fault {
    let program = *random.of(&[Program::Guardian, Program::Engine]);
    let lists = [&[Network::Lan][..], &[Network::Second], &Network::ALL];
    let networks = random.of(&lists).to_vec();
    let network = *random.of(&Network::ALL);
    let way = *random.of(&Way::ALL);
    let stopped = Duration::from_millis(random.range(50, 3000));
    // As many short as long ones: about the dead time of 40 ms most can go wrong.
    let short = Duration::from_millis(random.range(10, 120));
    let long = Duration::from_millis(random.range(120, 4000));
    let time = *random.of(&[short, long]);
    match random.range(0, 16) {
        0 | 1 => Fault::Kill(program),
        2 | 3 => Fault::Stop(program, stopped),
        4 => Fault::Restart,
        5 => Fault::Lost,
        6 => Fault::Carrier(networks, time),
        7..=9 => Fault::Silence(way, networks, time),
        10 | 11 => Fault::Cut(time),
        12 => Fault::CutOne(network, time),
        13 => Fault::Loss(*random.of(&[20, 10, 5, 3]), long),
        14 => Fault::Port(*random.of(&[7700, 7701]), time),
        _ => {
            let flood = Duration::from_millis(2000);
            random.of(&[Fault::Flood(flood), Fault::Adverts(flood)]).clone()
        }
    }
}
