//! What an operator decides about one virtual router: identifiers, priority, addresses, mode.
//!
//! Pure values, checked once by [`InstanceConfig::check`] (which [`crate::Instance::new`] calls);
//! reading them from a file is the program's matter.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::Version;
use crate::timers::AdvertInterval;

/// The IPv4 group of RFC 9568 §5.1.1.2.
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// The IPv6 group of RFC 9568 §5.1.2.2.
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);

/// Virtual Router Identifier, 1 to 255 (RFC 9568 §5.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vrid(u8);

impl Vrid {
    /// `None` for 0, which RFC 9568 §5.2.3 does not allow.
    #[must_use]
    pub const fn new(value: u8) -> Option<Self> {
        if value == 0 { None } else { Some(Self(value)) }
    }

    /// The number, 1 to 255.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Vrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Priority (RFC 9568 §5.2.4): 255 owns the addresses, 1 to 254 back them up, 0 has resigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    /// 0: the Active Router has stopped taking part. Only on the wire, never configured.
    pub const RESIGNED: Self = Self(0);
    /// 100, the default of a backup (RFC 9568 §5.2.4).
    pub const DEFAULT: Self = Self(100);
    /// 255: the addresses are the router's own.
    pub const OWNER: Self = Self(255);

    /// Any value is legal on the wire; [`InstanceConfig::check`] refuses a configured 0.
    #[must_use]
    pub const fn new(value: u8) -> Self {
        Self(value)
    }

    /// The number, 0 to 255.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Authentication of version 2 (RFC 2338 §5.3.6). Version 3 has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auth {
    /// Type 0.
    #[default]
    None,
    /// Type 1: up to eight characters, padded with zeros, in clear. Guards against a mistake,
    /// not against an enemy.
    Simple([u8; 8]),
}

/// Who decides that this router becomes Active, and that it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// RFC 9568 §6.4 to the letter.
    Plain {
        /// `Preempt_Mode` (RFC 9568 §6.1).
        preempt: bool,
    },
    /// The owner of the instance decides; see [`crate::fsm`]. Never preempts.
    Coupled {
        /// Source address of the other node's adverts on this interface, where it is known.
        /// Its adverts never depose by priority.
        peer: Option<IpAddr>,
    },
}

/// One virtual router on one interface, one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceConfig {
    /// Wire version. IPv6 needs [`Version::V3`].
    pub version: Version,
    /// Same on both nodes; unique on the segment.
    pub vrid: Vrid,
    /// 1 to 255. In coupled mode it matters to foreign routers only.
    pub priority: Priority,
    /// Our own interval; the Active Router's is learned from its adverts (version 3).
    pub interval: AdvertInterval,
    /// The addresses to advertise: 1 to 255, all of the family of `source`.
    pub addresses: Vec<IpAddr>,
    /// Primary address of the interface: source of our adverts and last tie-break.
    pub source: IpAddr,
    /// Missed intervals before the Active Router counts as down; 3 by RFC 9568 §6.1.
    pub down_multiplier: u8,
    /// Version 2 only.
    pub auth: Auth,
    /// Plain RFC behaviour, or coupled to an owner.
    pub mode: Mode,
}

impl InstanceConfig {
    /// A coupled version 3 instance with the RFC's multiplier, priority 100 and the peer unknown.
    #[must_use]
    pub const fn coupled(
        vrid: Vrid,
        interval: AdvertInterval,
        addresses: Vec<IpAddr>,
        source: IpAddr,
    ) -> Self {
        Self {
            version: Version::V3,
            vrid,
            priority: Priority::DEFAULT,
            interval,
            addresses,
            source,
            down_multiplier: 3,
            auth: Auth::None,
            mode: Mode::Coupled { peer: None },
        }
    }

    /// The multicast group of the family.
    #[must_use]
    pub const fn group(&self) -> IpAddr {
        match self.source {
            IpAddr::V4(_) => IpAddr::V4(GROUP_V4),
            IpAddr::V6(_) => IpAddr::V6(GROUP_V6),
        }
    }

    /// # Errors
    /// What cannot be put into an advert, or would never work.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.priority == Priority::RESIGNED {
            return Err(ConfigError::PriorityZero);
        }
        if self.addresses.is_empty() || self.addresses.len() > usize::from(u8::MAX) {
            return Err(ConfigError::AddressCount(self.addresses.len()));
        }
        if let Some(&odd) = self.addresses.iter().find(|a| a.is_ipv4() != self.source.is_ipv4()) {
            return Err(ConfigError::MixedFamilies(odd));
        }
        if self.down_multiplier == 0 {
            return Err(ConfigError::DownMultiplierZero);
        }
        match self.version {
            Version::V2 if self.source.is_ipv6() => Err(ConfigError::Version2Ipv6),
            Version::V2 if self.interval.whole_seconds().is_none() => {
                Err(ConfigError::Interval(self.interval))
            }
            Version::V3 if self.interval.centiseconds() > AdvertInterval::MAX_V3 => {
                Err(ConfigError::Interval(self.interval))
            }
            Version::V3 if self.auth != Auth::None => Err(ConfigError::AuthInVersion3),
            _ => Ok(()),
        }
    }
}

/// Why a configuration is refused. The operator is to blame, and the text says what to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Priority 0 is the wire's sign of resignation.
    #[error("priority 0 is reserved for resigning: use 1 to 254, or 255 for the address owner")]
    PriorityZero,
    /// None, or more than fit the count field.
    #[error("{0} addresses: a virtual router has 1 to 255")]
    AddressCount(usize),
    /// An address of the other family than the interface's primary address.
    #[error("address {0} is of another family than the source address: use one instance each")]
    MixedFamilies(IpAddr),
    /// A multiplier of 0 would take over at once.
    #[error("the down multiplier must be at least 1 (RFC 9568 says 3)")]
    DownMultiplierZero,
    /// RFC 3768 is IPv4 only.
    #[error("VRRP version 2 has no IPv6: use version 3")]
    Version2Ipv6,
    /// Not expressible in the version's field.
    #[error(
        "advert interval {0}: version 3 allows 10 ms to 40.95 s, version 2 whole seconds 1 to 255"
    )]
    Interval(AdvertInterval),
    /// RFC 9568 §9 removed authentication.
    #[error("VRRP version 3 has no authentication: remove it or use version 2")]
    AuthInVersion3,
}
