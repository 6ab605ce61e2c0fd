//! The netlink thread: everything that may wait for the kernel's network lock. Others may hold that
//! lock for 200 ms (a container runtime, `ip -batch`), and no beat waits for them.
//!
//! It puts the addresses on the host and takes them off, keeps them alive, opens ports anew when
//! interfaces change, hooks the program in, and keeps routes and settings. It is told by [`Wish`]es
//! and reports by orders. What fails is tried again while it is wanted, and logged once.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vrrp::io::{AddressSpec, IoError, Lifetime, Netlink, RtoMinRoute, Sysctls, VipAddress};

use super::super::fault::Fault;
use super::super::mailbox::{Order, Orders};
use super::super::status::StatusHandle;
use super::port::{self, Identity, Port};
use super::probes::Own;
use super::xdp::XdpHooks;
use super::{AttachReport, Mode, Place, neighbours};
use crate::config::{Config, Vip};

/// How long the kernel keeps an address that nobody renews.
const LIFETIME: Lifetime = Lifetime::Seconds(2);
/// Four times a lifetime.
const RENEW: Duration = Duration::from_millis(500);
/// Between two attempts at what failed, at first and at most.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Routes and interfaces are looked at again after this time without news.
const LOOK: Duration = Duration::from_secs(10);
/// An address leaves `lo` so long after its reign: until then what is left of its connections is
/// answered, or refused at once, and no client waits for a retransmission.
const LEAVE: Duration = Duration::from_secs(2);
/// Between two readings of the kernel's neighbours.
const NEIGHBOURS: Duration = Duration::from_secs(1);
/// The same in the first seconds, in which nobody is known yet.
const NEIGHBOURS_EARLY: Duration = Duration::from_millis(100);
const EARLY: Duration = Duration::from_secs(10);
/// Smallest retransmission timeout towards the peer: one lost segment must not look like a death.
const RTO_MIN: Duration = Duration::from_millis(5);

/// What the role thread wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// The addresses on this host, or off it. Presence is reported with this number.
    Address { on: bool, number: u64 },
    /// The addresses are the other node's; they stay on `lo` for the connections that are left.
    Linger,
    /// Somebody took an address off: put back what is wanted.
    Renew,
    /// Interfaces have changed.
    Look,
    /// Put everything back, and end.
    Stop,
}

/// What the role thread is told.
#[derive(Debug)]
pub(in crate::guardian) enum Report {
    /// Every address stands on this host, as wished.
    Present {
        /// Of the wish.
        number: u64,
    },
    /// The interface of this address is this port now.
    Port {
        /// Index of the address in the configuration.
        instance: usize,
        /// The new one.
        port: Box<Port>,
    },
    /// There is no such interface, or it takes no sockets or no program.
    Gone {
        /// Index of the address in the configuration.
        instance: usize,
    },
    /// The same port; what else was seen.
    Seen {
        /// Index of the address in the configuration.
        instance: usize,
        /// It has carrier.
        carrier: bool,
        /// This host on the segment.
        own: Box<Own>,
    },
    /// Whom the kernel talks to there.
    Neighbours {
        /// Index of the address in the configuration.
        instance: usize,
        /// Who, and where.
        hosts: Vec<(Ipv4Addr, vrrp::arp::Mac)>,
    },
    /// All of what a wish to look asked for was reported.
    Looked,
}

/// Where an address is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    /// On `lo`: the program answers.
    Loopback(u32),
    /// On its interface: the kernel answers.
    Interface,
}

