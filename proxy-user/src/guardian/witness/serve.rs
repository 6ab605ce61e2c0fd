//! `tandem witness`: answers questions over UDP, each grant on disk before its reply.

use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::super::fault::Fault;
use super::super::slots::{Content, Slots};
use super::super::start::{self, PairKey};
use crate::cli;
use crate::config::{self, Side};
use crate::node::Answer;
use crate::telemetry::{self, RateLimit};
use crate::witness::{DATAGRAM_MAX, Desk, KEY_LABEL, NONCE, Register, Reply, Seal};

/// Datagrams taken from one socket before the others have their turn.
const TURN_MAX: usize = 64;
/// Between two lines about what strangers send.
const STRANGERS: Duration = Duration::from_secs(60);
/// The file in the state folder, and what its lines begin with.
const FILE: (&str, &str) = ("register", "tandem-register 1");

/// Answers until SIGTERM or SIGINT.
///
/// # Errors
/// A key file, a state folder or an address that cannot be used.
pub fn serve(options: &cli::Witness) -> Result<(), Fault> {
    let key = PairKey::read(&options.key_file)?;
    // before the first thread, so that none of them takes the signals
    let signals = signals().map_err(|error| Fault::of("cannot take signals", error))?;
    let log = config::Log::default();
    let _logs = telemetry::init(&log).map_err(|error| Fault::of("cannot start logging", error))?;
    let _lock = start::lock(&options.state, false, None)?;
    let seal = Seal::new(&key.derive(KEY_LABEL).0, &options.cluster);
    let mut witness = Witness::open(&options.state, seal)?;
    let sockets = bind(&options.listen)?;
    greet(options, &sockets, &witness);
    loop {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(sockets.iter().map(|one| PollFd::new(one.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Fault::of("cannot poll", error)),
        }
        if let Ok(Some(signal)) = signals.read_signal() {
            tracing::info!(signal = signal.ssi_signo, "stopped");
            return Ok(());
        }
        for socket in &sockets {
            witness.turn(socket);
        }
    }
}

fn signals() -> nix::Result<SignalFd> {
    let set: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

fn bind(addresses: &[SocketAddr]) -> Result<Vec<UdpSocket>, Fault> {
    let one = |address: &SocketAddr| {
        let socket = UdpSocket::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        socket.map_err(|error| Fault::of(format!("cannot listen on {address}"), error))
    };
    addresses.iter().map(one).collect()
}

fn greet(options: &cli::Witness, sockets: &[UdpSocket], witness: &Witness) {
    let addresses = sockets.iter().filter_map(|socket| socket.local_addr().ok());
    let addresses: Vec<_> = addresses.map(|address| address.to_string()).collect();
    let (addresses, cluster) = (addresses.join(", "), &options.cluster);
    let text = format!("tandem witness of cluster {cluster} is up: {addresses}");
    // A closed standard output is no reason to stop.
    drop(writeln!(io::stdout(), "{text}"));
    match witness.desk.register().held() {
        Some(held) => tracing::info!(
            generation = held.generation,
            holder = held.holder.as_str(),
            epoch = held.epoch,
            "the register"
        ),
        None => tracing::warn!(
            "the register is empty: until a node that goes on in contact fills it, nobody is \
             granted anything by silence"
        ),
    }
}

/// The desk, and its file.
#[derive(Debug)]
pub(super) struct Witness {
    seal: Seal,
    desk: Desk,
    slots: Slots,
    limit: RateLimit,
}

impl Witness {
    pub(super) fn open(folder: &Path, seal: Seal) -> Result<Self, Fault> {
        let path = folder.join(FILE.0);
        let damaged = |what: &dyn std::fmt::Display| {
            Fault::Runtime(format!(
                "the state file {}: {what}\n  hint: if it cannot be restored, remove it: the \
                 witness then grants nothing by silence until the nodes hear each other",
                path.display()
            ))
        };
        let slots = Slots::open(&path, FILE.1).map_err(|error| damaged(&error))?;
        let register = match slots.newest() {
            Content { serial: 0, .. } => Register::default(),
            Content { text, .. } => Register::decode(text).map_err(|error| damaged(&error))?,
        };
        let random = |error| Fault::of("random bytes", error);
        let tokens = [getrandom::u64().map_err(random)?, getrandom::u64().map_err(random)?];
        let desk = Desk::new(register, tokens);
        Ok(Self { seal, desk, slots, limit: RateLimit::new(STRANGERS) })
    }

    /// What has arrived at one socket, bounded.
    pub(super) fn turn(&mut self, socket: &UdpSocket) {
        // one byte more, so that a longer one is seen as such
        let mut buffer = [0; DATAGRAM_MAX + 1];
        for _ in 0..TURN_MAX {
            let (length, from) = match socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // of an earlier reply (nobody listens there any more), or of the host
                    self.complain("receive", || format!("cannot receive: {error}"));
                    continue;
                }
            };
            match self.handle(&buffer[..length], from) {
                Ok(Some(reply)) => {
                    if let Err(error) = socket.send_to(&reply, from) {
                        self.complain("send", || format!("cannot reply to {from}: {error}"));
                    }
                }
                Ok(None) => {}
                Err(error) => self.complain("disk", || {
                    format!("a grant was withheld: cannot write the state file: {error}")
                }),
            }
        }
        while let Some((reason, count)) = self.limit.overdue(Instant::now()) {
            tracing::warn!(reason, count, "again");
        }
    }

    /// One datagram. A grant that is not on disk is none: the register stays as it was.
    fn handle(&mut self, datagram: &[u8], from: SocketAddr) -> io::Result<Option<Vec<u8>>> {
        let Some(request) = self.seal.open_request(datagram) else {
            self.complain("stranger", || {
                format!("datagrams that do not open, the last from {from}: another key or cluster?")
            });
            return Ok(None);
        };
        let mut desk = self.desk.clone();
        let token = getrandom::u64().map_err(io::Error::other)?;
        let reply = desk.handle(&request, token);
        let side = request.side;
        if let Some(held) = desk.register().held()
            && self.desk.register().held() != Some(held)
        {
            let text = desk.register().encode().map_err(io::Error::other)?;
            self.slots.write(Content { serial: held.generation, text })?;
        }
        self.say(side, &desk, reply.as_ref());
        self.desk = desk;
        let Some(reply) = reply else { return Ok(None) };
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        Ok(self.seal.reply(nonce, &reply))
    }

    /// A line for each change; what is only repeated is not said.
    fn say(&self, side: Side, next: &Desk, reply: Option<&Reply>) {
        let side_name = side.as_str();
        if next.boot(side) != self.desk.boot(side) {
            tracing::info!(side = side_name, "a node presents itself");
        }
        if next.register() == self.desk.register() {
            return;
        }
        match reply.and_then(Reply::answer) {
            Some(Answer::Granted { generation, .. }) => {
                tracing::info!(side = side_name, generation, "granted");
            }
            Some(Answer::Refused { generation, .. }) => {
                tracing::warn!(side = side_name, generation, "refused: the other went on");
            }
            Some(Answer::Unreachable { .. }) | None => {
                tracing::warn!(side = side_name, "not answered: the register is empty");
            }
        }
    }

    fn complain(&self, reason: &'static str, text: impl FnOnce() -> String) {
        if let Some(count) = self.limit.pass(Instant::now(), reason) {
            tracing::warn!(count, "{}", text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{BootId, Question};
    use crate::witness::Request;

    const KEY: [u8; 32] = [5; 32];

    fn open(folder: &Path) -> Witness {
        Witness::open(folder, Seal::new(&KEY, "tandem")).unwrap()
    }

    /// Asks as a node does: shows the token when it is told one.
    fn ask(witness: &mut Witness, side: Side, boot: u64, question: Question) -> Option<Answer> {
        let seal = Seal::new(&KEY, "tandem");
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        let mut token = 0;
        for _ in 0..2 {
            let request = Request::new(side, BootId(boot), token, question);
            let datagram = seal.request([9; NONCE], &request).unwrap();
            let reply = seal.open_reply(&witness.handle(&datagram, from).unwrap()?).unwrap();
            assert_eq!(reply.about(), (BootId(boot), question.number));
            match reply {
                Reply::Present { token: told, .. } => token = told,
                _ => return reply.answer(),
            }
        }
        panic!("told a token twice");
    }

    fn question(number: u64, expected: u64, by_contact: bool) -> Question {
        Question { number, epoch: 2, expected, by_contact }
    }

    #[test]
    fn grants_survive_a_restart_and_a_lost_state_grants_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut witness = open(folder.path());
        assert_eq!(ask(&mut witness, Side::A, 1, question(1, 0, false)), None);
        let granted = Some(Answer::Granted { number: 2, generation: 1 });
        assert_eq!(ask(&mut witness, Side::A, 1, question(2, 0, true)), granted);
        let granted = Some(Answer::Granted { number: 1, generation: 2 });
        assert_eq!(ask(&mut witness, Side::B, 7, question(1, 1, false)), granted);
        drop(witness);
        let mut witness = open(folder.path());
        let refused = Answer::Refused { number: 3, generation: 2, holder_is_us: false };
        assert_eq!(ask(&mut witness, Side::A, 1, question(3, 1, false)), Some(refused));
        drop(witness);
        std::fs::remove_file(folder.path().join("register")).unwrap();
        let mut witness = open(folder.path());
        assert_eq!(ask(&mut witness, Side::A, 1, question(4, 2, false)), None);
    }

    #[test]
    fn a_grant_that_cannot_be_written_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut witness = open(folder.path());
        let seal = Seal::new(&KEY, "tandem");
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        let datagram = |token, number| {
            let request = Request::new(Side::A, BootId(1), token, question(number, 4, true));
            seal.request([9; NONCE], &request).unwrap()
        };
        let told = witness.handle(&datagram(0, 1), from).unwrap().unwrap();
        let Some(Reply::Present { token, .. }) = seal.open_reply(&told) else { panic!("no token") };
        let slots = std::mem::replace(&mut witness.slots, Slots::full());
        assert!(witness.handle(&datagram(token, 1), from).is_err());
        assert_eq!(witness.desk.register().held(), None);
        witness.slots = slots;
        assert!(witness.handle(&datagram(token, 1), from).unwrap().is_some());
        assert_eq!(witness.desk.register().held().unwrap().generation, 5);
    }

    #[test]
    fn a_damaged_state_is_refused_with_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in ["", "tandem-register 1 7 nothing"] {
            std::fs::write(folder.path().join("register"), bytes).unwrap();
            let seal = Seal::new(&KEY, "tandem");
            let fault = Witness::open(folder.path(), seal).unwrap_err().to_string();
            assert!(fault.contains("damaged") && fault.contains("remove it"), "{fault}");
        }
        let mut slots = Slots::open(&folder.path().join("fresh"), FILE.1).unwrap();
        slots.write(Content { serial: 7, text: "{}".to_owned() }).unwrap();
        std::fs::rename(folder.path().join("fresh"), folder.path().join("register")).unwrap();
        let fault = Witness::open(folder.path(), Seal::new(&KEY, "tandem")).unwrap_err();
        assert!(fault.to_string().contains("not a register"), "{fault}");
    }

    #[test]
    fn strangers_get_no_reply() {
        let folder = tempfile::tempdir().unwrap();
        let mut witness = open(folder.path());
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        let request = Request::new(Side::A, BootId(1), 0, question(1, 0, true));
        let other = Seal::new(&KEY, "other").request([9; NONCE], &request).unwrap();
        for datagram in [&b""[..], b"x", &[0; DATAGRAM_MAX + 1], &other] {
            assert_eq!(witness.handle(datagram, from).unwrap(), None);
        }
        assert_eq!(witness.limit.pass(Instant::now(), "stranger"), None, "said once a minute");
    }
}
