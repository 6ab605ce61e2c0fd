//! All segments of this node, as the role thread sees them: adverts, gratuitous ARP, probes, who
//! answers, carrier. Nothing here waits: what may is the [`Host`]'s. Dropping [`Segments`] undoes
//! everything.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use vrrp::arp::{GarpBurst, arp_request};
use vrrp::io::{Monitor, MonitorEvent, SegmentTap};
use vrrp::{AdvertInterval, InstanceConfig, Mode as VrrpMode, Priority, Vrid};

use super::super::fault::Fault;
use super::super::mailbox::Orders;
use super::super::status::StatusHandle;
use super::host::{Host, HostThread, Report, Wish};
use super::port::Port;
use super::probes::{Ask, Prober, Sign};
use super::relay::Relay;
use super::xdp::{self, XdpHooks, XdpMaps};
use super::{Counters, Mode, Steering, monotonic_ns};
use crate::config::{Config, Vip, XdpMode};
use crate::node::Strays;

/// The program answers nothing when this thread has not run for so long, whatever its lease says:
/// without a peer a lease has no end.
const HUNG: Duration = Duration::from_millis(100);
/// The program's askers are read so often; more often while a segment has no known host.
const ASKERS_EVERY: Duration = Duration::from_millis(500);
const ASKERS_SEARCH: Duration = Duration::from_millis(50);
/// Events of one kind taken in one turn.
const EVENTS_MAX: usize = 256;
/// Where settings are written down before they are changed, in the state folder.
const JOURNAL: &str = "sysctls";

/// One virtual address.
struct Segment {
    vip: Vip,
    /// `None`: its interface is gone.
    port: Option<Port>,
    prober: Prober,
    burst: GarpBurst,
    carrier: bool,
    /// Adverts and questions leave from here.
    source: Ipv4Addr,
    /// Runs while the other node finishes its connections.
    relay: Option<Relay>,
}

/// Everything this node does on its segments.
pub(in crate::guardian) struct Segments {
    segments: Vec<Segment>,
    /// The program's maps; without a program the kernel answers where the address stands.
    steering: Option<Box<dyn Steering>>,
    answering: bool,
    lease_ns: u64,
    monitor: Option<Monitor>,
    host: Option<HostThread>,
    /// Number of the last wish for the addresses, and what it was.
    wished: (u64, bool),
    looking: Looking,
    askers_at: Instant,
    /// The peer's addresses, in the order of the configuration.
    peers: Vec<IpAddr>,
}

/// One look of the netlink thread at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looking {
    No,
    Yes,
    /// And once more, for what changed meanwhile.
    Again,
}

/// What was learned of a segment, for the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::guardian) struct SegmentEvent {
    /// Index of the virtual router.
    pub(in crate::guardian) instance: usize,
    /// What.
    pub(in crate::guardian) sign: Sign,
}

/// An interface has another address of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::guardian) struct Source {
    /// Index of the virtual router.
    pub(in crate::guardian) instance: usize,
    /// The new one.
    pub(in crate::guardian) source: IpAddr,
    /// The peer's address in the same network, and its index among the peer's addresses.
    pub(in crate::guardian) peer: (Option<IpAddr>, Option<usize>),
}

/// What a report of the netlink thread comes to.
#[derive(Debug, Default)]
pub(in crate::guardian) struct Changes {
    /// The addresses stand here, as last wished.
    pub(in crate::guardian) present: bool,
    pub(in crate::guardian) carriers: Vec<Carrier>,
    pub(in crate::guardian) source: Option<Source>,
}

/// What the link monitor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::guardian) struct Carrier {
    /// Index of the virtual router.
    pub(in crate::guardian) instance: usize,
    /// Whether its interface has carrier.
    pub(in crate::guardian) up: bool,
}

impl std::fmt::Debug for Segments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segments").field("answering", &self.answering).finish_non_exhaustive()
    }
}

