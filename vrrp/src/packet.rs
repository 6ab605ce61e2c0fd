//! ADVERTISEMENT packets of VRRP version 3 (RFC 9568 §5) and version 2 (RFC 3768 §5).
//!
//! Bytes in, [`Advert`] or a named [`Refusal`] out; and back. It knows no instance: whether an
//! advert is *ours to hear* is [`crate::fsm`]'s question. Byte tables: `packet/tests.rs`.
//!
//! ```text
//!  0      4      8             16            24           32
//!  │ ver  │ type │    VRID     │  priority   │ addr count  │
//!  v3: │ 0000 │ interval, 12 bits, cs │      checksum      │
//!  v2: │  auth type  │ interval, s   │      checksum        │
//!  │ addresses: 4 bytes each, or 16 ...                    │
//!  v2: │ eight bytes of authentication data                │
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{Auth, GROUP_V4, GROUP_V6, Priority, Vrid};
use crate::timers::AdvertInterval;

/// IP protocol number (RFC 9568 §5.1.1.4).
pub const PROTOCOL: u8 = 112;
/// TTL and hop limit of every advert (RFC 9568 §5.1.1.3).
pub const HOP_LIMIT: u8 = 255;
/// Largest advert: 255 IPv6 addresses.
pub const MAX_LENGTH: usize = HEADER + 255 * 16;

const HEADER: usize = 8;
const TYPE_ADVERTISEMENT: u8 = 1;
const AUTH_DATA: usize = 8;

/// Wire version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// RFC 3768.
    V2,
    /// RFC 9568 (and 5798).
    V3,
}

/// Whether an IPv4 advert's checksum covers the pseudo-header.
///
/// RFC 9568 §5.2.8 says no for IPv4; keepalived and FRR cover it by default, as RFC 5798 was read.
/// Both are accepted. IPv6 always covers it, version 2 never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ChecksumKind {
    /// Message and pseudo-header (RFC 8200 §8.1 or its IPv4 likeness).
    #[default]
    PseudoHeader,
    /// Message only.
    Plain,
}

/// A datagram of protocol 112 as the shell received it.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// IP source.
    pub source: IpAddr,
    /// IP destination: the group, or one of our addresses where peers are unicast.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IP payload, without link padding.
    pub payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// A datagram sent to the family's VRRP group.
    #[must_use]
    pub const fn multicast(source: IpAddr, hop_limit: u8, payload: &'a [u8]) -> Self {
        let destination = match source {
            IpAddr::V4(_) => IpAddr::V4(GROUP_V4),
            IpAddr::V6(_) => IpAddr::V6(GROUP_V6),
        };
        Self { source, destination, hop_limit, payload }
    }
}

/// Why a datagram was dropped without any change of state (RFC 9568 §7.1), in checking order.
/// The sender is to blame; the shell counts, and logs at a limited rate (never [`Self::Carp`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// "MUST verify that the IPv4 TTL or IPv6 Hop Limit is 255": it crossed a router.
    #[error("TTL or hop limit {0}, not 255")]
    HopLimit(u8),
    /// Fewer than the eight bytes of the fixed fields.
    #[error("truncated: {0} bytes")]
    Truncated(usize),
    /// CARP shares protocol, group and version nibble 2; 36 bytes. Harmless, and frequent where
    /// it lives.
    #[error("a CARP advertisement")]
    Carp,
    /// "MUST verify that the VRRP version is 3" (or 2, where 2 is configured).
    #[error("version {0}")]
    Version(u8),
    /// "MUST verify that the VRRP packet type is 1".
    #[error("packet type {0}")]
    Type(u8),
    /// "MUST verify that the received packet contains the complete VRRP packet".
    #[error("{length} bytes, {needed} needed for the address count")]
    Length {
        /// Bytes received.
        length: usize,
        /// Bytes that the address count demands.
        needed: usize,
    },
    /// "MUST verify the VRRP checksum": neither reading of it fits.
    #[error("checksum mismatch")]
    Checksum,
    /// Another virtual router on the same segment, or VRID 0. Not an error of anybody.
    #[error("VRID {0} is not ours")]
    OtherVrid(u8),
    /// Address count 0.
    #[error("no addresses")]
    NoAddresses,
    /// Interval 0 (RFC 9568 erratum 8301).
    #[error("advertisement interval 0")]
    IntervalZero,
    /// Version 2: an authentication type other than configured (RFC 2338 §7.1).
    #[error("authentication type {0} differs from ours")]
    AuthType(u8),
    /// Version 2: the right type, the wrong password.
    #[error("authentication failed")]
    AuthFailed,
    /// Version 2: "MUST verify that the Adver Interval in the packet is the same" (RFC 3768 §7.1).
    #[error("advertisement interval {0} differs from ours")]
    IntervalDiffers(AdvertInterval),
    /// Our own source address: a loop, or a duplicate address.
    #[error("our own source address")]
    FromOurselves,
    /// The instance is in Initialize.
    #[error("not started")]
    NotStarted,
}

