//! What the peer's silence means: evidence in, a verdict out; the witness's part in it; and how
//! often a node may go on without proof.
//!
//! Silence alone is no death. A node goes on without its peer only when the address's segment
//! answers *this* node meanwhile ([`Node::reached`]); without an answer this node is the isolated
//! one. While the peer's kernel answers ARP, its guardian is hung, busy or filtered: that takes
//! longer to believe. And who is heard to own the addresses lives, whatever its beats say.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::effects::{Effect, Event};
use super::question::{Answer, Question};
use super::segment::Reach;
use super::{Node, State};
use crate::config::{LonelySegment, UnreachableWitness};

/// A verdict on the peer's silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// It is heard, or evidence may still come.
    Undecided,
    /// Its host answers and somebody owns the addresses, but no beat can be read: a filter, or
    /// another key.
    Filtered,
    /// Nobody on the segment answers this node.
    Isolated,
    /// It is gone, as far as this side can know.
    Gone,
}

/// What the witness says of going on now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ballot {
    /// Go on.
    Granted,
    /// It must be asked first.
    Ask,
    /// It has been asked.
    Pending,
    /// Somebody else went on.
    Refused,
}

/// A question to the witness, and what became of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vote {
    /// The silence that it is about.
    since: Instant,
    number: u64,
    asked: Instant,
    by_contact: bool,
    answer: Option<Answer>,
}

/// An answer that let nobody go on is asked for again after this long.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A master that holds the register looks so often whether the witness still knows.
const STILL_THERE: Duration = Duration::from_secs(10);
/// Who is heard to own the addresses counts for so long.
const OWNER: Duration = Duration::from_secs(1);

impl Node {
    /// The verdict on a peer that was heard once and is not any more. `patience`: how long a
    /// silent guardian on a living host is waited for.
    pub(super) fn silence(&self, now: Instant, patience: Duration) -> Silence {
        let Some(peer) = &self.peer else { return Silence::Undecided };
        let config = peer.config();
        let Some(heard) = peer.heard_at().filter(|at| now >= *at + config.dead_time()) else {
            return Silence::Undecided;
        };
        // what came with the last beats proves nothing
        let asked = heard + config.ear_time();
        let lately = asked.max(now.checked_sub(config.beat * 3).unwrap_or(asked));
        let host = self.segments.iter().any(|segment| segment.peer_host_after(lately));
        if host {
            // a guardian that stopped has stopped its program too, with its lease
            let over = heard + config.dead_time();
            // a dead guardian's kernel may answer for the address until its lifetime ends
            let refused = peer.is_refused();
            let owned = |segment: &super::Segment| {
                segment.peer_advert_after(over) || (segment.claimed_after(over) && !refused)
            };
            let patience = if refused { config.dead_time() + self.advert_time() } else { patience };
            if self.segments.iter().any(owned) {
                return Silence::Filtered;
            }
            if now < heard + patience {
                return Silence::Undecided;
            }
        }
        let reached = self.reached(now);
        let ear = config.ear_time();
        let settled = self.segments.iter().all(|segment| segment.is_settled(now, ear));
        if reached && !settled {
            return Silence::Undecided; // we were cut off until a moment ago
        }
        if host || reached {
            return Silence::Gone;
        }
        let waited = now >= heard + config.isolation_time() || self.reach(now) == Reach::Lost;
        if waited { Silence::Isolated } else { Silence::Undecided }
    }

    /// How long a backup waits for a silent guardian on a living host: until its master has gone on
    /// alone by the same rule, and one of its adverts was heard.
    pub(super) fn backup_patience(&self) -> Duration {
        let hung = self.peer.as_ref().map_or(Duration::ZERO, |peer| peer.config().hung_time());
        hung + self.advert_time()
    }

    /// Within this time an advert of a living master is heard.
    fn advert_time(&self) -> Duration {
        let advert = self.vrrp.iter().map(|one| one.config().interval.duration()).max();
        advert.unwrap_or_default() * 5 / 4
    }

    /// Every segment answers this node, or has nobody who could.
    pub(super) fn reached(&self, now: Instant) -> bool {
        let Some(peer) = &self.peer else { return true };
        let (beat, dead) = (peer.config().beat, peer.config().dead_time());
        let takes = peer.config().lonely == LonelySegment::Takeover;
        self.segments.iter().all(|segment| match segment.reach(now, beat, dead) {
            Reach::Whole => true,
            Reach::Unknown => takes && !segment.has_targets(),
            Reach::Lost => false,
        })
    }

    /// No peer is heard, but somebody owns our addresses: no node goes on beside it.
    pub(super) fn is_blocked(&self, now: Instant) -> bool {
        let Some(peer) = self.peer.as_ref().filter(|peer| peer.live(now).is_none()) else {
            return false;
        };
        let ear = peer.config().ear_time();
        // its own last adverts, before it fell silent, are not somebody
        let since = now.checked_sub(OWNER).unwrap_or(now).max(self.since);
        let since = peer.heard_at().map_or(since, |heard| since.max(heard + ear));
        let refused = peer.is_refused();
        self.segments.iter().any(|segment| {
            (segment.claimed_after(since) && !refused)
                || (segment.peer_advert_after(since) && segment.peer_host_after(since))
        })
    }

