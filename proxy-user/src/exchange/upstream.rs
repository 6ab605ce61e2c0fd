//! The server's side: the connection, the answer's head and body, and its end.

use std::time::{Duration, Instant};

use super::{
    Answer, CloseHow, Command, Ending, Exchange, INTERIM_MAX, Phase, REPLAY_WINDOW, Wire, page,
};
use crate::balance::{Attempt, Outcome};
use crate::http::chunked::{write_chunk, write_last_chunk};
use crate::http::writer::{AnswerFraming, write_interim, write_response};
use crate::http::{BodyReader, Framing, Reason, Response, Version};

impl Exchange {
    /// The connection asked for is there; `reused`: it has served a request before.
    pub fn handle_connected(&mut self, now: Instant, reused: bool, wire: &mut impl Wire) {
        if self.phase != Phase::Connecting {
            return;
        }
        self.phase = Phase::Active;
        self.since = now;
        self.current.reused = reused;
        self.record.reused = reused;
        self.record.connected = Some(now);
        wire.upstream().extend_from_slice(&self.replay);
        if self.replay.len() > REPLAY_WINDOW {
            self.current.replayable = false;
            self.replay.clear();
        }
    }

    /// No connection came up.
    pub fn handle_connect_failed(&mut self, now: Instant, wire: &mut impl Wire) {
        if self.phase == Phase::Connecting {
            self.failed(now, Attempt::Connect, Reason::ConnectFailed, wire);
        }
    }

    /// Bytes of the server.
    pub fn handle_upstream_data(&mut self, now: Instant, bytes: &[u8], wire: &mut impl Wire) {
        if self.phase != Phase::Active {
            return;
        }
        self.since = now;
        if matches!(self.current.answer, Answer::HeadSent { .. }) {
            self.read_answer_body(now, bytes, wire);
            return;
        }
        self.current.answer = Answer::Begun;
        if self.answer_inbox.is_empty() {
            let used = self.read_answer_heads(now, bytes, wire);
            self.after_heads(now, &bytes[used..], wire);
        } else {
            let mut inbox = std::mem::take(&mut self.answer_inbox);
            inbox.extend_from_slice(bytes);
            let used = self.read_answer_heads(now, &inbox, wire);
            self.after_heads(now, &inbox[used..], wire);
        }
    }

    /// Whether all of these bytes go to the client as they are, and more will follow. Then they
    /// count as handled, and the caller hands the buffer on; else nothing has happened.
    pub fn pass_answer(&mut self, now: Instant, bytes: &[u8]) -> bool {
        let plain = self.phase == Phase::Active
            && self.current.answer == (Answer::HeadSent { chunked: false })
            && self.current.answer_body.pass(bytes.len());
        if plain {
            self.since = now;
            self.record.body_bytes += bytes.len() as u64;
        }
        plain
    }

    /// The server's connection has ended.
    pub fn handle_upstream_closed(&mut self, now: Instant, ending: Ending, wire: &mut impl Wire) {
        match self.phase {
            Phase::Connecting => self.handle_connect_failed(now, wire),
            Phase::Active => self.upstream_ended(now, ending, wire),
            Phase::Idle | Phase::Head | Phase::Closing => {}
        }
    }

    fn upstream_ended(&mut self, now: Instant, ending: Ending, wire: &mut impl Wire) {
        if matches!(self.current.answer, Answer::HeadSent { .. }) {
            self.current.reusable = false;
            if ending.clean && self.current.answer_body.handle_eof().is_ok() {
                self.finish(now, wire);
            } else {
                self.report(now, Outcome::Failed);
                self.cut(now, Reason::ReplyTruncated);
            }
            return;
        }
        let answer_begun = self.current.answer == Answer::Begun;
        let attempt =
            Attempt::Died { answer_begun, written: ending.written, reused: self.current.reused };
        let reason = if answer_begun { Reason::ReplyTruncated } else { Reason::UpstreamClosed };
        self.failed(now, attempt, reason, wire);
    }