impl Refusal {
    /// Number of kinds, for arrays of counters.
    pub const KINDS: usize = 15;

    /// Dense index below [`Self::KINDS`], in checking order.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::HopLimit(_) => 0,
            Self::Truncated(_) => 1,
            Self::Carp => 2,
            Self::Version(_) => 3,
            Self::Type(_) => 4,
            Self::Length { .. } => 5,
            Self::Checksum => 6,
            Self::OtherVrid(_) => 7,
            Self::NoAddresses => 8,
            Self::IntervalZero => 9,
            Self::AuthType(_) => 10,
            Self::AuthFailed => 11,
            Self::IntervalDiffers(_) => 12,
            Self::FromOurselves => 13,
            Self::NotStarted => 14,
        }
    }

    /// Metric label of the kind with this index; `None` from [`Self::KINDS`] on.
    #[must_use]
    pub fn name(index: usize) -> Option<&'static str> {
        const NAMES: [&str; Refusal::KINDS] = [
            "hop_limit",
            "truncated",
            "carp",
            "version",
            "type",
            "length",
            "checksum",
            "other_vrid",
            "no_addresses",
            "interval_zero",
            "auth_type",
            "auth_failed",
            "interval_differs",
            "from_ourselves",
            "not_started",
        ];
        NAMES.get(index).copied()
    }
}

/// One ADVERTISEMENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    /// Wire version; [`Version::V2`] is IPv4 only.
    pub version: Version,
    /// Virtual router.
    pub vrid: Vrid,
    /// Sender's priority; 0 = it resigns.
    pub priority: Priority,
    /// Sender's interval.
    pub interval: AdvertInterval,
    /// 1 to 255 addresses of one family.
    pub addresses: Vec<IpAddr>,
    /// Version 2 only.
    pub auth: Auth,
}

/// An [`Advert`] that has no bytes: our mistake, not a peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unencodable {
    /// None or more than 255.
    #[error("{0} addresses do not fit an advert (1 to 255)")]
    AddressCount(usize),
    /// An address of another family than the source, or IPv6 in version 2.
    #[error("address {0} is of the wrong family for this advert")]
    Family(IpAddr),
    /// Interval does not fit the version's field.
    #[error("interval {0} does not fit the version's field")]
    Interval(AdvertInterval),
    /// Version 3 has no authentication.
    #[error("version 3 has no authentication")]
    Auth,
}

