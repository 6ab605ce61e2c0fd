//! What the role thread tells the world: a log line and an alarm for what matters, facts for the
//! status page.

use std::time::Instant;

use super::{Role, STATUS_EVERY};
use crate::guardian::status::{ByReason, DiskFacts, Ears, PeerFacts, SegmentFacts};
use crate::node::{Answer, Epoch, Event, Reach};

/// The cause where nothing was refused.
const UNKNOWN: &str = "no handshake was refused: a filter on its port, another port, both nodes \
                       side b, or not a tandem node";

impl Role {
    /// One log line for what matters.
    pub(super) fn event(&mut self, now: Instant, event: &Event) {
        match *event {
            Event::RoleChanged { from, to, epoch, cause } => {
                tracing::info!(%from, %to, %epoch, cause = cause.as_str(), "role");
                self.status.role_changed(to, cause.as_str());
                self.status.event(&format!("{from} to {to}, epoch {epoch}: {}", cause.as_str()));
                self.publish(now);
            }
            Event::Promoting { epoch, cause } => {
                tracing::info!(%epoch, cause = cause.as_str(), "promoting");
            }
            Event::PromotionFailed { epoch, cause } => {
                tracing::warn!(%epoch, cause = cause.as_str(), "promotion given up");
            }
            Event::PeerBoot(boot) => tracing::info!(boot = boot.0, "the peer started"),
            Event::PeerHeard(true) => tracing::info!("the peer is heard"),
            Event::PeerHeard(false) => tracing::warn!("the peer is not heard any more"),
            Event::SecondMaster { we_win } => {
                tracing::warn!(we_win, "a second master is heard: the pair was divided");
            }
            Event::Stalled(time) => tracing::warn!(?time, "this thread was not run"),
            Event::DiskRecovered => {
                tracing::info!("the state file can be written again");
                self.status.alarm("disk", false);
            }
            Event::Blocked(false) => {
                tracing::info!("nobody else owns our addresses any more");
                self.status.alarm("addresses_owned", false);
                self.blocked_by.clear();
            }
            Event::Reach(reach) => {
                tracing::info!(?reach, "reach of the addresses' segment");
                self.status.alarm("segment_lost", reach == Reach::Lost);
            }
            Event::PeerReach(reach) => tracing::info!(?reach, "the peer's reach of its segment"),
            Event::Witness(answer) => self.witness_said(answer),
            _ => self.alarming(now, event),
        }
    }

    /// What an operator must look at: a line in the log, an alarm among the events.
    fn alarming(&mut self, now: Instant, event: &Event) {
        let text = match *event {
            Event::LossyTakeover { lineage } => {
                let what = "took over without being in sync: what the peer alone held is lost";
                format!("{what} ({lineage:?})")
            }
            Event::ForkLost(alone) => {
                let most = 1_u64.checked_shl(alone.0.into()).unwrap_or(u64::MAX);
                format!("took the other node's content: answers given alone are lost (< {most})")
            }
            Event::DiskFailed => {
                self.status.alarm("disk", true);
                self.disk_failures += 1;
                "the state file cannot be written: a few promotions are reserved".to_owned()
            }
            Event::EpochsLow { left } => {
                self.status.alarm("epochs_low", true);
                format!("{left} epochs are left: plan to reset both state files")
            }
            Event::ForeignMaster => {
                "a foreign VRRP router took the address: this node yields".to_owned()
            }
            Event::ForeignAdverts => {
                "adverts of a stronger router for our address: not believed".to_owned()
            }
            Event::Blocked(_) => {
                self.status.alarm("addresses_owned", true);
                let cause = self.link.as_ref().and_then(|link| link.likely_cause(now));
                let kind = cause.as_ref().map_or(("unknown", true), |cause| cause.kind);
                self.blocked_by.push(kind);
                let text = cause.map_or_else(|| UNKNOWN.to_owned(), |cause| cause.text);
                format!("somebody owns our addresses, no beat of it can be read: {text}")
            }
            Event::Damped(pause) => {
                format!("too many promotions without proof: the next waits {pause:?}")
            }
            Event::Refused(refused) => format!("a rule tried what is not allowed: {refused}"),
            // said by `event`
            _ => return,
        };
        tracing::error!("{text}");
        self.status.event(&format!("ALARM: {text}"));
    }

