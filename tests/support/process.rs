//! Child processes, ended by pid and never by name.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;

/// A child of ours: SIGKILLed on drop with all that it has started, and reaped. Its output goes to
/// a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned() })
    }

    /// The pid, also after the end of the process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal; a process that has ended is not an error.
    ///
    /// # Errors
    /// When the child was reaped already, so that its pid may be another's.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            kill(self.pid(), signal).with_context(|| format!("{signal} to {}", self.name))?;
        }
        Ok(())
    }

    /// True until the process has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When `limit` passes first; the tail of the output is in the message.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        eventually(&format!("{} to end", self.name), limit, || {
            child.try_wait()?.ok_or_else(|| anyhow!("it still runs"))
        })
        .with_context(|| tail(&self.log, 20))
    }

    /// SIGKILL to it and to everything below it, from the top: who starts others goes first.
    ///
    /// # Errors
    /// As of the kernel; that one has ended already is no error.
    pub fn end_all(&mut self) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let mut all = vec![self.pid()];
        let mut next = 0;
        while let Some(pid) = all.get(next) {
            all.extend(children_of(*pid));
            next += 1;
        }
        all.into_iter().try_for_each(end)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.end_all().and_then(|()| Ok(self.child.wait().map(drop)?));
        if let Err(error) = ended {
            eprintln!("{} was not ended: {error}", self.name);
        }
    }
}

/// SIGKILL to a process that may have ended already.
///
/// # Errors
/// Any refusal but "no such process".
pub fn end(pid: Pid) -> Result<()> {
    match kill(pid, Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("SIGKILL to {pid}")),
    }
}

/// The direct children of any process, from /proc.
#[must_use]
pub fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The child of `parent` whose second argument is `verb` (`tandem engine`, `tandem demo`).
#[must_use]
pub fn child_running(parent: Pid, verb: &str) -> Option<Pid> {
    children_of(parent).into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|b| *b == 0).nth(1) == Some(verb.as_bytes()))
    })
}

/// The last `lines` lines of a log.
#[must_use]
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    format!("end of {}:\n{}", log.display(), all.get(from..).unwrap_or_default().join("\n"))
}
