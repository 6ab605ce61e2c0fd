//! The boundary between guardian and engine: typed messages on a socket pair (`message`, `channel`)
//! and the shared page that both read without a system call (`shared`). And the one between a
//! guardian and the keeper that started it (`keeper`).
//!
//! The guardian creates both, passes the socket as the engine's standard input and everything else
//! as descriptors with [`message::ToEngine::Config`]. Neither side ever waits for the other.

pub mod channel;
pub mod counters;
pub mod descriptors;
pub mod keeper;
pub mod message;
pub mod restarts;
pub mod role;
pub mod shared;

use std::io;

use crate::config::Log;

/// What processes start their children from: the very program that they run themselves, though
/// another version may stand in its place on disk by now, or nothing.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// What processes are called.
pub const NAME: &str = "tandem";

/// Environment variable by which a child knows its guardian's process id.
pub const PARENT_VARIABLE: &str = "TANDEM_PARENT";

/// Environment variable by which a child knows the configured log level.
pub const LEVEL_VARIABLE: &str = "TANDEM_LEVEL";

/// How a child of the guardian logs.
#[must_use]
pub fn child_log() -> Log {
    let level = std::env::var(LEVEL_VARIABLE).unwrap_or_else(|_unset| Log::default().level);
    Log { level, ..Log::default() }
}

/// For a child of the guardian, first thing: die when the guardian's main thread dies, also if that
/// has happened already. A process started by hand is left alone.
///
/// # Errors
/// The guardian is gone, or the kernel refuses.
pub fn die_with_parent() -> io::Result<()> {
    let Some(parent) = std::env::var_os(PARENT_VARIABLE) else { return Ok(()) };
    // else it is called after the link that it was started from
    nix::sys::prctl::set_name(c"tandem")?;
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if parent.to_str() == Some(nix::unistd::getppid().to_string().as_str()) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::NotConnected, "the guardian is gone"))
    }
}
