//! What is known of a virtual address's segment: carrier, who was heard there, and whether anybody
//! there answers us.
//!
//! What it is not: a judge. It keeps facts and says how far this node reaches ([`Reach`]);
//! `rules.rs` draws the conclusions.
//!
//! **A reply proves both directions.** Beats on the segment's path prove it while the peer hears us
//! there too. When they do not (from the second missed beat on) the node is in *doubt*: the shell
//! asks third hosts (gateway, clients of the last minute) and the peer's own address by ARP, and a
//! reply of a third host is a *life*. In doubt for `T_dead` without one, though there was somebody
//! to ask: the segment is lost to this node.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Does a node reach the segment of its addresses? In beats; the worst of all its segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reach {
    /// No carrier, or asked in vain for `T_dead`: nobody there hears this node, or it hears nobody.
    Lost,
    /// In doubt for less than that, or with nobody to ask.
    Unknown,
    /// In both directions: the peer or a third host proved it.
    Whole,
}

/// Somebody who concerns our addresses was heard on a segment, other than by a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Contact {
    /// The peer's own address answered ARP: its kernel runs, whatever its guardian does.
    PeerArp,
    /// Another station answers, or announces itself, for one of our addresses.
    Claim,
}

/// One segment.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// The peer's address that is on this segment, as an index of the paths.
    pub(super) path: Option<usize>,
    pub(super) carrier: bool,
    /// When carrier came (back).
    carrier_at: Instant,
    /// There is a third host to ask.
    targets: bool,
    /// A third host answered, last.
    life: Option<Instant>,
    /// The first answer after questions that nobody answered.
    answered_since: Option<Instant>,
    peer_arp: Option<Instant>,
    peer_advert: Option<Instant>,
    claim: Option<Instant>,
    /// In doubt, since then.
    doubt: Option<Instant>,
    probe_at: Instant,
}

impl Segment {
    pub(super) const fn new(now: Instant, path: Option<usize>) -> Self {
        Self {
            path,
            carrier: true,
            carrier_at: now,
            targets: false,
            life: None,
            answered_since: None,
            peer_arp: None,
            peer_advert: None,
            claim: None,
            doubt: None,
            probe_at: now,
        }
    }

    pub(super) fn handle_carrier(&mut self, now: Instant, up: bool) {
        if up && !self.carrier {
            self.carrier_at = now;
        }
        self.carrier = up;
    }

    pub(super) fn handle_life(&mut self, now: Instant, beat: Duration) {
        let asked = self.doubt.unwrap_or(now).max(self.life.unwrap_or(self.carrier_at));
        if now > asked + beat * 3 / 2 {
            self.answered_since = Some(now);
        }
        self.life = Some(now);
    }

    /// The segment has answered all along, or for `time` again: whoever could not be heard because
    /// of this node's own cable has had time to be.
    pub(super) fn is_settled(&self, now: Instant, time: Duration) -> bool {
        self.answered_since.is_none_or(|since| now >= since + time)
    }

    /// Who was there when the doubt began is asked until it ends.
    pub(super) fn handle_targets(&mut self, known: bool) {
        self.targets = known || (self.targets && self.doubt.is_some());
    }

    pub(super) const fn handle_contact(&mut self, now: Instant, contact: Contact) {
        match contact {
            Contact::PeerArp => self.peer_arp = Some(now),
            Contact::Claim => self.claim = Some(now),
        }
    }

    /// An advert for our addresses came from the peer's own.
    pub(super) const fn handle_peer_advert(&mut self, now: Instant) {
        self.peer_advert = Some(now);
    }

    /// `doubtful`: the peer does not prove this segment in both directions now.
    pub(super) fn observe(&mut self, now: Instant, doubtful: bool) {
        if !doubtful {
            self.doubt = None;
        } else if self.doubt.is_none() {
            self.doubt = Some(now);
            self.probe_at = now;
        }
    }

    /// Is it time to ask again? Each beat at first, then seldom: a peer may be away for days.
    pub(super) fn take_probe(&mut self, now: Instant, beat: Duration, dead: Duration) -> bool {
        let Some(since) = self.doubt.filter(|_| self.carrier && now >= self.probe_at) else {
            return false;
        };
        self.probe_at = now + self.interval(now, since, beat, dead);
        true
    }

