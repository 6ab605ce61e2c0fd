//! One deadline at a time: whose turn it is decides which.

use std::time::Instant;

use super::{Answer, Blocked, CloseHow, Command, Exchange, Phase, Wire};
use crate::balance::{Attempt, Outcome};
use crate::http::Reason;

/// What has taken too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Late {
    NextRequest,
    Head,
    Connect,
    Body,
    Reply,
    Client,
}

impl Exchange {
    /// When to call [`Self::handle_timeout`], if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self, blocked: Blocked) -> Option<Instant> {
        self.late(blocked).map(|(due, _)| due)
    }

    /// Bytes have moved on a side that was blocked.
    pub fn handle_progress(&mut self, now: Instant) {
        if self.phase == Phase::Active {
            self.since = now;
        }
    }

    /// The time has come. Called early, it does nothing.
    pub fn handle_timeout(&mut self, now: Instant, blocked: Blocked, wire: &mut impl Wire) {
        let Some((due, late)) = self.late(blocked) else { return };
        if now < due {
            return;
        }
        match late {
            Late::NextRequest => {
                self.phase = Phase::Closing;
                self.commands.push_back(Command::CloseClient(CloseHow::Flush));
            }
            Late::Head => {
                let inbox = std::mem::take(&mut self.inbox);
                self.refuse_head(now, &inbox, Reason::HeadTimeout, wire);
            }
            Late::Connect => {
                self.commands.push_back(Command::CloseUpstream);
                self.failed(now, Attempt::Connect, Reason::ConnectTimeout, wire);
            }
            Late::Body => {
                self.drop_upstream(now, Outcome::Neutral);
                self.refuse(now, Reason::BodyTimeout, wire);
            }
            Late::Client => {
                self.drop_upstream(now, Outcome::Neutral);
                self.cut(now, Reason::ClientSlow);
            }
            Late::Reply => {
                let begun = matches!(self.current.answer, Answer::HeadSent { .. });
                let reason = if begun { Reason::ReplyStalled } else { Reason::ReplyTimeout };
                self.commands.push_back(Command::CloseUpstream);
                self.failed(now, Attempt::Silent, reason, wire);
            }
        }
    }

    fn late(&self, blocked: Blocked) -> Option<(Instant, Late)> {
        let settings = &self.settings;
        let upstream = || &settings.upstreams[usize::from(self.current.upstream)];
        let (limit, late) = match self.phase {
            Phase::Closing => return None,
            Phase::Idle if self.requests == 0 => (settings.header_timeout, Late::NextRequest),
            Phase::Idle => (settings.idle_timeout, Late::NextRequest),
            Phase::Head => (settings.header_timeout, Late::Head),
            Phase::Connecting => (upstream().connect_timeout, Late::Connect),
            Phase::Active => {
                let answering = matches!(self.current.answer, Answer::HeadSent { .. });
                if answering && blocked.client {
                    (settings.send_timeout, Late::Client)
                } else if !answering && !self.current.body.is_done() && !blocked.upstream {
                    (settings.body_timeout, Late::Body)
                } else {
                    (upstream().reply_timeout, Late::Reply)
                }
            }
        };
        Some((self.since + limit, late))
    }
}
