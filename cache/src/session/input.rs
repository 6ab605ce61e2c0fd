//! The states of a session's input, and one step in each.

use super::{
    CloseReason, Context, Counter, Depends, Fate, LINE_MAX, Refusal, Request, Session, Step, Store,
    StoreOutcome, exec, text,
};
use crate::command::{KEY_MAX, ReadVerb, StoreVerb};
use crate::exec::NotPrimary;
use crate::protocol::number;
use text::{Refused, Word};

/// Where in the input a session is.
#[derive(Debug)]
pub(super) enum State {
    /// At the start of a command; the first `scanned` bytes kept have no line end.
    Line {
        /// Bytes already searched.
        scanned: usize,
    },
    /// Among the words of a reading command.
    Read(Reading),
    /// Before a value that did not come whole.
    Value(Box<Pending>),
    /// In a value that is not wanted.
    Swallow {
        /// Bytes of it to come.
        left: usize,
        /// What is said then, unless the client wants no answer.
        then: Option<(StoreOutcome, Depends)>,
    },
    /// In the rest of a refused line.
    Skip,
}

impl State {
    /// Bytes of a value that must be held until it is whole.
    pub(super) fn awaits(&self) -> usize {
        if let Self::Value(pending) = self { pending.needs() } else { 0 }
    }
}

/// A reading command whose keys are executed as they come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) verb: ReadVerb,
    /// The expiry, once it is known; only of commands that have one.
    exptime: Option<i64>,
    keys: u64,
    /// Where its answer starts.
    start: u64,
}

/// A storage command that waits for its value; the line's bytes are gone.
#[derive(Debug)]
pub(super) struct Pending {
    verb: StoreVerb,
    key: Vec<u8>,
    flags: u32,
    exptime: i64,
    length: usize,
    noreply: bool,
}

impl Pending {
    fn new(store: &Store<'_>) -> Box<Self> {
        let Store { verb, key, flags, exptime, length, noreply } = *store;
        Box::new(Self { verb, key: key.to_vec(), flags, exptime, length, noreply })
    }

    /// Value and line end.
    pub(super) fn needs(&self) -> usize {
        self.length + 2
    }

    fn store(&self) -> Store<'_> {
        let Self { verb, ref key, flags, exptime, length, noreply } = *self;
        Store { verb, key, flags, exptime, length, noreply }
    }
}

/// What the store adds to key and value of each item (bytes), counted against the item limit.
const ITEM_HEADER: usize = 24;

impl Session {
    /// At the start of a command.
    pub(super) fn line(&mut self, ctx: &Context<'_>, input: &[u8]) -> Step {
        let State::Line { scanned } = self.state else { return Step::Used(0) };
        if let Some((verb, used)) = text::read_prefix(input) {
            let start = self.output.position();
            self.state = State::Read(Reading { verb, exptime: None, keys: 0, start });
            return Step::Used(used);
        }
        let Some(end) = memchr::memchr(b'\n', &input[scanned..]) else {
            self.state = State::Line { scanned: input.len() };
            if input.len() > LINE_MAX {
                self.fate = Fate::CloseWhenSent(CloseReason::LineTooLong);
            }
            return Step::NeedsMore { used: 0 };
        };
        self.state = State::Line { scanned: 0 };
        let end = scanned + end;
        let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
        let used = end + 1;
        let done = match text::parse_line(line) {
            Ok(Request::Store(store)) => {
                return match self.store_line(ctx, &store, &input[used..]) {
                    Ok(value) => Step::Used(used + value),
                    Err(NotPrimary) => self.not_primary(),
                };
            }
            Ok(request) => self.request(ctx, request),
            Err(Refused { noreply: true, .. }) => Ok(()),
            Err(Refused { refusal, noreply: false }) => {
                self.say(ctx, &[refusal.text()]);
                Ok(())
            }
        };
        match done {
            Ok(()) => Step::Used(used),
            Err(NotPrimary) => self.not_primary(),
        }
    }

