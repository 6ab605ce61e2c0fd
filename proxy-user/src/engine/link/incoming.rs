//! The replica's end of one link.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cache::replication::{LinkLost, Receiver, ReceiverConfig, ReceiverEvent};

use super::forward;
use crate::control::counters::Counter;
use crate::control::message::Target;
use crate::engine::connections::{Close, Closed, Ctx, Kind, Layer, Protocol};
use crate::engine::secure::{End, Secure};
use crate::engine::worker::{Core, Shared};

/// Time for the handshake and the master's first words.
const HELLO_TIME: Duration = Duration::from_secs(3);

/// Numbers the links that this process has accepted.
static LIVES: AtomicU64 = AtomicU64::new(1);

/// See the module.
#[derive(Debug)]
pub struct Incoming {
    shared: Arc<Shared>,
    life: u64,
    receiver: Option<Receiver>,
    /// Number of the link, once taken.
    index: Option<u16>,
    applied: u64,
}

impl Incoming {
    /// What a new connection of the peer's engine becomes.
    pub(crate) fn make(core: &Core) -> Option<(Kind, Option<Box<dyn Layer>>)> {
        let link = core.shared.config.link.as_ref()?;
        let layer = Secure::new(End::Listening, &link.key.0, &link.cluster);
        let layer: Box<dyn Layer> = Box::new(layer.ok()?);
        let incoming = Self {
            shared: Arc::clone(&core.shared),
            life: LIVES.fetch_add(1, Ordering::Relaxed),
            receiver: None,
            index: None,
            applied: 0,
        };
        Some((Kind::Incoming(Box::new(incoming)), Some(layer)))
    }

    /// The clients whose commands go over this link, if it is this life's and taken.
    pub(super) fn forward(&mut self, life: u64) -> Option<&mut cache::replication::ForwardClient> {
        let receiver = self.receiver.as_mut()?;
        (self.life == life && receiver.can_forward()).then(|| receiver.forward())
    }

    pub(super) const fn is(&self, life: u64) -> bool {
        self.life == life
    }

    /// Acknowledgements and forwarded commands leave.
    pub(super) fn pump(&mut self, ctx: &mut Ctx<'_>) {
        let Some(receiver) = &mut self.receiver else { return };
        receiver.poll_transmit(ctx.out());
        let applied = receiver.counters().applied;
        ctx.count(Counter::RecordsApplied, applied - self.applied);
        self.applied = applied;
        self.events(ctx);
    }

    fn events(&mut self, ctx: &mut Ctx<'_>) {
        let streams = &self.shared.streams;
        while let Some(event) = self.receiver.as_mut().and_then(Receiver::poll_event) {
            match event {
                ReceiverEvent::Receiving { hello } => {
                    let (index, count) = (hello.link_index, hello.link_count);
                    tracing::info!(index, count, node = hello.node, "link from the master");
                    ctx.set_deadline(None);
                    self.index = Some(index);
                    let epoch = hello.session.epoch;
                    streams.receiving(&self.shared, |book| book.up(epoch, index, count, self.life));
                    forward::carry(ctx, self.life);
                }
                ReceiverEvent::Received { .. } => {
                    let index = self.index.unwrap_or(0);
                    streams.receiving(&self.shared, |book| book.received(index, self.life));
                }
                ReceiverEvent::Reply(reply) => {
                    let id = reply.connection;
                    let client = self.receiver.as_mut().map(Receiver::forward);
                    let state =
                        client.map(|client| (client.wants_read(id), !client.is_outstanding(id)));
                    forward::answer(ctx.core, self.life, reply, state.unwrap_or_default());
                }
                ReceiverEvent::Pong(_) => {}
                ReceiverEvent::Lost(reason) => {
                    let stale = matches!(reason, LinkLost::Refusing(_));
                    if stale {
                        ctx.count(Counter::LinkRefused, 1);
                    }
                    tracing::info!(%reason, "link from the master is lost");
                    ctx.close(Close::Flush);
                }
            }
        }
    }
}

impl Protocol for Incoming {
    fn on_open(&mut self, ctx: &mut Ctx<'_>) {
        let Some(link) = &self.shared.config.link else { return ctx.close(Close::Now) };
        let Some(service) = &self.shared.cache else { return ctx.close(Close::Now) };
        let Target::Peer(epoch) = ctx.core.locals.link.target else {
            // Nobody's replica: the master comes again soon.
            return ctx.close(Close::Now);
        };
        let config = ReceiverConfig {
            cluster: link.cluster.clone(),
            node: self.shared.config.node.clone(),
            epoch: epoch.get(),
        };
        self.receiver = Some(Receiver::new(config, &service.cache));
        let key = ctx.key;
        ctx.core.eager(key);
        super::watch(ctx.core, key);
        ctx.core.locals.link.incoming.push(key);
        ctx.set_deadline(Some(ctx.now() + HELLO_TIME));
    }

    fn on_data(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        let now = ctx.core.cache_now();
        if let (Some(receiver), Some(service)) = (&mut self.receiver, &self.shared.cache) {
            receiver.handle_bytes(&service.cache, now.store, bytes);
        }
        self.pump(ctx);
    }

    fn on_close(&mut self, reason: &Closed, ctx: &mut Ctx<'_>) {
        if let Closed::Layer(error) = reason {
            ctx.count(Counter::LinkRefused, 1);
            self.shared.streams.refuse(ctx.now(), error);
        }
        let key = ctx.key;
        ctx.core.locals.link.incoming.retain(|other| *other != key);
        forward::drop_carrier(ctx, self.life);
        if let Some(index) = self.index {
            self.shared.streams.receiving(&self.shared, |book| book.down(index, self.life));
        }
        let outstanding = self.receiver.take().map(|mut receiver| receiver.forward().end());
        for client in outstanding.into_iter().flatten() {
            forward::abandon(ctx.core, client);
        }
    }
}
