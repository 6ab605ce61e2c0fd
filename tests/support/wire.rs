//! Whole Ethernet frames, sent and received on one interface; and who answers ARP for an address.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netns::Namespace;
use crate::probe::Probe;

/// An Ethernet address.
pub type Mac = [u8; 6];
/// To everybody.
pub const BROADCAST: Mac = [0xff; 6];
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

/// A packet socket on one interface.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// On `interface` of the calling thread's namespace; receives frames of `ethertype`, whoever
    /// they are for.
    ///
    /// # Errors
    /// Needs CAP_NET_RAW and the interface.
    pub fn open(interface: &str, ethertype: u16) -> Result<Self> {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        let index = if_nametoindex(interface).with_context(|| interface.to_owned())?;
        bind(&socket, index, ethertype)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(1))?;
        Ok(Self(socket))
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// Interface down, queue full.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).map(drop).context("sending a frame")
    }

    /// The next frame; `None` when none came within a millisecond or so.
    ///
    /// # Errors
    /// Interface down or gone.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => Ok(buffer.get(..length)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error).context("receiving a frame"),
        }
    }
}

fn bind(socket: &OwnedFd, index: u32, ethertype: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is an initialised sockaddr_ll of `length` bytes, read during the call only.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The address of `interface` in `namespace`.
///
/// # Errors
/// When there is no such interface.
pub fn mac(namespace: &Namespace, interface: &str) -> Result<Mac> {
    let link = namespace.ip(&["-o", "link", "show", interface])?;
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    let text = words.nth(1).with_context(|| format!("no link/ether in {link:?}"))?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_length| anyhow::anyhow!("not an Ethernet address: {text}"))
}

/// An ARP request ("who has `target`"), broadcast.
#[must_use]
pub fn arp_request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(ARP_REQUEST, BROADCAST, (mac, sender), ([0; 6], target))
}

/// An ARP reply ("`sender` is at `mac`") to one station, or to [`BROADCAST`].
#[must_use]
pub fn arp_reply(to: Mac, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(ARP_REPLY, to, (mac, sender), (to, target))
}

fn arp(operation: u16, to: Mac, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend(to);
    frame.extend(sender.0);
    frame.extend(ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        frame.extend(mac);
        frame.extend(address.octets());
    }
    frame.resize(60, 0);
    frame
}

/// What a station that asked all the time was answered.
#[derive(Debug, Default)]
pub struct Answers {
    /// When, and by whom, in the order of arrival.
    pub replies: Vec<(Instant, Mac)>,
    /// Who announced the address unasked, and when.
    pub announcements: Vec<(Instant, Mac)>,
}

/// Silence of a station after which its next answer begins a new stretch: four requests.
const STRETCH_GAP: Duration = Duration::from_millis(20);

impl Answers {
    /// Who answered last: the owner of the address.
    #[must_use]
    pub fn owner(&self) -> Option<Mac> {
        self.replies.last().map(|(_, mac)| *mac)
    }

    /// True when `mac` answered or announced itself at `since` or later.
    #[must_use]
    pub fn heard_since(&self, mac: Mac, since: Instant) -> bool {
        self.replies.iter().chain(&self.announcements).any(|(at, who)| *who == mac && *at >= since)
    }

    /// The longest time for which two stations both went on answering.
    #[must_use]
    pub fn contested(&self) -> Duration {
        let stretches = self.stretches();
        let overlap = |(one, from, to): &(Mac, Instant, Instant)| {
            let others = stretches.iter().filter(move |(mac, ..)| mac != one);
            others
                .map(|(_, start, end)| (*end.min(to)).saturating_duration_since(*start.max(from)))
                .max()
        };
        stretches.iter().filter_map(overlap).max().unwrap_or_default()
    }

    /// Per station, the times in which it answered without a gap: first and last answer.
    fn stretches(&self) -> Vec<(Mac, Instant, Instant)> {
        let mut all: Vec<(Mac, Instant, Instant)> = Vec::new();
        for (at, mac) in &self.replies {
            match all.iter_mut().rev().find(|(who, ..)| who == mac) {
                Some((_, _, end)) if at.saturating_duration_since(*end) <= STRETCH_GAP => {
                    *end = *at
                }
                _ => all.push((*mac, *at, *at)),
            }
        }
        all
    }
}