    /// A storage command's line has been read: takes its value if it is there, whole.
    fn store_line(
        &mut self,
        ctx: &Context<'_>,
        store: &Store<'_>,
        rest: &[u8],
    ) -> Result<usize, NotPrimary> {
        let needs = store.length + 2;
        if ITEM_HEADER + store.key.len() + store.length > ctx.cache.item_limit() as usize {
            ctx.counters.bump(Counter::CmdSet);
            ctx.counters.bump(Counter::StoreTooLarge);
            let refused = exec(ctx).refuse_too_large(store)?;
            let then = (!store.noreply).then_some(refused);
            self.state = State::Swallow { left: needs, then };
            return Ok(0);
        }
        match rest.get(..needs) {
            Some(value) => {
                self.store(ctx, store, value)?;
                Ok(needs)
            }
            None => {
                self.state = State::Value(Pending::new(store));
                Ok(0)
            }
        }
    }

    /// Before a value that did not come with its line.
    pub(super) fn value(&mut self, ctx: &Context<'_>, input: &[u8]) -> Step {
        let State::Value(pending) = &self.state else { return Step::Used(0) };
        let needs = pending.needs();
        let Some(value) = input.get(..needs) else { return Step::NeedsMore { used: 0 } };
        let state = std::mem::replace(&mut self.state, State::Line { scanned: 0 });
        let State::Value(pending) = state else { return Step::Used(0) };
        match self.store(ctx, &pending.store(), value) {
            Ok(()) => Step::Used(needs),
            Err(NotPrimary) => self.not_primary(),
        }
    }

    /// In a value that is not wanted: the answer comes after it.
    pub(super) fn swallow(&mut self, ctx: &Context<'_>, input: &[u8]) -> Step {
        let State::Swallow { left, then } = &mut self.state else { return Step::Used(0) };
        let now = input.len().min(*left);
        *left -= now;
        if *left > 0 {
            return Step::NeedsMore { used: now };
        }
        let then = then.take();
        self.state = State::Line { scanned: 0 };
        if let Some((_, depends)) = then {
            self.reply(ctx, false, depends, Refusal::TooLarge.text());
        }
        Step::Used(now)
    }

    /// In the rest of a line that has been refused.
    pub(super) fn skip(&mut self, input: &[u8]) -> Step {
        match memchr::memchr(b'\n', input) {
            Some(end) => {
                self.state = State::Line { scanned: 0 };
                Step::Used(end + 1)
            }
            None => Step::NeedsMore { used: input.len() },
        }
    }

    /// Among the words of a reading command: one word.
    pub(super) fn read_word(&mut self, ctx: &Context<'_>, input: &[u8]) -> Step {
        let State::Read(reading) = &mut self.state else { return Step::Used(0) };
        let mut reading = *reading;
        let wants_expiry = reading.verb.touches() && reading.exptime.is_none();
        match text::next_word(input) {
            Word::Incomplete { used } => {
                // A key may be followed by a carriage return that is not part of it.
                if input.len() - used > KEY_MAX + 1 {
                    return self.refuse_read(ctx, &reading, Refusal::Format, used);
                }
                Step::NeedsMore { used }
            }
            Word::End { used } => {
                self.state = State::Line { scanned: 0 };
                if wants_expiry || (reading.keys == 0 && !reading.verb.touches()) {
                    self.say(ctx, &[Refusal::Unknown.text()]);
                } else {
                    self.say(ctx, &["END"]);
                }
                Step::Used(used)
            }
            Word::Word { word, used } if wants_expiry => {
                let Some(exptime) = number::signed(word) else {
                    return self.refuse_read(ctx, &reading, Refusal::Exptime, used);
                };
                reading.exptime = Some(exptime);
                self.state = State::Read(reading);
                Step::Used(used)
            }
            Word::Word { word, used } if word.len() > KEY_MAX => {
                self.refuse_read(ctx, &reading, Refusal::Format, used)
            }
            Word::Word { word, used } => {
                reading.keys += 1;
                self.state = State::Read(reading);
                match self.read_key(ctx, reading.verb, reading.exptime, word) {
                    Ok(()) => Step::Used(used),
                    Err(NotPrimary) => self.not_primary(),
                }
            }
        }
    }

    /// The values already written are taken back, if they have not left: memcached sends none.
    fn refuse_read(
        &mut self,
        ctx: &Context<'_>,
        reading: &Reading,
        refusal: Refusal,
        used: usize,
    ) -> Step {
        self.output.take_back(reading.start);
        self.state = State::Skip;
        self.say(ctx, &[refusal.text()]);
        Step::Used(used)
    }

    fn not_primary(&mut self) -> Step {
        self.close_now(CloseReason::NotPrimary);
        Step::Used(0)
    }
}