    /// May this node go on by the silence that began at `since`?
    pub(super) fn ballot(&self, now: Instant, since: Instant) -> Ballot {
        let policy = self.peer.as_ref().and_then(|peer| peer.config().witness);
        let Some(policy) = policy else { return Ballot::Granted };
        let Some(vote) = self.vote.filter(|vote| vote.since == since && !vote.by_contact) else {
            return Ballot::Ask;
        };
        let again = now >= vote.asked + ASK_AGAIN && !self.state.is_master();
        match vote.answer {
            None => Ballot::Pending,
            Some(Answer::Granted { .. }) => Ballot::Granted,
            Some(_) if again && self.state != State::Synced => Ballot::Ask,
            Some(Answer::Refused { .. }) => Ballot::Refused,
            Some(Answer::Unreachable { .. }) => match policy {
                UnreachableWitness::PreferMaster if self.state == State::Master => Ballot::Granted,
                _ => Ballot::Refused,
            },
        }
    }

    /// Asks the witness.
    pub(super) fn ask(&mut self, now: Instant, since: Instant, by_contact: bool) {
        self.questions += 1;
        let number = self.questions;
        let reign = if by_contact { Some(self.epoch) } else { self.seen.next(self.side) };
        let epoch = u32::from(reign.unwrap_or(self.seen).get());
        self.vote = Some(Vote { since, number, asked: now, by_contact, answer: None });
        // who is not in sync goes on only if it was the last to go on
        let entitled = by_contact || self.state == State::Synced || self.master.told.is_some();
        let expected = if entitled { self.generation } else { 0 };
        let question = Question { number, epoch, expected, by_contact };
        self.push(Effect::AskWitness(question));
    }

    pub(super) fn answered(&mut self, answer: Answer) {
        let Some(vote) = self.vote.as_mut().filter(|vote| vote.number == answer.number()) else {
            return; // of an older question
        };
        if vote.answer.is_some() {
            return; // once more, or too late
        }
        vote.answer = Some(answer);
        let by_contact = vote.by_contact;
        match answer {
            Answer::Granted { generation, .. } => {
                self.generation = self.generation.max(generation);
                self.registered = generation;
                self.unwitnessed = false;
            }
            // asked with the peer's leave: only the number was stale
            Answer::Refused { generation, .. } if by_contact => {
                self.generation = self.generation.max(generation);
            }
            Answer::Refused { .. } | Answer::Unreachable { .. } => {}
        }
        self.push(Effect::Event(Event::Witness(answer)));
    }

    /// A master that went on with proof, or in contact, has the register follow, without waiting.
    pub(super) fn register(&mut self, now: Instant) {
        let configured = self.peer.as_ref().is_some_and(|peer| peer.config().witness.is_some());
        if !configured || !self.state.is_master() {
            return;
        }
        // somebody who went on no further may have taken it meanwhile: its beats tell; a witness
        // that has lost its register tells nobody, so it is asked now and then
        let holds = self.registered > 0 && self.registered == self.generation;
        let pause = if holds { STILL_THERE } else { ASK_AGAIN };
        let due = self.vote.is_none_or(|vote| now >= vote.asked + pause);
        if due {
            self.ask(now, self.since, !self.unwitnessed);
        }
    }

    /// The last question was answered by a refusal.
    pub(super) fn was_refused(&self) -> bool {
        let answer = self.vote.and_then(|vote| vote.answer);
        matches!(answer, Some(Answer::Refused { .. }))
    }

    /// Was the question about going on now granted?
    pub(super) fn was_granted(&self) -> bool {
        let vote = self.vote.filter(|vote| !vote.by_contact);
        matches!(vote.and_then(|vote| vote.answer), Some(Answer::Granted { .. }))
    }
}

/// Promotions without proof, in the last [`Damper::WINDOW`]: the first few cost nothing, then each
/// waits twice as long as the one before. Epochs are few, and a pair that changes its mind every
/// second serves nobody.
#[derive(Debug, Default)]
pub(super) struct Damper {
    recent: VecDeque<Instant>,
}

impl Damper {
    const WINDOW: Duration = Duration::from_secs(600);
    const FREE: usize = 8;
    const MOST: usize = 24;
    const STEP: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(30);

    pub(super) fn count(&mut self, now: Instant) {
        if self.recent.len() == Self::MOST {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
    }

    /// Before then there is no other.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        let young = self.recent.iter().filter(|at| now < **at + Self::WINDOW).count();
        let over = u32::try_from(young.checked_sub(Self::FREE)?).ok()?;
        let pause = Self::STEP.saturating_mul(1 << over.min(20)).min(Self::LONGEST);
        self.recent.back().map(|last| *last + pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_damper_doubles_and_forgets() {
        let t = Instant::now();
        let mut damper = Damper::default();
        for _ in 0..7 {
            damper.count(t);
        }
        assert_eq!(damper.until(t), None);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            damper.count(t);
            pauses.push(damper.until(t).map(|at| (at - t).as_millis()));
        }
        let first: Vec<_> = [100, 200, 400, 800].map(Some).to_vec();
        assert_eq!(pauses[..4], first);
        assert_eq!(pauses[11], Some(30_000));
        assert_eq!(damper.until(t + Damper::WINDOW), None);
    }
}
