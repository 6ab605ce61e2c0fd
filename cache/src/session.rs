//! One memcached client connection without its socket.
//!
//! ```text
//! feed(received) ─▶ [commands executed, answers appended] ─▶ poll_transmit(out) ─▶ send
//! ```
//! Order of calls, each time the connection is turned to: [`Session::feed`] with what was received
//! or [`Session::run`] without, then [`Session::poll_transmit`] with a fresh look at the gate, then
//! the send; read on only while [`Session::wants_read`]. When the gate may have opened, when a send
//! is done or when acknowledgements came, [`Session::run`] and [`Session::poll_transmit`] again.
//!
//! What is received is executed where it lies; only what is incomplete is kept: a line's start, a
//! key's start, a value's first pieces. While too much output waits, execution stops too.

mod input;
mod output;

use std::time::Instant;

use crate::command::{Request, Store};
use crate::error::{CloseReason, LINE_MAX};
use crate::exec::{Exec, NotPrimary, Now, StoreOutcome};
use crate::protocol::text;
use crate::replication::{Depends, GateState, Shared};
use crate::stats::{self, Counter, Counters, Server, VERSION};
use crate::{Cache, error::Refusal};
use input::State;
use output::{Open, Output};

/// Unsent output above which no further command is executed (bytes).
pub const OUTPUT_MARK: usize = 256 * 1024;

/// Unexecuted input that a session holds beside the value it is waiting for (bytes). A caller
/// that reads only while [`Session::wants_read`], up to 1 MiB at once, never meets it.
pub const INPUT_MAX: usize = 2 << 20;

/// Everything around a session, for one call.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The store.
    pub cache: &'a Cache,
    /// Acknowledgements and dirty partitions.
    pub shared: &'a Shared,
    /// Role, epoch and lease, read just before the call.
    pub gate: GateState,
    /// The time.
    pub now: Now,
    /// This worker's counters.
    pub counters: &'a Counters,
    /// For `stats`.
    pub server: &'a dyn Server,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("gate", &self.gate).field("now", &self.now).finish()
    }
}

/// What is to happen after [`Session::poll_transmit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transmit {
    /// Everything produced has been given out.
    Idle,
    /// Answers wait for the peer, or for the lease.
    Held,
    /// Send what was given out, then close.
    Close(CloseReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    /// After all answers have left.
    CloseWhenSent(CloseReason),
    CloseNow(CloseReason),
}