    /// Reads heads until the final one; gives the bytes used.
    fn read_answer_heads(&mut self, now: Instant, bytes: &[u8], wire: &mut impl Wire) -> usize {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            let method = self.current.method;
            match self.answer_parser.parse(rest, method, &self.settings.limits) {
                Ok(None) => return used,
                Ok(Some(response)) => {
                    used += response.len;
                    let head = &rest[..response.len];
                    if !response.is_interim() {
                        self.send_head(now, head, &response, wire);
                        return used;
                    }
                    if !self.pass_interim(now, head, &response, wire) {
                        return bytes.len();
                    }
                }
                Err(reason) => {
                    self.fail_answer(now, reason, wire);
                    return bytes.len();
                }
            }
        }
    }

    fn after_heads(&mut self, now: Instant, rest: &[u8], wire: &mut impl Wire) {
        if matches!(self.current.answer, Answer::HeadSent { .. }) && self.phase == Phase::Active {
            self.read_answer_body(now, rest, wire);
        } else if self.phase == Phase::Active {
            self.answer_inbox.extend_from_slice(rest);
        }
    }

    /// RFC 9110 §15.2: "A proxy MUST forward 1xx responses unless the proxy itself requested the
    /// generation of the 1xx response", and never to an HTTP/1.0 client. 100 goes only to who
    /// asked;
    /// 102 and unknown ones tell the client nothing and are dropped.
    fn pass_interim(
        &mut self,
        now: Instant,
        head: &[u8],
        response: &Response,
        wire: &mut impl Wire,
    ) -> bool {
        self.current.interims += 1;
        if self.current.interims > INTERIM_MAX {
            self.fail_answer(now, Reason::ReplyInterim, wire);
            return false;
        }
        let passes = match response.status {
            100 => std::mem::take(&mut self.current.expect_continue),
            103 => true,
            _ => false,
        };
        if passes && self.current.version == Version::Http11 {
            let fields = self.answer_parser.fields().as_slice();
            write_interim(wire.client(), head, response, fields);
        }
        self.answer_parser.reset();
        true
    }

    fn send_head(&mut self, now: Instant, head: &[u8], response: &Response, wire: &mut impl Wire) {
        let current = &mut self.current;
        let limits = &self.settings.limits;
        let framing = match (response.framing, current.version) {
            (Framing::None, _) => {
                response.announced.map_or(AnswerFraming::None, AnswerFraming::Length)
            }
            (Framing::Length(length), _) => AnswerFraming::Length(length),
            (Framing::Chunked | Framing::UntilClose, Version::Http11) => AnswerFraming::Chunked,
            (Framing::Chunked | Framing::UntilClose, Version::Http10) => AnswerFraming::UntilClose,
        };
        current.answer_body = BodyReader::new(response.framing, u64::MAX, limits);
        current.reusable = response.keep_alive;
        current.idle_limit =
            response.idle_timeout_s.map(|seconds| Duration::from_secs(seconds.into()));
        // An answer that comes before the request has ended may end before it, too.
        current.keep_client = current.keep_alive
            && current.body.is_done()
            && framing != AnswerFraming::UntilClose
            && !self.stopping;
        current.answer = Answer::HeadSent { chunked: framing == AnswerFraming::Chunked };
        let connection = page::connection(current.keep_client, current.version);
        let fields = self.answer_parser.fields().as_slice();
        write_response(wire.client(), head, response, fields, framing, connection);
        self.record.status = response.status;
        self.record.answered = Some(now);
        self.replay.clear();
        self.current.replayable = false;
    }

    fn read_answer_body(&mut self, now: Instant, bytes: &[u8], wire: &mut impl Wire) {
        let Answer::HeadSent { chunked } = self.current.answer else { return };
        let mut used = 0;
        while !self.current.answer_body.is_done() && used < bytes.len() {
            let Ok(taken) = self.current.answer_body.read(&bytes[used..]) else {
                self.drop_upstream(now, Outcome::Failed);
                self.cut(now, Reason::ReplyChunk);
                return;
            };
            let data = &bytes[used..][taken.data];
            self.record.body_bytes += data.len() as u64;
            if chunked {
                write_chunk(wire.client(), data);
            } else if !data.is_empty() {
                wire.client().extend_from_slice(data);
            }
            used += taken.consumed;
        }
        if self.current.answer_body.is_done() {
            // Bytes after an answer belong to none: that connection is not used again.
            self.current.reusable &= used == bytes.len();
            self.finish(now, wire);
        }
    }

    /// The answer is complete.
    fn finish(&mut self, now: Instant, wire: &mut impl Wire) {
        if self.current.answer == (Answer::HeadSent { chunked: true }) {
            write_last_chunk(wire.client());
        }
        let request_complete = self.current.body.is_done();
        self.report(now, Outcome::Ok);
        self.commands.push_back(if self.current.reusable && request_complete {
            Command::ReleaseUpstream { idle_limit: self.current.idle_limit }
        } else {
            Command::CloseUpstream
        });
        let keep = self.current.keep_client;
        let rest_comes = !request_complete || self.pending() > 0;
        let close = match (keep, rest_comes) {
            (true, _) => None,
            (false, true) => Some(CloseHow::Linger),
            (false, false) => Some(CloseHow::Flush),
        };
        self.end(now, keep, close);
    }

    /// The server's answer is of no use.
    fn fail_answer(&mut self, now: Instant, reason: Reason, wire: &mut impl Wire) {
        self.drop_upstream(now, Outcome::Failed);
        self.refuse(now, reason, wire);
    }
}