impl Segments {
    /// Opens sockets, attaches the program, sets what must be set; answers for nothing yet. Gives
    /// the virtual routers in the order of the configuration.
    pub(in crate::guardian) fn open(
        now: Instant,
        config: &Config,
        folder: &Path,
        orders: &Orders,
        status: &StatusHandle,
    ) -> Result<(Self, Vec<vrrp::Instance>), Fault> {
        let mut all = Self {
            segments: Vec::new(),
            steering: None,
            answering: false,
            lease_ns: 0,
            monitor: None,
            host: None,
            wished: (0, false),
            looking: Looking::No,
            askers_at: now,
            peers: config
                .node
                .pair
                .iter()
                .flat_map(|pair| &pair.peers)
                .map(|one| one.ip())
                .collect(),
        };
        if config.vips.is_empty() {
            return Ok((all, Vec::new()));
        }
        let fault = |error: vrrp::io::IoError| Fault::Runtime(error.to_string());
        all.monitor = Some(Monitor::open().map_err(fault)?);
        let (host, ports, steering) = open_host(config, folder, orders, status)?;
        all.steering = steering;
        let mut instances = Vec::new();
        for (vip, port) in config.vips.iter().zip(ports) {
            instances.push(instance(config, vip, &port)?);
            let vips = config.vips.iter().map(|vip| vip.address).collect();
            let mut segment = Segment {
                vip: vip.clone(),
                prober: Prober::new(now, vips, peers(config)),
                port: None,
                burst: GarpBurst::new(),
                carrier: port.carrier,
                source: port.identity.source,
                relay: None,
            };
            segment.plug(now, port, &mut all.steering, false);
            all.segments.push(segment);
        }
        all.host = Some(host.start()?);
        all.look(); // what changed between the sockets and the monitor
        Ok((all, instances))
    }

    /// Whether a program runs that must be told that we live.
    pub(in crate::guardian) fn has_program(&self) -> bool {
        self.steering.is_some()
    }