#[derive(Debug)]
struct Entry {
    vip: Vip,
    port: Option<Identity>,
    address: Option<VipAddress>,
    /// What was complained of last.
    complaint: String,
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct Host {
    netlink: Netlink,
    entries: Vec<Entry>,
    vips: Vec<Ipv4Addr>,
    hooks: Option<(XdpHooks, Mode)>,
    attached: BTreeMap<String, AttachReport>,
    home: Home,
    wanted: Option<u64>,
    /// The wish that was reported last.
    told: Option<u64>,
    /// When the addresses leave, unless they are wanted again before.
    leave_at: Option<Instant>,
    orders: Orders,
    status: StatusHandle,
    renew_at: Instant,
    look_at: Instant,
    neighbours_at: Instant,
    begun: Instant,
    retry: Option<(Instant, Duration)>,
    /// Kept to be put back.
    _routes: Vec<RtoMinRoute>,
    _settings: Sysctls,
}

/// The thread, seen from outside. Dropping it puts everything back and waits for that.
#[derive(Debug)]
pub(super) struct HostThread {
    wishes: mpsc::Sender<Wish>,
    thread: Option<JoinHandle<()>>,
}

impl HostThread {
    /// Never waits.
    pub(super) fn wish(&self, wish: Wish) {
        self.wishes.send(wish).ok();
    }
}

impl Drop for HostThread {
    fn drop(&mut self) {
        self.wish(Wish::Stop);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn fault(error: &IoError) -> Fault {
    Fault::Runtime(error.to_string())
}

impl Host {
    /// Opens a port for each address, in the order of the configuration; nothing stands here yet.
    pub(super) fn open(
        config: &Config,
        journal: PathBuf,
        hooks: Option<(XdpHooks, Mode)>,
        (orders, status): (Orders, StatusHandle),
    ) -> Result<(Self, Vec<Port>), Fault> {
        let mut netlink = Netlink::open().map_err(|e| fault(&e))?;
        let home = match hooks {
            Some(_) => Home::Loopback(netlink.interface("lo").map_err(|e| fault(&e))?.index),
            None => Home::Interface,
        };
        let settings = settings(journal)?;
        let now = Instant::now();
        let entry = |vip: &Vip| Entry {
            vip: vip.clone(),
            port: None,
            address: None,
            complaint: String::new(),
        };
        let mut host = Self {
            netlink,
            entries: config.vips.iter().map(entry).collect(),
            vips: config.vips.iter().map(|vip| vip.address).collect(),
            hooks,
            attached: BTreeMap::new(),
            home,
            wanted: None,
            told: None,
            leave_at: None,
            orders,
            status,
            renew_at: now + RENEW,
            look_at: now + LOOK,
            neighbours_at: now,
            begun: now,
            retry: None,
            _routes: routes(config),
            _settings: settings,
        };
        let mut ports = Vec::new();
        for instance in 0..host.entries.len() {
            ports.push(host.open_port(instance).map_err(Fault::Runtime)?);
        }
        Ok((host, ports))
    }

    /// From here on on a thread of its own.
    pub(super) fn start(mut self) -> Result<HostThread, Fault> {
        let (wishes, inbox) = mpsc::channel();
        let thread = std::thread::Builder::new().name("netlink".to_owned());
        let thread = thread.stack_size(256 * 1024).spawn(move || self.run(&inbox));
        let thread = thread.map_err(|error| Fault::of("cannot start a thread", error))?;
        Ok(HostThread { wishes, thread: Some(thread) })
    }

    fn run(&mut self, inbox: &mpsc::Receiver<Wish>) {
        loop {
            let retry = self.retry.map(|(at, _)| at);
            let timers = [self.renew_at, self.look_at, self.neighbours_at].map(Some);
            let due = [self.leave_at, retry].into_iter().chain(timers);
            let due = due.flatten().min().unwrap_or(self.renew_at);
            match inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Wish::Address { on, number }) => self.address(on, number),
                Ok(Wish::Linger) => self.linger(),
                Ok(Wish::Renew) => self.renew(),
                Ok(Wish::Look) => {
                    self.look();
                    self.report(Report::Looked);
                }
                Ok(Wish::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.due(Instant::now());
        }
    }

    fn report(&self, report: Report) {
        self.orders.send(Order::Steering(report));
    }

    fn due(&mut self, now: Instant) {
        if now >= self.renew_at {
            self.renew();
        }
        if now >= self.look_at {
            self.look();
        }
        if now >= self.neighbours_at {
            let early = now < self.begun + EARLY;
            self.neighbours_at = now + if early { NEIGHBOURS_EARLY } else { NEIGHBOURS };
            for (instance, entry) in self.entries.iter().enumerate() {
                let hosts = neighbours::read(&entry.vip.interface);
                self.report(Report::Neighbours { instance, hosts });
            }
        }
        if self.leave_at.is_some_and(|at| now >= at) {
            self.leave();
        }
        let Some((_, pause)) = self.retry.filter(|(at, _)| now >= *at) else { return };
        self.retry = None;
        self.look();
        self.present();
        if self.retry.is_some() {
            self.retry = Some((now + pause, (pause * 2).min(RETRY_MAX)));
        }
    }

    /// Something that is wanted is not so.
    fn again(&mut self) {
        if self.retry.is_none() {
            self.retry = Some((Instant::now() + RETRY, RETRY * 2));
        }
    }

    fn address(&mut self, on: bool, number: u64) {
        if on {
            self.wanted = Some(number);
            self.leave_at = None;
            self.present();
            return;
        }
        self.wanted = None;
        match self.home {
            Home::Loopback(_) => self.leave_at = Some(Instant::now() + LEAVE),
            // there the kernel answers for it as long as it stands
            Home::Interface => self.leave(),
        }
    }

    /// For good: the node ends.
    fn linger(&mut self) {
        match self.netlink.interface("lo") {
            Ok(lo) => self.home = Home::Loopback(lo.index),
            Err(error) => tracing::warn!(%error, "requests under way may break"),
        }
        self.present();
    }

    fn leave(&mut self) {
        self.leave_at = None;
        for entry in &mut self.entries {
            // removed by drop, or by the end of its lifetime
            entry.address = None;
        }
    }

    /// Puts the addresses here, if they are wanted, and reports when all of them are.
    fn present(&mut self) {
        let Some(number) = self.wanted else { return };
        let before = self.entries.iter().filter(|entry| entry.address.is_some()).count();
        let mut all = true;
        for instance in 0..self.entries.len() {
            all &= self.stand(instance);
        }
        if !all {
            self.again();
        } else if before < self.entries.len() || self.told != Some(number) {
            self.told = Some(number);
            self.report(Report::Present { number });
        }
    }

    /// One address, where it belongs now.
    fn stand(&mut self, instance: usize) -> bool {
        let home = self.home;
        let Some(entry) = self.entries.get_mut(instance) else { return false };
        let index = match home {
            Home::Loopback(index) => index,
            Home::Interface => match &entry.port {
                Some(port) => port.index,
                None => return false,
            },
        };
        let spec = AddressSpec { index, address: IpAddr::V4(entry.vip.address), prefix: 32 };
        if entry.address.as_ref().is_some_and(|address| *address.spec() == spec) {
            return true;
        }
        match VipAddress::add(spec, LIFETIME) {
            Ok(address) => {
                entry.address = Some(address);
                true
            }
            Err(error) => {
                entry.complain(&format!("cannot put the address here: {error}"));
                false
            }
        }
    }

    fn renew(&mut self) {
        self.renew_at = Instant::now() + RENEW;
        for entry in &mut self.entries {
            if let Some(Err(error)) = entry.address.as_mut().map(VipAddress::renew) {
                entry.complain(&format!("cannot renew the address: {error}"));
            }
        }
    }

    /// Compares every interface with its port.
    fn look(&mut self) {
        self.look_at = Instant::now() + LOOK;
        for instance in 0..self.entries.len() {
            match self.look_at_one(instance) {
                Ok(report) => {
                    if let Report::Port { .. } = &report {
                        self.moved(instance);
                    }
                    self.report(report);
                }
                Err(why) => {
                    self.lose(instance, &why);
                    self.again();
                }
            }
        }
    }

    fn look_at_one(&mut self, instance: usize) -> Result<Report, String> {
        let Some(entry) = self.entries.get(instance) else { return Ok(Report::Looked) };
        let (name, before) = (entry.vip.interface.clone(), entry.port);
        let words = |error: IoError| error.to_string();
        let (interface, found) = port::look(&mut self.netlink, &name, &self.vips).map_err(words)?;
        // without an address of its own the interface is what it was, as long as it is the same
        let same = before.filter(|before| before.index == interface.index && found.is_none());
        match found.or(same) {
            Some(identity) if before == Some(identity) => {
                let own = port::own(&mut self.netlink, identity).map_err(words)?;
                Ok(Report::Seen { instance, carrier: interface.carrier, own: Box::new(own) })
            }
            _ => {
                let port = Box::new(self.open_port(instance)?);
                Ok(Report::Port { instance, port })
            }
        }
    }

    /// In mode `off` an address moves with its interface.
    fn moved(&mut self, instance: usize) {
        if let Some(entry) = self.entries.get_mut(instance) {
            tracing::info!(interface = %entry.vip.interface, "opened anew");
            entry.complaint.clear();
        }
        if self.wanted.is_some() && !self.stand(instance) {
            self.again();
        }
    }

    fn lose(&mut self, instance: usize, why: &str) {
        let Some(entry) = self.entries.get_mut(instance) else { return };
        entry.complain(why);
        let name = entry.vip.interface.clone();
        if entry.port.take().is_some() {
            if self.home == Home::Interface {
                entry.address = None;
            }
            if let Some((hooks, _)) = &mut self.hooks {
                hooks.detach(&name);
            }
            self.report(Report::Gone { instance });
        }
    }

    /// Opens the sockets of one address on its interface as it is now, and hooks the program in.
    fn open_port(&mut self, instance: usize) -> Result<Port, String> {
        let Some(entry) = self.entries.get(instance) else { return Err(String::new()) };
        let vip = entry.vip.clone();
        let words = |error: IoError| error.to_string();
        let (interface, identity) =
            port::look(&mut self.netlink, &vip.interface, &self.vips).map_err(words)?;
        let identity = identity.ok_or_else(|| {
            format!(
                "interface {} has no IPv4 address of its own, from which adverts could leave\n  \
                 hint: give it one in the network of {}",
                vip.interface, vip.address
            )
        })?;
        let place = self.hook(&vip.interface)?;
        let port = Port::open(&mut self.netlink, &interface, identity, place).map_err(words)?;
        if let Some(entry) = self.entries.get_mut(instance) {
            entry.port = Some(identity);
        }
        Ok(port)
    }

    fn hook(&mut self, interface: &str) -> Result<Option<Place>, String> {
        let Some((hooks, mode)) = &mut self.hooks else { return Ok(None) };
        let (place, report) = hooks.attach(interface, *mode).map_err(|error| error.to_string())?;
        if let Some(report) = report {
            tracing::info!(interface, mode = report.got.name(), reason = %report.reason, "xdp");
            for warning in &report.warnings {
                tracing::warn!(interface, "{warning}");
            }
            self.attached.insert(interface.to_owned(), report);
            let reports: Vec<AttachReport> = self.attached.values().cloned().collect();
            self.status.xdp(&reports);
        }
        Ok(Some(place))
    }
}

impl Entry {
    /// Once, until something else is wrong or all is well again.
    fn complain(&mut self, why: &str) {
        if self.complaint != why {
            why.clone_into(&mut self.complaint);
            tracing::warn!(vip = %self.vip.address, interface = %self.vip.interface, "{why}");
        }
    }
}

/// The kernel does not answer for an address by another interface than its own. For all of them:
/// a second one on the same segment would answer, too.
fn settings(journal: PathBuf) -> Result<Sysctls, Fault> {
    let mut settings = Sysctls::with_journal(journal).unwrap_or_else(|error| {
        tracing::warn!(%error, "what an earlier run changed is not put back");
        Sysctls::new()
    });
    if let Err(error) = settings.hide_foreign_addresses("all") {
        tracing::debug!(%error, "without a journal");
        settings.forget_journal();
        settings.hide_foreign_addresses("all").map_err(|e| fault(&e))?;
    }
    Ok(settings)
}

fn routes(config: &Config) -> Vec<RtoMinRoute> {
    let peers = config.node.pair.iter().flat_map(|pair| &pair.peers);
    let add = |peer: &std::net::SocketAddr| {
        let added = RtoMinRoute::add(peer.ip(), RTO_MIN);
        added.inspect_err(|error| tracing::warn!(%error, "a lost segment to the peer costs 200 ms"))
    };
    peers.filter_map(|peer| add(peer).ok()).collect()
}
