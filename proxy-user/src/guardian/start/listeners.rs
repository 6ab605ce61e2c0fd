//! Listening sockets: made once, kept by keeper and guardian, lent to every engine. Those for the
//! peer's guardian and for the admin server are the guardian's own: they are closed with it, which
//! is how the peer learns of its death.
//!
//! A plain bind probes each address first, because SO_REUSEPORT would hide that another program (or
//! another tandem) has the port. The ring of a killed engine keeps a port bound for some
//! milliseconds, so the probe tries for a second.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::super::fault::Fault;
use super::kept;
use super::strays::Sinks;
use crate::config::Config;
use crate::control::channel::DESCRIPTORS_MAX;
use crate::control::descriptors::{Rank, rank};
use crate::control::keeper::Inherited;
use crate::control::message::{Listener, Service};

/// How long a predecessor's port may take to be free.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections that wait while no engine runs; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The engine's listening sockets, in the order of their descriptions.
#[derive(Debug)]
pub(in crate::guardian) struct Listeners {
    sockets: Vec<OwnedFd>,
    listeners: Vec<Listener>,
    /// The admin server's own.
    pub(in crate::guardian) admin: TcpListener,
    /// The guardians' own, if there is a peer.
    pub(in crate::guardian) peer: Option<PeerSockets>,
}

/// Where the peer's guardian is heard.
#[derive(Debug)]
pub(in crate::guardian) struct PeerSockets {
    /// Control connections.
    pub(in crate::guardian) tcp: Vec<TcpListener>,
    /// Beats.
    pub(in crate::guardian) udp: Vec<UdpSocket>,
}

impl Listeners {
    /// Takes what an earlier guardian has left; probes every other address, then makes its sockets.
    pub(in crate::guardian) fn create(
        config: &Config,
        workers: u16,
        inherited: &mut Inherited,
    ) -> Result<Self, Fault> {
        let wanted = wanted(config);
        let number = wanted.len() * usize::from(workers);
        if number + 2 > DESCRIPTORS_MAX {
            return Err(Fault::Usage(format!(
                "{} addresses for {workers} workers are {number} sockets, over {DESCRIPTORS_MAX}\n\
                 \x20 hint: fewer listen addresses or fewer workers",
                wanted.len()
            )));
        }
        let until = Instant::now() + PATIENCE;
        let mut kept: HashMap<Listener, OwnedFd> = HashMap::new();
        for one in descriptions(&wanted, workers) {
            kept.extend(inherited.take(&kept::listener(&one)).map(|socket| (one, socket)));
        }
        for (service, key, address) in &wanted {
            if kept.keys().any(|one| one.address == *address) {
                continue;
            }
            let probe = probe(*address, is_virtual(config, *address), until);
            probe.map_err(|error| refused(key, *address, *service == Service::Link, &error))?;
        }
        let admin = config.admin.listen;
        let free = is_virtual(config, admin);
        let admin = patient(admin, until, || plain(admin, free))
            .map_err(|error| refused("[admin] listen", admin, false, &error))?;
        let peer = peer_sockets(config, until)?;
        let mut all = Self { sockets: Vec::new(), listeners: Vec::new(), admin, peer };
        for one in descriptions(&wanted, workers) {
            let socket = kept
                .remove(&one)
                .map_or_else(|| shared(one.address, is_virtual(config, one.address)), Ok);
            let key = wanted.iter().find(|(_, _, address)| *address == one.address);
            let key = key.map_or("listen", |(_, key, _)| key);
            all.sockets.push(socket.map_err(|error| refused(key, one.address, false, &error))?);
            all.listeners.push(one);
        }
        Ok(all)
    }

    /// What each socket is for.
    pub(in crate::guardian) fn descriptions(&self) -> &[Listener] {
        &self.listeners
    }

    /// The sockets, in the order of the descriptions.
    pub(in crate::guardian) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    /// Under which names they are kept for the next guardian.
    pub(in crate::guardian) fn names(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        self.listeners.iter().map(kept::listener).zip(self.fds())
    }

    /// The groups of clients' listeners, with a peer: their own descriptors of the same sockets.
    pub(in crate::guardian) fn sinks(&self, config: &Config) -> io::Result<Option<Sinks>> {
        if self.peer.is_none() || config.vips.is_empty() {
            return Ok(None);
        }
        let first = self.listeners.iter().zip(&self.sockets).filter(|(one, _)| one.worker == 0);
        let clients = first.filter(|(one, _)| one.service != Service::Link);
        let clients = clients.map(|(one, socket)| (one.address, socket));
        let members = self.listeners.iter().map(|one| u32::from(one.worker) + 1).max();
        let vips = config.vips.iter().map(|vip| vip.address).collect();
        Sinks::new(vips, clients, members.unwrap_or(0)).map(Some)
    }

