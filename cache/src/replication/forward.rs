//! Commands of a replica's clients, run by the primary.
//!
//! The client's bytes travel as they came, in numbered batches, and a [`Session`] at the primary,
//! the only parser, executes them. Its answers come back when their gate has opened. With each
//! reply the primary says which batches it has taken in and whether the session is at rest: no
//! command half received, no answer outstanding. A client at rest survives the link's end and a
//! change of role unnoticed; any other is closed, and its commands are never run again.
//!
//! ```text
//! client ─▶ ForwardClient ══ Forward(connection, request, bytes) ══▶ ForwardServer ─▶ Session
//!        ◀─              ◀══ Reply(connection, request, state, bytes) ══           ◀─
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::frame::PeerMisbehaved;
use super::message::{self, Message, ReplyState};
use crate::session::{Context, Session, Transmit};

/// Bytes of a client that the primary has not taken in, above which no more are read from it.
pub const UNTAKEN_MAX: usize = 256 * 1024;

/// Bytes of one `Forward` or `Reply`; more is cut.
pub const PIECE: usize = 32 * 1024;

/// Clients that one link forwards for; more are closed.
pub const CONNECTIONS_MAX: usize = 65_536;

/// Bytes, and orders, for a client of the replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardReply {
    /// The client.
    pub connection: u64,
    /// What to send to it.
    pub bytes: Vec<u8>,
    /// Close it then.
    pub close: bool,
}

#[derive(Debug, Default)]
struct Client {
    /// Number of the last batch sent.
    sent: u64,
    /// Batches not yet taken in: number and bytes.
    untaken: VecDeque<(u64, usize)>,
    /// Sum of those bytes.
    untaken_bytes: usize,
    /// The primary said so of the batch sent last.
    at_rest: bool,
}

/// The replica's side of one link: which clients it forwards for and what is outstanding.
#[derive(Debug, Default)]
pub struct ForwardClient {
    clients: BTreeMap<u64, Client>,
    out: Vec<u8>,
}

impl ForwardClient {
    /// Forwards what a client sent. `connection` is any number that is unique on this link, and
    /// never used again on it once closed.
    pub fn send(&mut self, connection: u64, bytes: &[u8]) {
        let client = self.clients.entry(connection).or_default();
        for bytes in bytes.chunks(PIECE) {
            client.sent += 1;
            client.untaken.push_back((client.sent, bytes.len()));
            client.untaken_bytes += bytes.len();
            client.at_rest = false;
            let request = client.sent;
            message::encode(&mut self.out, &Message::Forward { connection, request, bytes });
        }
    }

    /// The client is gone.
    pub fn close(&mut self, connection: u64) {
        if self.clients.remove(&connection).is_some() {
            message::encode(&mut self.out, &Message::ForwardClose { connection });
        }
    }

    /// Whether more is to be read from the client.
    #[must_use]
    pub fn wants_read(&self, connection: u64) -> bool {
        self.clients.get(&connection).is_none_or(|client| client.untaken_bytes < UNTAKEN_MAX)
    }

    /// Whether the client has a command without its answer, or half of one, at the primary.
    #[must_use]
    pub fn is_outstanding(&self, connection: u64) -> bool {
        self.clients.get(&connection).is_some_and(|client| !client.at_rest)
    }

    /// The link is over, or the role changes: ends all forwarding and names the clients that must
    /// be closed. The others may go on, by another link or with a session of their own.
    #[must_use]
    pub fn end(&mut self) -> Vec<u64> {
        self.out = Vec::new();
        let clients = std::mem::take(&mut self.clients);
        clients.into_iter().filter(|(_, client)| !client.at_rest).map(|(id, _)| id).collect()
    }

    pub(super) fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
        self.out.shrink_to(UNTAKEN_MAX);
    }

    pub(super) fn handle_reply(
        &mut self,
        connection: u64,
        request: u64,
        state: ReplyState,
        bytes: &[u8],
    ) -> Result<Option<ForwardReply>, PeerMisbehaved> {
        // A client that is gone: its reply crossed with the word of its end.
        let Some(client) = self.clients.get_mut(&connection) else { return Ok(None) };
        if request > client.sent {
            return Err(PeerMisbehaved::Unexpected { kind: "a reply to what was not asked" });
        }
        while client.untaken.front().is_some_and(|(number, _)| *number <= request) {
            let taken = client.untaken.pop_front().map_or(0, |(_, bytes)| bytes);
            client.untaken_bytes = client.untaken_bytes.saturating_sub(taken);
        }
        client.at_rest = state == ReplyState::Idle && request == client.sent;
        let close = state == ReplyState::Close;
        if close {
            self.clients.remove(&connection);
        }
        Ok(Some(ForwardReply { connection, bytes: bytes.to_vec(), close }))
    }
}

