//! What is known of the other node: which boot lives, its newest beat, when it was heard, which of
//! our beats it heard (and so until when we may answer), its control connection.
//!
//! What it is not: a judge. It keeps facts; `rules.rs` draws conclusions.
//!
//! **Which boot is the living one.** Boot ids are random, and a beat of a dead guardian may arrive
//! late on a slow path. A beat of another boot than the known one is believed when the known one
//! is silent for `T_dead`, or when it echoes a beat of ours that is newer than the newest echoed
//! by the known one: a guardian that is dead heard nothing after its successor started. What was
//! replaced is never believed again.
//!
//! **Silence** is time in which we listened and heard no *new* beat: a stall of ours is taken out
//! ([`Peer::shift`]), and a beat whose number is not above all others seen counts for nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::effects::{ControlEvent, PeerConfig};
use super::message::{Beat, BootId, Echo, Paths, Via};

/// Boots remembered as dead; a packet does not live through so many restarts.
const RETIRED: usize = 16;
/// Sent beats whose time is remembered. More than are sent in `T_lease`, probes included: an echo
/// of an older one could not extend a lease.
const SENT: usize = 64;

/// What became of a beat that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Newer than all before it.
    New,
    /// The first of a boot, in place of another or of none.
    NewBoot,
    /// Repeated, overtaken, or of a dead boot: ignored.
    Old,
}

/// The control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Up,
    /// Its end came then, and no beat since.
    Closed(Instant),
    /// And the peer's kernel says that no guardian listens: it is dead.
    Dead,
    /// It was reset: by a box in between, or by the kernel of a guardian that died with bytes
    /// unread.
    Reset,
    /// And the peer's kernel says that no guardian listens. A filter that resets looks the same:
    /// silence of everything else must come to it.
    Refused,
    Down,
}

/// The newest beat that came by a path.
#[derive(Debug, Clone, Copy)]
struct Ear {
    number: u64,
    at: Instant,
    /// What the peer calls this path.
    theirs: usize,
}

#[derive(Debug)]
pub(crate) struct Peer {
    config: PeerConfig,
    boot: Option<BootId>,
    retired: VecDeque<BootId>,
    newest: Option<Beat>,
    heard: Option<Instant>,
    /// Per path of ours.
    by_path: [Option<Ear>; Paths::MAX],
    /// Newest number of ours that the known boot echoed.
    echoed: u64,
    /// When the known boot last echoed something newer than before.
    echo_heard: Option<Instant>,
    sent: VecDeque<(u64, Instant)>,
    last_sent: u64,
    control: Control,
    /// Our newest beat when the connection ended: who echoes a later one lived after that.
    ended_after: u64,
}

impl Peer {
    pub(crate) const fn new(config: PeerConfig) -> Self {
        Self {
            config,
            boot: None,
            retired: VecDeque::new(),
            newest: None,
            heard: None,
            by_path: [None; Paths::MAX],
            echoed: 0,
            echo_heard: None,
            sent: VecDeque::new(),
            last_sent: 0,
            control: Control::Down,
            ended_after: 0,
        }
    }

    pub(crate) const fn config(&self) -> &PeerConfig {
        &self.config
    }

    /// The newest beat of the living boot, however long ago.
    pub(crate) const fn view(&self) -> Option<&Beat> {
        self.newest.as_ref()
    }

    /// The newest beat, if the peer was heard within `T_dead` and is not known to be dead.
    pub(crate) fn live(&self, now: Instant) -> Option<&Beat> {
        let heard = self.heard?;
        let lives = now < heard + self.config.dead_time() && !self.closed_for_good();
        lives.then_some(self.newest.as_ref()).flatten()
    }

    /// When the peer was last heard, our own stalls taken out.
    pub(crate) const fn heard_at(&self) -> Option<Instant> {
        self.heard
    }

    /// The peer has echoed something new within `T_dead`: it hears us.
    pub(crate) fn hears_us(&self, now: Instant) -> bool {
        self.echo_heard.is_some_and(|at| now < at + self.config.dead_time())
    }

