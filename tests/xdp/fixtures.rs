//! Frames, the loaded program, and the same tables in user space.

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, Pod};
use proxy_common::abi::{self, Asker, Askers, Conflict, Control, Ipv4, Mac, Reason, Vip};
use proxy_common::packet::internet_checksum;
use proxy_common::{Tables, Verdict, decide};
use proxy_user::guardian::steering::{find_object, monotonic_ns};

/// The address that is steered, and another one that leaves by redirect.
pub(crate) const VIP: Ipv4 = [192, 0, 2, 100];
pub(crate) const VIP_REDIRECTED: Ipv4 = [192, 0, 2, 101];
/// An address of another interface than the one that test frames come in by.
pub(crate) const VIP_ELSEWHERE: Ipv4 = [192, 0, 2, 102];
/// An address in VLAN 5.
pub(crate) const VIP_TAGGED: Ipv4 = [192, 0, 2, 105];
pub(crate) const OURS: Mac = [2, 0, 0, 0, 0, 1];
pub(crate) const PEER: Mac = [2, 0, 0, 0, 0, 2];
pub(crate) const CLIENT: Mac = [2, 0, 0, 0, 0, 9];
pub(crate) const CLIENT_IP: Ipv4 = [192, 0, 2, 9];
pub(crate) const EVERYBODY: Mac = [0xff; 6];

/// Test frames come in by the loopback interface of the namespace.
const IFINDEX: u32 = 1;
/// Long enough that no test outlives it.
const AN_HOUR_NS: u64 = 3_600_000_000_000;

/// What the node is told in a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Master,
    Backup,
    /// Master, whose lease has ended.
    Ended,
}

fn vips() -> [(Ipv4, Vip); 4] {
    let vip = |slot| Vip { slot, ifindex: IFINDEX, tx_ifindex: 0, vlan: 0, mac: OURS };
    [
        (VIP, vip(0)),
        (VIP_REDIRECTED, Vip { tx_ifindex: IFINDEX, ..vip(1) }),
        (VIP_ELSEWHERE, Vip { ifindex: 99, ..vip(2) }),
        (VIP_TAGGED, Vip { vlan: 5, ..vip(63) }),
    ]
}

fn control(node: Node, now_ns: u64) -> Control {
    Control { answer_until_ns: if node == Node::Ended { now_ns } else { now_ns + AN_HOUR_NS } }
}

/// What became of a frame: the program's return value and the frame.
pub(crate) type Fate = (u32, Vec<u8>);

/// The tables of a row, in user space.
pub(crate) struct Twin(pub(crate) Node);

impl Tables for Twin {
    fn vip(&self, address: Ipv4) -> Option<Vip> {
        vips().into_iter().find(|(vip, _)| *vip == address).map(|(_, entry)| entry)
    }
    fn answers(&self, _slot: u32) -> bool {
        self.0 != Node::Backup
    }
    fn control(&self) -> Control {
        control(self.0, 1)
    }
    fn now_ns(&self) -> u64 {
        1_000_000_000
    }
    fn ifindex(&self) -> u32 {
        IFINDEX
    }
}

impl Twin {
    /// What the program should do with `frame`, by the verdict in user space.
    pub(crate) fn run(&self, frame: &[u8]) -> (Fate, Reason) {
        let (verdict, mut frame) = (decide(frame, self), frame.to_vec());
        let action = match verdict {
            Verdict::Drop(_) | Verdict::Withhold(_) => 1,
            Verdict::Pass(_) | Verdict::Conflict(_) => 2,
            Verdict::ArpReply(reply) => {
                reply.write(&mut frame[..]).expect("the request is there");
                if reply.vip.tx_ifindex == 0 { 3 } else { 4 }
            }
        };
        ((action, frame), verdict.reason())
    }
}

/// The program, loaded.
pub(crate) struct Kernel {
    ebpf: Ebpf,
    counters: PerCpuArray<MapData, u64>,
    conflicts: RingBuf<MapData>,
    askers: Array<MapData, Askers>,
}

impl Kernel {
    pub(crate) fn load() -> Result<Self> {
        let object = find_object()?;
        let mut ebpf = Ebpf::load_file(&object).with_context(|| object.display().to_string())?;
        program(&mut ebpf)?.load()?;
        let counters = ebpf.take_map(abi::COUNTERS).context("no counters")?.try_into()?;
        let conflicts = ebpf.take_map(abi::CONFLICTS).context("no conflicts")?.try_into()?;
        let askers = ebpf.take_map(abi::ASKERS).context("no askers")?.try_into()?;
        let map = ebpf.map_mut(abi::VIPS).context("no vips")?;
        let mut entries: HashMap<_, Ipv4, Vip> = map.try_into()?;
        for (address, vip) in vips() {
            entries.insert(address, vip, 0)?;
        }
        Ok(Self { ebpf, counters, conflicts, askers })
    }