/// Asks for `vip` by broadcast every 5 ms from `lan` in `namespace`, and notes who answers.
///
/// # Errors
/// Without the interface.
pub fn asker(namespace: &Namespace, own: Ipv4Addr, vip: Ipv4Addr) -> Result<Probe<Answers>> {
    let mac = mac(namespace, "lan")?;
    Ok(Probe::start(namespace.name(), move |stop| {
        let wire = Wire::open("lan", ARP)?;
        let request = arp_request(mac, own, vip);
        let mut answers = Answers::default();
        let mut next = Instant::now();
        let mut buffer = [0; 1514];
        while !stop.load(Ordering::Relaxed) {
            if Instant::now() >= next {
                next = Instant::now() + Duration::from_millis(5);
                wire.send(&request)?;
            }
            if let Some(frame) = wire.receive(&mut buffer)? {
                note(&mut answers, frame, own, vip);
            }
        }
        Ok(answers)
    }))
}

/// Sorts one ARP frame in. Sender's addresses are at 22 and 28, the target's address at 38.
fn note(answers: &mut Answers, frame: &[u8], own: Ipv4Addr, vip: Ipv4Addr) {
    let field = |from: usize, length: usize| frame.get(from..from + length);
    let Some(Ok(mac)) = field(22, 6).map(Mac::try_from) else { return };
    if field(28, 4) != Some(&vip.octets()) {
        return;
    }
    let target = field(38, 4);
    if target == Some(&vip.octets()) || field(0, 6) == Some(&BROADCAST) {
        answers.announcements.push((Instant::now(), mac));
    } else if target == Some(&own.octets()) {
        answers.replies.push((Instant::now(), mac));
    }
}

/// Collects whole IPv4 frames of one protocol that arrive at `lan` in `namespace`.
#[must_use]
pub fn capture(namespace: &Namespace, protocol: u8) -> Probe<Vec<Vec<u8>>> {
    Probe::start(namespace.name(), move |stop| {
        let wire = Wire::open("lan", IPV4)?;
        let mut frames = Vec::new();
        let mut buffer = [0; 1514];
        while !stop.load(Ordering::Relaxed) {
            if let Some(frame) = wire.receive(&mut buffer)?
                && frame.get(23) == Some(&protocol)
            {
                frames.push(frame.to_vec());
            }
        }
        Ok(frames)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [1; 6];
    const B: Mac = [2; 6];

    fn answers(list: &[(u64, Mac)]) -> Answers {
        let start = Instant::now();
        let at = |(ms, mac): &(u64, Mac)| (start + Duration::from_millis(*ms), *mac);
        Answers { replies: list.iter().map(at).collect(), announcements: Vec::new() }
    }

    #[test]
    fn a_clean_change_is_not_contested_and_two_owners_are() {
        let clean = answers(&[(0, A), (5, A), (10, A), (40, B), (45, B)]);
        assert_eq!((clean.contested(), clean.owner()), (Duration::ZERO, Some(B)));
        let both = answers(&[(0, A), (4, B), (5, A), (9, B), (10, A), (14, B), (20, B)]);
        assert_eq!(both.contested(), Duration::from_millis(6));
        // It came back long after: two reigns, not two masters.
        let back = answers(&[(0, A), (5, A), (40, B), (45, B), (80, A), (85, A)]);
        assert_eq!(back.contested(), Duration::ZERO);
    }

    #[test]
    fn an_answer_and_an_announcement_are_told_apart() {
        let (own, vip) = (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 1));
        let mut seen = Answers::default();
        note(&mut seen, &arp_reply(B, A, vip, own), own, vip);
        note(&mut seen, &arp_reply(BROADCAST, A, vip, vip), own, vip);
        note(&mut seen, &arp_request(A, vip, vip), own, vip);
        note(&mut seen, &arp_request(B, own, vip), own, vip);
        note(&mut seen, &[0; 20], own, vip);
        assert_eq!((seen.replies.len(), seen.announcements.len()), (1, 2));
    }
}
