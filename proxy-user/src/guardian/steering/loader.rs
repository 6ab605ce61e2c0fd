//! Finds the eBPF object, loads it into the kernel and hands its maps out, typed.
//!
//! The object is loaded from a file at run time, so that an ordinary build needs no BPF toolchain.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use proxy_common::abi::{self, Askers, Control, Reason, Vip};

use super::SteeringError;

/// Environment variable that names the object.
pub const OBJECT_VARIABLE: &str = "TANDEM_BPF_OBJECT";
/// The object's file name.
const OBJECT_NAME: &str = "tandem.bpf.o";

/// Where the object is: `$TANDEM_BPF_OBJECT`, beside the executable, or, for an executable in a
/// build's target folder, `target/ebpf/`.
///
/// Never looked for relative to the working folder: a root process would load what it finds there.
///
/// # Errors
/// [`SteeringError::NoObject`] with all paths tried.
pub fn find_object() -> Result<PathBuf, SteeringError> {
    let executable = std::env::current_exe().unwrap_or_default();
    let tried = candidates(std::env::var_os(OBJECT_VARIABLE).map(PathBuf::from), &executable);
    match tried.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(SteeringError::NoObject { tried }),
    }
}

fn candidates(named: Option<PathBuf>, executable: &Path) -> Vec<PathBuf> {
    if let Some(path) = named {
        return vec![path];
    }
    let beside = executable.parent().map(|folder| folder.join(OBJECT_NAME));
    let target = executable
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == "target"))
        .map(|target| target.join("ebpf").join(OBJECT_NAME));
    beside.into_iter().chain(target).collect()
}

/// The loaded program; its links are held by who attaches.
pub(super) struct Program(Ebpf);

/// The program's maps.
pub(super) struct Maps {
    /// Of `control`, for the keeper.
    pub(super) lease: OwnedFd,
    pub(super) control: Array<MapData, Control>,
    pub(super) askers: Array<MapData, Askers>,
    pub(super) answers: Array<MapData, u32>,
    pub(super) vips: HashMap<MapData, abi::Ipv4, Vip>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) conflicts: RingBuf<MapData>,
}

/// Loads the object at `path`.
///
/// # Errors
/// [`SteeringError::Load`], [`SteeringError::OtherBuild`].
pub(super) fn load_object(path: &Path) -> Result<(Program, Maps), SteeringError> {
    let mut ebpf = EbpfLoader::new().load_file(path).map_err(|error| load_error(&error))?;
    let other_build = |what: String| SteeringError::OtherBuild { path: path.to_path_buf(), what };
    let counters: PerCpuArray<_, u64> = typed(&mut ebpf, abi::COUNTERS).map_err(other_build)?;
    if counters.len() != Reason::COUNT {
        return Err(other_build(format!("{} counters", counters.len())));
    }
    let lease = lease_map(&ebpf).map_err(other_build)?;
    let maps = Maps {
        lease,
        control: typed(&mut ebpf, abi::CONTROL).map_err(other_build)?,
        answers: typed(&mut ebpf, abi::ANSWERS).map_err(other_build)?,
        askers: typed(&mut ebpf, abi::ASKERS).map_err(other_build)?,
        vips: typed(&mut ebpf, abi::VIPS).map_err(other_build)?,
        conflicts: typed(&mut ebpf, abi::CONFLICTS).map_err(other_build)?,
        counters,
    };
    let mut program = Program(ebpf);
    let Some(xdp) = program.xdp() else {
        return Err(other_build(format!("no program {}", abi::PROGRAM)));
    };
    xdp.load().map_err(|error| SteeringError::Load { what: program_error(&error) })?;
    Ok((program, maps))
}

impl Program {
    /// The XDP program.
    pub(super) fn xdp(&mut self) -> Option<&mut Xdp> {
        self.0.program_mut(abi::PROGRAM)?.try_into().ok()
    }
}

fn lease_map(ebpf: &Ebpf) -> Result<OwnedFd, String> {
    let Some(Map::Array(map)) = ebpf.map(abi::CONTROL) else {
        return Err(format!("no map {}", abi::CONTROL));
    };
    map.fd().as_fd().try_clone_to_owned().map_err(|error| error.to_string())
}

fn typed<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, String> {
    let map = ebpf.take_map(name).ok_or_else(|| format!("no map {name}"))?;
    T::try_from(map).map_err(|error| format!("map {name}: {error}"))
}

fn load_error(error: &EbpfError) -> SteeringError {
    SteeringError::Load { what: chain(error) }
}

/// The kernel's words without the verifier's log, unless the program itself was refused.
pub(super) fn program_error(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let last = log.lines().rev().find(|line| !line.starts_with("processed "));
            format!("{io_error}; the verifier's last line: {}", last.unwrap_or("(none)"))
        }
        other => chain(other),
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_looked_for_where_the_documentation_says() {
        let named = candidates(Some("/opt/x.o".into()), Path::new("/usr/bin/tandem"));
        assert_eq!(named, [Path::new("/opt/x.o")]);
        let installed = candidates(None, Path::new("/usr/bin/tandem"));
        assert_eq!(installed, [Path::new("/usr/bin/tandem.bpf.o")]);
        for built in ["/s/target/release/tandem", "/s/target/debug/deps/xdp-0f"] {
            let tried = candidates(None, Path::new(built));
            assert_eq!(tried.last().unwrap(), Path::new("/s/target/ebpf/tandem.bpf.o"));
        }
    }

    #[test]
    fn a_file_that_is_no_object_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"not ELF").unwrap();
        assert!(matches!(load_object(file.path()), Err(SteeringError::Load { .. })));
    }
}
