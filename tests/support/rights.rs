//! What a process may do, by /proc, and making one do what it may not.

use std::fs;

use anyhow::{Context, Result, ensure};
#[cfg(target_arch = "x86_64")]
use nix::sys::{
    ptrace,
    wait::{WaitPidFlag, WaitStatus, waitpid},
};
use nix::unistd::Pid;

/// The rights of one thread, as `/proc/*/status` tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// Real, effective, saved and file system user; all the same.
    pub uid: u32,
    /// The same of the group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Effective capabilities.
    pub effective: u64,
    /// Permitted capabilities.
    pub permitted: u64,
    /// Inheritable and ambient ones.
    pub inheritable: u64,
    /// What an executed program could have.
    pub bounding: u64,
    /// Set-user-id programs give nothing.
    pub no_new_privileges: bool,
    /// 0 none, 2 a filter.
    pub seccomp: u32,
}

impl Rights {
    /// Of every thread of `pid`, which must not differ.
    ///
    /// # Errors
    /// They differ, or the process is gone.
    pub fn of(pid: Pid) -> Result<Self> {
        let mut all = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end meanwhile.
            if let Ok(status) = fs::read_to_string(task?.path().join("status")) {
                all.push(Self::parse(&status)?);
            }
        }
        let first = all.first().cloned().context("a process without threads")?;
        ensure!(all.iter().all(|one| *one == first), "threads of {pid} differ: {all:#x?}");
        Ok(first)
    }

    fn parse(status: &str) -> Result<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.strip_prefix(':')).context(name.to_owned()).map(str::trim)
        };
        let hex = |name: &str| anyhow::Ok(u64::from_str_radix(field(name)?, 16)?);
        let numbers = |name: &str| {
            let words = field(name)?.split_whitespace();
            words.map(|word| anyhow::Ok(word.parse()?)).collect::<Result<Vec<u32>>>()
        };
        let same = |name: &str| {
            let four = numbers(name)?;
            ensure!(four.len() == 4 && four.iter().all(|id| *id == four[0]), "{name} {four:?}");
            Ok(four[0])
        };
        Ok(Self {
            uid: same("Uid")?,
            gid: same("Gid")?,
            groups: numbers("Groups")?,
            effective: hex("CapEff")?,
            permitted: hex("CapPrm")?,
            inheritable: hex("CapInh")? | hex("CapAmb")?,
            bounding: hex("CapBnd")?,
            no_new_privileges: field("NoNewPrivs")? == "1",
            seccomp: field("Seccomp")?.parse()?,
        })
    }
}

/// The parent of a process.
///
/// # Errors
/// The process is gone.
pub fn parent_of(pid: Pid) -> Result<Pid> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("PPid")?;
    Ok(Pid::from_raw(parent.trim().parse()?))
}

/// Makes the main thread of `pid` make `call` next: as code would that a stranger has brought into
/// it. Nothing in the product helps with this; root's right to trace does.
///
/// # Errors
/// The process cannot be traced, or does not wait in a system call just now.
#[cfg(target_arch = "x86_64")]
pub fn force_call(pid: Pid, call: i64, arguments: [u64; 3]) -> Result<()> {
    ptrace::attach(pid).context("PTRACE_ATTACH")?;
    let stopped = waitpid(pid, Some(WaitPidFlag::__WALL))?;
    ensure!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    let forced = redirect(pid, call, arguments);
    ptrace::detach(pid, None).context("PTRACE_DETACH")?;
    forced
}

#[cfg(target_arch = "x86_64")]
fn redirect(pid: Pid, call: i64, arguments: [u64; 3]) -> Result<()> {
    let mut registers = ptrace::getregs(pid)?;
    ensure!(registers.orig_rax.cast_signed() >= 0, "{pid} is not in a system call");
    // Back to the instruction `syscall`, and no restart of the call that was interrupted.
    registers.rip -= 2;
    registers.orig_rax = u64::MAX;
    registers.rax = call.cast_unsigned();
    [registers.rdi, registers.rsi, registers.rdx] = arguments;
    Ok(ptrace::setregs(pid, registers)?)
}