    /// By which the keeper can end the program's answers.
    pub(in crate::guardian) fn lease_map(&self) -> Option<BorrowedFd<'_>> {
        self.steering.as_ref()?.lease_map()
    }

    /// Frames by reason, if a program runs.
    pub(in crate::guardian) fn counters(&self) -> Option<Counters> {
        self.steering.as_ref()?.counters().ok()
    }

    /// Answers, or stops answering, for every address.
    pub(in crate::guardian) fn answer(&mut self, on: bool) {
        self.answering = on;
        let Some(steering) = &mut self.steering else { return };
        for segment in self.segments.iter().filter(|segment| segment.port.is_some()) {
            if let Err(error) = steering.answer(segment.vip.address, on) {
                tracing::error!(%error, on, "cannot steer the address");
            }
        }
    }

    /// Puts the addresses on this host, or takes them off. Standing is told by [`Self::report`];
    /// wherever something could wait, it is not here.
    pub(in crate::guardian) fn address(&mut self, on: bool) {
        self.wished = (self.wished.0 + 1, on);
        if let Some(host) = &self.host {
            host.wish(Wish::Address { on, number: self.wished.0 });
        }
    }

    /// What comes for connections that are not this node's goes to the peer, or (dropped) what this
    /// node finishes goes on where the address stands no more.
    pub(in crate::guardian) fn strays(&mut self, strays: Strays) {
        for segment in &mut self.segments {
            segment.relay = match strays {
                Strays::Relayed => segment.relay(),
                Strays::Dropped | Strays::Refused => None,
            };
        }
        if let (Strays::Dropped, Some(host)) = (strays, &self.host) {
            self.wished.1 = false;
            host.wish(Wish::Linger);
        }
    }

    /// Whether a wish for the addresses is answered later: not where there are none.
    pub(in crate::guardian) fn has_addresses(&self) -> bool {
        self.host.is_some()
    }

    /// Nothing is answered from `until_ns` (CLOCK_MONOTONIC) on.
    pub(in crate::guardian) fn lease(&mut self, until_ns: u64) {
        self.lease_ns = until_ns;
        self.beat();
    }

    /// This thread lives: the program answers on, within the lease. Cheap; each turn.
    pub(in crate::guardian) fn beat(&mut self) {
        let Some(steering) = &mut self.steering else { return };
        let hung = u64::try_from(HUNG.as_nanos()).unwrap_or(u64::MAX);
        let until = self.lease_ns.min(monotonic_ns().saturating_add(hung));
        if let Err(error) = steering.answer_until(until) {
            tracing::debug!(%error, "xdp lease");
        }
    }

    /// Sends an advert of this virtual router.
    pub(in crate::guardian) fn advert(&self, instance: usize, payload: &[u8]) {
        let port = self.segments.get(instance).and_then(|segment| segment.port.as_ref());
        if let Some(Err(error)) = port.map(|port| port.socket.send(payload)) {
            tracing::debug!(%error, "advert not sent");
        }
    }

    /// Starts (or starts again) telling neighbours where the address is.
    pub(in crate::guardian) fn garp(&mut self, instance: usize, now: Instant) {
        if let Some(segment) = self.segments.get_mut(instance) {
            segment.burst.start(now);
            segment.announce(now);
        }
    }

    /// Stops that.
    pub(in crate::guardian) fn stop_garp(&mut self, instance: usize) {
        if let Some(segment) = self.segments.get_mut(instance) {
            segment.burst.cancel();
        }
    }

    /// Asks third hosts, and the peer's own address, on this segment.
    pub(in crate::guardian) fn probe(&mut self, instance: usize, now: Instant) {
        self.take_askers(now);
        if let Some(segment) = self.segments.get_mut(instance) {
            let asks = segment.prober.probe(now);
            segment.ask(&asks);
        }
    }

    /// What to poll.
    pub(in crate::guardian) fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let ports = self.segments.iter().filter_map(|segment| segment.port.as_ref());
        let sockets = ports.flat_map(|port| [port.socket.as_fd(), port.tap.as_fd()]);
        sockets.chain(self.monitor.as_ref().map(AsFd::as_fd))
    }

    /// When [`Self::tick`] is due.
    pub(in crate::guardian) fn poll_timeout(&self) -> Option<Instant> {
        let segments = self.segments.iter();
        let times =
            segments.flat_map(|one| [one.burst.poll_timeout(), Some(one.prober.poll_timeout())]);
        let askers = self.has_program().then_some(self.askers_at);
        times.chain([askers]).flatten().min()
    }

    /// Sends what is due.
    pub(in crate::guardian) fn tick(&mut self, now: Instant) {
        self.take_conflicts(now);
        if now >= self.askers_at {
            self.take_askers(now);
        }
        for segment in &mut self.segments {
            segment.announce(now);
            let asks = segment.prober.refresh(now);
            segment.ask(&asks);
        }
    }

    /// Another station claims what we answer for: say again whose it is.
    fn take_conflicts(&mut self, now: Instant) {
        let Some(steering) = &mut self.steering else { return };
        for _ in 0..EVENTS_MAX {
            let Some(conflict) = steering.next_conflict() else { return };
            let answering = self.answering;
            let segments = self.segments.iter_mut();
            for segment in segments.filter(|one| answering && one.vip.address == conflict.vip) {
                tracing::debug!(vip = %conflict.vip, mac = ?conflict.mac, "claimed by another");
                segment.burst.start(now);
            }
        }
    }

    /// Who asked for an address: no socket of this host hears that, the program takes it.
    fn take_askers(&mut self, now: Instant) {
        let search = self.segments.iter().any(|segment| !segment.prober.knows(now));
        self.askers_at = now + if search { ASKERS_SEARCH } else { ASKERS_EVERY };
        let Some(Ok(askers)) = self.steering.as_ref().map(|steering| steering.askers()) else {
            return;
        };
        let now_ns = monotonic_ns();
        for asker in askers {
            let age = Duration::from_nanos(now_ns.saturating_sub(asker.at_ns));
            let Some(seen) = now.checked_sub(age) else { continue };
            let here = |one: &&mut Segment| one.index() == Some(asker.ifindex);
            for segment in self.segments.iter_mut().filter(here) {
                segment.prober.note(now, seen, asker.address.into(), asker.mac);
            }
        }
    }

    /// What was heard on the segments since: each sign once for each.
    pub(in crate::guardian) fn signs(&mut self, now: Instant) -> Vec<SegmentEvent> {
        let mut events = Vec::new();
        for (instance, segment) in self.segments.iter_mut().enumerate() {
            let mut signs: Vec<Sign> = Vec::new();
            for _ in 0..EVENTS_MAX {
                let Some(heard) = segment.hear() else { break };
                if heard.sender == segment.vip.address && self.answering {
                    // the program tells it, too; without one only this does
                    let ours = segment.port.as_ref().map(Port::mac) == Some(heard.sender_mac);
                    if !ours {
                        segment.burst.start(now);
                    }
                }
                let sign = segment.prober.handle_arp(now, &heard);
                signs.extend(sign.filter(|sign| !signs.contains(sign)));
            }
            signs.extend(segment.prober.targets(now));
            events.extend(signs.into_iter().map(|sign| SegmentEvent { instance, sign }));
        }
        events
    }

    /// The next advert that arrived on any segment: calls `take` for each.
    pub(in crate::guardian) fn adverts(
        &mut self,
        mut take: impl FnMut(usize, &vrrp::Received<'_>),
    ) {
        for (instance, segment) in self.segments.iter_mut().enumerate() {
            let Some(port) = &mut segment.port else { continue };
            for _ in 0..EVENTS_MAX {
                match port.socket.receive() {
                    Ok(Some(datagram)) => take(instance, &datagram.received()),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "advert socket");
                        break;
                    }
                }
            }
        }
    }

    /// News of links and addresses. Gives changes of carrier; what they mean for sockets and the
    /// program comes later by [`Self::report`].
    pub(in crate::guardian) fn links(&mut self) -> Vec<Carrier> {
        let mut changes = Vec::new();
        for _ in 0..EVENTS_MAX {
            let Some(monitor) = &mut self.monitor else { break };
            match monitor.next_event() {
                Ok(Some(event)) => self.link(&event, &mut changes),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "link monitor");
                    break;
                }
            }
        }
        changes
    }

    fn link(&mut self, event: &MonitorEvent, changes: &mut Vec<Carrier>) {
        match event {
            MonitorEvent::Link(now) => {
                let mut news = false;
                for (instance, segment) in self.segments.iter_mut().enumerate() {
                    let named = segment.vip.interface == now.name;
                    if segment.index() == Some(now.index) {
                        let mac = segment.port.as_ref().map(Port::mac);
                        news |= !named || now.mac != mac;
                        segment.set_carrier(instance, now.carrier && named, changes);
                    } else {
                        news |= named;
                    }
                }
                if news {
                    self.look();
                }
            }
            MonitorEvent::LinkGone { index, .. } => {
                let mut ours = false;
                for (instance, segment) in self.segments.iter_mut().enumerate() {
                    if segment.index() == Some(*index) {
                        ours = true;
                        segment.set_carrier(instance, false, changes);
                    }
                }
                if ours {
                    self.look();
                }
            }
            MonitorEvent::Address(entry) => self.own_address(entry.spec.index, entry.spec.address),
            MonitorEvent::AddressGone(entry) => {
                let IpAddr::V4(gone) = entry.spec.address else { return };
                if self.wished.1 && self.segments.iter().any(|one| one.vip.address == gone) {
                    tracing::warn!(vip = %gone, "somebody removed the address");
                    if let Some(host) = &self.host {
                        host.wish(Wish::Renew);
                    }
                }
                self.own_address(entry.spec.index, entry.spec.address);
            }
            MonitorEvent::Lost => self.look(),
        }
    }

    /// An address came or went; one of our interfaces' own?
    fn own_address(&mut self, index: u32, address: IpAddr) {
        let vip = self.segments.iter().any(|one| IpAddr::V4(one.vip.address) == address);
        if !vip && self.segments.iter().any(|one| one.index() == Some(index)) {
            self.look();
        }
    }

    fn look(&mut self) {
        let Some(host) = &self.host else { return };
        self.looking = match self.looking {
            Looking::No => {
                host.wish(Wish::Look);
                Looking::Yes
            }
            Looking::Yes | Looking::Again => Looking::Again,
        };
    }

    /// What the netlink thread says.
    pub(in crate::guardian) fn report(&mut self, now: Instant, report: Report) -> Changes {
        let answering = self.answering;
        let mut changes = Changes::default();
        match report {
            Report::Present { number } => changes.present = self.wished == (number, true),
            Report::Port { instance, port } => {
                let Some(segment) = self.segments.get_mut(instance) else { return changes };
                let (carrier, identity) = (port.carrier, port.identity);
                segment.plug(now, *port, &mut self.steering, answering);
                segment.set_carrier(instance, carrier, &mut changes.carriers);
                if std::mem::replace(&mut segment.source, identity.source) != identity.source {
                    let peer = peer_on(&self.peers, identity.source, identity.prefix);
                    let path = peer.and_then(|peer| self.peers.iter().position(|ip| *ip == peer));
                    let source = IpAddr::V4(identity.source);
                    tracing::info!(interface = %segment.vip.interface, %source, "another address");
                    changes.source = Some(Source { instance, source, peer: (peer, path) });
                }
            }
            Report::Gone { instance } => {
                let Some(segment) = self.segments.get_mut(instance) else { return changes };
                segment.port = None;
                segment.set_carrier(instance, false, &mut changes.carriers);
            }
            Report::Seen { instance, carrier, own } => {
                let Some(segment) = self.segments.get_mut(instance) else { return changes };
                segment.prober.rebind(now, *own);
                segment.set_carrier(instance, carrier, &mut changes.carriers);
            }
            Report::Neighbours { instance, hosts } => {
                let Some(segment) = self.segments.get_mut(instance) else { return changes };
                for (address, mac) in hosts {
                    segment.prober.note(now, now, address, mac);
                }
            }
            Report::Looked => {
                let again = self.looking == Looking::Again;
                self.looking = Looking::No;
                if again {
                    self.look();
                }
            }
        }
        changes
    }

    /// Carrier of each virtual router's interface at the start.
    pub(in crate::guardian) fn carriers(&self) -> Vec<Carrier> {
        let all = self.segments.iter().enumerate();
        all.map(|(instance, segment)| Carrier { instance, up: segment.carrier }).collect()
    }
}

