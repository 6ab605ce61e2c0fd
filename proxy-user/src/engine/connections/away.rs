//! A memcached client whose commands the master executes.
//!
//! Bytes go to a link as they come; the parser is the master's. What has found no link yet is
//! parked for a moment: it was never sent, so it may still be executed anywhere.

use std::time::Duration;

use cache::replication::forward::UNTAKEN_MAX;

use super::{Close, Ctx};
use crate::control::counters::Counter;
use crate::engine::link::forward::{self, Answer, Carrier, News};

/// How long commands wait for a way to the master; tests on a busy machine need more.
const PARK_TIME: Duration = Duration::from_millis(if cfg!(test) { 2_000 } else { 200 });
/// Answers that a client may leave unread (bytes); then it is closed.
const UNREAD_MAX: usize = 64 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Away {
    client: u64,
    carrier: Option<Carrier>,
    /// Batches sent to the present carrier, and after how many of them all was answered.
    sent: u64,
    rested: u64,
    /// Bytes sent since the master last said that it takes more.
    untaken: usize,
    /// Input that has found no link.
    parked: Vec<u8>,
    paused: bool,
}

impl Away {
    pub(super) fn new(ctx: &mut Ctx<'_>) -> Self {
        let key = ctx.key;
        Self {
            client: forward::register(ctx.core, key),
            carrier: None,
            sent: 0,
            rested: 0,
            untaken: 0,
            parked: Vec::new(),
            paused: false,
        }
    }

    pub(super) const fn is(&self, client: u64) -> bool {
        self.client == client
    }

    /// Nothing is outstanding at the master. (Something may be parked.)
    pub(super) const fn is_at_rest(&self) -> bool {
        self.rested == self.sent
    }

    /// And nothing is parked.
    pub(super) const fn is_idle(&self) -> bool {
        self.is_at_rest() && self.parked.is_empty()
    }

    /// Ends forwarding; what was parked has never been sent.
    pub(super) fn leave(&mut self, ctx: &mut Ctx<'_>) -> Vec<u8> {
        forward::unregister(ctx.core, self.client, self.carrier.take());
        self.set_paused(false, ctx);
        ctx.set_deadline(None);
        if !self.parked.is_empty() {
            let key = ctx.key;
            ctx.core.locals.memcached.unpark(key);
        }
        std::mem::take(&mut self.parked)
    }

    /// Sends input, after what is parked.
    pub(super) fn feed(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        let mut batch = std::mem::take(&mut self.parked);
        batch.extend_from_slice(bytes);
        if batch.is_empty() {
            return;
        }
        if self.carrier.is_none() && self.is_at_rest() {
            self.carrier = forward::choose(ctx.core);
            (self.sent, self.rested, self.untaken) = (0, 0, 0);
        }
        let Some(carrier) = self.carrier else { return self.park(batch, ctx) };
        let len = batch.len();
        match forward::send(ctx.core, carrier, self.client, batch) {
            Ok(()) => {
                self.sent += 1;
                self.untaken += len;
                ctx.set_deadline(None);
                ctx.count(Counter::ForwardedOut, 1);
                self.set_paused(self.untaken >= UNTAKEN_MAX, ctx);
            }
            Err(batch) => {
                self.carrier = None;
                self.park(batch, ctx);
            }
        }
    }

    fn park(&mut self, batch: Vec<u8>, ctx: &mut Ctx<'_>) {
        self.parked = batch;
        self.set_paused(true, ctx);
        let due = ctx.now() + PARK_TIME;
        ctx.set_deadline(Some(due));
        let key = ctx.key;
        ctx.core.locals.memcached.park(key);
    }

    pub(super) fn on_news(&mut self, news: News, ctx: &mut Ctx<'_>) {
        match news {
            News::Lost => ctx.close(Close::Flush),
            // Of a link that is over; whatever was taken by it is answered, or Lost follows.
            News::Unsent(life, bytes) => {
                if self.carrier.is_some_and(|carrier| carrier.life == life) {
                    self.carrier = None;
                }
                self.sent = self.sent.saturating_sub(1);
                let mut parked = std::mem::take(&mut self.parked);
                parked.extend_from_slice(&bytes);
                self.park(parked, ctx);
            }
            News::Answer(answer) => self.on_answer(answer, ctx),
        }
    }

    fn on_answer(&mut self, answer: Answer, ctx: &mut Ctx<'_>) {
        if self.carrier.is_none_or(|carrier| carrier.life != answer.life) {
            return;
        }
        ctx.send(&answer.bytes);
        if answer.close {
            ctx.close(Close::Flush);
            return;
        }
        if ctx.unsent() > UNREAD_MAX {
            tracing::info!("a client that reads no answers is closed");
            ctx.close(Close::Now);
            return;
        }
        if answer.at_rest {
            self.rested = answer.batches;
        }
        if answer.wants_read {
            self.untaken = 0;
            if self.parked.is_empty() {
                self.set_paused(false, ctx);
            }
        }
    }

    fn set_paused(&mut self, pause: bool, ctx: &mut Ctx<'_>) {
        if std::mem::replace(&mut self.paused, pause) != pause {
            if pause { ctx.pause() } else { ctx.resume() }
        }
    }
}
