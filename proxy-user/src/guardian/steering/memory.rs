//! The twin without a kernel: the same verdict over the same tables, frames given by hand.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use proxy_common::abi::{self, Asker, Askers, Control, Mac, Reason, VIPS_MAX};
use proxy_common::{Tables, Verdict, decide};

use super::slots::{Place, SlotTable};
use super::{AttachReport, Attached, Conflict, Counters, Mode, Steering, SteeringError};

/// How many conflicts wait to be read; the kernel's ring is bounded too.
const CONFLICTS_MAX: usize = 1024;

/// What an interface of the twin did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The host has it.
    Passed,
    /// It was rewritten and is to be sent back.
    Sent,
    /// It is gone.
    Dropped,
}

/// Steering in memory: for tests and simulation.
#[derive(Debug)]
pub struct MemorySteering {
    interfaces: BTreeMap<String, (u32, Mac)>,
    attached: BTreeMap<String, u32>,
    slots: SlotTable,
    askers: Askers,
    answers: [bool; VIPS_MAX as usize],
    control: Control,
    counters: Counters,
    conflicts: VecDeque<Conflict>,
}

struct View<'a> {
    steering: &'a MemorySteering,
    ifindex: u32,
    now_ns: u64,
}

impl Tables for View<'_> {
    fn vip(&self, address: abi::Ipv4) -> Option<abi::Vip> {
        self.steering.slots.get(address.into()).ok().copied()
    }
    fn answers(&self, slot: u32) -> bool {
        self.steering.answers.get(slot as usize).copied().unwrap_or(false)
    }
    fn control(&self) -> Control {
        self.steering.control
    }
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
    fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

impl MemorySteering {
    /// A host with these interfaces: name and Ethernet address, numbered from 1.
    pub fn new<'a>(interfaces: impl IntoIterator<Item = (&'a str, Mac)>) -> Self {
        let interfaces = interfaces.into_iter().zip(1..);
        Self {
            interfaces: interfaces.map(|((name, mac), i)| (name.to_owned(), (i, mac))).collect(),
            attached: BTreeMap::new(),
            slots: SlotTable::default(),
            askers: Askers::default(),
            answers: [false; VIPS_MAX as usize],
            control: Control::default(),
            counters: Counters::default(),
            conflicts: VecDeque::new(),
        }
    }

    /// Hooks into `interface`.
    ///
    /// # Errors
    /// [`SteeringError::Interface`], [`SteeringError::Busy`].
    pub fn attach(
        &mut self,
        interface: &str,
        mode: Mode,
    ) -> Result<(Place, AttachReport), SteeringError> {
        let Some(&(ifindex, mac)) = self.interfaces.get(interface) else {
            return Err(SteeringError::Interface {
                interface: interface.to_owned(),
                what: "no such interface".to_owned(),
            });
        };
        if self.attached.insert(interface.to_owned(), ifindex).is_some() {
            return Err(SteeringError::Busy {
                interface: interface.to_owned(),
                holder: "this steering".to_owned(),
            });
        }
        let got = if mode == Mode::Generic { Attached::Generic } else { Attached::Native };
        let reason = "in memory".to_owned();
        let interface = interface.to_owned();
        let report = AttachReport { interface, got, reason, warnings: Vec::new() };
        Ok((Place { ifindex, tx_ifindex: 0, mac }, report))
    }

    /// Lets go of all interfaces.
    pub fn detach(&mut self) {
        self.attached.clear();
    }

    /// Whether `vip` is answered for (the lease apart).
    pub fn answers(&self, vip: Ipv4Addr) -> bool {
        self.slots.get(vip).is_ok_and(|entry| self.answers[entry.slot as usize])
    }

    /// `frame` arrives on `interface` at `now_ns`; an answer is written over it.
    pub fn receive(&mut self, interface: &str, frame: &mut [u8], now_ns: u64) -> Outcome {
        let Some(&ifindex) = self.attached.get(interface) else { return Outcome::Passed };
        let verdict = decide(&*frame, &View { steering: self, ifindex, now_ns });
        self.counters.add(verdict.reason(), 1);
        if let Some(asker) = verdict.asker(now_ns) {
            self.askers.0[Askers::place(asker.address)] = asker;
        }
        match verdict {
            Verdict::Pass(_) => Outcome::Passed,
            Verdict::Drop(_) | Verdict::Withhold(_) => Outcome::Dropped,
            Verdict::Conflict(conflict) => {
                if self.conflicts.len() < CONFLICTS_MAX {
                    self.conflicts.push_back(conflict.into());
                } else {
                    self.counters.add(Reason::EventLost, 1);
                }
                Outcome::Passed
            }
            Verdict::ArpReply(reply) => match reply.write(frame) {
                Some(()) => Outcome::Sent,
                None => Outcome::Dropped,
            },
        }
    }
}

