//! Steering by the XDP program.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, XdpMode};
use proxy_common::abi::{self, Control, Reason, STALE_AFTER_NS, VIPS_MAX, Vip};

use super::link::{self, Link};
use super::loader::{self, Loaded};
use super::{AttachReport, Attached, Conflict, Counters, Mode, Steering, SteeringError};

/// Steering by one XDP program on any number of interfaces.
///
/// Its links are not pinned: whatever ends this process also takes the program off, and then nobody
/// answers for the addresses.
pub struct XdpSteering {
    loaded: Loaded,
    object: PathBuf,
    attached: BTreeMap<String, Hook>,
    vips: BTreeMap<Ipv4Addr, Vip>,
    control: Control,
}

/// A hooked interface. Dropping the link's descriptor takes the program off.
struct Hook {
    link: Link,
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

impl XdpSteering {
    /// Loads the object that [`loader::find_object`] finds.
    ///
    /// # Errors
    /// [`SteeringError::NoObject`] and those of [`XdpSteering::from_file`].
    pub fn load() -> Result<Self, SteeringError> {
        Self::from_file(&loader::find_object()?)
    }

    /// Loads the object at `path`. No interface is touched.
    ///
    /// # Errors
    /// [`SteeringError::Load`], [`SteeringError::OtherBuild`], [`SteeringError::Map`].
    pub fn from_file(path: &Path) -> Result<Self, SteeringError> {
        let mut steering = Self {
            loaded: Loaded::from_file(path)?,
            object: path.to_path_buf(),
            attached: BTreeMap::new(),
            vips: BTreeMap::new(),
            control: Control { beat_ns: 0, stale_after_ns: STALE_AFTER_NS },
        };
        steering.write_control()?;
        Ok(steering)
    }

    fn write_control(&mut self) -> Result<(), SteeringError> {
        let written = self.loaded.control.set(0, self.control, 0);
        written.map_err(|error| map_error(abi::CONTROL, &error))
    }

    fn hook(&mut self, ifindex: u32, mode: XdpMode) -> Result<FdLink, Refusal> {
        let no_program = || Refusal::Other(format!("no program in {}", self.object.display()));
        let Some(program) = self.loaded.program() else { return Err(no_program()) };
        let id = program.attach_to_if_index(ifindex, mode).map_err(|error| refusal(&error))?;
        let link = program.take_link(id).map_err(|error| refusal(&error))?;
        // A kernel without XDP links (before 5.9) would keep the program when this process dies,
        // and go on answering: aya's fall-back to that is taken off again (by drop) and refused.
        FdLink::try_from(link)
            .map_err(|_error| Refusal::Other("this kernel has no XDP links".to_owned()))
    }

    fn busy(interface: &str) -> SteeringError {
        let id = link::query(interface).ok().and_then(|link| link.xdp_program);
        SteeringError::Busy { interface: interface.to_owned(), holder: holder(id) }
    }
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

impl Steering for XdpSteering {
    fn attach(&mut self, interface: &str, mode: Mode) -> Result<AttachReport, SteeringError> {
        let link = link::query(interface)?;
        let mut refusals = Vec::new();
        for (got, reason) in plan(mode, &link) {
            let xdp_mode = match got {
                Attached::Native => XdpMode::Driver,
                Attached::Generic => XdpMode::Skb,
            };
            match self.hook(link.ifindex, xdp_mode) {
                Ok(hold) => {
                    let reason = refusals.iter().fold(reason, |r, why| format!("{r}; {why}"));
                    let warnings = warnings(got, &link);
                    let redirect = link.is_veth && got == Attached::Native;
                    let tx_ifindex = if redirect { link.ifindex } else { 0 };
                    let hook = Hook { link, tx_ifindex, _hold: hold };
                    self.attached.insert(interface.to_owned(), hook);
                    let interface = interface.to_owned();
                    return Ok(AttachReport { interface, got, reason, warnings });
                }
                Err(Refusal::Busy) => return Err(Self::busy(interface)),
                Err(Refusal::Other(why)) => refusals.push(format!("{}: {why}", got.name())),
            }
        }
        let what = refusals.join("; ");
        Err(SteeringError::Attach { interface: interface.to_owned(), what })
    }

    fn add_vip(&mut self, vip: Ipv4Addr, interface: &str) -> Result<(), SteeringError> {
        let Some(hook) = self.attached.get(interface) else {
            return Err(SteeringError::Interface {
                interface: interface.to_owned(),
                what: "not attached".to_owned(),
            });
        };
        let slot = match self.vips.get(&vip) {
            Some(entry) => entry.slot,
            None => u32::try_from(self.vips.len()).unwrap_or(VIPS_MAX),
        };
        if slot >= VIPS_MAX {
            return Err(SteeringError::TooManyVips);
        }
        let entry = Vip {
            slot,
            ifindex: hook.link.ifindex,
            tx_ifindex: hook.tx_ifindex,
            vlan: 0,
            mac: hook.link.mac,
        };
        let silent = self.loaded.answers.set(slot, 0, 0);
        silent.map_err(|error| map_error(abi::ANSWERS, &error))?;
        let added = self.loaded.vips.insert(vip.octets(), entry, 0);
        added.map_err(|error| map_error(abi::VIPS, &error))?;
        self.vips.insert(vip, entry);
        Ok(())
    }

    fn answer(&mut self, vip: Ipv4Addr, on: bool) -> Result<(), SteeringError> {
        let entry = self.vips.get(&vip).ok_or(SteeringError::UnknownVip(vip))?;
        let written = self.loaded.answers.set(entry.slot, u32::from(on), 0);
        written.map_err(|error| map_error(abi::ANSWERS, &error))
    }

    fn beat(&mut self, now_ns: u64) -> Result<(), SteeringError> {
        self.control.beat_ns = now_ns;
        self.write_control()
    }

    fn set_stale_after(&mut self, nanoseconds: u64) -> Result<(), SteeringError> {
        self.control.stale_after_ns = nanoseconds;
        self.write_control()
    }

    fn counters(&self) -> Result<Counters, SteeringError> {
        let mut counters = Counters::default();
        for reason in Reason::ALL {
            let by_cpu = self.loaded.counters.get(&(reason as u32), 0);
            let by_cpu = by_cpu.map_err(|error| map_error(abi::COUNTERS, &error))?;
            counters.add(reason, by_cpu.iter().sum());
        }
        Ok(counters)
    }

    fn next_conflict(&mut self) -> Option<Conflict> {
        // A record of another size is no conflict of ours: skipped, never believed.
        loop {
            let record = self.loaded.conflicts.next()?;
            if let Some(conflict) = abi::Conflict::from_bytes(&record) {
                return Some(conflict.into());
            }
        }
    }

    fn detach(&mut self) {
        self.attached.clear();
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
