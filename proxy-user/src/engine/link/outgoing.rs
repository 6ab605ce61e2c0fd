//! The master's end of one link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cache::replication::{LinkLost, LinkSession, Sender, SenderConfig, SenderEvent};
use nix::time::{ClockId, clock_gettime};

use super::DIAL_PAUSE;
use crate::control::counters::Counter;
use crate::control::message::Target;
use crate::engine::connections::memcached::context;
use crate::engine::connections::{Close, Closed, Ctx, Kind, Protocol};
use crate::engine::secure::{End, Secure};
use crate::engine::worker::{Core, Shared};

/// Unsent bytes above which the stream waits.
const OUTBOX_MARK: usize = 512 * 1024;
/// Bytes asked of the sender at once.
const BUDGET: usize = 256 * 1024;
/// Unsent records that a partition may keep.
const BACKLOG: usize = 16 << 20;
/// The lag is measured this often: it locks every partition of the link.
const MEASURE_EVERY: Duration = Duration::from_millis(500);
/// Time for connecting and for the peer's first words.
const HELLO_TIME: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub struct Outgoing {
    shared: Arc<Shared>,
    worker: usize,
    epoch: u16,
    sender: Option<Sender>,
    /// When the lag was last told.
    measured: Option<Instant>,
}

/// Dials the peer, if this node is the master.
pub(super) fn dial(core: &mut Core) {
    let shared = Arc::clone(&core.shared);
    let local = &mut core.locals.link;
    local.dial_at = None;
    let (Target::Here(epoch), Some(link)) = (local.target, &shared.config.link) else { return };
    if local.outgoing.is_some() || link.peers.is_empty() {
        return;
    }
    let address = link.peers[local.attempts % link.peers.len()];
    local.attempts += 1;
    let worker = core.index;
    let kind = Outgoing::new(&shared, worker, epoch.get());
    let layer = match Secure::new(End::Dialling, &link.key.0, &link.cluster) {
        Ok(layer) => Box::new(layer),
        Err(error) => {
            tracing::error!(%error, "no link");
            return again(core);
        }
    };
    match core.connect(address, Kind::Outgoing(Box::new(kind)), Some(layer)) {
        Ok(key) => {
            core.eager(key);
            super::watch(core, key);
            core.set_deadline(key, Some(core.now + HELLO_TIME));
            core.locals.link.outgoing = Some(key);
        }
        Err(error) => {
            tracing::warn!(%error, %address, "no link");
            again(core);
        }
    }
}

/// Later, and each time later still.
fn again(core: &mut Core) {
    let local = &mut core.locals.link;
    if matches!(local.target, Target::Here(_)) {
        local.dial_at = Some(core.now + local.pause);
        local.pause = (local.pause * 2).min(DIAL_PAUSE.1);
    }
}

impl Outgoing {
    fn new(shared: &Arc<Shared>, worker: usize, epoch: u16) -> Self {
        Self { shared: Arc::clone(shared), worker, epoch, sender: None, measured: None }
    }

    /// Sends what the streams have, as far as the peer keeps up.
    pub(super) fn pump(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.core.cache_now();
        let Some(sender) = &mut self.sender else { return };
        let Some(context) = context(&self.shared, self.worker, now) else { return };
        let held = sender.oldest_held_since();
        if sender.wants_transmit(&context) || held.is_some() {
            while ctx.unsent() < OUTBOX_MARK {
                if !sender.poll_transmit(&context, ctx.out(), BUDGET) {
                    break;
                }
            }
        }
        if self.measured.is_none_or(|at| ctx.core.now >= at + MEASURE_EVERY) {
            self.measured = Some(ctx.core.now);
            let (_, backlog) = sender.lag(&context);
            ctx.core.page.set(Counter::ReplicationLagBytes, (backlog + ctx.unsent()) as u64);
        }
        if let Some(since) = held {
            ctx.core.locals.memcached.held_elsewhere(since);
        }
        self.events(ctx);
    }

    fn events(&mut self, ctx: &mut Ctx<'_>) {
        let (Some(sender), Some(service)) = (&mut self.sender, &self.shared.cache) else { return };
        let streams = &self.shared.streams;
        let (epoch, worker) = (self.epoch, self.worker);
        while let Some(event) = sender.poll_event() {
            match event {
                SenderEvent::Accepted { node, .. } => {
                    tracing::info!(worker, node, epoch, "link to the replica");
                    ctx.set_deadline(None);
                    ctx.core.locals.link.pause = DIAL_PAUSE.0;
                    streams.sending(&self.shared, |book| {
                        book.up(epoch, worker);
                        None
                    });
                }
                SenderEvent::AckAdvanced(_) => {
                    service.acknowledged(worker, &self.shared);
                    streams.acknowledged(&self.shared, service);
                }
                SenderEvent::CaughtUp => {
                    streams.sending(&self.shared, |book| book.caught_up(epoch, worker));
                    streams.acknowledged(&self.shared, service);
                }
                SenderEvent::Pong(_) => {}
                SenderEvent::Lost(reason) => {
                    if let LinkLost::Refused(_) = reason {
                        ctx.count(Counter::LinkRefused, 1);
                    }
                    tracing::info!(worker, %reason, "link to the replica is lost");
                    ctx.close(Close::Flush);
                }
            }
        }
    }
}

impl Protocol for Outgoing {
    fn on_connected(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.core.cache_now();
        let Some(link) = &self.shared.config.link else { return };
        let Some(context) = context(&self.shared, self.worker, now) else { return };
        // Greater than any before it in this epoch, also of an engine before this one: the clock
        // runs as long as the host does, and another start of the host is another epoch.
        let number = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        let config = SenderConfig {
            cluster: link.cluster.clone(),
            node: self.shared.config.node.clone(),
            link_index: self.worker as u16,
            link_count: self.shared.mailboxes.len() as u16,
            session: LinkSession { epoch: self.epoch, number: number.as_nanos() as u64 },
            backlog: BACKLOG,
        };
        self.sender = Some(Sender::new(config, &context));
        self.pump(ctx);
    }

    fn on_data(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        let now = ctx.core.cache_now();
        if let (Some(sender), Some(context)) =
            (&mut self.sender, context(&self.shared, self.worker, now))
        {
            sender.handle_bytes(&context, bytes);
        }
        self.pump(ctx);
    }

    fn on_sent(&mut self, ctx: &mut Ctx<'_>) {
        self.pump(ctx);
    }

    fn on_close(&mut self, reason: &Closed, ctx: &mut Ctx<'_>) {
        if let (Some(mut sender), Some(service)) = (self.sender.take(), &self.shared.cache) {
            sender.close(&service.cache);
        }
        if let Closed::Layer(error) = reason {
            ctx.count(Counter::LinkRefused, 1);
            self.shared.streams.refuse(ctx.now(), error);
        }
        let (epoch, worker) = (self.epoch, self.worker);
        self.shared.streams.sending(&self.shared, |book| book.down(epoch, worker));
        ctx.core.page.set(Counter::ReplicationLagBytes, 0);
        let local = &mut ctx.core.locals.link;
        if local.outgoing == Some(ctx.key) {
            local.outgoing = None;
            again(ctx.core);
        }
    }
}
