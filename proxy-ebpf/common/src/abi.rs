//! The ABI between the XDP program and user space: map names, limits, keys and values.
//!
//! All values are `#[repr(C)]` without implicit padding; addresses are in wire order. A change here
//! needs both sides rebuilt: the loader refuses an object whose maps have other sizes.

/// Name of the XDP program in the object.
pub const PROGRAM: &str = "tandem";
/// Name of the array of one [`Control`].
pub const CONTROL: &str = "CONTROL";
/// Name of the array, by slot, of `u32`: 1 = this node answers for the VIP in that slot, else 0.
/// One write to it is the promotion, or the demotion, of an address.
pub const ANSWERS: &str = "ANSWERS";
/// Name of the hash of [`Vip`] by IPv4 address in wire order.
pub const VIPS: &str = "VIPS";
/// Name of the per-CPU array of `u64`, by [`Reason`].
pub const COUNTERS: &str = "COUNTERS";
/// Name of the ring buffer of [`Conflict`].
pub const CONFLICTS: &str = "CONFLICTS";
/// Name of the array of one [`Askers`].
pub const ASKERS: &str = "ASKERS";

/// How many addresses one program can serve.
pub const VIPS_MAX: u32 = 64;
/// Size of the ring of conflicts, bytes: 64 KiB hold about 2,700 of them.
pub const CONFLICT_RING_BYTES: u32 = 64 * 1024;
/// How many stations that asked for a VIP are remembered; a power of two.
pub const ASKERS_MAX: usize = 64;

/// An IPv4 address, wire order.
pub type Ipv4 = [u8; 4];
/// An Ethernet address.
pub type Mac = [u8; 6];

/// What the guardian writes with each change of its lease, and while it lives.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Until when this node may answer: CLOCK_MONOTONIC, nanoseconds. 0: not at all. From then on
    /// the other node may, so nothing is answered, whoever hangs.
    pub answer_until_ns: u64,
}

impl Control {
    /// Whether this node may answer at `now_ns` (CLOCK_MONOTONIC).
    #[inline(always)]
    pub fn may_answer(&self, now_ns: u64) -> bool {
        now_ns < self.answer_until_ns
    }
}

/// A station that asked for a VIP: a host of the segment, which may be asked in turn.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// When: CLOCK_MONOTONIC, nanoseconds. 0: the place is free.
    pub at_ns: u64,
    /// The interface that it was heard on.
    pub ifindex: u32,
    /// Its address.
    pub address: Ipv4,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Zero.
    pub reserved: [u8; 2],
}

/// The stations that asked last, each in the place of its address ([`Askers::place`]): a fixed cost
/// for any number of them. The master's program answers before any socket of the host hears the
/// question, and the backup's drops it: this is where the host learns who lives on the segment.
///
/// Two CPUs may write one place at once and leave a mixture: a hint, checked by asking.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Askers(pub [Asker; ASKERS_MAX]);

impl Askers {
    /// The place of an address: the newest of those that share one has it.
    #[inline(always)]
    pub fn place(address: Ipv4) -> usize {
        let [a, b, c, d] = address;
        usize::from(a.wrapping_mul(31) ^ b.wrapping_mul(17) ^ c.wrapping_mul(7) ^ d)
            & (ASKERS_MAX - 1)
    }

    /// Those that asked since the program was loaded.
    pub fn iter(&self) -> impl Iterator<Item = &Asker> {
        self.0.iter().filter(|asker| asker.at_ns != 0)
    }
}

impl Default for Askers {
    fn default() -> Self {
        Self([Asker::default(); ASKERS_MAX])
    }
}

/// An address that this node may have to answer for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vip {
    /// Index into [`ANSWERS`], below [`VIPS_MAX`].
    pub slot: u32,
    /// The interface on which it is answered for.
    pub ifindex: u32,
    /// Where the answer leaves: 0 = XDP_TX, else redirected to this interface (native mode on veth
    /// needs that: XDP_TX there wants a program on the peer).
    pub tx_ifindex: u32,
    /// 802.1Q VLAN whose tag the frame carries, 0 = untagged.
    pub vlan: u16,
    /// The interface's own address: what the answer says.
    pub mac: Mac,
}

/// Somebody else claimed, on the wire, an address that this node answers for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conflict {
    /// The address.
    pub vip: Ipv4,
    /// Where it was heard.
    pub ifindex: u32,
    /// Who claimed it (ARP sender hardware address).
    pub mac: Mac,
    /// Zero.
    pub reserved: [u8; 2],
}

impl Conflict {
    /// A conflict from the bytes of a ring buffer record; `None` when it has another size.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; size_of::<Self>()] = bytes.try_into().ok()?;
        let [v0, v1, v2, v3, i0, i1, i2, i3, m0, m1, m2, m3, m4, m5, r0, r1] = *bytes;
        Some(Self {
            vip: [v0, v1, v2, v3],
            ifindex: u32::from_ne_bytes([i0, i1, i2, i3]),
            mac: [m0, m1, m2, m3, m4, m5],
            reserved: [r0, r1],
        })
    }
}

