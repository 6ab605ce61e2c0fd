//! Steering by the XDP program: its hooks in interfaces, and its maps. Two values, because
//! attaching waits for the kernel's network lock and a map write waits for nobody.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::maps::MapError;
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, XdpMode};
use proxy_common::abi::{self, Asker, Control, Reason};

use super::link::{self, Link};
use super::loader::{self, Maps, Program};
use super::slots::{Place, SlotTable};
use super::{AttachReport, Attached, Conflict, Counters, Mode, Steering, SteeringError};

/// Loads the object that [`loader::find_object`] finds. No interface is touched.
///
/// # Errors
/// [`SteeringError::NoObject`] and those of [`load_from`].
pub fn load() -> Result<(XdpHooks, XdpMaps), SteeringError> {
    load_from(&loader::find_object()?)
}

/// Loads the object at `path`. No interface is touched.
///
/// # Errors
/// [`SteeringError::Load`], [`SteeringError::OtherBuild`].
pub fn load_from(path: &Path) -> Result<(XdpHooks, XdpMaps), SteeringError> {
    let (program, maps) = loader::load_object(path)?;
    let hooks = XdpHooks { program, attached: BTreeMap::new() };
    Ok((hooks, XdpMaps { maps, slots: SlotTable::default() }))
}

/// One XDP program on any number of interfaces.
///
/// Its links are not pinned: whatever ends this process also takes the program off, and then nobody
/// answers for the addresses.
pub struct XdpHooks {
    program: Program,
    attached: BTreeMap<String, Hook>,
}

impl std::fmt::Debug for XdpHooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XdpHooks").field("attached", &self.attached.keys()).finish_non_exhaustive()
    }
}

/// A hooked interface. Dropping the link's descriptor takes the program off.
struct Hook {
    ifindex: u32,
    tx_ifindex: u32,
    _hold: FdLink,
}

/// Why one mode did not come about.
enum Refusal {
    /// Another program is there (EBUSY).
    Busy,
    /// The kernel's words.
    Other(String),
}

impl XdpHooks {
    /// Hooks into `interface`, unless that is done already; an interface that was made again since
    /// is another one. With what it got when that is news.
    ///
    /// # Errors
    /// [`SteeringError::Interface`], [`SteeringError::Busy`], [`SteeringError::Attach`].
    pub fn attach(
        &mut self,
        interface: &str,
        mode: Mode,
    ) -> Result<(Place, Option<AttachReport>), SteeringError> {
        let link = link::query(interface)?;
        let place = |tx_ifindex| Place { ifindex: link.ifindex, tx_ifindex, mac: link.mac };
        if let Some(hook) = self.attached.get(interface)
            && hook.ifindex == link.ifindex
        {
            return Ok((place(hook.tx_ifindex), None));
        }
        self.attached.remove(interface);
        let (hold, report) = self.hook_by_plan(interface, mode, &link)?;
        let redirect = link.is_veth && report.got == Attached::Native;
        let tx_ifindex = if redirect { link.ifindex } else { 0 };
        let hook = Hook { ifindex: link.ifindex, tx_ifindex, _hold: hold };
        self.attached.insert(interface.to_owned(), hook);
        Ok((place(tx_ifindex), Some(report)))
    }

    fn hook_by_plan(
        &mut self,
        interface: &str,
        mode: Mode,
        link: &Link,
    ) -> Result<(FdLink, AttachReport), SteeringError> {
        let mut refusals = Vec::new();
        for (got, reason) in plan(mode, link) {
            let xdp_mode = match got {
                Attached::Native => XdpMode::Driver,
                Attached::Generic => XdpMode::Skb,
            };
            match self.hook(link.ifindex, xdp_mode) {
                Ok(hold) => {
                    let reason = refusals.iter().fold(reason, |r, why| format!("{r}; {why}"));
                    let warnings = warnings(got, link);
                    let interface = interface.to_owned();
                    return Ok((hold, AttachReport { interface, got, reason, warnings }));
                }
                Err(Refusal::Busy) => return Err(busy(interface)),
                Err(Refusal::Other(why)) => refusals.push(format!("{}: {why}", got.name())),
            }
        }
        let what = refusals.join("; ");
        Err(SteeringError::Attach { interface: interface.to_owned(), what })
    }

    fn hook(&mut self, ifindex: u32, mode: XdpMode) -> Result<FdLink, Refusal> {
        let no_program = || Refusal::Other("no program in the object".to_owned());
        let Some(program) = self.program.xdp() else { return Err(no_program()) };
        let id = program.attach_to_if_index(ifindex, mode).map_err(|error| refusal(&error))?;
        let link = program.take_link(id).map_err(|error| refusal(&error))?;
        // A kernel without XDP links (before 5.9) would keep the program when this process dies,
        // and go on answering: aya's fall-back to that is taken off again (by drop) and refused.
        FdLink::try_from(link)
            .map_err(|_error| Refusal::Other("this kernel has no XDP links".to_owned()))
    }

    /// Lets go of an interface: it is gone, or has another name.
    pub fn detach(&mut self, interface: &str) {
        self.attached.remove(interface);
    }
}

fn busy(interface: &str) -> SteeringError {
    let id = link::query(interface).ok().and_then(|link| link.xdp_program);
    SteeringError::Busy { interface: interface.to_owned(), holder: holder(id) }
}

