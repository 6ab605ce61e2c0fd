//! The thread that asks the witness: a takeover waits for its answer, the role thread does not.

use std::fmt;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::etcd::Etcd;
use super::tandem::Tandem;
use crate::config::{self, RegisterPlace, Side};
use crate::control::message::Secret;
use crate::control::shared::run_realtime;
use crate::node::{Answer, BootId, Question};

/// SCHED_FIFO priority: below the role thread.
const PRIORITY: i32 = 39;

/// Who asks.
#[derive(Debug, Clone)]
pub(in crate::guardian) struct Asker {
    /// This node's side.
    pub(in crate::guardian) side: Side,
    /// Its boot.
    pub(in crate::guardian) boot: BootId,
    /// Its cluster.
    pub(in crate::guardian) cluster: String,
    /// Derived from the pair's, for the witness.
    pub(in crate::guardian) key: Secret<32>,
}

/// Takes questions; ends when it is dropped.
#[derive(Debug)]
pub(in crate::guardian) struct WitnessThread {
    questions: mpsc::Sender<Question>,
    wake: Arc<EventFd>,
}

impl WitnessThread {
    /// `tell` gets the answers. A newer question takes an older one's place: that one gets none.
    pub(in crate::guardian) fn start(
        config: &config::Witness,
        us: &Asker,
        tell: impl Fn(Answer) + Send + 'static,
    ) -> io::Result<Self> {
        let mut register = Register::new(config, us);
        let timeout = config.timeout;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (questions, receiver) = mpsc::channel();
        let inbox = Inbox { receiver, wake: Arc::clone(&wake) };
        let thread = std::thread::Builder::new().name("witness".to_owned());
        thread.stack_size(512 * 1024).spawn(move || {
            // without the right it is asked a little later
            run_realtime(PRIORITY).ok();
            let mut waiting = None;
            while let Some(question) = waiting.take().or_else(|| inbox.next()) {
                match register.ask(question, Instant::now() + timeout, &inbox) {
                    Outcome::Answer(answer) => tell(answer),
                    Outcome::Silence => {
                        tell(Answer::Unreachable { number: question.number });
                    }
                    Outcome::Newer(newer) => waiting = Some(newer),
                }
            }
        })?;
        Ok(Self { questions, wake })
    }

    /// Never waits.
    pub(in crate::guardian) fn ask(&self, question: Question) {
        self.questions.send(question).ok();
        // Full means that it is awake already.
        self.wake.write(1).ok();
    }
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Granted or refused.
    Answer(Answer),
    /// Nothing in time.
    Silence,
    /// Another is asked meanwhile.
    Newer(Question),
}

/// The thread's end.
pub(super) struct Inbox {
    receiver: mpsc::Receiver<Question>,
    wake: Arc<EventFd>,
}

impl Inbox {
    /// Waits for the newest question; `None`: nobody asks any more.
    fn next(&self) -> Option<Question> {
        let first = self.receiver.recv().ok()?;
        Some(self.newer().unwrap_or(first))
    }

    /// The newest that has come.
    pub(super) fn newer(&self) -> Option<Question> {
        self.wake.read().ok();
        self.receiver.try_iter().last()
    }

    /// As [`Self::wait`], for nothing but a question.
    pub(super) fn pause(&self, until: Instant) -> Option<Question> {
        self.wait(&[] as &[UdpSocket], until)
    }

    /// Until one of `sockets` can be read, a newer question comes (the result), or `until`.
    pub(super) fn wait(&self, sockets: &[impl AsFd], until: Instant) -> Option<Question> {
        let left = until.saturating_duration_since(Instant::now());
        // whole milliseconds, at least one: an early wake-up would turn in circles
        let left = PollTimeout::try_from(left + Duration::from_millis(1));
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(sockets.iter().map(|one| PollFd::new(one.as_fd(), PollFlags::POLLIN)));
        // an error is as good as a timeout, and time goes on
        poll(&mut fds, left.unwrap_or(PollTimeout::ZERO)).ok();
        self.newer()
    }
}

/// Where the register is.
enum Register {
    Tandem(Tandem),
    Etcd(Box<Etcd>),
}

impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Register")
    }
}

impl Register {
    fn new(config: &config::Witness, us: &Asker) -> Self {
        match &config.register {
            RegisterPlace::Tandem(addresses) => Self::Tandem(Tandem::new(addresses.clone(), us)),
            RegisterPlace::Etcd { urls, prefix } => {
                Self::Etcd(Box::new(Etcd::new(urls.clone(), prefix, us)))
            }
        }
    }

    fn ask(&mut self, question: Question, until: Instant, inbox: &Inbox) -> Outcome {
        match self {
            Self::Tandem(tandem) => tandem.ask(question, until, inbox),
            Self::Etcd(etcd) => etcd.ask(question, until, inbox),
        }
    }
}
