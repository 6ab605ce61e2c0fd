//! Which place in the program's maps belongs to which address: one table for every steering.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proxy_common::abi::{Mac, VIPS_MAX, Vip};

use super::SteeringError;

/// Where an address is answered for: an interface that was hooked into, as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The interface's number.
    pub ifindex: u32,
    /// Where answers leave; 0: by the way they came. See [`Vip::tx_ifindex`].
    pub tx_ifindex: u32,
    /// The interface's own Ethernet address.
    pub mac: Mac,
}

/// The addresses and their entries.
#[derive(Clone, Debug, Default)]
pub(super) struct SlotTable {
    entries: BTreeMap<Ipv4Addr, Vip>,
}

impl SlotTable {
    /// Gives `vip` a slot, or keeps the one that it has, at this place.
    pub(super) fn place(&mut self, vip: Ipv4Addr, place: Place) -> Result<Vip, SteeringError> {
        let slot = match self.entries.get(&vip) {
            Some(entry) => entry.slot,
            None => u32::try_from(self.entries.len()).unwrap_or(VIPS_MAX),
        };
        if slot >= VIPS_MAX {
            return Err(SteeringError::TooManyVips);
        }
        let Place { ifindex, tx_ifindex, mac } = place;
        let entry = Vip { slot, ifindex, tx_ifindex, vlan: 0, mac };
        self.entries.insert(vip, entry);
        Ok(entry)
    }

    /// Its entry.
    pub(super) fn get(&self, vip: Ipv4Addr) -> Result<&Vip, SteeringError> {
        self.entries.get(&vip).ok_or(SteeringError::UnknownVip(vip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_slot_wherever_it_goes_and_there_are_so_many() {
        let mut table = SlotTable::default();
        let vip = |i| Ipv4Addr::from(0x0a00_0000 + i);
        let (first, second) =
            (Place { ifindex: 1, ..Place::default() }, Place { ifindex: 9, ..Place::default() });
        for i in 0..VIPS_MAX {
            assert_eq!(table.place(vip(i), first).unwrap().slot, i);
        }
        assert!(matches!(table.place(vip(VIPS_MAX), first), Err(SteeringError::TooManyVips)));
        let moved = table.place(vip(3), second).unwrap();
        assert_eq!((moved.slot, moved.ifindex), (3, 9));
        assert_eq!(table.get(vip(3)).unwrap(), &moved);
        let nobody = Ipv4Addr::LOCALHOST;
        assert!(matches!(table.get(nobody), Err(SteeringError::UnknownVip(v)) if v == nobody));
    }
}