    fn interval(&self, now: Instant, since: Instant, beat: Duration, dead: Duration) -> Duration {
        match now.saturating_duration_since(since) {
            young if young < dead * 8 => beat,
            young if young < dead * 200 => dead * 2,
            _ => dead * 10,
        }
    }

    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.doubt.filter(|_| self.carrier).map(|_| self.probe_at)
    }

    /// In doubt for less than `time`, and nobody has answered since.
    pub(super) fn is_undecided(&self, now: Instant, time: Duration) -> bool {
        self.doubt.is_some_and(|since| {
            self.targets && now < since + time && self.life.is_none_or(|at| at < since)
        })
    }

    /// When [`Self::reach`] may become [`Reach::Lost`] by time alone.
    pub(super) fn lost_at(&self, dead: Duration) -> Option<Instant> {
        self.doubt.filter(|_| self.targets).map(|since| since + dead)
    }

    pub(super) fn reach(&self, now: Instant, beat: Duration, dead: Duration) -> Reach {
        if !self.carrier {
            return Reach::Lost;
        }
        let Some(since) = self.doubt else { return Reach::Whole };
        let patience = (self.interval(now, since, beat, dead) * 3).max(dead);
        match self.life.filter(|at| *at >= since && now < *at + patience) {
            Some(_) => Reach::Whole,
            None if self.targets && now >= since + dead => Reach::Lost,
            None => Reach::Unknown,
        }
    }

    pub(super) const fn doubts(&self) -> bool {
        self.doubt.is_some()
    }

    pub(super) const fn has_targets(&self) -> bool {
        self.targets
    }

    /// The peer's kernel has answered after `since`.
    pub(super) fn peer_host_after(&self, since: Instant) -> bool {
        self.peer_arp.is_some_and(|at| at > since)
    }

    pub(super) fn peer_advert_after(&self, since: Instant) -> bool {
        self.peer_advert.is_some_and(|at| at > since)
    }

    pub(super) fn claimed_after(&self, since: Instant) -> bool {
        self.claim.is_some_and(|at| at > since)
    }

    pub(super) const fn carrier_at(&self) -> Instant {
        self.carrier_at
    }

    /// We did not run for `stall`: nobody could answer us.
    pub(super) fn shift(&mut self, stall: Duration) {
        if let Some(since) = &mut self.doubt {
            *since += stall;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_millis(10);
    const DEAD: Duration = Duration::from_millis(40);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn reach_by_what_is_known() {
        let t = Instant::now();
        let reach = |segment: &Segment, at: u32| segment.reach(t + at * MS, BEAT, DEAD);
        let mut segment = Segment::new(t, Some(0));
        assert_eq!(reach(&segment, 0), Reach::Whole, "no doubt: the peer proves it");
        segment.observe(t, true);
        assert_eq!(reach(&segment, 1_000), Reach::Unknown, "nobody to ask");
        segment.handle_targets(true);
        assert_eq!(reach(&segment, 39), Reach::Unknown);
        assert_eq!(reach(&segment, 40), Reach::Lost);
        segment.handle_life(t + 41 * MS, BEAT);
        assert!(!segment.is_settled(t + 60 * MS, 25 * MS), "it was asked in vain before");
        assert!(segment.is_settled(t + 66 * MS, 25 * MS));
        assert_eq!(reach(&segment, 42), Reach::Whole);
        assert_eq!(reach(&segment, 82), Reach::Lost, "and nobody since");
        segment.handle_targets(false);
        assert_eq!(reach(&segment, 82), Reach::Lost, "who was known is not forgotten in doubt");
        segment.observe(t, false);
        segment.handle_targets(false);
        segment.observe(t + 100 * MS, true);
        assert_eq!(reach(&segment, 1_000), Reach::Unknown, "a life before the doubt is none");
        segment.handle_carrier(t, false);
        assert_eq!(reach(&segment, 101), Reach::Lost);
    }

    #[test]
    fn probes_each_beat_then_seldom() {
        let t = Instant::now();
        let mut segment = Segment::new(t, Some(0));
        assert!(!segment.take_probe(t, BEAT, DEAD), "no doubt");
        segment.observe(t, true);
        let count = |segment: &mut Segment, from: u32, to: u32| {
            (from..to).filter(|at| segment.take_probe(t + *at * MS, BEAT, DEAD)).count()
        };
        assert_eq!(count(&mut segment, 0, 100), 10);
        assert_eq!(count(&mut segment, 1_000, 1_800), 10);
        assert_eq!(count(&mut segment, 10_000, 14_000), 10);
        segment.handle_carrier(t, false);
        assert_eq!(count(&mut segment, 20_000, 21_000), 0, "no carrier: nothing would leave");
    }
}
