//! Performs the node's effects, in order, each before the next.

use std::time::Instant;

use super::super::legacy::Record;
use super::Role;
use crate::control::counters::Counter;
use crate::control::message::{SyncCommand, ToEngine};
use crate::node::{Answer, Effect, Lease, Legacy, PeerMessage, Strays};

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
                Effect::Probe { instance } => {
                    self.segments.probe(instance, now);
                    if let Some((probes, _)) = self.asked.get_mut(instance) {
                        *probes += 1;
                    }
                }
                Effect::AskWitness(question) => match &self.witness {
                    Some(witness) => witness.ask(question),
                    None => {
                        let number = question.number;
                        self.node.handle_witness(now, Answer::Unreachable { number });
                    }
                },
                Effect::Remember(legacy) => self.remember(legacy),
                Effect::Answer(on) => {
                    self.segments.answer(on);
                    self.status.answering(on);
                }
                Effect::Strays(strays) => {
                    if let Some(sinks) = &mut self.sinks {
                        sinks.drop_strays(strays != Strays::Refused);
                    }
                    self.segments.strays(strays);
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

    /// For the guardian after this one.
    fn remember(&self, legacy: Legacy) {
        let counted = self.page.sum(Counter::AnswersAlone);
        if let Err(error) = self.legacy.write(Record { legacy, counted }) {
            tracing::error!(%error, "a guardian after this one will not know its store");
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
}
