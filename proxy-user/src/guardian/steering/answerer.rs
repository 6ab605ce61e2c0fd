//! Who answers ARP for the addresses: the program's maps behind one trait, and what is said of it.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use proxy_common::abi::{Asker, Mac, Reason};

use super::loader::OBJECT_VARIABLE;
use super::slots::Place;

/// How to hook into an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Native where it is known to work, else generic; the report says which and why.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's generic path, or not at all.
    Generic,
}

/// How an interface was hooked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// In the driver, before the kernel has a packet of its own.
    Native,
    /// In the kernel's generic path.
    Generic,
}

impl Attached {
    /// Its name in logs, status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// What `attach` got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachReport {
    /// The interface.
    pub interface: String,
    /// The mode that it works in.
    pub got: Attached,
    /// Why this mode; one clause for the log.
    pub reason: String,
    /// What will not work as it stands, each with the command that mends it; for the log.
    pub warnings: Vec<String>,
}

/// Another station claimed an address that this node answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The address.
    pub vip: Ipv4Addr,
    /// Its claimant's Ethernet address.
    pub mac: Mac,
    /// The interface that the claim was heard on.
    pub ifindex: u32,
}

impl From<proxy_common::abi::Conflict> for Conflict {
    fn from(raw: proxy_common::abi::Conflict) -> Self {
        Self { vip: raw.vip.into(), mac: raw.mac, ifindex: raw.ifindex }
    }
}

/// Frames by [`Reason`], since the program was loaded, over all interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters([u64; Reason::ALL.len()]);

impl Counters {
    /// One counter.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// All of them, for metrics.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(self.0)
    }

    pub(crate) fn add(&mut self, reason: Reason, count: u64) {
        let counter = &mut self.0[reason as usize];
        *counter = counter.saturating_add(count);
    }
}

/// Why steering refused.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// No object file where it is looked for.
    #[error(
        "no XDP object (looked at {}): run `cargo xtask build-ebpf`, name it in \
         ${OBJECT_VARIABLE}, or set xdp = \"off\"",
        tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoObject {
        /// The paths tried.
        tried: Vec<PathBuf>,
    },
    /// The object is not of this build: a map or the program is missing or has another size.
    #[error("the XDP object {} is of another build ({what}): run `cargo xtask build-ebpf`",
        path.display())]
    OtherBuild {
        /// The object.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The kernel refused the program or a map.
    #[error(
        "the kernel refused the XDP program: {what} (needs Linux 5.18 or newer, CAP_BPF and \
        CAP_NET_ADMIN; xdp = \"off\" does without)"
    )]
    Load {
        /// The kernel's words.
        what: String,
    },
    /// No such interface, or none with an Ethernet address.
    #[error("interface {interface}: {what}")]
    Interface {
        /// Its name.
        interface: String,
        /// What is wrong.
        what: String,
    },
    /// Another XDP program is on the interface.
    #[error(
        "interface {interface} already has an XDP program: {holder}; stop its owner, or set \
        xdp = \"off\""
    )]
    Busy {
        /// The interface.
        interface: String,
        /// Whose it is, as far as the kernel tells.
        holder: String,
    },
    /// The interface takes no program in the mode asked for.
    #[error("interface {interface} takes no XDP program: {what}")]
    Attach {
        /// The interface.
        interface: String,
        /// The kernel's words, for each mode tried.
        what: String,
    },
    /// No such address was added.
    #[error("{0} is not one of the addresses steered")]
    UnknownVip(Ipv4Addr),
    /// More addresses than one program serves ([`proxy_common::abi::VIPS_MAX`]).
    #[error("no more than {} addresses can be steered", proxy_common::abi::VIPS_MAX)]
    TooManyVips,
    /// A map could not be read or written.
    #[error("map {map}: {what}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's words.
        what: String,
    },
}

/// Answers for virtual addresses, or keeps silent: the maps of a program that is hooked into
/// interfaces elsewhere ([`super::XdpHooks`]). See the room for who calls what when.
pub trait Steering: Send {
    /// Adds an address of a hooked interface, or moves it there. It is not answered for until told.
    ///
    /// # Errors
    /// [`SteeringError::TooManyVips`], [`SteeringError::Map`].
    fn place_vip(&mut self, vip: Ipv4Addr, place: Place) -> Result<(), SteeringError>;

    /// From its return on, ARP for `vip` is answered (`true`) or dropped (`false`).
    ///
    /// # Errors
    /// [`SteeringError::UnknownVip`], [`SteeringError::Map`].
    fn answer(&mut self, vip: Ipv4Addr, on: bool) -> Result<(), SteeringError>;

    /// Nothing is answered from this moment on (CLOCK_MONOTONIC, nanoseconds, see
    /// [`super::monotonic_ns`]); it is 0 at first.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    fn answer_until(&mut self, until_ns: u64) -> Result<(), SteeringError>;

    /// The map that [`Self::answer_until`] writes, if it is the kernel's: by it somebody else can
    /// end all answers.
    fn lease_map(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Frames by reason so far.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    fn counters(&self) -> Result<Counters, SteeringError>;

    /// The stations that asked for an address last, in no order.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    fn askers(&self) -> Result<Vec<Asker>, SteeringError>;

    /// The next claim of an address answered for here, heard since; `None` when there is none.
    /// Whoever drains must bound itself: the wire decides how many there are.
    fn next_conflict(&mut self) -> Option<Conflict>;
}