    fn witness_said(&mut self, answer: Answer) {
        let facts = &mut self.witness_facts;
        facts.asked += 1;
        match answer {
            Answer::Granted { generation, .. } => {
                tracing::info!(generation, "the witness grants it");
                facts.state = "granted";
                facts.generation = Some(generation);
                facts.holder = Some("this node".to_owned());
            }
            Answer::Refused { generation, .. } => {
                tracing::warn!(generation, "the witness refuses: the peer went on");
                facts.state = "refused";
                facts.generation = Some(generation);
                facts.holder = Some("the peer".to_owned());
            }
            Answer::Unreachable { .. } => {
                tracing::warn!("the witness does not answer, or does not know");
                facts.state = "unreachable";
                facts.unanswered += 1;
            }
        }
        self.status.witness(facts.clone());
    }

    /// What others may see of the peer and the program.
    pub(super) fn publish(&mut self, now: Instant) {
        self.status_at = now + STATUS_EVERY;
        if let Some(counters) = self.segments.counters() {
            self.status.frames(counters);
        }
        let counters = || self.node.vrrp().iter().map(vrrp::Instance::counters);
        counters().enumerate().for_each(|(vip, counters)| self.status.adverts(vip, counters));
        if let Some(text) = self.refused.turn(now, counters()) {
            tracing::warn!("{text}");
        }
        self.publish_evidence(now);
        // the cause may be seen later than the effect; said once for each
        let cause = self.link.as_ref().and_then(|link| link.likely_cause(now));
        let news = cause.is_some_and(|cause| !self.blocked_by.contains(&cause.kind));
        if news && !self.blocked_by.is_empty() {
            self.alarming(now, &Event::Blocked(true));
        }
        let Some(link) = &mut self.link else { return };
        for line in link.lines(now) {
            if line.usual {
                tracing::info!("{}", line.text);
            } else {
                tracing::warn!("{}", line.text);
            }
        }
        let stats = link.stats();
        let beat = self.node.peer(now);
        self.status.peer(PeerFacts {
            connected: stats.connections > 0,
            name: stats.name,
            version: stats.version,
            state: beat.map(|beat| beat.state),
            epoch: beat.map(|beat| beat.epoch.get()),
            beats_sent: stats.beats_sent,
            beats_received: stats.beats_received,
            refused: ByReason(stats.refused),
            refused_reason: stats.refused_reason,
        });
    }

    /// Ears, segments, the state file.
    fn publish_evidence(&self, now: Instant) {
        let heard = self.node.heard_on(now);
        let hears = self.node.peer(now).map(|beat| beat.hears);
        for path in 0..self.paths {
            let ears = match (heard.has(path), hears.is_some_and(|paths| paths.has(path))) {
                (true, true) => "whole",
                (false, true) => "deaf",
                (true, false) => "mute",
                (false, false) => "silent",
            };
            self.status.path(path, Ears { ears });
        }
        for (vip, (probes, answers)) in self.asked.iter().copied().enumerate() {
            let Some((reach, askable)) = self.node.segment(now, vip) else { continue };
            let reached = match reach {
                Reach::Whole => Some(true),
                Reach::Lost => Some(false),
                Reach::Unknown => None,
            };
            self.status.segment(vip, SegmentFacts { reached, askable, probes, answers });
        }
        let left = Epoch::MAX.get().saturating_sub(self.node.seen().get()) / 2;
        self.status.disk(DiskFacts {
            state: if self.node.disk_works() { "ok" } else { "failed" },
            reserved: self.node.epochs_reserved().into(),
            left: Some(left.into()),
            failures: self.disk_failures,
        });
    }
}
