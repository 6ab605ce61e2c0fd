//! The client's side: heads, bodies, what follows, and its end.

use std::time::Instant;

use super::{Answer, CloseHow, Command, Exchange, Phase, REPLAY_WINDOW, Wire};
use crate::balance::{Outcome, Selection, sticky};
use crate::http::body::BodyError;
use crate::http::chunked::{write_chunk, write_last_chunk};
use crate::http::fields::Known;
use crate::http::writer::write_request;
use crate::http::{BodyReader, Framing, Method, Reason, Request, Version};

impl Exchange {
    /// Bytes of the client.
    pub fn handle_client_data(&mut self, now: Instant, bytes: &[u8], wire: &mut impl Wire) {
        if self.pending() == 0 {
            let used = self.consume(now, bytes, wire);
            if used < bytes.len() && self.phase != Phase::Closing {
                self.inbox.clear();
                self.inbox_at = 0;
                self.inbox.extend_from_slice(&bytes[used..]);
            }
        } else {
            self.inbox.extend_from_slice(bytes);
            self.consume_inbox(now, wire);
        }
    }

    /// Whether all of these bytes go to the server as they are, and more will follow. Then they
    /// count as handled, and the caller hands the buffer on; else nothing has happened.
    pub fn pass_body_whole(&mut self, now: Instant, bytes: &[u8]) -> bool {
        let plain = self.phase == Phase::Active
            && self.pending() == 0
            && !self.current.chunked
            && !self.current.replayable
            && self.current.body.pass(bytes.len());
        if plain {
            self.since = now;
        }
        plain
    }

    /// The next of several requests that came at once. Call when [`Self::wants_proceed`].
    pub fn proceed(&mut self, now: Instant, wire: &mut impl Wire) {
        self.consume_inbox(now, wire);
    }

    /// The client's connection has ended, or it will send no more. An unfinished request is given
    /// up: nobody would read its answer.
    pub fn handle_client_closed(&mut self, now: Instant) {
        match self.phase {
            Phase::Closing => return,
            Phase::Idle | Phase::Head => {
                self.phase = Phase::Closing;
                self.commands.push_back(Command::CloseClient(CloseHow::Flush));
                return;
            }
            Phase::Connecting | Phase::Active => {}
        }
        self.drop_upstream(now, Outcome::Neutral);
        self.record.reason = Some(Reason::ClientAborted);
        if !matches!(self.current.answer, Answer::HeadSent { .. }) {
            self.record.status = Reason::ClientAborted.status();
        }
        self.end(now, false, Some(CloseHow::Cut));
    }

    fn consume_inbox(&mut self, now: Instant, wire: &mut impl Wire) {
        let mut inbox = std::mem::take(&mut self.inbox);
        let at = self.inbox_at;
        let used = self.consume(now, &inbox[at..], wire);
        if self.phase == Phase::Closing {
            return;
        }
        self.inbox_at = at + used;
        if self.inbox_at == inbox.len() {
            inbox.clear();
            self.inbox_at = 0;
        } else if self.inbox_at > inbox.len() / 2 {
            inbox.drain(..self.inbox_at);
            self.inbox_at = 0;
        }
        inbox.shrink_to(4096.max(inbox.len()));
        self.inbox = inbox;
    }

    /// Takes what can be taken now; the rest comes again later, from its first byte.
    fn consume(&mut self, now: Instant, bytes: &[u8], wire: &mut impl Wire) -> usize {
        match self.phase {
            Phase::Closing => bytes.len(),
            Phase::Idle | Phase::Head => {
                if self.phase == Phase::Idle {
                    self.phase = Phase::Head;
                    self.since = now;
                    self.record.reset(now);
                }
                match self.parser.parse(bytes, &self.settings.limits) {
                    Ok(None) => 0,
                    Ok(Some(request)) => {
                        self.begin(now, &bytes[..request.len], &request, wire);
                        request.len + self.consume_body(now, &bytes[request.len..], wire)
                    }
                    Err(reason) => {
                        self.refuse_head(now, bytes, reason, wire);
                        bytes.len()
                    }
                }
            }
            Phase::Connecting | Phase::Active => self.consume_body(now, bytes, wire),
        }
    }