impl Segment {
    /// The interface as it is now.
    fn plug(
        &mut self,
        now: Instant,
        port: Port,
        steering: &mut Option<Box<dyn Steering>>,
        answering: bool,
    ) {
        let vip = self.vip.address;
        if let (Some(steering), Some(place)) = (steering, port.place) {
            let placed = steering.place_vip(vip, place);
            if let Err(error) = placed.and_then(|()| steering.answer(vip, answering)) {
                tracing::error!(%error, "cannot steer the address");
            }
        }
        self.prober.rebind(now, port.own.clone());
        self.port = Some(port);
        if answering {
            self.burst.start(now);
        }
    }

    /// Sends to the peer what is its own.
    fn relay(&self) -> Option<Relay> {
        let port = self.port.as_ref()?;
        let Some(peer) = self.prober.peer_mac() else {
            tracing::warn!(vip = %self.vip.address, "the peer's Ethernet address is not known");
            return None;
        };
        let tap = SegmentTap::open(&self.vip.interface, port.identity.index, &[self.vip.address]);
        let started = tap
            .map_err(|error| error.to_string())
            .and_then(|tap| Relay::start(tap, port.mac(), peer).map_err(|error| error.to_string()));
        let failed = |error: &String| {
            tracing::warn!(error, "requests under way at the other node may break");
        };
        started.inspect_err(failed).ok()
    }

