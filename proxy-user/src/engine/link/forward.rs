//! Clients' commands on their way to the master, over a link that may be another worker's.
//!
//! A client knows its carrier: a worker and the life of a link there. What is sent to a link that
//! is over comes back unsent, in order, and may take another way; what was sent is answered or the
//! client is closed, never sent again.

use std::collections::HashMap;

use cache::replication::ForwardReply;

use super::incoming::Incoming;
use crate::engine::connections::{Ctx, Kind, memcached};
use crate::engine::driver::Key;
use crate::engine::worker::{Core, Mail};

/// Bits of a client's number that say its worker.
const WORKER_SHIFT: u32 = 56;

/// A link that can carry commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Carrier {
    pub(crate) worker: usize,
    pub(crate) life: u64,
}

/// A worker's part.
#[derive(Debug, Default)]
pub(crate) struct Local {
    last: u64,
    /// This worker's clients that are forwarded.
    clients: HashMap<u64, Key>,
    /// Batches that came from a client, by the life of this worker's link that took them.
    taken: HashMap<(u64, u64), u64>,
}

/// What a client is told of its commands.
#[derive(Debug)]
pub(crate) enum News {
    /// Bytes of answers; see [`Answer`].
    Answer(Answer),
    /// This was not sent: the link of this life is over.
    Unsent(u64, Vec<u8>),
    /// The link is over with something outstanding: close.
    Lost,
}

/// Answers to what was sent over the link of one life.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) life: u64,
    pub(crate) bytes: Vec<u8>,
    /// Close after them.
    pub(crate) close: bool,
    /// More may be sent.
    pub(crate) wants_read: bool,
    /// Everything of the first `batches` is answered.
    pub(crate) at_rest: bool,
    pub(crate) batches: u64,
}

fn worker_of(client: u64) -> usize {
    (client >> WORKER_SHIFT) as usize
}

/// A number for a client of this worker; never used again in this process.
pub(crate) fn register(core: &mut Core, key: Key) -> u64 {
    let worker = (core.index as u64) << WORKER_SHIFT;
    let local = &mut core.locals.link.forward;
    local.last += 1;
    let client = worker | local.last;
    local.clients.insert(client, key);
    client
}

/// The client is gone, or is not forwarded any more.
pub(crate) fn unregister(core: &mut Core, client: u64, carrier: Option<Carrier>) {
    core.locals.link.forward.clients.remove(&client);
    let Some(carrier) = carrier else { return };
    at(core, carrier.worker, move |core| {
        core.locals.link.forward.taken.remove(&(carrier.life, client));
        on_link(core, carrier.life, |link| {
            if let Some(forward) = link.forward(carrier.life) {
                forward.close(client);
            }
        });
    });
}

/// A link to use: this worker's own, else any.
pub(crate) fn choose(core: &Core) -> Option<Carrier> {
    let carriers = core.shared.streams.carriers.lock();
    let own = carriers.iter().find(|carrier| carrier.worker == core.index);
    own.or_else(|| carriers.first()).copied()
}

/// Sends a batch of a client's bytes. To be called from outside of links.
///
/// # Errors
/// Gives the bytes back: the link is this worker's, and over. (Of another worker's link that is
/// learned later, by [`News::Unsent`].)
pub(crate) fn send(
    core: &mut Core,
    carrier: Carrier,
    client: u64,
    bytes: Vec<u8>,
) -> Result<(), Vec<u8>> {
    if carrier.worker == core.index {
        return hand_over(core, carrier, client, bytes);
    }
    at(core, carrier.worker, move |core| {
        if let Err(bytes) = hand_over(core, carrier, client, bytes) {
            tell(core, client, News::Unsent(carrier.life, bytes));
        }
    });
    Ok(())
}

fn hand_over(
    core: &mut Core,
    carrier: Carrier,
    client: u64,
    bytes: Vec<u8>,
) -> Result<(), Vec<u8>> {
    let mut unsent = Some(bytes);
    on_link(core, carrier.life, |link| {
        if let Some(forward) = link.forward(carrier.life)
            && let Some(bytes) = unsent.take()
        {
            forward.send(client, &bytes);
        }
    });
    if let Some(bytes) = unsent {
        return Err(bytes);
    }
    *core.locals.link.forward.taken.entry((carrier.life, client)).or_default() += 1;
    Ok(())
}

/// Answers have come for a client over the link of this life; the flags: more may be sent, nothing
/// is outstanding.
pub(super) fn answer(core: &mut Core, life: u64, reply: ForwardReply, flags: (bool, bool)) {
    let ForwardReply { connection, bytes, close } = reply;
    let (wants_read, at_rest) = flags;
    let taken = &core.locals.link.forward.taken;
    let batches = taken.get(&(life, connection)).copied().unwrap_or(0);
    let answer = Answer { life, bytes, close, wants_read, at_rest, batches };
    tell(core, connection, News::Answer(answer));
}

/// The link is over and this client had something outstanding.
pub(super) fn abandon(core: &mut Core, client: u64) {
    tell(core, client, News::Lost);
}

/// A link of this worker can carry commands from now on.
pub(super) fn carry(ctx: &mut Ctx<'_>, life: u64) {
    let shared = std::sync::Arc::clone(&ctx.core.shared);
    shared.streams.carriers.lock().push(Carrier { worker: ctx.core.index, life });
    shared.streams.new_ways();
    shared.wake_all();
}

/// It can no more.
pub(super) fn drop_carrier(ctx: &mut Ctx<'_>, life: u64) {
    ctx.core.shared.streams.carriers.lock().retain(|carrier| carrier.life != life);
    ctx.core.locals.link.forward.taken.retain(|(of, _), _| *of != life);
}

fn tell(core: &mut Core, client: u64, news: News) {
    at(core, worker_of(client), move |core| {
        let key = core.locals.link.forward.clients.get(&client).copied();
        let Some(key) = key else { return };
        core.with(key, |kind, ctx| {
            if let Kind::Memcached(own) = kind {
                memcached::Memcached::on_news(own, client, news, ctx);
            }
        });
    });
}

/// Calls the link of this life, if it is this worker's and lives.
fn on_link(core: &mut Core, life: u64, call: impl FnOnce(&mut Incoming)) {
    let keys = core.locals.link.incoming.clone();
    let mut call = Some(call);
    for key in keys {
        core.with(key, |kind, ctx| {
            if let Kind::Incoming(link) = kind
                && link.is(life)
                && let Some(call) = call.take()
            {
                call(link);
                link.pump(ctx);
            }
        });
    }
}

/// Here if it is this worker, else by its mailbox.
fn at(core: &mut Core, worker: usize, task: impl FnOnce(&mut Core) + Send + 'static) {
    if worker == core.index {
        task(core);
    } else if let Some(mailbox) = core.shared.mailboxes.get(worker) {
        mailbox.post(Mail::Task(Box::new(task)));
    }
}
