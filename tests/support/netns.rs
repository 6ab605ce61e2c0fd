//! A network namespace is a value: made, entered, dropped. Names hold the pid and a counter, so two
//! runs never meet; drop deletes only its own.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A network namespace under `/run/netns`, removed on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes `<prefix>-<pid>-<counter>-<role>` with its loopback up.
    ///
    /// # Errors
    /// What `ip netns add` says; root is needed.
    pub fn create(prefix: &str, role: &str) -> Result<Self> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{}-{number}-{role}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The name under `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip ARGS` inside.
    ///
    /// # Errors
    /// The command's own words.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        ip(&[&["-n", &self.name], args].concat())
    }

    /// A command that will run inside: `ip netns exec` replaces itself, so the child's pid is the
    /// program's.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Moves the calling thread inside, for good: call it on a thread of its own.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or when the namespace is gone.
    pub fn enter(&self) -> Result<()> {
        enter(&self.name)
    }

    /// Runs `body` on a new thread inside and gives its result.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the body's own.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                body()
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("namespace {} was not removed: {error:#}", self.name);
        }
    }
}

/// Moves the calling thread into the namespace called `name`, for good.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or when there is none of that name.
pub fn enter(name: &str) -> Result<()> {
    let path = PathBuf::from("/run/netns").join(name);
    let file = File::open(&path).with_context(|| path.display().to_string())?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {name}"))
}

/// Runs `ip ARGS` in the caller's namespace and gives what it printed.
///
/// # Errors
/// The command's own words.
pub fn ip(args: &[&str]) -> Result<String> {
    run("ip", args)
}

/// Runs a program to its end and gives what it printed.
///
/// # Errors
/// When it cannot be started or fails; its standard error is in the message.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("{program} could not be started: is it installed?"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
