//! The virtual addresses on the host: adverts, gratuitous ARP, the address itself, who answers ARP,
//! carrier. Performs what the role machine decides; knows no rule of its own.
//!
//! With XDP the address is on `lo` of both nodes (with a lifetime of two seconds, renewed each half
//! second) and the program answers on the master. In mode `off` the address is on the master's
//! interface, with the same lifetime, and the kernel answers. Dropping [`Wire`] undoes everything.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use vrrp::arp::GarpBurst;
use vrrp::io::{
    AddressSpec, AdvertSocket, FrameSender, Interface, Lifetime, Monitor, MonitorEvent, Netlink,
    RtoMinRoute, Sysctls, VipAddress,
};
use vrrp::{AdvertInterval, InstanceConfig, Mode as VrrpMode, Priority, Vrid};

use super::super::fault::Fault;
use super::super::status::StatusHandle;
use super::super::steering::{
    AttachReport, Counters, Mode, Steering, SteeringError, XdpSteering, monotonic_ns,
};
use crate::config::{Config, Vip, XdpMode};

/// How long the kernel keeps an address that nobody renews.
const LIFETIME: Lifetime = Lifetime::Seconds(2);
/// Four times a lifetime.
const RENEW: Duration = Duration::from_millis(500);
/// Smallest retransmission timeout towards the peer: one lost segment must not look like a death.
const RTO_MIN: Duration = Duration::from_millis(5);
/// Events of one kind taken in one turn.
const EVENTS_MAX: usize = 256;

/// How the host answers for the addresses.
enum Answerer {
    /// The XDP program.
    Xdp(Box<dyn Steering>),
    /// The kernel, for an address on the interface.
    Kernel,
}

/// One virtual address.
struct Segment {
    vip: Vip,
    interface: Interface,
    socket: AdvertSocket,
    frames: FrameSender,
    burst: GarpBurst,
    address: Option<VipAddress>,
    carrier: bool,
}

/// Everything this node does on its segments.
pub(super) struct Wire {
    segments: Vec<Segment>,
    answerer: Answerer,
    answering: bool,
    monitor: Option<Monitor>,
    netlink: Option<Netlink>,
    renew_at: Instant,
    /// Routes and settings to put back.
    routes: Vec<RtoMinRoute>,
    settings: Sysctls,
}

/// What the link monitor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carrier {
    /// Index of the virtual router.
    pub(super) instance: usize,
    /// Whether its interface has carrier.
    pub(super) up: bool,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("answering", &self.answering).finish_non_exhaustive()
    }
}

impl Wire {
    /// Opens sockets, attaches the program, sets what must be set; answers for nothing yet. Gives
    /// the virtual routers in the order of the configuration.
    pub(super) fn open(
        now: Instant,
        config: &Config,
        status: &StatusHandle,
    ) -> Result<(Self, Vec<vrrp::Instance>), Fault> {
        let mut wire = Self {
            segments: Vec::new(),
            answerer: Answerer::Kernel,
            answering: false,
            monitor: None,
            netlink: None,
            renew_at: now + RENEW,
            routes: Vec::new(),
            settings: Sysctls::new(),
        };
        if config.vips.is_empty() {
            return Ok((wire, Vec::new()));
        }
        let fault = |error: vrrp::io::IoError| Fault::Runtime(error.to_string());
        let mut netlink = Netlink::open().map_err(fault)?;
        wire.monitor = Some(Monitor::open().map_err(fault)?);
        let mut instances = Vec::new();
        for vip in &config.vips {
            let (segment, instance) = segment(&mut netlink, vip, config)?;
            wire.segments.push(segment);
            instances.push(instance);
        }
        wire.answerer = wire.steer(config.xdp, status)?;
        if matches!(wire.answerer, Answerer::Xdp(_)) {
            wire.hide(&mut netlink)?;
        }
        for peer in config.node.pair.iter().flat_map(|pair| &pair.peers) {
            match RtoMinRoute::add(peer.ip(), RTO_MIN) {
                Ok(route) => wire.routes.push(route),
                Err(error) => tracing::warn!(%error, "a lost segment to the peer costs 200 ms"),
            }
        }
        wire.netlink = Some(netlink);
        Ok((wire, instances))
    }

    /// Attaches the program, or says why not.
    fn steer(&self, mode: XdpMode, status: &StatusHandle) -> Result<Answerer, Fault> {
        let (hook, must) = match mode {
            XdpMode::Off => {
                status.no_xdp("configured so");
                return Ok(Answerer::Kernel);
            }
            XdpMode::Auto => (Mode::Auto, false),
            XdpMode::Native => (Mode::Native, true),
            XdpMode::Generic => (Mode::Generic, true),
        };
        match self.attach(hook, status) {
            Ok(answerer) => Ok(answerer),
            Err(error) if must => Err(Fault::Runtime(error.to_string())),
            Err(error) => {
                tracing::warn!(%error, "no XDP: the kernel answers, as with xdp = \"off\"");
                status.no_xdp(&error.to_string());
                Ok(Answerer::Kernel)
            }
        }
    }