impl Advert {
    /// Checks and reads an advert of `version`, in the order of RFC 9568 §7.1. More bytes than
    /// the address count needs are tolerated and ignored, as padding.
    ///
    /// # Errors
    /// The first [`Refusal`] that applies. Never panics, whatever the bytes.
    pub fn decode(
        received: &Received<'_>,
        version: Version,
    ) -> Result<(Self, ChecksumKind), Refusal> {
        if received.hop_limit != HOP_LIMIT {
            return Err(Refusal::HopLimit(received.hop_limit));
        }
        let bytes = received.payload;
        let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(Refusal::Truncated(bytes.len()));
        };
        let [version_type, vrid, priority, count, ..] = *header;
        if is_carp(bytes) {
            return Err(Refusal::Carp);
        }
        if version_type >> 4 != version.nibble()
            || (version == Version::V2 && received.source.is_ipv6())
        {
            return Err(Refusal::Version(version_type >> 4));
        }
        if version_type & 0xf != TYPE_ADVERTISEMENT {
            return Err(Refusal::Type(version_type & 0xf));
        }
        let width = if received.source.is_ipv4() { 4 } else { 16 };
        let addresses_end = HEADER + usize::from(count) * width;
        let needed = addresses_end + if version == Version::V2 { AUTH_DATA } else { 0 };
        let Some(message) = bytes.get(..needed) else {
            return Err(Refusal::Length { length: bytes.len(), needed });
        };
        let kind = verify_checksum(received, version, message).ok_or(Refusal::Checksum)?;
        let vrid = Vrid::new(vrid).ok_or(Refusal::OtherVrid(vrid))?;
        if count == 0 {
            return Err(Refusal::NoAddresses);
        }
        let interval = read_interval(version, header[4], header[5])?;
        let (list, auth_data) = message[HEADER..].split_at(addresses_end - HEADER);
        let auth = read_auth(version, header[4], auth_data)?;
        let addresses = read_addresses(list, received.source.is_ipv4());
        let priority = Priority::new(priority);
        Ok((Self { version, vrid, priority, interval, addresses, auth }, kind))
    }

    /// The IP payload from `source` to `destination`.
    ///
    /// # Errors
    /// [`Unencodable`] if the fields contradict each other.
    pub fn encode(
        &self,
        source: IpAddr,
        destination: IpAddr,
        kind: ChecksumKind,
    ) -> Result<Vec<u8>, Unencodable> {
        let count = u8::try_from(self.addresses.len())
            .ok()
            .filter(|count| *count > 0)
            .ok_or(Unencodable::AddressCount(self.addresses.len()))?;
        let ipv4 = source.is_ipv4() && destination.is_ipv4();
        let wrong = |a: &&IpAddr| a.is_ipv4() != ipv4 || (self.version == Version::V2 && !ipv4);
        if let Some(&odd) = self.addresses.iter().find(wrong) {
            return Err(Unencodable::Family(odd));
        }
        let [fourth, fifth] = self.interval_field()?;
        let first = self.version.nibble() << 4 | TYPE_ADVERTISEMENT;
        let mut out = Vec::with_capacity(HEADER + self.addresses.len() * 16 + AUTH_DATA);
        out.extend([first, self.vrid.get(), self.priority.get(), count, fourth, fifth, 0, 0]);
        for address in &self.addresses {
            match address {
                IpAddr::V4(a) => out.extend(a.octets()),
                IpAddr::V6(a) => out.extend(a.octets()),
            }
        }
        match (self.version, self.auth) {
            (Version::V3, Auth::None) => {}
            (Version::V3, Auth::Simple(_)) => return Err(Unencodable::Auth),
            (Version::V2, Auth::None) => out.extend([0; AUTH_DATA]),
            (Version::V2, Auth::Simple(password)) => out.extend(password),
        }
        let pseudo = covers_pseudo_header(self.version, source, kind);
        let sum = checksum(&out, pseudo.then_some((source, destination)));
        out[6..8].copy_from_slice(&sum.to_be_bytes());
        Ok(out)
    }

    fn interval_field(&self) -> Result<[u8; 2], Unencodable> {
        let wrong = Unencodable::Interval(self.interval);
        match self.version {
            Version::V3 if self.interval.centiseconds() > AdvertInterval::MAX_V3 => Err(wrong),
            Version::V3 => Ok(self.interval.centiseconds().to_be_bytes()),
            Version::V2 => {
                let auth_type = u8::from(matches!(self.auth, Auth::Simple(_)));
                Ok([auth_type, self.interval.whole_seconds().ok_or(wrong)?])
            }
        }
    }
}

impl Version {
    /// The number in the version field.
    #[must_use]
    pub const fn nibble(self) -> u8 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.nibble().fmt(f)
    }
}

/// VRID of a datagram, unchecked, to find the instance it is for; `None` if there is no such byte.
#[must_use]
pub fn peek_vrid(payload: &[u8]) -> Option<Vrid> {
    payload.get(1).copied().and_then(Vrid::new)
}

/// 36 bytes, version nibble 2, type 1, and in the place of the address count the number of
/// 32-bit words of authentication, always 7. As version 2 it would be too short for 7 addresses.
fn is_carp(bytes: &[u8]) -> bool {
    bytes.len() == 36 && bytes[0] == 0x21 && bytes[3] == 7
}