    fn index(&self) -> Option<u32> {
        self.port.as_ref().map(|port| port.identity.index)
    }

    fn set_carrier(&mut self, instance: usize, up: bool, changes: &mut Vec<Carrier>) {
        if self.carrier != up {
            self.carrier = up;
            tracing::info!(interface = %self.vip.interface, up, "carrier");
            changes.push(Carrier { instance, up });
        }
    }

    fn announce(&mut self, now: Instant) {
        let Some(port) = &self.port else { return };
        if self.burst.take_due(now)
            && let Err(error) = port.frames.announce(&[IpAddr::V4(self.vip.address)])
        {
            tracing::debug!(%error, "gratuitous ARP not sent");
        }
    }

    fn ask(&self, asks: &[Ask]) {
        let Some(port) = &self.port else { return };
        for ask in asks {
            let own = port.identity.source;
            let frame = arp_request(port.mac(), own, ask.address, ask.mac);
            if let Err(error) = port.frames.send(&frame) {
                tracing::debug!(%error, "ARP request not sent");
            }
        }
    }

    fn hear(&self) -> Option<vrrp::arp::Heard> {
        match self.port.as_ref()?.tap.receive() {
            Ok(heard) => heard,
            Err(error) => {
                tracing::debug!(%error, "ARP tap");
                None
            }
        }
    }
}

