//! The asking thread against a witness over loopback.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::ask::{Asker, WitnessThread};
use super::serve::Witness;
use crate::config::{self, RegisterPlace, Side, UnreachableWitness};
use crate::control::message::Secret;
use crate::node::{Answer, BootId, Question};
use crate::witness::Seal;

const KEY: [u8; 32] = [5; 32];
const PATIENCE: Duration = Duration::from_secs(10);

/// A witness on a thread of its own; ends with this.
struct Served {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(folder: &Path) -> Self {
        let mut witness = Witness::open(folder, Seal::new(&KEY, "tandem")).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                witness.turn(&socket);
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

pub(super) fn asker(side: Side, boot: u64) -> Asker {
    Asker { side, boot: BootId(boot), cluster: "tandem".to_owned(), key: Secret(KEY) }
}

/// A node's thread and its answers.
pub(super) struct Node {
    thread: WitnessThread,
    answers: mpsc::Receiver<Answer>,
}

impl Node {
    pub(super) fn start(register: RegisterPlace, timeout: Duration, us: &Asker) -> Self {
        let unreachable = UnreachableWitness::Hold;
        let config = config::Witness { register, unreachable, timeout };
        let (told, answers) = mpsc::channel();
        let tell = move |answer| told.send(answer).unwrap();
        Self { thread: WitnessThread::start(&config, us, tell).unwrap(), answers }
    }

    pub(super) fn ask(&self, number: u64, expected: u64, by_contact: bool) -> Answer {
        self.send(number, expected, by_contact);
        self.answer()
    }

    pub(super) fn send(&self, number: u64, expected: u64, by_contact: bool) {
        self.thread.ask(Question { number, epoch: 2, expected, by_contact });
    }

    pub(super) fn answer(&self) -> Answer {
        self.answers.recv_timeout(PATIENCE).unwrap()
    }
}

pub(super) fn granted(number: u64, generation: u64) -> Answer {
    Answer::Granted { number, generation }
}

pub(super) fn refused(number: u64, generation: u64) -> Answer {
    Answer::Refused { number, generation, holder_is_us: false }
}

#[test]
fn one_of_two_is_granted() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path());
    // one address of it is dead: the other counts
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let place = || RegisterPlace::Tandem(vec![dead, served.address]);
    let a = Node::start(place(), Duration::from_secs(5), &asker(Side::A, 1));
    let b = Node::start(place(), Duration::from_secs(5), &asker(Side::B, 2));
    assert_eq!(a.ask(1, 0, true), granted(1, 1));
    assert_eq!(b.ask(1, 1, false), granted(1, 2));
    assert_eq!(a.ask(2, 1, false), refused(2, 2));
    // a new boot of the same side
    let again = Node::start(place(), Duration::from_secs(5), &asker(Side::B, 3));
    assert_eq!(again.ask(1, 0, false), granted(1, 3));
}

#[test]
fn silence_is_unreachable_after_the_timeout() {
    // holds the port and says nothing
    let mute = UdpSocket::bind("127.0.0.1:0").unwrap();
    let place = RegisterPlace::Tandem(vec![mute.local_addr().unwrap()]);
    let timeout = Duration::from_millis(60);
    let node = Node::start(place, timeout, &asker(Side::A, 1));
    let begun = Instant::now();
    assert_eq!(node.ask(1, 0, false), Answer::Unreachable { number: 1 });
    assert!(begun.elapsed() >= timeout);
    // it was asked more than once
    mute.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..3 {
        mute.recv(&mut [0; 300]).unwrap();
    }
}

/// An empty register is silent, and so is a witness with another key.
#[test]
fn who_knows_nothing_is_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path());
    let place = || RegisterPlace::Tandem(vec![served.address]);
    let short = Duration::from_millis(100);
    let node = Node::start(place(), short, &asker(Side::A, 1));
    assert_eq!(node.ask(1, 0, false), Answer::Unreachable { number: 1 });
    let stranger = Asker { key: Secret([6; 32]), ..asker(Side::A, 1) };
    let stranger = Node::start(place(), short, &stranger);
    assert_eq!(stranger.ask(1, 0, true), Answer::Unreachable { number: 1 });
}

#[test]
fn a_newer_question_takes_the_place_of_an_older() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path());
    let place = RegisterPlace::Tandem(vec![served.address]);
    let node = Node::start(place, PATIENCE, &asker(Side::A, 1));
    // not answered, for the register is empty
    node.send(1, 0, false);
    assert_eq!(node.ask(2, 0, true), granted(2, 1));
}