    /// A head that is not one; what is known of the request before it says nothing.
    pub(super) fn refuse_head(
        &mut self,
        now: Instant,
        bytes: &[u8],
        reason: Reason,
        wire: &mut impl Wire,
    ) {
        if self.settings.log
            && let Some(line) = self.parser.line()
        {
            self.record.set_line(line.of(bytes));
        }
        self.current.method = Method::Other;
        self.current.version = Version::Http11;
        self.current.keep_alive = false;
        self.current.answer = Answer::Awaited;
        self.refuse(now, reason, wire);
    }

    fn begin(&mut self, now: Instant, head: &[u8], request: &Request, wire: &mut impl Wire) {
        self.requests += 1;
        let limits = &self.settings.limits;
        let current = &mut self.current;
        current.method = request.method;
        current.version = request.version;
        current.keep_alive = request.keep_alive && self.requests < self.settings.requests_max;
        current.expect_continue = request.expect_continue;
        current.chunked = request.framing == Framing::Chunked;
        current.body = BodyReader::new(request.framing, limits.body, limits);
        current.body_ended = current.body.is_done();
        current.server = None;
        current.attempts = 0;
        current.repeated = false;
        current.replayable = true;
        current.answer = Answer::Awaited;
        current.interims = 0;
        current.last_failure = Reason::NoServer;
        let fields = self.parser.fields();
        if self.settings.log {
            self.record.set_texts(head, request, fields.as_slice());
        }
        let path = request.path.of(head);
        let host = request.host.map(|host| host.of(head));
        let upstream = match self.settings.routes.find(host, path) {
            Ok(upstream) => upstream,
            Err(reason) => return self.refuse(now, reason, wire),
        };
        current.upstream = upstream;
        let Some(group) = self.settings.upstreams.get(usize::from(upstream)) else {
            return self.refuse(now, Reason::NoRoute, wire);
        };
        current.selection = if group.sticky {
            let routes = sticky::routes(fields.values(head, Known::Cookie), path);
            Selection::sticky(group.pool.routed(now, routes))
        } else {
            Selection::default()
        };
        self.replay.clear();
        let forwarded = Self::forwarded(&self.client, &self.settings);
        write_request(&mut self.replay, head, request, fields.as_slice(), &forwarded);
        self.choose(now, wire);
    }

    fn consume_body(&mut self, now: Instant, bytes: &[u8], wire: &mut impl Wire) -> usize {
        let mut used = 0;
        while matches!(self.phase, Phase::Connecting | Phase::Active)
            && !self.current.body.is_done()
        {
            let taken = match self.current.body.read(&bytes[used..]) {
                Ok(taken) => taken,
                Err(error) => {
                    self.refuse_body(now, error, wire);
                    return bytes.len();
                }
            };
            if taken.consumed == 0 {
                break;
            }
            self.since = if self.phase == Phase::Active { now } else { self.since };
            self.pass_body(&bytes[used..][taken.data], wire);
            used += taken.consumed;
        }
        if self.phase == Phase::Closing {
            return bytes.len();
        }
        used
    }

    /// One run of body, and the end if this was it.
    fn pass_body(&mut self, data: &[u8], wire: &mut impl Wire) {
        let chunked = self.current.chunked;
        let ends = self.current.body.is_done() && !self.current.body_ended;
        self.current.body_ended |= ends;
        let write = |out: &mut Vec<u8>| {
            if chunked {
                write_chunk(out, data);
                if ends {
                    write_last_chunk(out);
                }
            } else {
                out.extend_from_slice(data);
            }
        };
        if self.phase == Phase::Active {
            write(wire.upstream());
            let awaited = self.current.answer == Answer::Awaited;
            if !awaited || self.replay.len() + data.len() > REPLAY_WINDOW {
                self.current.replayable = false;
                self.replay.clear();
            }
        }
        if self.current.replayable {
            write(&mut self.replay);
        }
    }

    fn refuse_body(&mut self, now: Instant, error: BodyError, wire: &mut impl Wire) {
        self.drop_upstream(now, Outcome::Neutral);
        let reason = match error {
            BodyError::TooLarge => Reason::BodyTooLarge,
            BodyError::Malformed | BodyError::Truncated => Reason::ChunkInvalid,
        };
        self.current.keep_alive = false;
        self.refuse(now, reason, wire);
    }
}