/// A client's session at the primary.
#[derive(Debug, Default)]
struct Virtual {
    session: Session,
    /// The last batch fed.
    fed: u64,
    /// What the last reply said.
    said: Option<(u64, ReplyState)>,
}

/// The primary's side of one link.
#[derive(Debug, Default)]
pub(super) struct ForwardServer {
    sessions: BTreeMap<u64, Virtual>,
    /// Sessions that have, or wait for, something to say.
    active: BTreeSet<u64>,
    /// Of those: the ones that only wait for the gate.
    held: BTreeSet<u64>,
    /// Where the next round over the active begins.
    turn: u64,
    /// Clients refused because there are too many.
    refused: Vec<(u64, u64)>,
}

impl ForwardServer {
    pub(super) fn handle(&mut self, ctx: &Context<'_>, id: u64, request: u64, bytes: &[u8]) {
        if self.sessions.len() >= CONNECTIONS_MAX && !self.sessions.contains_key(&id) {
            self.refused.push((id, request));
            return;
        }
        let client = self.sessions.entry(id).or_default();
        client.fed = request;
        client.session.feed(ctx, bytes);
        self.held.remove(&id);
        self.active.insert(id);
    }

    /// The next in turn, so that a client with much to say does not keep others waiting.
    fn next_active(&mut self) -> Option<u64> {
        let id = *self.active.range(self.turn..).next().or_else(|| self.active.first())?;
        self.active.remove(&id);
        self.turn = id.wrapping_add(1);
        Some(id)
    }

    pub(super) fn handle_close(&mut self, id: u64) {
        self.sessions.remove(&id);
        self.active.remove(&id);
        self.held.remove(&id);
    }

    /// Acknowledgements came: those who wait for the gate are to be asked again.
    pub(super) fn gate_may_have_opened(&mut self) {
        self.active.append(&mut self.held);
    }

    pub(super) fn wants_transmit(&self) -> bool {
        !self.active.is_empty() || !self.refused.is_empty()
    }

    pub(super) fn oldest_held_since(&self) -> Option<Instant> {
        let waiting = self.held.iter().chain(&self.active);
        waiting.filter_map(|id| self.sessions.get(id)?.session.oldest_held_since()).min()
    }

    /// Appends replies up to about `end`; returns whether there is more.
    pub(super) fn poll_transmit(
        &mut self,
        ctx: &Context<'_>,
        out: &mut Vec<u8>,
        end: usize,
    ) -> bool {
        for (connection, request) in self.refused.drain(..) {
            let (state, bytes) = (ReplyState::Close, &[][..]);
            message::encode(out, &Message::Reply { connection, request, state, bytes });
        }
        // Role or lease may have changed without any acknowledgement.
        self.gate_may_have_opened();
        let mut answer = Vec::new();
        while out.len() < end {
            let Some(id) = self.next_active() else { return false };
            let Some(client) = self.sessions.get_mut(&id) else { continue };
            client.session.run(ctx);
            let transmit = client.session.poll_transmit(ctx, &mut answer);
            let state = match transmit {
                Transmit::Close(_) => ReplyState::Close,
                Transmit::Idle if client.session.is_at_rest() => ReplyState::Idle,
                Transmit::Idle | Transmit::Held => ReplyState::Busy,
            };
            let told = client.said.map_or(0, |(request, _)| request);
            let request = if client.session.wants_read() { client.fed } else { told };
            if !answer.is_empty() || client.said != Some((request, state)) {
                reply(out, id, (told, request), state, &answer);
                client.said = Some((request, state));
                answer.clear();
            }
            match transmit {
                Transmit::Close(_) => self.handle_close(id),
                Transmit::Held => {
                    self.held.insert(id);
                }
                Transmit::Idle if client.session.wants_run() => {
                    self.active.insert(id);
                }
                Transmit::Idle => {}
            }
        }
        !self.active.is_empty()
    }
}

/// One answer in pieces: only the last says how things stand.
fn reply(
    out: &mut Vec<u8>,
    connection: u64,
    (told, request): (u64, u64),
    state: ReplyState,
    answer: &[u8],
) {
    let mut rest = answer;
    while rest.len() > PIECE {
        let (bytes, later) = rest.split_at(PIECE);
        let state = ReplyState::Busy;
        message::encode(out, &Message::Reply { connection, request: told, state, bytes });
        rest = later;
    }
    message::encode(out, &Message::Reply { connection, request, state, bytes: rest });
}