impl Steering for MemorySteering {
    fn place_vip(&mut self, vip: Ipv4Addr, place: Place) -> Result<(), SteeringError> {
        let entry = self.slots.place(vip, place)?;
        self.answers[entry.slot as usize] = false;
        Ok(())
    }

    fn answer(&mut self, vip: Ipv4Addr, on: bool) -> Result<(), SteeringError> {
        let slot = self.slots.get(vip)?.slot;
        self.answers[slot as usize] = on;
        Ok(())
    }

    fn answer_until(&mut self, until_ns: u64) -> Result<(), SteeringError> {
        self.control.answer_until_ns = until_ns;
        Ok(())
    }

    fn counters(&self) -> Result<Counters, SteeringError> {
        Ok(self.counters)
    }

    fn askers(&self) -> Result<Vec<Asker>, SteeringError> {
        Ok(self.askers.iter().copied().collect())
    }

    fn next_conflict(&mut self) -> Option<Conflict> {
        self.conflicts.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    fn arp(sender: Mac, sender_ip: [u8; 4]) -> Vec<u8> {
        let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
        [&[0xff; 6][..], &sender, &head, &sender, &sender_ip, &[0; 6], &VIP.octets()].concat()
    }

    fn steering() -> MemorySteering {
        let mut steering = MemorySteering::new([("eth0", OURS)]);
        let (place, _) = steering.attach("eth0", Mode::Auto).unwrap();
        steering.place_vip(VIP, place).unwrap();
        steering
    }

    #[test]
    fn an_address_is_answered_for_only_while_told_to_and_within_the_lease() {
        let mut steering = steering();
        let request = arp(OTHER, [192, 0, 2, 9]);
        let ask = |steering: &mut MemorySteering, now| {
            steering.receive("eth0", &mut request.clone(), now)
        };
        steering.answer_until(100).unwrap();
        assert_eq!(ask(&mut steering, 1), Outcome::Dropped);
        steering.answer(VIP, true).unwrap();
        assert_eq!(ask(&mut steering, 99), Outcome::Sent);
        assert_eq!(ask(&mut steering, 100), Outcome::Dropped);
        steering.answer_until(u64::MAX).unwrap();
        assert_eq!(ask(&mut steering, 100), Outcome::Sent);
        steering.answer(VIP, false).unwrap();
        assert_eq!(ask(&mut steering, 101), Outcome::Dropped);
        let [asker] = steering.askers().unwrap()[..] else { panic!("one asked") };
        assert_eq!((asker.address, asker.mac, asker.at_ns), ([192, 0, 2, 9], OTHER, 101));
        steering.detach();
        assert_eq!(ask(&mut steering, 102), Outcome::Passed);
        let counters = steering.counters().unwrap();
        assert_eq!(counters.of(Reason::ArpAnswered), 2);
        assert_eq!(counters.of(Reason::ArpBackup), 2);
        assert_eq!(counters.of(Reason::ArpStale), 1);
    }

    #[test]
    fn claims_by_another_are_reported_up_to_a_bound() {
        let mut steering = steering();
        steering.answer(VIP, true).unwrap();
        steering.answer_until(2).unwrap();
        for _ in 0..=CONFLICTS_MAX {
            steering.receive("eth0", &mut arp(OTHER, VIP.octets()), 1);
        }
        assert_eq!(steering.next_conflict(), Some(Conflict { vip: VIP, mac: OTHER, ifindex: 1 }));
        let rest = std::iter::from_fn(|| steering.next_conflict()).count();
        assert_eq!(rest, CONFLICTS_MAX - 1);
        assert_eq!(steering.counters().unwrap().of(Reason::EventLost), 1);
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let mut steering = steering();
        assert!(matches!(
            steering.attach("eth9", Mode::Auto),
            Err(SteeringError::Interface { .. })
        ));
        assert!(matches!(steering.attach("eth0", Mode::Auto), Err(SteeringError::Busy { .. })));
        assert!(matches!(
            steering.answer(Ipv4Addr::LOCALHOST, true),
            Err(SteeringError::UnknownVip(Ipv4Addr::LOCALHOST))
        ));
    }
}
