//! One virtual router: Initialize, Backup, Active (RFC 9568 §6.3 and §6.4), without I/O.
//!
//! Two uses, chosen by [`Mode`]:
//!
//! * **Plain**: the RFC to the letter.
//! * **Coupled**: an owner (the pair's `node`) decides who is Active, by epochs and data. Then
//!   - an instance becomes Active by [`Instance::promote`] only: silence just forgets the router
//!     that was followed;
//!   - an Active instance is never deposed by an advert: a stronger foreign router emits
//!     [`Output::Superseded`], and the owner calls [`Instance::resign`] or does not;
//!   - the known peer's adverts never depose by priority; they emit [`Output::PeerContact`].
//!
//! ```text
//! state     event                     plain                     coupled
//! ──────────────────────────────────────────────────────────────────────────────────────────────
//! Backup    down timer                advert, GARP, Active      forgets the router; re-armed
//!           advert, priority 0        timer := skew             the same; PeerResigned if the peer
//!           stronger, or no preempt   learn interval, re-arm    any priority: the same
//!           weaker, preempt           timer runs on             -
//! Active    advert timer              advert                    the same
//!           advert, priority 0        advert, re-arm            the same + GARP; PeerResigned
//!           stronger                  Backup                    Superseded; from the peer nothing
//!           weaker                    advert at once, GARP      the same + SecondMaster
//! ```
//!
//! Nothing is logged here: outputs carry their reasons and [`Counters`] count.

mod output;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::config::{Auth, ConfigError, InstanceConfig, Mode, Priority};
use crate::packet::{Advert, ChecksumKind, Received, Refusal, Version, peek_vrid};
use crate::timers::{AdvertInterval, Timer, TimerTable, active_down, skew};

pub use output::{AdvertReason, Counters, Difference, GarpReason, Output};

/// Least time between two *immediate* answers to other masters' adverts. RFC 9568 §6.4.3 knows no
/// limit; a flood of forged adverts must not make us flood. It is the smallest interval VRRP
/// allows, so a real second master is always answered.
const ANSWER_GAP: Duration = Duration::from_millis(10);

/// Coupled: an interval is learned up to so many times our own.
const LEARNED_MAX: u32 = 10;

/// State of one virtual router (RFC 9568 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Not taking part.
    Initialize,
    /// Listening to the Active Router.
    Backup,
    /// Owning the addresses.
    Active,
}

/// A virtual router. See the module's table; the calling order is in the crate's header.
///
/// Each `handle_*` may leave several [`Output`]s; poll them all and perform them in order before
/// the next input, so that the queue stays at a handful.
#[derive(Debug, Clone)]
pub struct Instance {
    config: InstanceConfig,
    state: State,
    timers: TimerTable,
    outputs: VecDeque<Output>,
    /// Learned from the Active Router (version 3); ours until one is heard.
    active_interval: AdvertInterval,
    /// As the others' checksums are made; see [`ChecksumKind`].
    checksum: ChecksumKind,
    /// In Backup: the router whose adverts keep us there.
    active_router: Option<IpAddr>,
    last_answer: Option<Instant>,
    last_difference: Option<Difference>,
    counters: Counters,
}