type Opened = (Host, Vec<Port>, Option<Box<dyn Steering>>);

/// The host with the program hooked in; or without, where the configuration allows.
fn open_host(
    config: &Config,
    folder: &Path,
    orders: &Orders,
    status: &StatusHandle,
) -> Result<Opened, Fault> {
    let open = |hooks: Option<(XdpHooks, Mode)>| {
        let ends = (orders.clone(), status.clone());
        Host::open(config, folder.join(JOURNAL), hooks, ends)
    };
    let with = |mode: Mode| -> Result<Opened, Fault> {
        let (hooks, maps): (XdpHooks, XdpMaps) =
            xdp::load().map_err(|error| Fault::Runtime(error.to_string()))?;
        let (host, ports) = open(Some((hooks, mode)))?;
        Ok((host, ports, Some(Box::new(maps))))
    };
    match config.xdp {
        XdpMode::Off => status.no_xdp("configured so"),
        XdpMode::Native => return with(Mode::Native),
        XdpMode::Generic => return with(Mode::Generic),
        XdpMode::Auto => match with(Mode::Auto) {
            Ok(opened) => return Ok(opened),
            Err(error) => {
                tracing::warn!(%error, "no XDP: the kernel answers, as with xdp = \"off\"");
                status.no_xdp(&error.to_string());
            }
        },
    }
    let (host, ports) = open(None)?;
    Ok((host, ports, None))
}

fn instance(config: &Config, vip: &Vip, port: &Port) -> Result<vrrp::Instance, Fault> {
    let (source, prefix) = (port.identity.source, port.identity.prefix);
    let peers: Vec<IpAddr> = peers(config).into_iter().map(IpAddr::V4).collect();
    let peer = peer_on(&peers, source, prefix);
    if peer.is_none() && config.node.pair.is_some() {
        tracing::warn!(
            interface = %vip.interface,
            "no address of the peer is in this network: its adverts count as a stranger's; add \
             its address there to [node] peer"
        );
    }
    let invalid = || Fault::Usage(format!("[[vip]] {}: vrid or advert", vip.address));
    let vrid = Vrid::new(vip.vrid).ok_or_else(invalid)?;
    let interval = AdvertInterval::from_duration(vip.advert).ok_or_else(invalid)?;
    let addresses = vec![IpAddr::V4(vip.address)];
    let instance = vrrp::Instance::new(InstanceConfig {
        priority: Priority::new(vip.priority),
        mode: VrrpMode::Coupled { peer },
        ..InstanceConfig::coupled(vrid, interval, addresses, IpAddr::V4(source))
    });
    instance.map_err(|error| Fault::of(format!("[[vip]] {}", vip.address), error))
}

/// The peer's IPv4 addresses.
fn peers(config: &Config) -> Vec<Ipv4Addr> {
    let peers = config.node.pair.iter().flat_map(|pair| &pair.peers);
    let v4 = peers.filter_map(|peer| match peer.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    });
    v4.collect()
}

/// The one of the peer's addresses in the network of `own`.
fn peer_on(peers: &[IpAddr], own: Ipv4Addr, prefix: u8) -> Option<IpAddr> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    let is_near = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => u32::from(*ip) & mask == u32::from(own) & mask,
        IpAddr::V6(_) => false,
    };
    peers.iter().copied().find(is_near)
}