/// The program that holds an interface, as far as the kernel tells.
fn holder(id: Option<u32>) -> String {
    let Some(id) = id else { return "of unknown owner".to_owned() };
    let name = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    match name {
        Some(name) => format!("{name} (id {id})"),
        None => format!("id {id}"),
    }
}

fn refusal(error: &ProgramError) -> Refusal {
    if let ProgramError::SyscallError(call) = error
        && call.io_error.raw_os_error() == Some(libc::EBUSY)
    {
        return Refusal::Busy;
    }
    let words = loader::program_error(error);
    // The older way to attach reports by netlink, in words only.
    if words.contains("os error 16") { Refusal::Busy } else { Refusal::Other(words) }
}

fn map_error(map: &'static str, error: &MapError) -> SteeringError {
    SteeringError::Map { map, what: loader::chain(error) }
}

/// The modes to try, in order, with the reason to give when that mode is got.
fn plan(mode: Mode, link: &Link) -> Vec<(Attached, String)> {
    match mode {
        Mode::Native => vec![(Attached::Native, "as configured".to_owned())],
        Mode::Generic => vec![(Attached::Generic, "as configured".to_owned())],
        Mode::Auto if link.is_veth => vec![(
            Attached::Generic,
            "veth: native mode's answers are lost unless the peer has GRO on".to_owned(),
        )],
        Mode::Auto => vec![
            (Attached::Native, "the driver takes it".to_owned()),
            (Attached::Generic, "the driver refused".to_owned()),
        ],
    }
}

/// What will not work as it stands.
fn warnings(got: Attached, link: &Link) -> Vec<String> {
    if !link.is_veth || got == Attached::Generic {
        return Vec::new();
    }
    let (peer, place) = match &link.peer {
        Some(peer) => (peer.as_str(), ""),
        None => ("<peer>", " in the peer's namespace"),
    };
    vec![format!(
        "veth in native mode: answers are lost unless the peer polls; if they are, run \
         `ethtool -K {peer} gro on`{place}"
    )]
}

/// The program's maps, wherever it is hooked.
pub struct XdpMaps {
    maps: Maps,
    slots: SlotTable,
}

impl std::fmt::Debug for XdpMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XdpMaps").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl Steering for XdpMaps {
    fn place_vip(&mut self, vip: Ipv4Addr, place: Place) -> Result<(), SteeringError> {
        let entry = self.slots.place(vip, place)?;
        let silent = self.maps.answers.set(entry.slot, 0, 0);
        silent.map_err(|error| map_error(abi::ANSWERS, &error))?;
        let added = self.maps.vips.insert(vip.octets(), entry, 0);
        added.map_err(|error| map_error(abi::VIPS, &error))
    }

    fn answer(&mut self, vip: Ipv4Addr, on: bool) -> Result<(), SteeringError> {
        let slot = self.slots.get(vip)?.slot;
        let written = self.maps.answers.set(slot, u32::from(on), 0);
        written.map_err(|error| map_error(abi::ANSWERS, &error))
    }

    fn answer_until(&mut self, until_ns: u64) -> Result<(), SteeringError> {
        let written = self.maps.control.set(0, Control { answer_until_ns: until_ns }, 0);
        written.map_err(|error| map_error(abi::CONTROL, &error))
    }

    fn lease_map(&self) -> Option<BorrowedFd<'_>> {
        Some(self.maps.lease.as_fd())
    }

    fn counters(&self) -> Result<Counters, SteeringError> {
        let mut counters = Counters::default();
        for reason in Reason::ALL {
            let by_cpu = self.maps.counters.get(&(reason as u32), 0);
            let by_cpu = by_cpu.map_err(|error| map_error(abi::COUNTERS, &error))?;
            counters.add(reason, by_cpu.iter().sum());
        }
        Ok(counters)
    }

    fn askers(&self) -> Result<Vec<Asker>, SteeringError> {
        let askers = self.maps.askers.get(&0, 0).map_err(|e| map_error(abi::ASKERS, &e))?;
        Ok(askers.iter().copied().collect())
    }

    fn next_conflict(&mut self) -> Option<Conflict> {
        // A record of another size is no conflict of ours: skipped, never believed.
        loop {
            let record = self.maps.conflicts.next()?;
            if let Some(conflict) = abi::Conflict::from_bytes(&record) {
                return Some(conflict.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_native_first_but_generic_on_veth_and_says_why() {
        let (nic, veth) = (Link::default(), Link { is_veth: true, ..Link::default() });
        let modes = |mode, link| -> Vec<_> {
            plan(mode, link).into_iter().map(|(attached, _)| attached).collect()
        };
        assert_eq!(modes(Mode::Auto, &nic), [Attached::Native, Attached::Generic]);
        assert_eq!(modes(Mode::Auto, &veth), [Attached::Generic]);
        assert_eq!(modes(Mode::Native, &veth), [Attached::Native]);
        assert_eq!(modes(Mode::Generic, &nic), [Attached::Generic]);
    }

    #[test]
    fn only_native_veth_warns_and_names_the_command() {
        let veth = Link { is_veth: true, peer: Some("br-a".to_owned()), ..Link::default() };
        assert!(warnings(Attached::Generic, &veth).is_empty());
        assert!(warnings(Attached::Native, &Link::default()).is_empty());
        let [warning] = &warnings(Attached::Native, &veth)[..] else { panic!("one warning") };
        assert!(warning.contains("`ethtool -K br-a gro on`"), "{warning}");
    }
}