impl Instance {
    /// An instance in Initialize.
    ///
    /// # Errors
    /// See [`InstanceConfig::check`].
    pub fn new(config: InstanceConfig) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            active_interval: config.interval,
            config,
            state: State::Initialize,
            timers: TimerTable::default(),
            outputs: VecDeque::new(),
            checksum: ChecksumKind::default(),
            active_router: None,
            last_answer: None,
            last_difference: None,
            counters: Counters::default(),
        })
    }

    /// Present state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// What it was made from; its own and the peer's address may have been set later.
    #[must_use]
    pub const fn config(&self) -> &InstanceConfig {
        &self.config
    }

    /// Counters since creation.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// In Backup: the source of the last accepted advert, unless it resigned or fell silent.
    #[must_use]
    pub const fn active_router(&self) -> Option<IpAddr> {
        self.active_router
    }

    /// The Startup event (RFC 9568 §6.4.1). Coupled instances always go to Backup. Nothing
    /// happens unless the state is Initialize.
    pub fn startup(&mut self, now: Instant) {
        if self.state != State::Initialize {
            return;
        }
        let plain = matches!(self.config.mode, Mode::Plain { .. });
        if plain && self.config.priority == Priority::OWNER {
            self.enter_active(now, GarpReason::Promoted);
        } else {
            self.active_interval = self.config.interval;
            self.enter_backup(now);
        }
    }

    /// The Shutdown event (RFC 9568 §6.4.2, §6.4.3): an Active instance says priority 0 first.
    pub fn shutdown(&mut self) {
        if self.state == State::Active {
            self.send(Priority::RESIGNED, AdvertReason::Resigning);
            self.outputs.push_back(Output::StopGarp);
        }
        self.timers.stop_all();
        self.active_router = None;
        self.change_state(State::Initialize);
    }

    /// Coupled: the source address of the peer's adverts, once known.
    pub fn set_peer(&mut self, peer: Option<IpAddr>) {
        if let Mode::Coupled { peer: known } = &mut self.config.mode {
            *known = peer;
        }
    }

    /// The interface has another address of its own: adverts leave from it, and are summed for it.
    pub fn set_source(&mut self, source: IpAddr) {
        self.config.source = source;
    }

    /// Becomes Active, by the owner's decision: advert, then GARP. Nothing happens in Active.
    pub fn promote(&mut self, now: Instant) {
        if self.state != State::Active {
            self.enter_active(now, GarpReason::Promoted);
        }
    }

    /// Leaves Active for Backup, by the owner's decision; with `announce` it says priority 0
    /// first. Nothing happens in other states: a backup is silent.
    pub fn resign(&mut self, now: Instant, announce: bool) {
        if self.state != State::Active {
            return;
        }
        if announce {
            self.send(Priority::RESIGNED, AdvertReason::Resigning);
        }
        self.active_interval = self.config.interval;
        self.enter_backup(now);
    }

    /// Active: advert and a new GARP burst now, on the owner's evidence of a second master
    /// (healed partition, carrier back, peer fenced). Nothing happens in other states.
    pub fn reassert(&mut self, now: Instant) {
        if self.state == State::Active {
            self.send_advert(now, AdvertReason::Asserting);
            self.outputs.push_back(Output::Garp { reason: GarpReason::Reasserted });
        }
    }

    /// A datagram of protocol 112 from this instance's interface.
    ///
    /// # Errors
    /// Why it was dropped; nothing has changed but a counter.
    pub fn handle_advert(&mut self, now: Instant, received: &Received<'_>) -> Result<(), Refusal> {
        match self.accept(received) {
            Ok((advert, kind)) => {
                self.counters.received += 1;
                self.learn_checksum(received.source, kind);
                self.note_difference(received.source, &advert);
                match self.state {
                    State::Active => self.advert_in_active(now, received.source, &advert),
                    _ => self.advert_in_backup(now, received.source, &advert),
                }
                Ok(())
            }
            Err(refusal) => {
                self.counters.refused[refusal.index()] += 1;
                Err(refusal)
            }
        }
    }

    /// Fires what is due at `now`. Drain the socket first.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(at) = self.timers.take_due(Timer::Advert, now) {
            self.send(self.config.priority, AdvertReason::Periodic);
            let interval = self.config.interval.duration();
            // keeps the cadence, unless a whole interval was missed
            let next = at + interval;
            self.timers.set(Timer::Advert, if next > now { next } else { now + interval });
        }
        if self.timers.take_due(Timer::ActiveDown, now).is_some() {
            match self.config.mode {
                Mode::Plain { .. } => self.enter_active(now, GarpReason::Promoted),
                Mode::Coupled { .. } => {
                    self.active_router = None;
                    self.arm_down(now);
                }
            }
        }
    }

    /// When to call [`Self::handle_timeout`]; `None` in Initialize only.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The next thing to do, in order; `None` when all is done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn accept(&self, received: &Received<'_>) -> Result<(Advert, ChecksumKind), Refusal> {
        if self.state == State::Initialize {
            return Err(Refusal::NotStarted);
        }
        let vrid = self.config.vrid;
        let (advert, kind) = Advert::decode(received, self.config.version).map_err(|refusal| {
            // "MUST verify that the VRID is configured on the receiving interface" comes before
            // what an advert says about itself
            match peek_vrid(received.payload) {
                Some(other) if other != vrid && refusal.index() > Refusal::Checksum.index() => {
                    Refusal::OtherVrid(other.get())
                }
                _ => refusal,
            }
        })?;
        if advert.vrid != vrid {
            return Err(Refusal::OtherVrid(advert.vrid.get()));
        }
        if advert.auth != self.config.auth {
            return Err(match (advert.auth, self.config.auth) {
                (Auth::Simple(_), Auth::Simple(_)) => Refusal::AuthFailed,
                (Auth::Simple(_), Auth::None) => Refusal::AuthType(1),
                (Auth::None, _) => Refusal::AuthType(0),
            });
        }
        if self.config.version == Version::V2 && advert.interval != self.config.interval {
            return Err(Refusal::IntervalDiffers(advert.interval));
        }
        if received.source == self.config.source {
            return Err(Refusal::FromOurselves);
        }
        Ok((advert, kind))
    }

    /// RFC 9568 §6.4.2.
    fn advert_in_backup(&mut self, now: Instant, source: IpAddr, advert: &Advert) {
        let from_peer = self.is_peer(source);
        if advert.priority == Priority::RESIGNED {
            self.counters.priority_zero_received += 1;
            if from_peer {
                self.outputs.push_back(Output::PeerResigned { source });
            } else if self.is_coupled() && self.active_router.is_some_and(|r| r != source) {
                return; // a stranger speaks for itself, not for the router that we follow
            }
            // "If the Priority in the ADVERTISEMENT is 0: Set the Active_Down_Timer to Skew_Time"
            self.active_router = None;
            let skew = skew(self.config.version, self.config.priority, self.active_interval);
            self.timers.set(Timer::ActiveDown, now + skew);
            return;
        }
        let preempt = matches!(self.config.mode, Mode::Plain { preempt: true });
        if preempt && advert.priority < self.config.priority {
            return; // "Discard the ADVERTISEMENT": the timer runs on
        }
        if self.config.version == Version::V3 {
            self.active_interval = self.learned(advert.interval);
        }
        self.arm_down(now);
        let news = self.active_router.replace(source) != Some(source);
        if from_peer {
            self.outputs.push_back(Output::PeerContact { source, priority: advert.priority });
        } else if news && self.is_coupled() {
            self.outputs.push_back(Output::ForeignMaster { source, priority: advert.priority });
        }
    }

    /// RFC 9568 §6.4.3.
    fn advert_in_active(&mut self, now: Instant, source: IpAddr, advert: &Advert) {
        let priority = advert.priority;
        let from_peer = self.is_peer(source);
        if priority == Priority::RESIGNED {
            self.counters.priority_zero_received += 1;
            if from_peer {
                self.outputs.push_back(Output::PeerResigned { source });
            }
            if self.may_answer(now) {
                // "Send an ADVERTISEMENT. Reset the Adver_Timer to Advertisement_Interval."
                self.send_advert(now, AdvertReason::PriorityZeroHeard);
                // who resigns has answered for the addresses until now
                self.outputs.push_back(Output::Garp { reason: GarpReason::SecondMaster });
            }
            return;
        }
        if from_peer {
            self.outputs.push_back(Output::PeerContact { source, priority });
        }
        // "greater than the local Priority, or ... equal to the local Priority and the primary
        // address of the sender is greater than the local primary address"
        let stronger = (priority, source) > (self.config.priority, self.config.source);
        match (stronger, self.config.mode) {
            (true, Mode::Plain { .. }) => {
                if self.config.version == Version::V3 {
                    self.active_interval = advert.interval;
                }
                self.enter_backup(now);
                self.active_router = Some(source);
            }
            (true, Mode::Coupled { .. }) if from_peer => {}
            (true, Mode::Coupled { .. }) => {
                self.outputs.push_back(Output::Superseded { source, priority });
            }
            (false, _) => {
                if self.may_answer(now) {
                    // "Discard the ADVERTISEMENT, and immediately send an ADVERTISEMENT"; the
                    // Adver_Timer runs on
                    self.send(self.config.priority, AdvertReason::Asserting);
                    self.outputs.push_back(Output::SecondMaster { source, priority });
                    self.outputs.push_back(Output::Garp { reason: GarpReason::SecondMaster });
                }
            }
        }
    }

    /// RFC 9568 §6.4.2 has a backup learn the Active Router's interval, of up to 40 s. Coupled,
    /// that would let one forged advert keep a router "heard" for two minutes: it is capped.
    fn learned(&self, interval: AdvertInterval) -> AdvertInterval {
        let most = self.config.interval.duration() * LEARNED_MAX;
        match AdvertInterval::from_duration(most) {
            Some(most) if self.is_coupled() && interval.duration() > most.duration() => most,
            _ => interval,
        }
    }

    fn is_coupled(&self) -> bool {
        matches!(self.config.mode, Mode::Coupled { .. })
    }

    fn is_peer(&self, source: IpAddr) -> bool {
        matches!(self.config.mode, Mode::Coupled { peer: Some(peer) } if peer == source)
    }

    /// The peer's way of summing is used for sending; where it is known, only the peer teaches.
    fn learn_checksum(&mut self, source: IpAddr, kind: ChecksumKind) {
        let peer_known = matches!(self.config.mode, Mode::Coupled { peer: Some(_) });
        if !peer_known || self.is_peer(source) {
            self.checksum = kind;
        }
    }

    /// "If the ... address count and the list ... do not match, log" (RFC 9568 §7.1): said once
    /// per difference, changes nothing.
    fn note_difference(&mut self, source: IpAddr, advert: &Advert) {
        let addresses = advert.addresses.len() != self.config.addresses.len()
            || advert.addresses.iter().any(|a| !self.config.addresses.contains(a));
        let interval = advert.interval != self.config.interval;
        let difference =
            (addresses || interval).then_some(Difference { source, addresses, interval });
        if let Some(difference) = difference
            && self.last_difference != Some(difference)
        {
            self.outputs.push_back(Output::Differs(difference));
        }
        self.last_difference = difference;
    }

    fn may_answer(&mut self, now: Instant) -> bool {
        let due = self.last_answer.is_none_or(|last| now >= last + ANSWER_GAP);
        if due {
            self.last_answer = Some(now);
        } else {
            self.counters.answers_withheld += 1;
        }
        due
    }

    fn enter_active(&mut self, now: Instant, reason: GarpReason) {
        self.timers.stop_all();
        self.active_router = None;
        self.change_state(State::Active);
        // "Send an ADVERTISEMENT", then gratuitous ARP for each address
        self.send_advert(now, AdvertReason::Promoted);
        self.outputs.push_back(Output::Garp { reason });
    }

    fn enter_backup(&mut self, now: Instant) {
        if self.state == State::Active {
            // its burst must not outlive a newer master's
            self.outputs.push_back(Output::StopGarp);
        }
        self.timers.stop_all();
        self.active_router = None;
        self.change_state(State::Backup);
        self.arm_down(now);
    }

    fn change_state(&mut self, to: State) {
        let from = std::mem::replace(&mut self.state, to);
        if from == to {
            return;
        }
        match (from, to) {
            (_, State::Active) => self.counters.became_active += 1,
            (State::Active, _) => self.counters.left_active += 1,
            _ => {}
        }
        self.outputs.push_back(Output::StateChanged { from, to });
    }

    fn arm_down(&mut self, now: Instant) {
        let InstanceConfig { version, priority, down_multiplier, .. } = self.config;
        let down = active_down(version, priority, self.active_interval, down_multiplier);
        self.timers.set(Timer::ActiveDown, now + down);
    }

    /// Sends and re-arms the advertisement timer.
    fn send_advert(&mut self, now: Instant, reason: AdvertReason) {
        self.send(self.config.priority, reason);
        self.timers.set(Timer::Advert, now + self.config.interval.duration());
    }

    fn send(&mut self, priority: Priority, reason: AdvertReason) {
        let InstanceConfig { version, vrid, interval, auth, source, .. } = self.config;
        let addresses = self.config.addresses.clone();
        let advert = Advert { version, vrid, priority, interval, addresses, auth };
        let encoded = advert.encode(source, self.config.group(), self.checksum);
        // `InstanceConfig::check` has refused whatever cannot be encoded
        debug_assert!(encoded.is_ok(), "{encoded:?}");
        if let Ok(payload) = encoded {
            self.counters.sent += 1;
            self.counters.priority_zero_sent += u64::from(priority == Priority::RESIGNED);
            self.outputs.push_back(Output::SendAdvert { payload, reason });
        }
    }
}

#[cfg(test)]
mod tests;