/// See the module's text.
#[derive(Debug)]
pub struct Session {
    state: State,
    /// Input that is not executed yet: incomplete, or behind output that waits.
    carry: Vec<u8>,
    output: Output,
    fate: Fate,
    /// Execution stopped for output.
    paused: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// A connection from which nothing has come yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Line { scanned: 0 },
            carry: Vec::new(),
            output: Output::default(),
            fate: Fate::Open,
            paused: false,
        }
    }

    /// Takes in what was received and executes what is complete.
    pub fn feed(&mut self, ctx: &Context<'_>, mut bytes: &[u8]) {
        ctx.counters.add(Counter::BytesRead, bytes.len() as u64);
        self.run(ctx);
        while !bytes.is_empty() && self.fate == Fate::Open {
            if self.paused {
                return self.keep(bytes);
            }
            if self.carry.is_empty() {
                let used = self.execute(ctx, bytes);
                return self.keep(&bytes[used..]);
            }
            let (now, later) = bytes.split_at(self.completes(bytes));
            self.keep(now);
            bytes = later;
            self.execute_carry(ctx);
        }
    }

    /// Goes on with input that was taken in earlier, if output allows it now.
    pub fn run(&mut self, ctx: &Context<'_>) {
        if self.paused && self.output.len() < OUTPUT_MARK {
            self.paused = false;
            self.execute_carry(ctx);
        }
    }

    /// Appends to `out` what may leave now, in order. The session has forgotten it then.
    pub fn poll_transmit(&mut self, ctx: &Context<'_>, out: &mut Vec<u8>) -> Transmit {
        if let Fate::CloseNow(reason) = self.fate {
            return Transmit::Close(reason);
        }
        let count = match self.output.open(ctx) {
            Open::Bytes(count) => count,
            Open::Never => {
                ctx.counters.bump(Counter::AnswersDropped);
                self.close_now(CloseReason::RoleChanged);
                return Transmit::Close(CloseReason::RoleChanged);
            }
        };
        if count > 0 {
            ctx.counters.add(Counter::BytesWritten, count as u64);
            self.output.give(count, out);
        }
        match self.fate {
            _ if self.output.len() > 0 => Transmit::Held,
            Fate::CloseWhenSent(reason) | Fate::CloseNow(reason) => Transmit::Close(reason),
            Fate::Open => Transmit::Idle,
        }
    }

    /// Whether more input is welcome.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        self.fate == Fate::Open && !self.paused && self.output.len() < OUTPUT_MARK
    }

    /// Whether [`Self::run`] has something to do once output has left.
    #[must_use]
    pub fn wants_run(&self) -> bool {
        self.paused
    }

    /// Whether no command is partly received and no answer waits: the connection could go on with
    /// another session without anybody noticing.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        matches!(self.state, State::Line { .. })
            && self.carry.is_empty()
            && self.output.len() == 0
            && self.fate == Fate::Open
    }

    /// Bytes of answers that have not left.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.output.len()
    }

    /// Since when the oldest answer waits for the peer or the lease; `None` when none does, as
    /// known from the last [`Self::poll_transmit`].
    #[must_use]
    pub fn oldest_held_since(&self) -> Option<Instant> {
        self.output.held_since()
    }

    fn close_now(&mut self, reason: CloseReason) {
        self.fate = Fate::CloseNow(reason);
        self.carry = Vec::new();
    }

    /// Keeps input for later.
    fn keep(&mut self, bytes: &[u8]) {
        if self.fate != Fate::Open || bytes.is_empty() {
            return;
        }
        let allowed = INPUT_MAX + self.state.awaits();
        if self.carry.len() + bytes.len() > allowed {
            return self.close_now(CloseReason::InputOverrun);
        }
        self.carry.extend_from_slice(bytes);
    }

    /// How many of the received bytes complete what is kept; all of them if they do not.
    fn completes(&self, bytes: &[u8]) -> usize {
        let end = match &self.state {
            State::Line { .. } => memchr::memchr(b'\n', bytes).map(|i| i + 1),
            State::Read(_) => memchr::memchr2(b' ', b'\n', bytes).map(|i| i + 1),
            State::Value(pending) => Some(pending.needs().saturating_sub(self.carry.len())),
            State::Skip | State::Swallow { .. } => None,
        };
        end.unwrap_or(bytes.len()).min(bytes.len())
    }

    fn execute_carry(&mut self, ctx: &Context<'_>) {
        let mut carry = std::mem::take(&mut self.carry);
        let used = self.execute(ctx, &carry);
        if self.fate != Fate::Open {
            return;
        }
        carry.drain(..used);
        if carry.is_empty() {
            carry.shrink_to(16 * 1024);
        }
        self.carry = carry;
    }

    /// Executes what is complete in `input`; returns how much of it is done with.
    fn execute(&mut self, ctx: &Context<'_>, input: &[u8]) -> usize {
        if !ctx.gate.serves() {
            self.close_now(CloseReason::NotPrimary);
        }
        let mut at = 0;
        while self.fate == Fate::Open {
            if self.output.len() >= OUTPUT_MARK {
                self.paused = at < input.len();
                return at;
            }
            let rest = &input[at..];
            let step = match &mut self.state {
                State::Line { .. } => self.line(ctx, rest),
                State::Read(_) => self.read_word(ctx, rest),
                State::Value(_) => self.value(ctx, rest),
                State::Swallow { .. } => self.swallow(ctx, rest),
                State::Skip => self.skip(rest),
            };
            match step {
                Step::Used(used) => at += used,
                Step::NeedsMore { used } => return at + used,
            }
        }
        input.len()
    }

    /// Answers a line: counts, executes, writes.
    fn request(&mut self, ctx: &Context<'_>, request: Request<'_>) -> Result<(), NotPrimary> {
        let exec = exec(ctx);
        match request {
            // Its value comes first: see `input`.
            Request::Store(_) => {}
            Request::Delete { key, noreply } => {
                let (hit, depends) = exec.delete(key)?;
                ctx.counters.bump(if hit { Counter::DeleteHits } else { Counter::DeleteMisses });
                let line = if hit { "DELETED" } else { "NOT_FOUND" };
                self.reply(ctx, noreply, depends, line);
            }
            Request::Touch { key, exptime, noreply } => {
                let (hit, depends) = exec.touch(key, exptime)?;
                ctx.counters.bump(Counter::CmdTouch);
                ctx.counters.bump(if hit { Counter::TouchHits } else { Counter::TouchMisses });
                let line = if hit { "TOUCHED" } else { "NOT_FOUND" };
                self.reply(ctx, noreply, depends, line);
            }
            Request::Arithmetic { key, delta, up, noreply } => {
                self.arithmetic(ctx, key, delta, up, noreply)?;
            }
            Request::FlushAll { delay, noreply } => {
                ctx.counters.bump(Counter::CmdFlush);
                let versions = exec.flush_all(delay)?;
                self.reply_all(ctx, noreply, &versions);
            }
            Request::Stats(topic) => {
                if !self.output.stamp(ctx) {
                    self.close_now(CloseReason::RoleChanged);
                    return Ok(());
                }
                stats::answer(self.output.writer(), topic, ctx.cache, ctx.server, ctx.now);
            }
            Request::Version => self.say(ctx, &["VERSION ", VERSION]),
            Request::Verbosity { noreply } => {
                if !noreply {
                    self.say(ctx, &["OK"]);
                }
            }
            Request::Quit => self.fate = Fate::CloseWhenSent(CloseReason::Quit),
        }
        Ok(())
    }
}

/// What one step of execution did.
enum Step {
    /// It used this many bytes and there may be more to do.
    Used(usize),
    /// It used this many bytes and can do nothing with the rest alone.
    NeedsMore { used: usize },
}

fn exec<'a>(ctx: &Context<'a>) -> Exec<'a> {
    Exec::new(ctx.cache, ctx.shared, ctx.gate.epoch, ctx.now)
}

#[cfg(any(test, fuzzing))]
mod fuzz;
mod reply;

#[cfg(any(test, fuzzing))]
pub use fuzz::fuzz_text;

#[cfg(test)]
mod tests;