    /// Tells the program what its guardian would.
    pub(crate) fn set(&mut self, node: Node) -> Result<()> {
        for slot in 0..abi::VIPS_MAX {
            self.write(abi::ANSWERS, slot, u32::from(node != Node::Backup))?;
        }
        self.write(abi::CONTROL, 0, control(node, monotonic_ns()))
    }

    fn write<V: Pod>(&mut self, map: &str, index: u32, value: V) -> Result<()> {
        let map = self.ebpf.map_mut(map).context("no such map")?;
        Ok(Array::<_, V>::try_from(map)?.set(index, value, 0)?)
    }

    /// Runs the program once over `frame`: its fate, and the one counter that was raised.
    pub(crate) fn run(&mut self, frame: &[u8]) -> Result<(Fate, Reason)> {
        let before = self.count()?;
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = program(&mut self.ebpf)?.test_run(options)?;
        out.truncate(usize::try_from(result.data_size_out)?);
        let after = self.count()?;
        let mut raised =
            Reason::ALL.into_iter().filter(|r| after[*r as usize] != before[*r as usize]);
        let reason = raised.next().context("no counter was raised")?;
        assert_eq!(raised.next(), None, "a second counter beside {reason:?}");
        assert_eq!(after[reason as usize], before[reason as usize] + 1);
        Ok(((result.return_value, out), reason))
    }

    fn count(&self) -> Result<Vec<u64>> {
        Reason::ALL.into_iter().map(|reason| self.count_of(reason)).collect()
    }

    /// One counter, over all CPUs.
    pub(crate) fn count_of(&self, reason: Reason) -> Result<u64> {
        Ok(self.counters.get(&(reason as u32), 0)?.iter().sum())
    }

    /// The next conflict in the ring.
    pub(crate) fn conflict(&mut self) -> Option<Conflict> {
        self.conflicts.next().map(|record| Conflict::from_bytes(&record).expect("its size"))
    }

    /// Who has asked for a VIP.
    pub(crate) fn askers(&self) -> Result<Vec<Asker>> {
        Ok(self.askers.get(&0, 0)?.iter().copied().collect())
    }

    /// Nanoseconds per run of the program over `frame`, as the kernel measures them.
    pub(crate) fn cost_ns(&mut self, frame: &[u8], repeat: u32) -> Result<u128> {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
        Ok(program(&mut self.ebpf)?.test_run(options)?.duration.as_nanos())
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    Ok(ebpf.program_mut(abi::PROGRAM).context("no program")?.try_into()?)
}

/// An ARP packet, padded to Ethernet's 60 bytes.
pub(crate) fn arp(to: Mac, operation: u8, sender: (Mac, Ipv4), target: (Mac, Ipv4)) -> Vec<u8> {
    let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation];
    let mut frame =
        [&to[..], &sender.0, &head, &sender.0, &sender.1, &target.0, &target.1].concat();
    frame.resize(60, 0);
    frame
}

/// A client's broadcast request for `address`.
pub(crate) fn request(address: Ipv4) -> Vec<u8> {
    arp(EVERYBODY, 1, (CLIENT, CLIENT_IP), ([0; 6], address))
}

/// `frame` with an 802.1Q tag.
pub(crate) fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    let [t0, t1] = tag.to_be_bytes();
    [&frame[..12], &[0x81, 0, t0, t1], &frame[12..]].concat()
}

/// A datagram or segment from the client with a right header checksum; `options` of the IP header
/// are a multiple of four bytes.
pub(crate) fn ipv4(protocol: u8, to: (Ipv4, u16), fragment: u16, options: &[u8]) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).expect("at most 40 bytes");
    let length = u16::from(words) * 4 + 20;
    let mut header = vec![0x40 | words, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 1]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(CLIENT_IP);
    header.extend(to.0);
    header.extend(options);
    let sum = internet_checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&OURS[..], &CLIENT, &[0x08, 0x00], &header].concat();
    frame.extend(40_000_u16.to_be_bytes());
    frame.extend(to.1.to_be_bytes());
    frame.extend([0; 16]);
    frame
}
