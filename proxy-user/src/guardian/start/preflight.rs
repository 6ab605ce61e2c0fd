//! What the host must give: a state folder, the lock, rights, a kernel new enough, interfaces.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::super::fault::Fault;
use crate::config::{Config, Io, XdpMode};

/// io_uring is taken by itself from here on (multishot accept returned wrong descriptors before).
const URING_FLOOR: (u32, u32) = (6, 9);
/// Listeners of every worker, links, rings, maps, a few clients.
const DESCRIPTORS_FLOOR: u64 = 256;
/// Below this a busy balancer will refuse connections.
const DESCRIPTORS_WISHED: u64 = 16_384;
/// `futex_waitv`, by which a death is learned.
const KERNEL_FLOOR: (u32, u32) = (5, 16);

/// Sentences worth a line in the log; the node starts anyway.
pub(in crate::guardian) type Warnings = Vec<String>;

/// Held while the guardian lives, and between two of them by the keeper; a lock left by a killed
/// node is free. The file names the process that was started: the keeper.
#[derive(Debug)]
pub(in crate::guardian) struct Lock {
    file: Flock<File>,
    path: PathBuf,
    /// The folder goes too, with its state: a node without a configuration leaves nothing behind.
    temporary: bool,
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Leaving it would do no harm: the lock is what counts, not the file.
        drop(fs::remove_file(&self.path));
        if let (true, Some(folder)) = (self.temporary, self.path.parent()) {
            drop(fs::remove_file(folder.join("epoch")));
            drop(fs::remove_dir(folder));
        }
    }
}

/// Makes the state folder and takes the lock in it, which the guardian before may have `kept`.
pub(in crate::guardian) fn lock(
    folder: &Path,
    temporary: bool,
    kept: Option<OwnedFd>,
) -> Result<Lock, Fault> {
    fs::create_dir_all(folder).map_err(|error| {
        let message = format!("cannot make the state folder {}: {error}", folder.display());
        Fault::Runtime(format!("{message}\n  hint: set state_dir in [node], or run as root"))
    })?;
    let path = folder.join("lock");
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = kept.map_or_else(open, |kept| Ok(kept.into()));
    let file = file.map_err(|error| Fault::file("cannot open", &path, error))?;
    let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(mut file, _)| {
        let mut pid = String::new();
        drop(file.read_to_string(&mut pid));
        let holder = pid.trim();
        let holder = if holder.is_empty() { String::new() } else { format!(" (pid {holder})") };
        Fault::Runtime(format!(
            "another tandem{holder} runs with the state folder {}\n  hint: stop it, or give this \
             node its own state_dir",
            folder.display()
        ))
    })?;
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::os::unix::process::parent_id()));
    written.map_err(|error| Fault::file("cannot write", &path, error))?;
    Ok(Lock { file, path, temporary })
}

/// Checks rights, kernel and interfaces. May turn io_uring off, saying so.
pub(in crate::guardian) fn host(config: &mut Config) -> Result<Warnings, Fault> {
    let mut warnings = Warnings::new();
    let release = nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let kernel = version(&release);
    if kernel < KERNEL_FLOOR {
        let (major, minor) = KERNEL_FLOOR;
        return Err(Fault::Runtime(format!(
            "Linux {release} is too old: tandem needs {major}.{minor}, and 6.9 for io_uring"
        )));
    }
    if config.engine.io == Io::Auto && kernel < URING_FLOOR {
        config.engine.io = Io::Epoll;
        warnings.push(format!("Linux {release} is older than 6.9: epoll instead of io_uring"));
    }
    warnings.extend(descriptors()?);
    if !config.vips.is_empty() {
        rights()?;
        for vip in &config.vips {
            interface(&vip.interface)?;
        }
        btf(config, &mut warnings);
    }
    Ok(warnings)
}

/// Raises the soft limit of descriptors to the hard one; the engine inherits it. Too few to work
/// with at all is refused, too few for many clients is said.
fn descriptors() -> Result<Option<String>, Fault> {
    let refused = |errno| Fault::of("the limit of descriptors", errno);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused)?;
    let hint = "raise it with `ulimit -Hn 65536`, or LimitNOFILE=65536 in a unit of systemd";
    if hard < DESCRIPTORS_FLOOR {
        return Err(Fault::Runtime(format!(
            "no more than {hard} descriptors are allowed here; tandem needs {DESCRIPTORS_FLOOR} \
             to start, and one more for each connection\n  hint: {hint}"
        )));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(refused)?;
    let few = hard < DESCRIPTORS_WISHED;
    Ok(few.then(|| format!("no more than {hard} descriptors are allowed here: {hint}")))
}

/// (major, minor) of a release such as `6.18.44-fc`; (0, 0) if it cannot be read.
fn version(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => (0, 0),
    }
}

/// A virtual address needs CAP_NET_ADMIN and CAP_NET_RAW.
fn rights() -> Result<(), Fault> {
    const NET_ADMIN: u64 = 1 << 12;
    const NET_RAW: u64 = 1 << 13;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if held & NET_ADMIN != 0 && held & NET_RAW != 0 {
        return Ok(());
    }
    Err(Fault::Runtime(
        "a [[vip]] needs the rights CAP_NET_ADMIN and CAP_NET_RAW\n  hint: run as root (sudo), or \
         remove [[vip]]"
            .to_owned(),
    ))
}

fn interface(name: &str) -> Result<(), Fault> {
    if nix::net::if_::if_nametoindex(name).is_ok() {
        return Ok(());
    }
    let all = nix::net::if_::if_nameindex().map(|list| {
        let names = list.into_iter().map(|one| one.name().to_string_lossy().into_owned());
        names.collect::<Vec<_>>().join(", ")
    });
    let all = all.unwrap_or_default();
    Err(Fault::Runtime(format!(
        "interface {name} does not exist\n  hint: [[vip]] interface must be one of {all}"
    )))
}

/// Without BTF the XDP program cannot be loaded: `auto` goes on without it.
fn btf(config: &mut Config, warnings: &mut Warnings) {
    let known = Path::new("/sys/kernel/btf/vmlinux").exists();
    if !known && config.xdp == XdpMode::Auto {
        config.xdp = XdpMode::Off;
        warnings.push("this kernel has no BTF: xdp = \"off\"".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(version("6.18.44-fc-v669"), (6, 18));
        assert_eq!(version("5.4"), (5, 4));
        assert_eq!(version("odd"), (0, 0));
        assert!(version("6.8.9") < URING_FLOOR && version("10.0") > URING_FLOOR);
    }

    #[test]
    fn one_guardian_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("deep/state");
        let held = lock(&state, false, None).unwrap();
        let refused = lock(&state, false, None).unwrap_err().to_string();
        let started = format!("pid {}", std::os::unix::process::parent_id());
        assert!(refused.contains(&started), "{refused}");
        // the next guardian has it from the keeper
        let kept = held.as_fd().try_clone_to_owned().unwrap();
        std::mem::forget(held);
        let held = lock(&state, false, Some(kept)).unwrap();
        lock(&state, false, None).unwrap_err();
        drop(held);
        assert!(!state.join("lock").exists());
        // What a killed guardian leaves behind does not hinder the next.
        fs::write(state.join("lock"), "1\n").unwrap();
        fs::write(state.join("epoch"), "").unwrap();
        drop(lock(&state, true, None).unwrap());
        assert!(!state.exists());
    }

    #[test]
    fn interfaces() {
        interface("lo").unwrap();
        let refused = interface("no-such0").unwrap_err().to_string();
        assert!(refused.contains("no-such0") && refused.contains("lo"), "{refused}");
    }
}