    /// When the peer last proved that it hears us.
    pub(crate) const fn echo_heard_at(&self) -> Option<Instant> {
        self.echo_heard
    }

    /// The newest number of ours that it echoed.
    pub(crate) const fn echoed(&self) -> u64 {
        self.echoed
    }

    pub(crate) const fn control(&self) -> Control {
        self.control
    }

    /// Its connection closed, its kernel says that nobody listens, and no beat denies it.
    pub(crate) const fn closed_for_good(&self) -> bool {
        matches!(self.control, Control::Dead)
    }

    /// Its connection was reset, and its kernel says that nobody listens: dead, or a filter.
    pub(crate) const fn is_refused(&self) -> bool {
        matches!(self.control, Control::Refused)
    }

    const fn has_ended(&self) -> bool {
        use Control::{Closed, Dead, Refused, Reset};
        matches!(self.control, Closed(_) | Dead | Reset | Refused)
    }

    /// Until when answers may leave: `sent(newest echoed beat) + T_lease`.
    pub(crate) fn lease(&self) -> Option<Instant> {
        let (_, at) = self.sent.iter().find(|(number, _)| *number == self.echoed)?;
        Some(*at + self.config.lease_time())
    }

    /// The echo to send.
    pub(crate) fn echo(&self) -> Option<Echo> {
        self.newest.map(|beat| Echo { boot: beat.boot, number: beat.number })
    }

    /// Number of the next beat; remembers when it was sent.
    pub(crate) fn number_beat(&mut self, now: Instant) -> u64 {
        self.last_sent += 1;
        if self.sent.len() == SENT {
            self.sent.pop_front();
        }
        self.sent.push_back((self.last_sent, now));
        self.last_sent
    }

    pub(crate) fn last_sent_at(&self) -> Option<Instant> {
        self.sent.back().map(|(_, at)| *at)
    }

    pub(crate) const fn last_sent(&self) -> u64 {
        self.last_sent
    }

    /// Paths of ours on which the peer is heard: not two beats in a row were missed there.
    pub(crate) fn heard_on(&self, now: Instant) -> Paths {
        let ears = self.ears(now);
        ears.fold(Paths::default(), |all, (ours, _)| all.with(ours))
    }

    /// The same, as the peer counts its paths.
    pub(crate) fn hears(&self, now: Instant) -> Paths {
        let ears = self.ears(now);
        ears.fold(Paths::default(), |all, (_, ear)| all.with(ear.theirs))
    }

    fn ears(&self, now: Instant) -> impl Iterator<Item = (usize, Ear)> {
        let time = self.config.ear_time();
        let ears = self.by_path.iter().enumerate();
        ears.filter_map(|(ours, ear)| Some((ours, (*ear)?))).filter(move |(_, e)| now < e.at + time)
    }

    /// More than one beat is overdue on path `index`.
    pub(crate) fn is_late_on(&self, now: Instant, index: usize) -> bool {
        let ear = self.by_path.get(index).copied().flatten();
        ear.is_some_and(|ear| now >= ear.at + self.config.beat * 3 / 2)
    }

    /// Path `index` works in both directions: the peer is heard there, and says that it hears us.
    pub(crate) fn proves(&self, now: Instant, index: usize) -> bool {
        self.heard_on(now).has(index) && self.live(now).is_some_and(|beat| beat.hears.has(index))
    }

    /// At least two beats in a row were missed, on every path.
    pub(crate) fn missed_two(&self, now: Instant) -> bool {
        self.heard.is_none_or(|at| now >= at + self.config.ear_time())
    }

    /// Takes a beat in, which came by that path. `us` is our own boot.
    pub(crate) fn hear(
        &mut self,
        now: Instant,
        us: BootId,
        beat: &Beat,
        via: Option<Via>,
    ) -> Heard {
        let heard = self.take(now, us, beat);
        // the same beat comes once on each path
        if let Some(Via { ours, theirs }) = via
            && let Some(slot) = self.by_path.get_mut(ours)
            && self.boot == Some(beat.boot)
            && slot.is_none_or(|ear| ear.number < beat.number)
        {
            *slot = Some(Ear { number: beat.number, at: now, theirs });
        }
        heard
    }

