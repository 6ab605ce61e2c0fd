//! Outcomes to answers, with what they stand on.

use super::{Context, Counter, Depends, Refusal, Session, Store, StoreOutcome, exec};
use crate::command::{ReadVerb, StoreVerb};
use crate::error::CloseReason;
use crate::exec::{ArithmeticOutcome, NotPrimary};
use crate::{ItemView, PARTITIONS};

impl Session {
    /// One key of a reading command.
    pub(super) fn read_key(
        &mut self,
        ctx: &Context<'_>,
        verb: ReadVerb,
        exptime: Option<i64>,
        key: &[u8],
    ) -> Result<(), NotPrimary> {
        ctx.counters.bump(Counter::CmdGet);
        if !self.output.stamp(ctx) {
            self.close_now(CloseReason::RoleChanged);
            return Ok(());
        }
        let start = self.output.position();
        let out = self.output.writer();
        let show = |item: &ItemView<'_>| write_value(out, item, verb.with_version());
        let (hit, depends) = match exptime {
            Some(exptime) => exec(ctx).read_and_touch(key, exptime, show)?,
            None => exec(ctx).read(key, show)?,
        };
        ctx.counters.bump(if hit.is_some() { Counter::GetHits } else { Counter::GetMisses });
        if exptime.is_some() {
            ctx.counters.bump(Counter::CmdTouch);
            let touched = if hit.is_some() { Counter::TouchHits } else { Counter::TouchMisses };
            ctx.counters.bump(touched);
        }
        self.output.depend(start, depends, ctx);
        Ok(())
    }

    /// A storage command with its value and line end.
    pub(super) fn store(
        &mut self,
        ctx: &Context<'_>,
        store: &Store<'_>,
        value: &[u8],
    ) -> Result<(), NotPrimary> {
        ctx.counters.bump(Counter::CmdSet);
        let Some(value) = value.strip_suffix(b"\r\n") else {
            if !store.noreply {
                self.say(ctx, &[Refusal::DataChunk.text()]);
            }
            return Ok(());
        };
        let (outcome, depends) = exec(ctx).store(store, value)?;
        let cas = matches!(store.verb, StoreVerb::Cas(_));
        let (counter, line) = match outcome {
            StoreOutcome::Stored => {
                ctx.counters.bump(Counter::TotalItems);
                (cas.then_some(Counter::CasHits), "STORED")
            }
            StoreOutcome::NotStored => (None, "NOT_STORED"),
            StoreOutcome::Exists => (Some(Counter::CasBadval), "EXISTS"),
            StoreOutcome::NotFound => (Some(Counter::CasMisses), "NOT_FOUND"),
            StoreOutcome::TooLarge => (Some(Counter::StoreTooLarge), Refusal::TooLarge.text()),
            StoreOutcome::NoMemory => (Some(Counter::StoreNoMemory), Refusal::NoMemory.text()),
        };
        if let Some(counter) = counter {
            ctx.counters.bump(counter);
        }
        self.reply(ctx, store.noreply, depends, line);
        Ok(())
    }

    /// `incr` and `decr`.
    pub(super) fn arithmetic(
        &mut self,
        ctx: &Context<'_>,
        key: &[u8],
        delta: u64,
        up: bool,
        noreply: bool,
    ) -> Result<(), NotPrimary> {
        let (outcome, depends) = exec(ctx).arithmetic(key, delta, up)?;
        let (hits, misses) = if up {
            (Counter::IncrHits, Counter::IncrMisses)
        } else {
            (Counter::DecrHits, Counter::DecrMisses)
        };
        let mut digits = itoa::Buffer::new();
        let line = match outcome {
            ArithmeticOutcome::Number(number) => {
                ctx.counters.bump(hits);
                digits.format(number)
            }
            ArithmeticOutcome::NotFound => {
                ctx.counters.bump(misses);
                "NOT_FOUND"
            }
            ArithmeticOutcome::NonNumeric => Refusal::NonNumeric.text(),
            ArithmeticOutcome::NoMemory => Refusal::NoMemory.text(),
        };
        self.reply(ctx, noreply, depends, line);
        Ok(())
    }

    /// `OK`, when each partition has been acknowledged up to its version.
    pub(super) fn reply_all(
        &mut self,
        ctx: &Context<'_>,
        noreply: bool,
        versions: &[u64; PARTITIONS],
    ) {
        if noreply {
            return;
        }
        let start = self.output.position();
        self.say(ctx, &["OK"]);
        for (partition, version) in (0..).zip(versions) {
            self.output.depend(start, Depends { partition, version: *version }, ctx);
        }
    }

    /// One line that stands on something.
    pub(super) fn reply(&mut self, ctx: &Context<'_>, noreply: bool, depends: Depends, line: &str) {
        if noreply {
            return;
        }
        let start = self.output.position();
        self.say(ctx, &[line]);
        self.output.depend(start, depends, ctx);
    }

    /// One line.
    pub(super) fn say(&mut self, ctx: &Context<'_>, line: &[&str]) {
        if !self.output.stamp(ctx) {
            return self.close_now(CloseReason::RoleChanged);
        }
        let out = self.output.writer();
        for part in line {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// "Retrieval command": `VALUE <key> <flags> <bytes> [<cas unique>]`, then the value.
fn write_value(out: &mut Vec<u8>, item: &ItemView<'_>, with_version: bool) {
    let mut digits = itoa::Buffer::new();
    out.reserve(item.key.len() + item.value.len() + 64);
    out.extend_from_slice(b"VALUE ");
    out.extend_from_slice(item.key);
    out.push(b' ');
    out.extend_from_slice(digits.format(item.flags).as_bytes());
    out.push(b' ');
    out.extend_from_slice(digits.format(item.value.len()).as_bytes());
    if with_version {
        out.push(b' ');
        out.extend_from_slice(digits.format(item.version).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    for part in item.value.clone() {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}
