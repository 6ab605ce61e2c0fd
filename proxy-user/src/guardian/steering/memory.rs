//! The twin without a kernel: the same verdict over the same tables, frames given by hand.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use proxy_common::abi::{self, Control, Mac, Reason, STALE_AFTER_NS, VIPS_MAX};
use proxy_common::{Tables, Verdict, decide};

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
    vips: BTreeMap<Ipv4Addr, abi::Vip>,
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
        self.steering.vips.get(&address.into()).copied()
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
            vips: BTreeMap::new(),
            answers: [false; VIPS_MAX as usize],
            control: Control { beat_ns: 0, stale_after_ns: STALE_AFTER_NS },
            counters: Counters::default(),
            conflicts: VecDeque::new(),
        }
    }

    /// Whether `vip` is answered for (the guardian's life sign apart).
    pub fn answers(&self, vip: Ipv4Addr) -> bool {
        self.vips.get(&vip).is_some_and(|entry| self.answers[entry.slot as usize])
    }

    /// `frame` arrives on `interface` at `now_ns`; an answer is written over it.
    pub fn receive(&mut self, interface: &str, frame: &mut [u8], now_ns: u64) -> Outcome {
        let Some(&ifindex) = self.attached.get(interface) else { return Outcome::Passed };
        let verdict = decide(&*frame, &View { steering: self, ifindex, now_ns });
        self.counters.add(verdict.reason(), 1);
        match verdict {
            Verdict::Pass(_) => Outcome::Passed,
            Verdict::Drop(_) => Outcome::Dropped,
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
    fn attach(&mut self, interface: &str, mode: Mode) -> Result<AttachReport, SteeringError> {
        let Some(&(ifindex, _)) = self.interfaces.get(interface) else {
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
        Ok(AttachReport { interface: interface.to_owned(), got, reason, warnings: Vec::new() })
    }

    fn add_vip(&mut self, vip: Ipv4Addr, interface: &str) -> Result<(), SteeringError> {
        let (Some(&ifindex), Some(&(_, mac))) =
            (self.attached.get(interface), self.interfaces.get(interface))
        else {
            return Err(SteeringError::Interface {
                interface: interface.to_owned(),
                what: "not attached".to_owned(),
            });
        };
        let slot = match self.vips.get(&vip) {
            Some(entry) => entry.slot,
            None => u32::try_from(self.vips.len()).unwrap_or(VIPS_MAX),
        };
        if slot >= VIPS_MAX {
            return Err(SteeringError::TooManyVips);
        }
        self.answers[slot as usize] = false;
        self.vips.insert(vip, abi::Vip { slot, ifindex, tx_ifindex: 0, vlan: 0, mac });
        Ok(())
    }

    fn answer(&mut self, vip: Ipv4Addr, on: bool) -> Result<(), SteeringError> {
        let entry = self.vips.get(&vip).ok_or(SteeringError::UnknownVip(vip))?;
        self.answers[entry.slot as usize] = on;
        Ok(())
    }

    fn beat(&mut self, now_ns: u64) -> Result<(), SteeringError> {
        self.control.beat_ns = now_ns;
        Ok(())
    }

    fn set_stale_after(&mut self, nanoseconds: u64) -> Result<(), SteeringError> {
        self.control.stale_after_ns = nanoseconds;
        Ok(())
    }

    fn counters(&self) -> Result<Counters, SteeringError> {
        Ok(self.counters)
    }

    fn next_conflict(&mut self) -> Option<Conflict> {
        self.conflicts.pop_front()
    }

    fn detach(&mut self) {
        self.attached.clear();
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
        steering.attach("eth0", Mode::Auto).unwrap();
        steering.add_vip(VIP, "eth0").unwrap();
        steering
    }

    #[test]
    fn an_address_is_answered_for_only_while_told_to_and_alive() {
        let mut steering = steering();
        let request = arp(OTHER, [192, 0, 2, 9]);
        let ask = |steering: &mut MemorySteering, now| {
            steering.receive("eth0", &mut request.clone(), now)
        };
        steering.beat(1).unwrap();
        assert_eq!(ask(&mut steering, 1), Outcome::Dropped);
        steering.answer(VIP, true).unwrap();
        assert_eq!(ask(&mut steering, 1), Outcome::Sent);
        assert_eq!(ask(&mut steering, 2 + STALE_AFTER_NS), Outcome::Dropped);
        steering.beat(2 + STALE_AFTER_NS).unwrap();
        assert_eq!(ask(&mut steering, 2 + STALE_AFTER_NS), Outcome::Sent);
        steering.answer(VIP, false).unwrap();
        assert_eq!(ask(&mut steering, 2 + STALE_AFTER_NS), Outcome::Dropped);
        steering.detach();
        assert_eq!(ask(&mut steering, 2 + STALE_AFTER_NS), Outcome::Passed);
        let counters = steering.counters().unwrap();
        assert_eq!(counters.of(Reason::ArpAnswered), 2);
        assert_eq!(counters.of(Reason::ArpBackup), 2);
        assert_eq!(counters.of(Reason::ArpStale), 1);
    }

    #[test]
    fn claims_by_another_are_reported_up_to_a_bound() {
        let mut steering = steering();
        steering.answer(VIP, true).unwrap();
        steering.beat(1).unwrap();
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
        for i in 1..VIPS_MAX {
            steering.add_vip(Ipv4Addr::from(0x0a00_0000 + i), "eth0").unwrap();
        }
        assert!(matches!(
            steering.add_vip(Ipv4Addr::from(0x0b00_0000), "eth0"),
            Err(SteeringError::TooManyVips)
        ));
        steering.add_vip(VIP, "eth0").unwrap();
    }
}
