//! The guardian's own rights: the capabilities that it uses, and no others, from before its first
//! thread on. Whoever it starts has no more than these; the engine lays down even those
//! (`engine::rights`).

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::unistd::{self, Uid};

use super::fault::Fault;
use crate::config::{self, Config, XdpMode};
use crate::control::message::Identity;

/// What every guardian uses, and what for.
const ALWAYS: &[(Capability, &str)] = &[
    (Capability::CAP_SETUID, "the engine becomes its user"),
    (Capability::CAP_SETGID, "and its group"),
    (Capability::CAP_SETPCAP, "the engine gives up what it could ever have"),
    (Capability::CAP_KILL, "ends an engine, by hand or by its own death (PDEATHSIG)"),
    (Capability::CAP_SYS_NICE, "role thread and watchers in real time"),
    (Capability::CAP_NET_BIND_SERVICE, "listeners on ports below 1024"),
    (Capability::CAP_DAC_OVERRIDE, "this program, key, state and log in folders of other users"),
];

/// With a virtual address.
const ADDRESS: &[(Capability, &str)] = &[
    (Capability::CAP_NET_ADMIN, "addresses, routes, settings in /proc/sys/net, XDP hooks"),
    (Capability::CAP_NET_RAW, "adverts, ARP"),
];

/// With the XDP program.
const PROGRAM: &[(Capability, &str)] = &[
    (Capability::CAP_BPF, "loads the program, reads and writes its maps"),
    (Capability::CAP_PERFMON, "without it the verifier guards each load against speculation"),
];

/// Gives up what this guardian does not use. Before the first thread: rights belong to threads.
///
/// # Errors
/// What the kernel says; a user who is not there.
pub(super) fn keep(config: &Config) -> Result<(), Fault> {
    // Locked memory and the engine's rings are bounded by this, or by a capability.
    let unbounded = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok();
    let mut kept = used(config);
    if !unbounded {
        kept.insert(Capability::CAP_IPC_LOCK);
    }
    lay_down(&kept).map_err(|error| Fault::of("cannot give up capabilities", error))?;
    prctl::set_no_new_privs().map_err(|error| Fault::of("cannot give up new privileges", error))
}

fn used(config: &Config) -> CapsHashSet {
    let mut groups = vec![ALWAYS];
    if !config.vips.is_empty() {
        groups.push(ADDRESS);
        if config.xdp != XdpMode::Off {
            groups.push(PROGRAM);
        }
    }
    groups.into_iter().flatten().map(|(capability, _)| *capability).collect()
}

fn lay_down(kept: &CapsHashSet) -> Result<(), CapsError> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)?.difference(kept) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    let held = caps::read(None, CapSet::Permitted)?.intersection(kept).copied().collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &held)?;
    caps::set(None, CapSet::Permitted, &held)
}

/// Whom an engine becomes: as configured; nobody else than the guardian if that is not root.
///
/// # Errors
/// There is no such user, it is root, or the guardian may not start others than itself.
pub(super) fn identity(user: &config::User) -> Result<Option<Identity>, Fault> {
    if !unistd::geteuid().is_root() {
        return Ok(None);
    }
    for needed in [Capability::CAP_SETUID, Capability::CAP_SETGID] {
        if !caps::has_cap(None, CapSet::Effective, needed).unwrap_or(false) {
            return Err(Fault::Runtime(format!(
                "root without {needed} cannot start an engine without root\n  hint: give {needed} \
                 to this container or unit, or start tandem as another user"
            )));
        }
    }
    let entry = match user {
        config::User::Name(name) => unistd::User::from_name(name),
        config::User::Id(id) => unistd::User::from_uid(Uid::from_raw(*id)),
    };
    let entry = entry.map_err(|error| Fault::of("cannot read the users of this host", error))?;
    let found = match (entry, user) {
        (Some(entry), _) => Identity { uid: entry.uid.as_raw(), gid: entry.gid.as_raw() },
        // A number needs no entry.
        (None, config::User::Id(id)) => Identity { uid: *id, gid: *id },
        (None, config::User::Name(name)) => {
            return Err(Fault::Usage(format!(
                "[engine] user = \"{name}\": this host has no such user\n  hint: useradd --system \
                 {name}, or a number"
            )));
        }
    };
    if found.uid == 0 {
        return Err(Fault::Usage("[engine] user: the engine never runs as root".to_owned()));
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        config::parse(text, "t.toml").unwrap()
    }

    #[test]
    fn capabilities_follow_what_is_configured() {
        let plain = used(&parse("[cache]\n"));
        assert!(!plain.contains(&Capability::CAP_NET_ADMIN), "nothing to administer");
        let vip = "[node]\nname = \"a\"\n[cache]\n[[vip]]\naddress = \"192.0.2.9/24\"\n\
                   interface = \"eth0\"\nvrid = 1\n";
        let off = used(&parse(&format!("xdp = \"off\"\n{vip}")));
        assert!(off.contains(&Capability::CAP_NET_RAW) && !off.contains(&Capability::CAP_BPF));
        let auto = used(&parse(vip));
        assert!(auto.contains(&Capability::CAP_BPF) && auto.is_superset(&off));
        let all: CapsHashSet =
            [ALWAYS, ADDRESS, PROGRAM].into_iter().flatten().map(|(one, _)| *one).collect();
        assert_eq!(auto, all);
        assert!(!all.contains(&Capability::CAP_SYS_ADMIN));
    }

    #[test]
    fn users_by_name_and_number_but_never_root() {
        if !unistd::geteuid().is_root() {
            assert_eq!(identity(&config::User::Id(1)).unwrap(), None, "stays who it is");
            return;
        }
        let unknown = config::User::Name("no-such-user".to_owned());
        let refused = identity(&unknown).unwrap_err();
        assert!(refused.is_usage() && refused.to_string().contains("no-such-user"), "{refused}");
        let unlisted = config::User::Id(3_999_999_999);
        let expected = Identity { uid: 3_999_999_999, gid: 3_999_999_999 };
        assert_eq!(identity(&unlisted).unwrap(), Some(expected));
        let daemon = identity(&config::User::Name("daemon".to_owned())).unwrap().unwrap();
        assert_eq!(identity(&config::User::Id(daemon.uid)).unwrap(), Some(daemon));
        assert!(identity(&config::User::Id(0)).is_err());
    }
}
