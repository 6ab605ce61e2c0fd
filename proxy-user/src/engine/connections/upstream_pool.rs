//! Connections to servers: in use by one client connection, or idle in this worker's pool.
//!
//! An idle one keeps its receive armed, so that the server's end is seen at once and no request is
//! written into a connection that is known to be dead. The pool is last in, first out: what was
//! used last is least likely to be near the server's own limit.

use std::collections::BTreeMap;
use std::time::Duration;

use super::http::{Http, IDLE_TIMEOUT, ROOM};
use super::{Close, Closed, Ctx, Kind, Protocol};
use crate::control::counters::Counter;
use crate::engine::driver::Key;
use crate::exchange::Ending;

/// What becomes of a server's connection after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// It goes on.
    Keep,
    /// It is idle now.
    Release {
        /// How long the server said it keeps it.
        idle_limit: Option<Duration>,
    },
    /// Nobody wants it.
    Close,
}

/// This worker's idle connections, by upstream and server.
#[derive(Debug, Default)]
pub struct Idle {
    lists: BTreeMap<(u16, u16), Vec<Key>>,
}

impl Idle {
    /// The one used last.
    pub(super) fn take(&mut self, to: (u16, u16)) -> Option<Key> {
        self.lists.get_mut(&to)?.pop()
    }

    /// Puts one in; gives back the one that must go for it.
    fn put(&mut self, to: (u16, u16), key: Key, max: usize) -> Option<Key> {
        let list = self.lists.entry(to).or_default();
        list.push(key);
        (list.len() > max).then(|| list.remove(0))
    }

    fn forget(&mut self, to: (u16, u16), key: Key) {
        if let Some(list) = self.lists.get_mut(&to) {
            list.retain(|&idle| idle != key);
        }
    }

    /// Number of idle connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lists.values().map(Vec::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A connection to a server.
#[derive(Debug)]
pub struct Upstream {
    to: (u16, u16),
    /// Who uses it; `None`: idle.
    client: Option<Key>,
    connected: bool,
    /// Bytes have been taken by the kernel since it was taken.
    written: bool,
    stopping: bool,
    /// Large reads are on.
    bulk: bool,
    /// The answer under way is large; kept while idle, for the next is likely to be so, too.
    large: bool,
}

impl Upstream {
    /// One being connected for a client.
    #[must_use]
    pub const fn new(to: (u16, u16), client: Key) -> Self {
        Self {
            to,
            client: Some(client),
            connected: false,
            written: false,
            stopping: false,
            bulk: false,
            large: false,
        }
    }

    /// A client takes it from the pool.
    pub(super) fn take(&mut self, client: Key, ctx: &mut Ctx<'_>) {
        self.client = Some(client);
        self.written = false;
        if std::mem::take(&mut self.large) {
            self.bulk = true;
            ctx.bulk(true);
        }
        ctx.set_deadline(None);
    }

    fn release(&mut self, idle_limit: Option<Duration>, ctx: &mut Ctx<'_>) {
        self.client = None;
        let max = ctx.config().upstreams.get(usize::from(self.to.0));
        let max = max.map_or(0, |upstream| usize::from(upstream.keepalive));
        // One second before the server would: its end must not cross with a request.
        let limit = idle_limit.map_or(IDLE_TIMEOUT, |limit| {
            limit.saturating_sub(Duration::from_secs(1)).min(IDLE_TIMEOUT)
        });
        if max == 0 || self.stopping || limit.is_zero() {
            ctx.close(Close::Now);
            return;
        }
        if std::mem::take(&mut self.bulk) {
            ctx.bulk(false);
        }
        ctx.resume();
        let (due, key) = (ctx.now() + limit, ctx.key());
        ctx.set_deadline(Some(due));
        if let Some(mut oldest) =
            ctx.locals().idle.put(self.to, key, max).and_then(|oldest| ctx.at(oldest))
        {
            oldest.close(Close::Now);
        }
    }

    fn received(
        &mut self,
        ctx: &mut Ctx<'_>,
        take: impl FnOnce(&mut Http, Key, &mut Ctx<'_>) -> After,
    ) {
        let key = ctx.key();
        let told = self.client.and_then(|client| {
            ctx.with(client, |kind, ctx| match kind {
                Kind::Http(http) => {
                    let after = take(http, key, ctx);
                    (after, http.answers_in_bulk())
                }
                _ => (After::Close, false),
            })
        });
        match told {
            Some((After::Keep, large)) => {
                self.large |= large;
                if large && !std::mem::replace(&mut self.bulk, true) {
                    ctx.bulk(true);
                }
            }
            Some((After::Release { idle_limit }, _)) => self.release(idle_limit, ctx),
            // A server that speaks unasked, or to a client that is gone.
            Some((After::Close, _)) | None => ctx.close(Close::Now),
        }
    }

    fn ended(&mut self, clean: bool, ctx: &mut Ctx<'_>) {
        let key = ctx.key();
        match self.client.take() {
            None => ctx.locals().idle.forget(self.to, key),
            Some(client) => {
                if !clean {
                    ctx.count(Counter::UpstreamFailures, 1);
                }
                // Unknown how much the kernel took of what is in flight: taken for written.
                let written = self.connected && (self.written || ctx.sends());
                let ending = Ending { clean, written };
                ctx.with(client, |kind, ctx| {
                    if let Kind::Http(http) = kind {
                        http.upstream_closed(key, ending, ctx);
                    }
                });
            }
        }
    }
}

impl Protocol for Upstream {
    fn on_connected(&mut self, ctx: &mut Ctx<'_>) {
        self.connected = true;
        let key = ctx.key();
        let told = self.client.and_then(|client| {
            ctx.with(client, |kind, ctx| {
                if let Kind::Http(http) = kind {
                    http.upstream_connected(key, ctx);
                }
            })
        });
        if told.is_none() {
            ctx.close(Close::Now);
        }
    }

    fn on_data(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        self.received(ctx, |http, key, ctx| http.upstream_data(key, bytes, ctx));
    }

    fn on_bulk(&mut self, bytes: &mut Vec<u8>, ctx: &mut Ctx<'_>) {
        self.received(ctx, |http, key, ctx| http.upstream_bulk(key, bytes, ctx));
    }

    fn on_sent(&mut self, ctx: &mut Ctx<'_>) {
        self.written = true;
        let key = ctx.key();
        if ctx.unsent() <= ROOM
            && let Some(client) = self.client
        {
            ctx.with(client, |kind, ctx| {
                if let Kind::Http(http) = kind {
                    http.upstream_sent(key, ctx);
                }
            });
        }
    }

    fn on_eof(&mut self, ctx: &mut Ctx<'_>) {
        self.ended(true, ctx);
        ctx.close(Close::Now);
    }

    fn on_deadline(&mut self, ctx: &mut Ctx<'_>) {
        ctx.close(Close::Now);
    }

    fn on_stop(&mut self, ctx: &mut Ctx<'_>) {
        self.stopping = true;
        if self.client.is_none() {
            ctx.close(Close::Now);
        }
    }

    fn on_close(&mut self, _reason: &Closed, ctx: &mut Ctx<'_>) {
        self.ended(false, ctx);
    }
}
