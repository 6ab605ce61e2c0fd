//! Performs the node's effects, in order, each before the next.

use std::time::Instant;

use super::Role;
use crate::control::message::{SyncCommand, ToEngine};
use crate::node::{Answer, Effect, Event, Lease, PeerMessage};

impl Role {
    /// Until the node wants nothing more.
    pub(super) fn perform(&mut self, now: Instant) {
        while let Some(effect) = self.node.poll_effect() {
            match effect {
                Effect::PersistEpoch(epoch) => self.disk.persist(epoch),
                Effect::PrepareEngine(epoch) => {
                    self.tell(&ToEngine::Prepare { epoch: epoch.get() });
                }
                Effect::SetRole { state, epoch } => {
                    self.page.set_role(state, epoch.get());
                    self.tell_role();
                }
                Effect::SetLease(lease) => self.set_lease(lease),
                Effect::Address(on) => {
                    self.segments.address(on);
                    // gone is told at once, so that nobody relies on what is being removed
                    if !on || !self.segments.has_addresses() {
                        self.node.handle_address(now, on);
                    }
                }
                Effect::Probe { instance } => self.segments.probe(instance, now),
                Effect::AskWitness(question) => {
                    let number = question.number;
                    self.node.handle_witness(now, Answer::Unreachable { number });
                }
                // a guardian's store does not outlive it yet
                Effect::Remember(_) => {}
                Effect::Answer(on) => {
                    self.segments.answer(on);
                    self.status.answering(on);
                }
                Effect::Vrrp { instance, output } => self.vrrp(now, instance, &output),
                Effect::Gate(gate) => self.tell(&ToEngine::Sync(SyncCommand::Gate { gate })),
                Effect::SendBeat(beat) => {
                    if let Some(link) = &mut self.link {
                        link.send(now, &PeerMessage::Beat(beat));
                    }
                }
                Effect::EngineTarget(target) => {
                    self.target = target;
                    self.tell_target();
                }
                Effect::Event(event) => self.event(now, &event),
            }
        }
    }

    fn set_lease(&mut self, lease: Lease) {
        let until = match lease {
            Lease::Unlimited => u64::MAX,
            Lease::Expired => 0,
            Lease::Until(until) => {
                let (ns, at) = self.clock;
                let ahead = until.saturating_duration_since(at).as_nanos();
                ns.saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
            }
        };
        self.page.set_lease(until);
        self.segments.lease(until);
    }

    fn vrrp(&mut self, now: Instant, instance: usize, output: &vrrp::Output) {
        match output {
            vrrp::Output::SendAdvert { payload, .. } => self.segments.advert(instance, payload),
            vrrp::Output::Garp { reason } => {
                tracing::debug!(?reason, "gratuitous ARP");
                self.segments.garp(instance, now);
            }
            vrrp::Output::StopGarp => self.segments.stop_garp(instance),
            vrrp::Output::Differs(difference) => {
                tracing::warn!(?difference, "an advert differs from our configuration");
            }
            other => tracing::debug!(?other, instance, "vrrp"),
        }
    }

    /// The role word, as a wake-up for the workers.
    pub(super) fn tell_role(&self) {
        self.tell(&ToEngine::Role(self.page.role()));
    }

    pub(super) fn tell_target(&self) {
        self.tell(&ToEngine::Sync(SyncCommand::Target(self.target)));
    }

    /// To the engine that serves; one that is still starting learns all of it at its hello.
    fn tell(&self, message: &ToEngine) {
        let Some(engine) = self.engine.as_ref().filter(|engine| engine.up) else { return };
        if let Err(error) = engine.channel.send(message) {
            tracing::debug!(%error, "cannot reach the engine");
        }
    }

    /// One log line for what matters.
    fn event(&mut self, now: Instant, event: &Event) {
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
            Event::DiskRecovered => tracing::info!("the state file can be written again"),
            Event::LossyTakeover { lineage } => {
                tracing::error!(
                    ?lineage,
                    "TOOK OVER WITHOUT BEING IN SYNC: what the peer alone held is lost"
                );
                self.alarm("took over without being in sync: what the peer alone held is lost");
            }
            Event::ForkLost(alone) => {
                let most = 1_u64.checked_shl(alone.0.into()).unwrap_or(u64::MAX);
                tracing::error!(
                    fewer_than = most,
                    "TOOK the other's content: answers this node gave alone are lost"
                );
                self.alarm("took the other node's content: answers given alone are lost");
            }
            Event::DiskFailed => {
                tracing::error!("the state file cannot be written: a few promotions are reserved");
                self.alarm("the state file cannot be written: a few promotions are reserved");
            }
            Event::EpochsLow { left } => {
                tracing::error!(left, "few epochs are left: plan to reset both state files");
                self.alarm("few epochs are left: plan to reset both state files");
            }
            Event::ForeignMaster => {
                tracing::error!("a foreign VRRP router took the address: this node yields");
                self.alarm("a foreign VRRP router took the address");
            }
            Event::ForeignAdverts => {
                tracing::error!("adverts of a stronger router for our address: not believed");
                self.alarm("adverts of a stronger router for our address");
            }
            Event::Blocked(true) => {
                tracing::error!("somebody owns our addresses and is no peer: this node stays out");
                self.alarm("somebody owns our addresses, and no beat of it can be read");
            }
            Event::Blocked(false) => tracing::info!("nobody else owns our addresses any more"),
            Event::Reach(reach) => tracing::warn!(?reach, "reach of the addresses' segment"),
            Event::PeerReach(reach) => tracing::info!(?reach, "the peer's reach of its segment"),
            Event::Damped(pause) => {
                tracing::error!(?pause, "too many promotions without proof: the next waits");
                self.alarm("too many promotions without proof: the next waits");
            }
            Event::Witness(answer) => tracing::info!(?answer, "witness"),
            Event::Refused(refused) => {
                tracing::error!(%refused, "a rule tried a change that is not allowed");
                self.alarm("a rule tried a change that is not allowed");
            }
        }
    }

    /// What an operator must look at.
    fn alarm(&self, text: &str) {
        self.status.event(&format!("ALARM: {text}"));
    }
}
