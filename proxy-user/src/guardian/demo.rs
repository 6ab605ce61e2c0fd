//! The two demo backends of the start without a configuration: child processes, each on a listener
//! that the guardian has bound to a free loopback port.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::fault::Fault;
use crate::control;

/// Bound, not served yet.
#[derive(Debug)]
pub(super) struct Places(Vec<TcpListener>);

/// The processes; dropping ends them.
#[derive(Debug)]
pub(super) struct Demos(Vec<Child>);

impl Places {
    /// Two free ports on loopback.
    pub(super) fn bind() -> Result<Self, Fault> {
        let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let places = (0..2).map(bind).collect::<Result<Vec<_>, _>>();
        places.map(Self).map_err(|error| Fault::of("cannot listen for a demo backend", error))
    }

    /// Where they are.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|place| place.local_addr().ok()).collect()
    }

    /// Starts a backend on each.
    pub(super) fn start(self, cache: SocketAddr) -> Result<Demos, Fault> {
        let mut demos = Vec::new();
        for (place, name) in self.0.into_iter().zip(["one", "two"]) {
            let child = Command::new(control::OWN_PROGRAM)
                .arg0(control::NAME)
                .args(["demo", "--name", name, "--cache", &cache.to_string()])
                .env(control::PARENT_VARIABLE, std::process::id().to_string())
                .stdin(Stdio::from(OwnedFd::from(place)))
                .process_group(0)
                .kill_on_drop(true)
                .spawn();
            demos.push(child.map_err(|error| Fault::of("cannot start a demo backend", error))?);
        }
        Ok(Demos(demos))
    }
}

impl Demos {
    /// Ends them and waits.
    pub(super) async fn stop(mut self) {
        for demo in &mut self.0 {
            drop(demo.kill().await);
        }
    }
}