    fn attach(&self, mode: Mode, status: &StatusHandle) -> Result<Answerer, SteeringError> {
        let mut steering = XdpSteering::load()?;
        let mut reports: Vec<AttachReport> = Vec::new();
        for segment in &self.segments {
            let interface = segment.vip.interface.as_str();
            if !reports.iter().any(|report| report.interface == interface) {
                let report = steering.attach(interface, mode)?;
                tracing::info!(interface, mode = report.got.name(), reason = %report.reason, "xdp");
                for warning in &report.warnings {
                    tracing::warn!(interface, "{warning}");
                }
                reports.push(report);
            }
            steering.add_vip(segment.vip.address, interface)?;
        }
        steering.beat(monotonic_ns())?;
        status.xdp(&reports);
        Ok(Answerer::Xdp(Box::new(steering)))
    }

    /// The addresses on `lo`, and a kernel that does not answer ARP for them.
    fn hide(&mut self, netlink: &mut Netlink) -> Result<(), Fault> {
        let fault = |error: vrrp::io::IoError| Fault::Runtime(error.to_string());
        let lo = netlink.interface("lo").map_err(fault)?;
        for segment in &mut self.segments {
            self.settings.hide_foreign_addresses(&segment.vip.interface).map_err(fault)?;
            let spec = spec(&segment.vip, lo.index);
            segment.address = Some(VipAddress::add(spec, LIFETIME).map_err(fault)?);
        }
        Ok(())
    }

    /// Whether a program runs that counts our beats.
    pub(super) fn has_program(&self) -> bool {
        matches!(self.answerer, Answerer::Xdp(_))
    }

    /// Frames by reason, if a program runs.
    pub(super) fn counters(&self) -> Option<Counters> {
        let Answerer::Xdp(steering) = &self.answerer else { return None };
        steering.counters().ok()
    }

    /// Answers, or stops answering, for every address.
    pub(super) fn answer(&mut self, on: bool) {
        self.answering = on;
        for segment in &mut self.segments {
            match &mut self.answerer {
                Answerer::Xdp(steering) => {
                    if let Err(error) = steering.answer(segment.vip.address, on) {
                        tracing::error!(%error, on, "cannot steer the address");
                    }
                }
                Answerer::Kernel => segment.kernel_answers(on),
            }
        }
    }

    /// Sends an advert of this virtual router.
    pub(super) fn advert(&self, instance: usize, payload: &[u8]) {
        let Some(segment) = self.segments.get(instance) else { return };
        if let Err(error) = segment.socket.send(payload) {
            tracing::debug!(%error, "advert not sent");
        }
    }

    /// Starts (or starts again) telling neighbours where the address is.
    pub(super) fn garp(&mut self, instance: usize, now: Instant) {
        if let Some(segment) = self.segments.get_mut(instance) {
            segment.burst.start(now);
            segment.announce(now);
        }
    }

    /// Stops that.
    pub(super) fn stop_garp(&mut self, instance: usize) {
        if let Some(segment) = self.segments.get_mut(instance) {
            segment.burst.cancel();
        }
    }

