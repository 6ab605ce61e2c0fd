//! What the kernel does with a TCP segment to a virtual address that belongs to no connection here.
//!
//! As a rule it answers with a reset, which frees the clients of a dead node. While the other node
//! still finishes requests, that would break them: then such a segment is dropped in silence. A
//! listener's group gets one more member, the *sink*, whose filter passes nothing, and a program
//! that chooses among the members: who begins a connection goes to the workers, anything else to
//! the sink. Both are asked only where no connection was found.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use libc::sock_filter;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockFilter, Socket};

use super::listeners;

/// The groups of the listeners that a virtual address reaches.
#[derive(Debug)]
pub(in crate::guardian) struct Sinks {
    vips: Vec<Ipv4Addr>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    address: SocketAddr,
    /// One of its members, of which there are so many.
    member: OwnedFd,
    members: u32,
    sink: Option<Socket>,
}

impl Sinks {
    pub(super) fn new<'a>(
        vips: Vec<Ipv4Addr>,
        listeners: impl Iterator<Item = (SocketAddr, &'a OwnedFd)>,
        members: u32,
    ) -> io::Result<Self> {
        let reached = |address: &SocketAddr| match address.ip() {
            IpAddr::V4(ip) => ip.is_unspecified() || vips.contains(&ip),
            IpAddr::V6(_) => false,
        };
        let group = |(address, member): (SocketAddr, &OwnedFd)| {
            Ok(Group { address, member: member.try_clone()?, members, sink: None })
        };
        let groups = listeners.filter(|(address, _)| reached(address)).map(group);
        Ok(Self { groups: groups.collect::<io::Result<_>>()?, vips })
    }

    /// From here on segments of unknown connections are dropped, or answered with a reset again.
    pub(in crate::guardian) fn drop_strays(&mut self, on: bool) {
        for group in &mut self.groups {
            if let Err(error) = group.set(&self.vips, on) {
                let address = group.address;
                tracing::warn!(%address, %error, on, "requests under way may break");
            }
        }
    }
}

impl Group {
    fn set(&mut self, vips: &[Ipv4Addr], on: bool) -> io::Result<()> {
        if !on {
            self.sink = None;
            return self.choose_by(&spread(self.members));
        }
        // first the program: it leaves the sink out of what begins a connection
        self.choose_by(&program(vips, self.members))?;
        if self.sink.is_none() {
            // of those in a group only the virtual ones are not on every host
            let sink = listeners::bound(self.address, !self.address.ip().is_unspecified())?;
            sink.attach_filter(&[SockFilter::new(libc::BPF_RET as u16, 0, 0, 0)])?;
            sink.listen(1)?;
            self.sink = Some(sink);
        }
        Ok(())
    }

    fn choose_by(&self, program: &[sock_filter]) -> io::Result<()> {
        let mut program = program.to_vec();
        let len = u16::try_from(program.len()).map_err(io::Error::other)?;
        let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
        Ok(setsockopt(&self.member.as_fd(), sockopt::AttachReusePortCbpf, &program)?)
    }
}

const fn op(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// From the network header on, in the kernel's addressing of packet bytes.
const NET: u32 = libc::SKF_NET_OFF as u32;
/// Random bits.
const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
const SYN: u32 = 0x02;

/// One of the workers, by chance.
fn spread(members: u32) -> [sock_filter; 3] {
    [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, RANDOM),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, members.max(1)),
        op(libc::BPF_RET | 0x10, 0, 0, 0), // BPF_A
    ]
}

/// Index of the member that gets a segment: to one of `vips` without SYN it is the one after the
/// workers.
fn program(vips: &[Ipv4Addr], members: u32) -> Vec<sock_filter> {
    let mut program = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NET + 16)];
    for (left, vip) in (0u8..).zip(vips.iter().rev()).collect::<Vec<_>>().into_iter().rev() {
        // on to the flags, over the addresses left and the jump away
        let jump = op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, left + 1, 0, u32::from(*vip));
        program.push(jump);
    }
    program.push(op(libc::BPF_JMP | libc::BPF_JA, 0, 0, 4));
    program.push(op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, NET));
    program.push(op(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0, 0, NET + 13));
    program.push(op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 1, 0, SYN));
    program.push(op(libc::BPF_RET, 0, 0, members));
    program.extend(spread(members));
    program
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// What the kernel does with these programs, for a packet of IPv4 and TCP.
    fn run(program: &[sock_filter], packet: &[u8]) -> u32 {
        let (mut a, mut x, mut at) = (0u32, 0u32, 0usize);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let byte = |k: u32, x: u32| packet[(k.wrapping_sub(NET) + x) as usize];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { jt } else { jf });
            match u32::from(code) {
                0x20 if k == RANDOM => a = 7,
                0x20 => {
                    let at = k.wrapping_sub(NET) as usize;
                    a = u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
                }
                0xb1 => x = u32::from(byte(k, 0) & 15) * 4,
                0x50 => a = u32::from(byte(k, x)),
                0x94 => a %= k,
                0x15 => at += jump(a == k),
                0x45 => at += jump(a & k != 0),
                0x05 => at += k as usize,
                0x06 => return k,
                0x16 => return a,
                other => panic!("{other:#x}"),
            }
        }
    }

    fn packet(to: Ipv4Addr, flags: u8, options: usize) -> Vec<u8> {
        let mut packet = vec![0; 20 + options + 20];
        packet[0] = 0x45 + (options / 4) as u8;
        packet[16..20].copy_from_slice(&to.octets());
        packet[20 + options + 13] = flags;
        packet
    }

    #[test]
    fn the_sink_gets_what_begins_nothing_and_goes_to_an_address() {
        let vips: Vec<_> = (100..103).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
        let (own, sink, some) = (Ipv4Addr::new(10, 0, 0, 1), 4, 7 % 4);
        let (syn, ack, fin_ack, syn_ack) = (0x02, 0x10, 0x11, 0x12);
        for options in [0, 8] {
            for vip in &vips {
                for (flags, to) in [(syn, some), (syn_ack, some), (ack, sink), (fin_ack, sink)] {
                    let got = run(&program(&vips, 4), &packet(*vip, flags, options));
                    assert_eq!(got, to, "{vip} {flags:#x} {options}");
                }
            }
            for flags in [syn, ack] {
                assert_eq!(run(&program(&vips, 4), &packet(own, flags, options)), some, "{own}");
            }
        }
    }

    /// Connections come to a worker, never to the sink, with it and after it.
    #[test]
    fn the_kernel_takes_the_programs() {
        let address: SocketAddr = "127.0.0.77:0".parse().unwrap();
        let first = listeners::bound(address, false).unwrap();
        first.listen(64).unwrap();
        let first = TcpListener::from(first);
        let address = first.local_addr().unwrap();
        let member = OwnedFd::from(first.try_clone().unwrap());
        let vips = vec![Ipv4Addr::new(127, 0, 0, 77)];
        let mut sinks = Sinks::new(vips, [(address, &member)].into_iter(), 1).unwrap();
        assert_eq!(sinks.groups.len(), 1);
        for on in [true, false, true, false] {
            for group in &mut sinks.groups {
                group.set(&sinks.vips, on).unwrap();
            }
            for _ in 0..20 {
                let client = TcpStream::connect(address).unwrap();
                let (accepted, peer) = first.accept().unwrap();
                assert_eq!(peer, client.local_addr().unwrap());
                drop(accepted);
            }
        }
    }
}
