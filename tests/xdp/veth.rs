//! Real ARP between two namespaces over veth: a client asks, the node's program answers or not.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proxy_user::guardian::steering::{
    Attached, Mode, Reason, Steering, SteeringError, XdpHooks, XdpMaps, load, monotonic_ns,
};
use tests::netns::Namespace;
use tests::{ethtool, eventually};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 100);
const NODE: &str = "10.79.0.1/24";
const CLIENT: &str = "10.79.0.9/24";
const LIMIT: Duration = Duration::from_secs(10);

/// A node with the VIP on `lo`, where the kernel keeps silent about it, and a client.
struct Wire {
    node: Namespace,
    client: Namespace,
}

impl Wire {
    fn build() -> Result<Self> {
        let node = Namespace::create("tandem-xdp", "node")?;
        let client = Namespace::create("tandem-xdp", "client")?;
        let wire = Self { node, client };
        wire.connect()?;
        let Self { node, .. } = &wire;
        node.ip(&["address", "add", &format!("{VIP}/32"), "dev", "lo"])?;
        node.run(|| {
            sysctl("conf/all/arp_ignore", "1")?;
            // Nor does it teach its address for the VIP by its own requests.
            sysctl("conf/all/arp_announce", "2")
        })?;
        Ok(wire)
    }

    /// The veth pair between them.
    fn connect(&self) -> Result<()> {
        let Self { node, client } = self;
        node.ip(&["link", "add", "lan", "type", "veth", "peer", "lan", "netns", client.name()])?;
        for (namespace, address) in [(node, NODE), (client, CLIENT)] {
            namespace.ip(&["address", "add", address, "dev", "lan"])?;
            namespace.ip(&["link", "set", "lan", "up"])?;
        }
        client.run(|| {
            // Three requests, 100 ms apart, then the client gives up.
            sysctl("neigh/lan/retrans_time_ms", "100")?;
            ethtool::gro_on("lan").context("gro on")
        })
    }

    /// Lets the client ask for the VIP; the address that it was given.
    fn ask(&self) -> Result<Option<String>> {
        self.client.ip(&["neighbour", "flush", "to", &VIP.to_string()])?;
        self.client.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            Ok(socket.send_to(b"?", (VIP, 9))?)
        })?;
        eventually("the client's request is answered or given up", LIMIT, || {
            let entry = self.client.ip(&["neighbour", "show", "to", &VIP.to_string()])?;
            let mut words = entry.split_whitespace();
            if words.any(|word| word == "lladdr") {
                return Ok(words.next().map(str::to_owned));
            }
            // A given up entry is shown as FAILED, or forgotten.
            ensure!(!entry.contains("INCOMPLETE"), "still asking: {entry}");
            Ok(None)
        })
    }

    fn node_mac(&self) -> Result<String> {
        let shown = self.node.ip(&["-br", "link", "show", "lan"])?;
        let found = shown.split_whitespace().find(|word| word.matches(':').count() == 5);
        found.map(str::to_owned).with_context(|| format!("no address of lan: {shown}"))
    }

    fn attach(&self, mode: Mode) -> Result<(XdpHooks, XdpMaps)> {
        self.node.run(|| {
            let (mut hooks, mut steering) = load()?;
            let (place, report) = hooks.attach("lan", mode)?;
            let report = report.context("attached before")?;
            let expected = if mode == Mode::Native { Attached::Native } else { Attached::Generic };
            ensure!(report.got == expected, "{report:?}");
            let warned = report.warnings.iter().any(|warning| warning.contains("gro on"));
            ensure!(warned == (mode == Mode::Native), "{report:?}");
            steering.place_vip(VIP, place)?;
            steering.answer_until(u64::MAX)?;
            Ok((hooks, steering))
        })
    }
}

fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv4/{name}");
    std::fs::write(&path, value).with_context(|| path)
}