fn read_interval(version: Version, fourth: u8, fifth: u8) -> Result<AdvertInterval, Refusal> {
    match version {
        // "Reserve ... MUST be set to zero on transmission and ignored on reception" (§5.2.6)
        Version::V3 => AdvertInterval::from_centiseconds(u16::from_be_bytes([fourth & 0xf, fifth])),
        Version::V2 => AdvertInterval::from_seconds(fifth),
    }
    .ok_or(Refusal::IntervalZero)
}

fn read_auth(version: Version, auth_type: u8, data: &[u8]) -> Result<Auth, Refusal> {
    match (version, auth_type, <[u8; AUTH_DATA]>::try_from(data)) {
        (Version::V3, ..) | (Version::V2, 0, _) => Ok(Auth::None),
        (Version::V2, 1, Ok(password)) => Ok(Auth::Simple(password)),
        // type 2, AH (RFC 2338 §5.3.6.3), has its data in a header of its own
        _ => Err(Refusal::AuthType(auth_type)),
    }
}

fn read_addresses(list: &[u8], ipv4: bool) -> Vec<IpAddr> {
    if ipv4 {
        list.as_chunks::<4>().0.iter().map(|a| Ipv4Addr::from(*a).into()).collect()
    } else {
        list.as_chunks::<16>().0.iter().map(|a| Ipv6Addr::from(*a).into()).collect()
    }
}

const fn covers_pseudo_header(version: Version, source: IpAddr, kind: ChecksumKind) -> bool {
    match (version, source) {
        (Version::V2, _) => false,
        (Version::V3, IpAddr::V6(_)) => true,
        (Version::V3, IpAddr::V4(_)) => matches!(kind, ChecksumKind::PseudoHeader),
    }
}

fn verify_checksum(
    received: &Received<'_>,
    version: Version,
    message: &[u8],
) -> Option<ChecksumKind> {
    let addresses = (received.source, received.destination);
    [ChecksumKind::PseudoHeader, ChecksumKind::Plain].into_iter().find(|&kind| {
        let pseudo = covers_pseudo_header(version, received.source, kind);
        checksum(message, pseudo.then_some(addresses)) == 0
    })
}

/// Internet checksum (RFC 1071); 0 over bytes that hold a right one.
fn checksum(message: &[u8], pseudo: Option<(IpAddr, IpAddr)>) -> u16 {
    let mut sum = sum_words(message);
    if let Some((source, destination)) = pseudo {
        for address in [source, destination] {
            sum += match address {
                IpAddr::V4(a) => sum_words(&a.octets()),
                IpAddr::V6(a) => sum_words(&a.octets()),
            };
        }
        sum += message.len() as u64 + u64::from(PROTOCOL);
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// Messages are a whole number of 32-bit words, so no odd byte can remain.
fn sum_words(bytes: &[u8]) -> u64 {
    bytes.as_chunks::<2>().0.iter().map(|w| u64::from(u16::from_be_bytes(*w))).sum()
}

/// Fuzz body: whatever decodes has meaning, and says the same again after a round trip.
///
/// # Panics
/// When that does not hold, which is the finding.
#[cfg(any(test, fuzzing))]
pub fn fuzz_advert(data: &[u8]) {
    let v4 = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let v6 = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
    for (source, version) in
        [(v4, Version::V3), (v4, Version::V2), (v6, Version::V3), (v6, Version::V2)]
    {
        let received = Received::multicast(source, HOP_LIMIT, data);
        let Ok((advert, kind)) = Advert::decode(&received, version) else { continue };
        assert!((1..=255).contains(&advert.addresses.len()));
        assert!(advert.addresses.iter().all(|a| a.is_ipv4() == source.is_ipv4()));
        let encoded = advert.encode(source, received.destination, kind);
        assert!(encoded.is_ok(), "{encoded:?}");
        let bytes = encoded.unwrap_or_default();
        let again = Received { payload: &bytes, ..received };
        assert_eq!(Advert::decode(&again, version), Ok((advert, kind)));
        assert!(bytes.len() <= MAX_LENGTH && bytes.len() <= data.len());
    }
}

#[cfg(test)]
mod tests;
