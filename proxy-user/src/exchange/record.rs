//! What is told of one request: for the access log and the counters.

use std::net::SocketAddr;
use std::time::Instant;

use crate::balance::Change;
use crate::http::fields::{Field, Known};
use crate::http::{Reason, Request};

/// One request, from its first byte to the last of its answer.
#[derive(Debug, Clone)]
pub struct Record {
    /// First byte of the head.
    pub started: Instant,
    /// Connection to the server at hand (last attempt).
    pub connected: Option<Instant>,
    /// Head of the answer read.
    pub answered: Option<Instant>,
    /// Last byte of the answer handed on.
    pub ended: Instant,
    /// Status sent; 499 if none was.
    pub status: u16,
    /// Bytes of body sent.
    pub body_bytes: u64,
    /// Why it was refused or did not end well.
    pub reason: Option<Reason>,
    /// The last server tried.
    pub server: Option<SocketAddr>,
    /// Servers tried.
    pub attempts: u32,
    /// The server's connection had been used before.
    pub reused: bool,
    /// A server (of an upstream, by index) left or returned by this request's outcome.
    pub change: Option<(u16, u16, Change)>,
    text: Vec<u8>,
    line_end: usize,
    referer_end: usize,
}

impl Record {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            started: now,
            connected: None,
            answered: None,
            ended: now,
            status: 499,
            body_bytes: 0,
            reason: None,
            server: None,
            attempts: 0,
            reused: false,
            change: None,
            text: Vec::new(),
            line_end: 0,
            referer_end: 0,
        }
    }

    /// For the next request; memory is kept.
    pub(super) fn reset(&mut self, now: Instant) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        text.shrink_to(1024);
        *self = Self { text, ..Self::new(now) };
    }

    pub(super) fn set_line(&mut self, line: &[u8]) {
        self.text.clear();
        self.text.extend_from_slice(line);
        self.line_end = self.text.len();
        self.referer_end = self.text.len();
    }

    pub(super) fn set_texts(&mut self, head: &[u8], request: &Request, fields: &[Field]) {
        self.set_line(request.line.of(head));
        let value = |known| {
            let field = fields.iter().find(|field| field.known == known);
            field.map_or(&b"-"[..], |field| field.value.of(head))
        };
        self.text.extend_from_slice(value(Known::Referer));
        self.referer_end = self.text.len();
        self.text.extend_from_slice(value(Known::UserAgent));
    }

    /// The request line as received, if texts are kept.
    #[must_use]
    pub fn line(&self) -> &[u8] {
        &self.text[..self.line_end]
    }

    /// Referer, `-` if there was none.
    #[must_use]
    pub fn referer(&self) -> &[u8] {
        &self.text[self.line_end..self.referer_end]
    }

    /// User-Agent, `-` if there was none.
    #[must_use]
    pub fn user_agent(&self) -> &[u8] {
        &self.text[self.referer_end..]
    }
}