fn only_who_is_told_answers(mode: Mode) -> Result<()> {
    let wire = Wire::build()?;
    assert_eq!(wire.ask()?, None, "without a program nobody answers");
    let (hooks, mut steering) = wire.attach(mode)?;
    assert_eq!(wire.ask()?, None, "not told to");
    let dropped = steering.counters()?.of(Reason::ArpBackup);
    assert!(dropped >= 1, "{dropped}");
    steering.answer(VIP, true)?;
    let mac = wire.node_mac()?;
    assert_eq!(wire.ask()?, Some(mac.clone()), "told to");
    assert!(steering.counters()?.of(Reason::ArpAnswered) >= 1);
    connects(&wire)?;
    steering.answer(VIP, false)?;
    assert_eq!(wire.ask()?, None, "told not to any more");
    steering.answer(VIP, true)?;
    steering.answer_until(monotonic_ns())?;
    assert_eq!(wire.ask()?, None, "its lease has ended");
    assert!(steering.counters()?.of(Reason::ArpStale) >= 1);
    let asker = steering.askers()?.into_iter().next().context("nobody remembered")?;
    assert_eq!(Ipv4Addr::from(asker.address).to_string(), CLIENT.replace("/24", ""));
    steering.answer_until(u64::MAX)?;
    assert_eq!(wire.ask()?, Some(mac), "and is valid again");
    drop(hooks);
    assert_eq!(wire.ask()?, None, "the program is gone");
    Ok(())
}

/// A connection through the VIP to a listener on the node: what passes, passes whole.
fn connects(wire: &Wire) -> Result<()> {
    let listener = wire.node.run(|| Ok(TcpListener::bind((VIP, 0))?))?;
    let address: SocketAddr = listener.local_addr()?;
    wire.client.run(|| {
        TcpStream::connect_timeout(&address, LIMIT).context("connect to the VIP")?;
        Ok(())
    })
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn only_who_is_told_answers_in_native_mode() -> Result<()> {
    only_who_is_told_answers(Mode::Native)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn only_who_is_told_answers_in_generic_mode() -> Result<()> {
    only_who_is_told_answers(Mode::Generic)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_held_interface_is_refused_with_the_holders_name() -> Result<()> {
    let wire = Wire::build()?;
    let first = wire.attach(Mode::Auto)?;
    for mode in [Mode::Auto, Mode::Generic] {
        let second = wire.node.run(|| Ok(load()?.0.attach("lan", mode)))?;
        match second {
            Err(SteeringError::Busy { interface, holder }) => {
                assert_eq!(interface, "lan");
                assert!(holder.starts_with("tandem (id "), "{holder}");
            }
            other => bail!("{other:?}"),
        }
    }
    drop(first);
    wire.attach(Mode::Native)?;
    Ok(())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_second_claimant_on_the_wire_is_reported() -> Result<()> {
    let wire = Wire::build()?;
    let (_hooks, mut steering) = wire.attach(Mode::Generic)?;
    steering.answer(VIP, true)?;
    // The client takes the address, and its kernel says so.
    wire.client.run(|| sysctl("conf/lan/arp_notify", "1"))?;
    wire.client.ip(&["address", "add", &format!("{VIP}/24"), "dev", "lan"])?;
    wire.client.ip(&["link", "set", "lan", "down"])?;
    wire.client.ip(&["link", "set", "lan", "up"])?;
    let conflict = eventually("the claim is reported", LIMIT, || {
        steering.next_conflict().context("no conflict yet")
    })?;
    assert_eq!(conflict.vip, VIP);
    Ok(())
}

/// An interface that was made again, or got another Ethernet address, is hooked again.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn an_interface_made_again_is_another_one() -> Result<()> {
    let wire = Wire::build()?;
    let (mut hooks, mut steering) = wire.attach(Mode::Generic)?;
    let (first, again) = wire.node.run(|| Ok(hooks.attach("lan", Mode::Generic)?))?;
    ensure!(again.is_none(), "nothing has changed: {again:?}");
    wire.node.ip(&["link", "set", "lan", "address", "02:00:00:00:00:77"])?;
    let (changed, again) = wire.node.run(|| Ok(hooks.attach("lan", Mode::Generic)?))?;
    ensure!(again.is_none() && changed.ifindex == first.ifindex, "{changed:?}, {again:?}");
    steering.place_vip(VIP, changed)?;
    steering.answer(VIP, true)?;
    assert_eq!(wire.ask()?.as_deref(), Some("02:00:00:00:00:77"));
    wire.node.ip(&["link", "delete", "lan"])?;
    let gone = wire.node.run(|| Ok(hooks.attach("lan", Mode::Generic)))?;
    ensure!(matches!(gone, Err(SteeringError::Interface { .. })), "{gone:?}");
    wire.connect()?;
    let (second, again) = wire.node.run(|| Ok(hooks.attach("lan", Mode::Generic)?))?;
    ensure!(again.is_some() && second.ifindex != first.ifindex, "{second:?}, {again:?}");
    steering.place_vip(VIP, second)?;
    assert_eq!(wire.ask()?, None, "moved, and silent until told");
    steering.answer(VIP, true)?;
    assert_eq!(wire.ask()?, Some(wire.node_mac()?));
    Ok(())
}
