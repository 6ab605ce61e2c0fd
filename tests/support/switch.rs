//! The ports of a bridge, switched on and off within microseconds by one netlink message each: a
//! cut of 20 ms is to last 20 ms, and a program's start takes as long.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::net::if_::if_nametoindex;

use crate::eventually;
use crate::netns::Namespace;

/// A netlink socket of the bridge's namespace, and its ports by name and index.
pub(crate) struct Switch {
    socket: Socket,
    ports: Vec<(String, u32)>,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switch").field("ports", &self.ports).finish_non_exhaustive()
    }
}

impl Switch {
    /// Of the bridge in `namespace`; `ports` are there already.
    pub(crate) fn open(namespace: &Namespace, ports: &[&str]) -> Result<Self> {
        namespace.run(|| {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            let index = |port: &&str| -> Result<_> {
                Ok(((*port).to_owned(), if_nametoindex(*port).with_context(|| (*port).to_owned())?))
            };
            let ports = ports.iter().map(index).collect::<Result<_>>()?;
            Ok(Self { socket, ports })
        })
    }

    /// Sets a port's STP state to "forwarding" or "disabled". A port whose carrier has come back
    /// this moment refuses until the bridge has seen it, and is asked again.
    pub(crate) fn forward(&self, port: &str, forward: bool) -> Result<()> {
        eventually(&format!("port {port} to change"), Duration::from_secs(1), || {
            self.try_forward(port, forward)
        })
    }

    fn try_forward(&self, port: &str, forward: bool) -> Result<()> {
        let found = self.ports.iter().find(|(name, _)| name == port);
        let index = found.with_context(|| format!("no port {port}"))?.1;
        self.socket.send_to(&request(index, forward), &SocketAddr::new(0, 0), 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok());
        let code = i32::from_ne_bytes(code.context("a short netlink answer")?);
        ensure!(code == 0, "port {port}: {}", std::io::Error::from_raw_os_error(-code));
        Ok(())
    }
}

/// RTM_SETLINK of the bridge family: one attribute, IFLA_PROTINFO { IFLA_BRPORT_STATE }.
fn request(index: u32, forward: bool) -> Vec<u8> {
    const LENGTH: u32 = 16 + 16 + 4 + 8;
    const REQUEST_ACK: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    const PROTINFO: u16 = 12 | libc::NLA_F_NESTED as u16;
    const BRPORT_STATE: u16 = 1;
    let state = if forward { 3 } else { 0 };
    let mut bytes = Vec::with_capacity(LENGTH as usize);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(libc::RTM_SETLINK.to_ne_bytes());
    bytes.extend(REQUEST_ACK.to_ne_bytes());
    bytes.extend([0; 8]); // sequence, port id
    bytes.extend([libc::AF_BRIDGE as u8, 0, 0, 0]); // ifinfomsg
    bytes.extend(index.to_ne_bytes());
    bytes.extend([0; 8]); // flags, change
    for half in [12, PROTINFO, 5, BRPORT_STATE] {
        bytes.extend(half.to_ne_bytes());
    }
    bytes.extend([state, 0, 0, 0]);
    bytes
}