    /// Lets the services' sockets go: once the engine has closed its own, clients that wait to be
    /// accepted are reset and connect to the other node at once.
    pub(in crate::guardian) fn close(&mut self) {
        self.sockets.clear();
    }
}

/// The sockets of every worker.
fn descriptions(
    wanted: &[(Service, String, SocketAddr)],
    workers: u16,
) -> impl Iterator<Item = Listener> {
    let of = move |worker| {
        let one = move |(service, _, address): &(Service, String, SocketAddr)| Listener {
            worker,
            service: *service,
            address: *address,
        };
        wanted.iter().map(one)
    };
    (0..workers).flat_map(of)
}

/// Every address an engine listens on, with the key that named it.
fn wanted(config: &Config) -> Vec<(Service, String, SocketAddr)> {
    let mut wanted = Vec::new();
    if let Some(cache) = &config.cache {
        let key = || "[cache] listen".to_owned();
        wanted.extend(cache.listen.iter().map(|address| (Service::Cache, key(), *address)));
    }
    for (index, http) in (0..).zip(&config.http) {
        let key = || "[[http]] listen".to_owned();
        wanted.extend(http.listen.iter().map(|address| (Service::Http(index), key(), *address)));
    }
    if let Some(pair) = config.node.pair.as_ref().filter(|_| config.cache.is_some()) {
        for address in &pair.listen {
            let key = "[node] listen, next port (engines)".to_owned();
            wanted.push((Service::Link, key, next_port(*address)));
        }
    }
    wanted
}

/// Whether it is one of the addresses that come and go with the role. Any other that this host does
/// not have is a mistake.
fn is_virtual(config: &Config, address: SocketAddr) -> bool {
    config.vips.iter().any(|vip| IpAddr::V4(vip.address) == address.ip())
}

/// The engines' port: the next one.
pub(in crate::guardian) fn next_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(address.port().saturating_add(1));
    address
}

fn peer_sockets(config: &Config, until: Instant) -> Result<Option<PeerSockets>, Fault> {
    let Some(pair) = &config.node.pair else { return Ok(None) };
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for &address in &pair.listen {
        let fault = |error: io::Error| refused("[node] listen", address, true, &error);
        let listener = patient(address, until, || plain(address, false)).map_err(fault)?;
        listener.set_nonblocking(true).map_err(fault)?;
        // the peer takes a refused connection for the proof of our death
        let listener = rank(listener.into(), Rank::Listener).map_err(fault)?;
        tcp.push(listener.into());
        let socket = patient(address, until, || datagram(address)).map_err(fault)?;
        udp.push(socket);
    }
    Ok(Some(PeerSockets { tcp, udp }))
}

/// Whether an ordinary bind works, that is, nobody else has the port.
fn probe(address: SocketAddr, free: bool, until: Instant) -> io::Result<()> {
    patient(address, until, || {
        let socket = stream(address, free)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    })
}

/// Tries again while the port is in use and there is time.
fn patient<T>(
    _address: SocketAddr,
    until: Instant,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // An IPv4 listener on the same port is its own socket.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// `free`: the address need not stand on this host yet.
fn stream(address: SocketAddr, free: bool) -> io::Result<Socket> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    if free {
        socket.set_freebind_v4(true)?;
    }
    Ok(socket)
}

fn plain(address: SocketAddr, free: bool) -> io::Result<TcpListener> {
    let socket = stream(address, free)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn datagram(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A member of the group that listens on this address; it does not listen yet.
pub(super) fn bound(address: SocketAddr, free: bool) -> io::Result<Socket> {
    let socket = stream(address, free)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// One worker's listener. TCP_NODELAY is inherited by what it accepts.
fn shared(address: SocketAddr, free: bool) -> io::Result<OwnedFd> {
    let socket = bound(address, free)?;
    socket.set_tcp_nodelay(true)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn refused(key: &str, address: SocketAddr, peer: bool, error: &io::Error) -> Fault {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {} is in use; see `ss -lntup 'sport = :{}'`, then stop that program or change \
             {key}",
            address.port(),
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable if peer => {
            "this host does not have that address; each node lists its own under listen".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this host does not have that address".to_owned(),
        io::ErrorKind::PermissionDenied => "ports below 1024 need root".to_owned(),
        _ => return Fault::of(format!("cannot listen on {address} ({key})"), error),
    };
    Fault::Runtime(format!("cannot listen on {address} ({key}): {error}\n  hint: {hint}"))
}