    /// What to poll.
    pub(super) fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sockets = self.segments.iter().map(|segment| segment.socket.as_fd());
        sockets.chain(self.monitor.as_ref().map(AsFd::as_fd))
    }

    /// When [`Self::tick`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.segments.is_empty() {
            return None;
        }
        let bursts = self.segments.iter().filter_map(|segment| segment.burst.poll_timeout());
        bursts.chain([self.renew_at]).min()
    }

    /// The guardian lives: the program answers on. Cheap; each turn.
    pub(super) fn beat(&mut self) {
        if let Answerer::Xdp(steering) = &mut self.answerer
            && let Err(error) = steering.beat(monotonic_ns())
        {
            tracing::debug!(%error, "xdp heartbeat");
        }
    }

    /// Sends what is due, renews what would expire.
    pub(super) fn tick(&mut self, now: Instant) {
        self.take_conflicts(now);
        for segment in &mut self.segments {
            segment.announce(now);
        }
        if now >= self.renew_at {
            self.renew_at = now + RENEW;
            for segment in &mut self.segments {
                segment.renew();
            }
        }
    }

    /// Another station claims what we answer for: say again whose it is.
    fn take_conflicts(&mut self, now: Instant) {
        let Answerer::Xdp(steering) = &mut self.answerer else { return };
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

    /// The next advert that arrived on any segment: calls `take` for each.
    pub(super) fn adverts(&mut self, mut take: impl FnMut(usize, &vrrp::Received<'_>)) {
        for (instance, segment) in self.segments.iter_mut().enumerate() {
            for _ in 0..EVENTS_MAX {
                match segment.socket.receive() {
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

    /// News of links and addresses; puts back what was removed. Gives changes of carrier.
    pub(super) fn links(&mut self) -> Vec<Carrier> {
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
            MonitorEvent::Link(interface) => {
                self.carrier(interface.index, interface.carrier, changes);
            }
            MonitorEvent::LinkGone { index, .. } => self.carrier(*index, false, changes),
            MonitorEvent::Address(_) => {}
            MonitorEvent::AddressGone(gone) => {
                for segment in &mut self.segments {
                    let own = segment.address.as_ref().map(VipAddress::spec);
                    if own.is_some_and(|own| *own == gone.spec) {
                        tracing::warn!(vip = %segment.vip.address, "somebody removed the address");
                        segment.renew();
                    }
                }
            }
            MonitorEvent::Lost => {
                let indices: Vec<u32> =
                    self.segments.iter().map(|one| one.interface.index).collect();
                for index in indices {
                    let now = self.netlink.as_mut().map(|link| link.interface_by_index(index));
                    if let Some(Ok(interface)) = now {
                        self.carrier(index, interface.carrier, changes);
                    }
                }
            }
        }
    }

    fn carrier(&mut self, index: u32, up: bool, changes: &mut Vec<Carrier>) {
        for (instance, segment) in self.segments.iter_mut().enumerate() {
            if segment.interface.index == index && segment.carrier != up {
                segment.carrier = up;
                tracing::info!(interface = %segment.vip.interface, up, "carrier");
                changes.push(Carrier { instance, up });
            }
        }
    }

    /// Carrier of each virtual router's interface at the start.
    pub(super) fn carriers(&self) -> Vec<Carrier> {
        let all = self.segments.iter().enumerate();
        all.map(|(instance, segment)| Carrier { instance, up: segment.carrier }).collect()
    }
}

impl Segment {
    fn kernel_answers(&mut self, on: bool) {
        if !on {
            // Removed by drop.
            self.address = None;
        } else if self.address.is_none() {
            match VipAddress::add(spec(&self.vip, self.interface.index), LIFETIME) {
                Ok(address) => self.address = Some(address),
                Err(error) => tracing::error!(%error, "cannot take the address"),
            }
        }
    }

    fn renew(&mut self) {
        if let Some(address) = &mut self.address
            && let Err(error) = address.renew()
        {
            tracing::warn!(%error, "cannot renew the address");
        }
    }

    fn announce(&mut self, now: Instant) {
        if self.burst.take_due(now)
            && let Err(error) = self.frames.announce(&[IpAddr::V4(self.vip.address)])
        {
            tracing::debug!(%error, "gratuitous ARP not sent");
        }
    }
}

fn spec(vip: &Vip, index: u32) -> AddressSpec {
    AddressSpec { index, address: IpAddr::V4(vip.address), prefix: 32 }
}

/// Opens what one virtual address needs.
fn segment(
    netlink: &mut Netlink,
    vip: &Vip,
    config: &Config,
) -> Result<(Segment, vrrp::Instance), Fault> {
    let fault = |error: vrrp::io::IoError| Fault::Runtime(error.to_string());
    let interface = netlink.interface(&vip.interface).map_err(fault)?;
    let addresses = netlink.addresses(interface.index).map_err(fault)?;
    let own = addresses.iter().find_map(|entry| match entry.spec.address {
        IpAddr::V4(own) if own != vip.address => Some((own, entry.spec.prefix)),
        _ => None,
    });
    let Some((source, prefix)) = own else {
        return Err(Fault::Runtime(format!(
            "interface {} has no IPv4 address of its own, from which adverts could leave\n  hint: \
             give it one in the network of {}",
            vip.interface, vip.address
        )));
    };
    let peer = peer_on(config, source, prefix);
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
    let instance =
        instance.map_err(|error| Fault::of(format!("[[vip]] {}", vip.address), error))?;
    let segment = Segment {
        socket: AdvertSocket::open(&interface, source).map_err(fault)?,
        frames: FrameSender::open(&interface).map_err(fault)?,
        burst: GarpBurst::new(),
        address: None,
        carrier: interface.carrier,
        vip: vip.clone(),
        interface,
    };
    Ok((segment, instance))
}

/// The peer's address in the network of `own`.
fn peer_on(config: &Config, own: Ipv4Addr, prefix: u8) -> Option<IpAddr> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    let network = |address: Ipv4Addr| u32::from(address) & mask;
    let pair = config.node.pair.as_ref()?;
    pair.peers.iter().map(|peer| peer.ip()).find(|ip| match ip {
        IpAddr::V4(ip) => network(*ip) == network(own),
        IpAddr::V6(_) => false,
    })
}