const _: () = assert!(size_of::<Control>() == 8);
const _: () = assert!(size_of::<Asker>() == 24);
const _: () = assert!(ASKERS_MAX.is_power_of_two());
const _: () = assert!(size_of::<Vip>() == 20);
const _: () = assert!(size_of::<Conflict>() == 16);

/// Why a frame was passed, answered or dropped: one counter each, never one "drop".
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Passed: the frame ends inside its headers.
    Short = 0,
    /// Passed: neither ARP nor IPv4.
    OtherProtocol = 1,
    /// Passed: ARP that concerns no VIP on this interface, or is not Ethernet/IPv4.
    ArpOther = 2,
    /// Passed: a claim of a VIP by its master, seen by a backup, or our own claim seen again.
    ArpClaim = 3,
    /// Passed, with an event: a claim, by another, of a VIP that this node answers for.
    ArpConflict = 4,
    /// Answered: a request for a VIP that this node answers for.
    ArpAnswered = 5,
    /// Dropped: a request for a VIP while another node answers for it.
    ArpBackup = 6,
    /// Dropped: a request for a VIP that this node would answer for, but its lease has ended.
    ArpStale = 7,
    /// Passed: IPv4 with a header that contradicts itself.
    Ipv4Malformed = 8,
    /// Passed: IPv4 to another address than a VIP.
    Ipv4Other = 9,
    /// Passed: IPv4 to a VIP.
    Ipv4Vip = 10,
    /// Passed: a later fragment of a datagram to a VIP (it has no ports).
    Ipv4Fragment = 11,
    /// Dropped: UDP to memcached's port on a VIP: Tandem serves none there, attackers love it.
    UdpMemcached = 12,
    /// An event was lost because user space did not empty the ring.
    EventLost = 13,
}

impl Reason {
    /// All of them, in counter order.
    pub const ALL: [Self; 14] = [
        Self::Short,
        Self::OtherProtocol,
        Self::ArpOther,
        Self::ArpClaim,
        Self::ArpConflict,
        Self::ArpAnswered,
        Self::ArpBackup,
        Self::ArpStale,
        Self::Ipv4Malformed,
        Self::Ipv4Other,
        Self::Ipv4Vip,
        Self::Ipv4Fragment,
        Self::UdpMemcached,
        Self::EventLost,
    ];
    /// How many there are: the size of [`COUNTERS`].
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::OtherProtocol => "other_protocol",
            Self::ArpOther => "arp_other",
            Self::ArpClaim => "arp_claim",
            Self::ArpConflict => "arp_conflict",
            Self::ArpAnswered => "arp_answered",
            Self::ArpBackup => "arp_backup",
            Self::ArpStale => "arp_stale",
            Self::Ipv4Malformed => "ipv4_malformed",
            Self::Ipv4Other => "ipv4_other",
            Self::Ipv4Vip => "ipv4_vip",
            Self::Ipv4Fragment => "ipv4_fragment",
            Self::UdpMemcached => "udp_memcached",
            Self::EventLost => "event_lost",
        }
    }
}

#[cfg(feature = "user")]
#[allow(unsafe_code, reason = "aya's map types ask for this promise, and the orphan rule for here")]
mod pod {
    // SAFETY: repr(C), no implicit padding (sizes asserted above), any bytes are a valid value.
    unsafe impl aya::Pod for super::Control {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Vip {}
    // SAFETY: as above: an array of Asker.
    unsafe impl aya::Pod for super::Askers {}
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn reasons_are_numbered_by_their_place_and_named_apart() {
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
            assert!(Reason::ALL.iter().filter(|r| r.name() == reason.name()).count() == 1);
        }
    }

    #[test]
    fn nothing_is_answered_from_the_lease_s_end_on() {
        let control = Control { answer_until_ns: 1_000 };
        for (now, may) in [(0, true), (999, true), (1_000, false), (u64::MAX, false)] {
            assert_eq!(control.may_answer(now), may, "at {now}");
        }
        assert!(!Control::default().may_answer(0));
    }

    #[test]
    fn neighbours_do_not_share_a_place() {
        let mut places: std::vec::Vec<_> =
            (0..64).map(|host| Askers::place([192, 0, 2, host])).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 64);
        let mut askers = Askers::default();
        assert_eq!(askers.iter().count(), 0);
        askers.0[5].at_ns = 1;
        assert_eq!(askers.iter().count(), 1);
    }

    #[test]
    fn a_conflict_is_read_from_exactly_its_bytes() {
        let mut bytes = [0_u8; 16];
        bytes[..4].copy_from_slice(&[192, 0, 2, 1]);
        bytes[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        bytes[8..14].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        let conflict =
            Conflict { vip: [192, 0, 2, 1], ifindex: 7, mac: [2, 0, 0, 0, 0, 9], reserved: [0; 2] };
        assert_eq!(Conflict::from_bytes(&bytes), Some(conflict));
        assert_eq!(Conflict::from_bytes(&bytes[..15]), None);
    }
}
