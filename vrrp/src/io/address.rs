//! Addresses with a lifetime: the VIP outlives nobody who renews it.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::IoError;
use super::netlink::{Netlink, What};

/// The kernel's infinity.
const FOREVER: u32 = u32::MAX;

/// An address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressSpec {
    /// Interface index.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Prefix length. A VIP is best /32 or /128. No prefix route is made in any case.
    pub prefix: u8,
}

impl fmt::Display for AddressSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on interface {}", self.address, self.prefix, self.index)
    }
}

/// How long the kernel keeps an address that is not renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Seconds, both valid and preferred. 0 is taken as 1, which is the least the kernel knows.
    Seconds(u32),
    /// Until deleted.
    Forever,
}

/// An address as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressEntry {
    /// Where and what.
    pub spec: AddressSpec,
    /// What is left of its lifetime.
    pub lifetime: Lifetime,
    /// IPv4: another address of the same prefix came first.
    pub secondary: bool,
}

impl Netlink {
    /// Adds the address, or renews its lifetime if it is there. Duplicate address detection is
    /// not done: the pair has agreed who owns it.
    ///
    /// # Errors
    /// No such interface, no privilege.
    pub fn replace_address(
        &mut self,
        spec: &AddressSpec,
        lifetime: Lifetime,
    ) -> Result<(), IoError> {
        let object = spec.to_string();
        let what = What { action: "set the address", object: &object };
        let seconds = match lifetime {
            Lifetime::Seconds(seconds) => seconds.max(1),
            Lifetime::Forever => FOREVER,
        };
        let mut info = CacheInfo::default();
        info.ifa_preferred = seconds;
        info.ifa_valid = seconds;
        let mut message = message(spec);
        message.header.flags = AddressHeaderFlags::Nodad;
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        message.attributes.push(AddressAttribute::Flags(flags));
        message.attributes.push(AddressAttribute::CacheInfo(info));
        let message = RouteNetlinkMessage::NewAddress(message);
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE, &what).map(|_| ())
    }

    /// Deletes the address; `false` if it was not there (any more).
    ///
    /// # Errors
    /// No such interface, no privilege.
    pub fn delete_address(&mut self, spec: &AddressSpec) -> Result<bool, IoError> {
        let object = spec.to_string();
        let what = What { action: "delete the address", object: &object };
        match self.request(RouteNetlinkMessage::DelAddress(message(spec)), 0, &what) {
            Ok(_) => Ok(true),
            Err(e) if e.errno() == Some(Errno::EADDRNOTAVAIL as i32) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// All addresses of an interface, IPv4 first, in the kernel's order.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<AddressEntry>, IoError> {
        let object = format!("interface {index}");
        let mut found = self.all_addresses(&object)?;
        found.retain(|entry| entry.spec.index == index);
        found.sort_by_key(|entry| entry.spec.address.is_ipv6());
        Ok(found)
    }

    /// Takes an address off every interface where it stands with a lifetime, that is, where a
    /// [`VipAddress`] put it; an address that somebody else gave the host for ever stays. How many
    /// were taken off.
    ///
    /// # Errors
    /// No privilege, or the kernel's answer cannot be read.
    pub fn take_off(&mut self, address: IpAddr) -> Result<usize, IoError> {
        let mut taken = 0;
        for entry in self.all_addresses(&address.to_string())? {
            if entry.spec.address == address && entry.lifetime != Lifetime::Forever {
                taken += usize::from(self.delete_address(&entry.spec)?);
            }
        }
        Ok(taken)
    }

    fn all_addresses(&mut self, object: &str) -> Result<Vec<AddressEntry>, IoError> {
        let what = What { action: "list the addresses of", object };
        let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.request(all, NLM_F_DUMP, &what)?;
        let entries = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => entry(message),
            _ => None,
        });
        Ok(entries.collect())
    }
}

fn message(spec: &AddressSpec) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match spec.address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = spec.prefix;
    message.header.index = spec.index;
    message.attributes =
        vec![AddressAttribute::Local(spec.address), AddressAttribute::Address(spec.address)];
    message
}

pub(super) fn entry(message: &AddressMessage) -> Option<AddressEntry> {
    // IFA_LOCAL is the address where both are given (point to point); IPv6 gives IFA_ADDRESS only
    let mut local = None;
    let mut address = None;
    let mut lifetime = Lifetime::Forever;
    let mut secondary = false;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(a) => local = Some(*a),
            AddressAttribute::Address(a) => address = Some(*a),
            AddressAttribute::CacheInfo(info) if info.ifa_valid != FOREVER => {
                lifetime = Lifetime::Seconds(info.ifa_valid);
            }
            AddressAttribute::Flags(flags) => secondary = flags.contains(AddressFlags::Secondary),
            _ => {}
        }
    }
    let address = local.or(address)?;
    let spec =
        AddressSpec { index: message.header.index, address, prefix: message.header.prefix_len };
    Some(AddressEntry { spec, lifetime, secondary })
}

/// The VIP on an interface for as long as this value lives and is renewed.
///
/// If the process dies without dropping it, the kernel removes the address when the lifetime
/// ends: a host without a living owner loses it.
#[derive(Debug)]
pub struct VipAddress {
    netlink: Netlink,
    spec: AddressSpec,
    lifetime: Lifetime,
    held: bool,
}

impl VipAddress {
    /// Adds it.
    ///
    /// # Errors
    /// See [`Netlink::replace_address`].
    pub fn add(spec: AddressSpec, lifetime: Lifetime) -> Result<Self, IoError> {
        let mut netlink = Netlink::open()?;
        netlink.replace_address(&spec, lifetime)?;
        Ok(Self { netlink, spec, lifetime, held: true })
    }

    /// Starts the lifetime anew; puts the address back if somebody removed it. Call it four times
    /// a lifetime.
    ///
    /// # Errors
    /// See [`Netlink::replace_address`].
    pub fn renew(&mut self) -> Result<(), IoError> {
        self.netlink.replace_address(&self.spec, self.lifetime)?;
        self.held = true;
        Ok(())
    }

    /// Deletes it now; `false` if it was gone already. [`Self::renew`] would bring it back.
    ///
    /// # Errors
    /// See [`Netlink::delete_address`].
    pub fn remove(&mut self) -> Result<bool, IoError> {
        self.held = false;
        self.netlink.delete_address(&self.spec)
    }

    /// Where it is.
    #[must_use]
    pub const fn spec(&self) -> &AddressSpec {
        &self.spec
    }
}

impl Drop for VipAddress {
    fn drop(&mut self) {
        if self.held {
            // nobody is left to tell; the lifetime removes what this could not
            self.netlink.delete_address(&self.spec).ok();
        }
    }
}