    fn take(&mut self, now: Instant, us: BootId, beat: &Beat) -> Heard {
        // an echo of what we never sent proves nothing
        let echo =
            beat.echo.filter(|e| e.boot == us && e.number <= self.last_sent).map(|e| e.number);
        let known = match self.boot {
            Some(boot) if boot == beat.boot => {
                if self.newest.is_some_and(|newest| newest.number >= beat.number) {
                    return Heard::Old;
                }
                true
            }
            Some(_) => {
                let silent = self.live(now).is_none();
                let newer = echo.is_some_and(|number| number > self.echoed);
                if self.retired.contains(&beat.boot) || !(silent || newer) {
                    return Heard::Old;
                }
                false
            }
            None => false,
        };
        if !known {
            self.adopt(beat.boot);
        }
        if let Some(number) = echo
            && number > self.echoed
        {
            self.echoed = number;
            self.echo_heard = Some(now);
        }
        self.newest = Some(*beat);
        self.heard = Some(now);
        let ended = self.has_ended();
        // a beat from before the end may be read after it
        if !known || (ended && echo.is_some_and(|number| number > self.ended_after)) {
            self.control = Control::Up;
        }
        if known { Heard::New } else { Heard::NewBoot }
    }

    fn adopt(&mut self, boot: BootId) {
        if let Some(old) = self.boot.replace(boot) {
            if self.retired.len() == RETIRED {
                self.retired.pop_front();
            }
            self.retired.push_back(old);
        }
        self.echo_heard = None;
        self.by_path = [None; Paths::MAX];
    }

    pub(crate) fn handle_control(&mut self, now: Instant, event: ControlEvent) {
        let ended = self.has_ended();
        if !ended {
            self.ended_after = self.last_sent;
        }
        self.control = match event {
            // another of its connections takes the place of the one that ended, and may be the
            // next to end: that denies nothing
            ControlEvent::Connected | ControlEvent::Lost if ended => self.control,
            ControlEvent::Connected => Control::Up,
            ControlEvent::ClosedByPeer if self.control == Control::Up => Control::Closed(now),
            ControlEvent::Refused if matches!(self.control, Control::Closed(_)) => Control::Dead,
            ControlEvent::Refused if self.control == Control::Reset => Control::Refused,
            ControlEvent::Lost if self.control == Control::Up => Control::Reset,
            ControlEvent::ClosedByPeer | ControlEvent::Refused => self.control,
            ControlEvent::Lost => Control::Down,
        };
    }

    /// The peer said that it closes the connection and lives on.
    pub(crate) const fn handle_bye(&mut self) {
        self.control = Control::Down;
    }

    /// We did not run for `stall`: it was not the peer's silence.
    pub(crate) fn shift(&mut self, stall: Duration) {
        let paths = self.by_path.iter_mut().flatten().map(|ear| &mut ear.at);
        let ours = [&mut self.heard, &mut self.echo_heard].into_iter().flatten();
        for at in ours.chain(paths) {
            *at += stall;
        }
        if let Control::Closed(at) = &mut self.control {
            *at += stall;
        }
    }

    /// When one of the facts above changes by time alone, after `now`.
    pub(crate) fn next_change(&self, now: Instant) -> Option<Instant> {
        let (dead, ear) = (self.config.dead_time(), self.config.ear_time());
        let heard = self.heard.into_iter().flat_map(|at| {
            [at + ear, at + dead, at + self.config.isolation_time(), at + self.config.hung_time()]
        });
        let echo = self.echo_heard.map(|at| at + dead);
        let paths = self.by_path.iter().flatten().map(|one| one.at + ear);
        heard.chain(echo).chain(paths).filter(|at| *at > now).min()
    }
}
