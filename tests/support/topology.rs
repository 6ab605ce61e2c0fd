//! Two nodes and a client on one machine, as network namespaces: a service LAN and a second network
//! between the nodes, each a bridge in a namespace of its own.
//!
//! ```text
//!   [client .10]──┐                       10.77.0.0/24 "lan", VIP 10.77.0.100
//!   [a .1]──lan───┼──(bridge in lan)
//!   [b .2]──lan───┘
//!   [a .1]──hb────┬──(bridge in hb)       10.78.0.0/24 "hb": the second path of the pair
//!   [b .2]──hb────┘
//! ```
//! A cut switches a bridge port to the STP state "disabled": frames vanish and the carrier stays,
//! as when a switch between the two dies. `carrier` takes the port down, as a pulled cable.
//! [`crate::filter`] drops one way, one port or one protocol.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::clients::{Memcached, http_get};
use crate::filter::Network;
use crate::netns::{Namespace, run};
use crate::process::{self, Process, child_running, tail};
use crate::switch::Switch;
use crate::{ethtool, eventually};

/// The address that moves.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// The client's own.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);

/// One of the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// `a` or `b`, as in configurations and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its address on the LAN.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self as u8 + 1)
    }

    /// Its address on the second network.
    #[must_use]
    pub fn second(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, self as u8 + 1)
    }
}

impl std::str::FromStr for Side {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|side| side.name() == text).context("a node is `a` or `b`")
    }
}

/// What one run wants.
#[derive(Debug, Clone)]
pub struct Options {
    /// `auto`, `native`, `generic` or `off`.
    pub xdp: String,
    /// `replicated` or `local`.
    pub ack: String,
    /// Memory of each store.
    pub memory: String,
    /// `auto`, `uring` or `epoll`.
    pub io: String,
    /// Lines added to both configurations' `[node]`.
    pub node_extra: String,
    /// Start a demo backend beside each node; without it the balancer has no living server.
    pub demo: bool,
}

impl Default for Options {
    /// `$TEST_XDP` and `$TEST_IO` stand for `auto`, so that any test can be run in another mode.
    fn default() -> Self {
        let or_auto = |name| std::env::var(name).unwrap_or_else(|_unset| "auto".to_owned());
        Self {
            xdp: or_auto("TEST_XDP"),
            ack: "replicated".into(),
            memory: "64MiB".into(),
            io: or_auto("TEST_IO"),
            node_extra: String::new(),
            demo: false,
        }
    }
}

/// The namespaces, and the nodes that run in them.
#[derive(Debug)]
pub struct Pair {
    // Processes end before the namespaces go: fields drop in this order.
    nodes: [Option<Process>; 2],
    demos: [Option<Process>; 2],
    /// Where the nodes live.
    pub namespaces: [Namespace; 2],
    /// Where clients live.
    pub client: Namespace,
    lan: Namespace,
    hb: Namespace,
    /// Of the LAN's bridge and of the second network's, once they have ports.
    switches: Option<[Switch; 2]>,
    folder: TempDir,
    options: Options,
    tandem: PathBuf,
}

impl Pair {
    /// Makes the namespaces and both configurations; starts nothing.
    ///
    /// # Errors
    /// Without root or `ip`, and when the `tandem` program has not been built.
    pub fn build(prefix: &str, options: Options) -> Result<Self> {
        let mut pair = Self {
            nodes: [None, None],
            demos: [None, None],
            namespaces: [Namespace::create(prefix, "a")?, Namespace::create(prefix, "b")?],
            client: Namespace::create(prefix, "client")?,
            lan: Namespace::create(prefix, "lan")?,
            hb: Namespace::create(prefix, "hb")?,
            switches: None,
            folder: tempfile::Builder::new().prefix(prefix).tempdir()?,
            options,
            tandem: tandem_binary()?,
        };
        bridge(&pair.lan)?;
        bridge(&pair.hb)?;
        plug(&pair.lan, &pair.client, "client", "lan", CLIENT)?;
        for side in Side::ALL {
            plug(&pair.lan, pair.namespace(side), side.name(), "lan", side.address())?;
            plug(&pair.hb, pair.namespace(side), side.name(), "hb", side.second())?;
        }
        let ports = Side::ALL.map(Side::name);
        pair.switches = Some([Switch::open(&pair.lan, &ports)?, Switch::open(&pair.hb, &ports)?]);
        pair.write_files()?;
        Ok(pair)
    }

    pub(crate) fn network(&self, network: Network) -> &Namespace {
        match network {
            Network::Lan => &self.lan,
            Network::Second => &self.hb,
        }
    }

    /// Puts a new interface into a node's LAN, after its old one was deleted.
    ///
    /// # Errors
    /// As of `ip`.
    pub fn plug_lan(&self, side: Side) -> Result<()> {
        plug(&self.lan, self.namespace(side), side.name(), "lan", side.address())
    }

    fn write_files(&self) -> Result<()> {
        let key = self.folder.path().join("pair.key");
        run(&self.tandem.to_string_lossy(), &["keygen", &key.to_string_lossy()])?;
        for side in Side::ALL {
            fs::create_dir_all(self.state_dir(side))?;
            fs::write(self.config_path(side), self.config(side, &key))?;
        }
        Ok(())
    }

    fn config(&self, side: Side, key: &Path) -> String {
        let Options { xdp, ack, memory, io, node_extra, demo: _ } = &self.options;
        let (name, other) = (side.name(), side.other());
        let state = self.state_dir(side);
        let priority = if side == Side::A { 150 } else { 100 };
        format!(
            r#"
xdp = "{xdp}"

[node]
name = "{name}"
side = "{name}"
listen = "0.0.0.0:7700"
peer = ["{peer}:7700", "{second}:7700"]
key_file = "{key}"
state_dir = "{state}"
{node_extra}

[[vip]]
address = "{VIP}/24"
interface = "lan"
vrid = 51
priority = {priority}
advert = "100ms"

[cache]
listen = ["0.0.0.0:11211"]
memory = "{memory}"
ack = "{ack}"

[[http]]
listen = ["0.0.0.0:80"]
routes = [ {{ host = "*", path = "/", upstream = "demo" }} ]

[upstream.demo]
balance = "round_robin"
servers = [ {{ address = "{a}:8080" }}, {{ address = "{b}:8080" }} ]

[engine]
workers = 1
io = "{io}"

[admin]
listen = "127.0.0.1:9900"
"#,
            peer = other.address(),
            second = other.second(),
            key = key.display(),
            state = state.display(),
            a = Side::A.address(),
            b = Side::B.address(),
        )
    }

    /// Where a node keeps its state file.
    #[must_use]
    pub fn state_dir(&self, side: Side) -> PathBuf {
        self.folder.path().join(format!("state-{}", side.name()))
    }

    /// Changes a node's configuration file; it counts from the node's next start.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn edit_config(&self, side: Side, edit: impl FnOnce(&str) -> String) -> Result<()> {
        let path = self.config_path(side);
        let text = edit(&fs::read_to_string(&path)?);
        Ok(fs::write(path, text)?)
    }

    fn config_path(&self, side: Side) -> PathBuf {
        self.folder.path().join(format!("node-{}.toml", side.name()))
    }

    /// Where a node's output goes.
    #[must_use]
    pub fn log_path(&self, side: Side) -> PathBuf {
        self.folder.path().join(format!("node-{}.log", side.name()))
    }

    /// The namespace of a node.
    #[must_use]
    pub fn namespace(&self, side: Side) -> &Namespace {
        &self.namespaces[side as usize]
    }

    /// A file inside the pair's own temporary folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// From here on nodes are started from a copy of the program, which a test may replace or
    /// delete: its path.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy_program(&mut self) -> Result<PathBuf> {
        let copy = self.file("tandem");
        fs::copy(&self.tandem, &copy)?;
        self.tandem.clone_from(&copy);
        Ok(copy)
    }

    /// The `tandem` program that runs here.
    #[must_use]
    pub fn tandem(&self) -> &Path {
        &self.tandem
    }

    /// Starts a node, and its demo backend if wanted and not there yet.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn start(&mut self, side: Side) -> Result<()> {
        ensure!(!self.is_running(side), "node {} runs already", side.name());
        let config = self.config_path(side);
        let mut command = self.namespace(side).command(&self.tandem);
        command.arg("run").arg("--config").arg(config);
        let name = format!("node {}", side.name());
        let process = Process::start(&name, &mut command, &self.log_path(side))?;
        self.nodes[side as usize] = Some(process);
        if self.options.demo && !self.demos[side as usize].as_mut().is_some_and(Process::is_running)
        {
            self.demos[side as usize] = Some(self.start_demo(side)?);
        }
        Ok(())
    }

    fn start_demo(&self, side: Side) -> Result<Process> {
        let mut command = self.namespace(side).command(&self.tandem);
        command.args(["demo", "--listen", &format!("{}:8080", side.address())]);
        command.args(["--name", side.name(), "--cache", &format!("{VIP}:11211")]);
        let log = self.file(&format!("demo-{}.log", side.name()));
        Process::start(&format!("demo {}", side.name()), &mut command, &log)
    }

    /// True while a node's keeper runs.
    pub fn is_running(&mut self, side: Side) -> bool {
        self.nodes[side as usize].as_mut().is_some_and(Process::is_running)
    }

    /// The process that was started: the keeper.
    ///
    /// # Errors
    /// When the node was never started.
    pub fn node(&mut self, side: Side) -> Result<&mut Process> {
        self.nodes[side as usize].as_mut().context("the node was not started")
    }

    /// The guardian's pid.
    ///
    /// # Errors
    /// When there is none just now.
    pub fn guardian(&mut self, side: Side) -> Result<Pid> {
        let node = self.node(side)?.pid();
        child_running(node, "guardian").with_context(|| format!("no guardian at {}", side.name()))
    }

    /// The engine's pid.
    ///
    /// # Errors
    /// When there is none just now.
    pub fn engine(&mut self, side: Side) -> Result<Pid> {
        let guardian = self.guardian(side)?;
        child_running(guardian, "engine").with_context(|| format!("no engine at {}", side.name()))
    }

    /// SIGKILL to the engine.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_engine(&mut self, side: Side) -> Result<Pid> {
        let engine = self.engine(side)?;
        nix::sys::signal::kill(engine, Signal::SIGKILL)?;
        Ok(engine)
    }

    /// SIGKILL to the guardian; the node's keeper starts another one.
    ///
    /// # Errors
    /// When there is none just now.
    pub fn kill_guardian(&mut self, side: Side) -> Result<()> {
        process::end(self.guardian(side)?)
    }

    /// SIGKILL to everything that runs on a node but its demo, and waits for that.
    ///
    /// # Errors
    /// As of the kernel.
    pub fn kill_all(&mut self, side: Side) -> Result<()> {
        let node = self.node(side)?;
        node.end_all()?;
        node.wait(Duration::from_secs(5)).map(drop)
    }

    /// The loss of a node, in silence: its frames vanish first, then everything on it dies, and its
    /// kernel forgets the address, as that of a host which starts again.
    ///
    /// # Errors
    /// As of the parts.
    pub fn kill_node(&mut self, side: Side) -> Result<()> {
        self.cut(side)?;
        self.kill_all(side)?;
        self.demos[side as usize] = None;
        for interface in ["lan", "lo"] {
            // It stands on one of them at most.
            let address = VIP.to_string();
            self.namespace(side).ip(&["address", "flush", "dev", interface, "to", &address])?;
        }
        Ok(())
    }

    /// Cuts a node off on both networks, carrier up.
    ///
    /// # Errors
    /// As of netlink.
    pub fn cut(&self, side: Side) -> Result<()> {
        self.forwarding(side, Network::Lan, false)?;
        self.forwarding(side, Network::Second, false)
    }

    /// Undoes [`Pair::cut`].
    ///
    /// # Errors
    /// As of netlink.
    pub fn heal(&self, side: Side) -> Result<()> {
        self.forwarding(side, Network::Lan, true)?;
        self.forwarding(side, Network::Second, true)
    }

    /// Cuts or mends a node's port on the LAN alone.
    ///
    /// # Errors
    /// As of netlink.
    pub fn lan(&self, side: Side, forward: bool) -> Result<()> {
        self.forwarding(side, Network::Lan, forward)
    }

    /// Cuts or mends a node's port on the second network alone.
    ///
    /// # Errors
    /// As of netlink.
    pub fn second(&self, side: Side, forward: bool) -> Result<()> {
        self.forwarding(side, Network::Second, forward)
    }

    fn forwarding(&self, side: Side, network: Network, forward: bool) -> Result<()> {
        let switches = self.switches.as_ref().context("the switches are not built")?;
        switches[network as usize].forward(side.name(), forward)
    }

    /// Takes the far end of a node's LAN cable down or up: the node sees its carrier go.
    ///
    /// # Errors
    /// As of `ip`.
    pub fn carrier(&self, side: Side, up: bool) -> Result<()> {
        self.carrier_of(side, Network::Lan, up)
    }

    /// The same for either of its cables.
    ///
    /// # Errors
    /// As of `ip`.
    pub fn carrier_of(&self, side: Side, network: Network, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.network(network).ip(&["link", "set", "dev", side.name(), state]).map(drop)
    }

    /// A node's `/status.json`.
    ///
    /// # Errors
    /// While its admin server does not answer.
    pub fn status(&self, side: Side) -> Result<serde_json::Value> {
        self.namespace(side).run(|| {
            let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 9900));
            let (status, body) = http_get(admin, "/status.json", Duration::from_millis(500))?;
            ensure!(status == 200, "status.json answered {status}");
            Ok(serde_json::from_slice(&body)?)
        })
    }

    /// Waits until a node knows a third host on its segment, which could say that it is cut off.
    ///
    /// # Errors
    /// After ten seconds.
    pub fn wait_askable(&self, side: Side) -> Result<()> {
        eventually("a third host to be known", Duration::from_secs(10), || {
            let status = self.status(side)?;
            let askable = status.pointer("/vips/0/segment/askable");
            ensure!(askable == Some(&true.into()), "node {}: {askable:?}", side.name());
            Ok(())
        })
    }

    /// A node's role, by the name of design's states.
    ///
    /// # Errors
    /// As of [`Pair::status`].
    pub fn role(&self, side: Side) -> Result<String> {
        let status = self.status(side)?;
        Ok(status["role"].as_str().context("status.json has no role")?.to_owned())
    }

    /// Waits until a node's role is one of `roles`; the logs' ends are in the error.
    ///
    /// # Errors
    /// After `limit`.
    pub fn wait_role(&self, side: Side, roles: &[&str], limit: Duration) -> Result<String> {
        let what = format!("node {} to be {}", side.name(), roles.join(" or "));
        eventually(&what, limit, || {
            let role = self.role(side)?;
            if !roles.contains(&role.as_str()) {
                bail!("it is {role}");
            }
            Ok(role)
        })
        .with_context(|| Side::ALL.map(|side| tail(&self.log_path(side), 25)).join("\n"))
    }

    /// Starts both nodes and waits until one is MASTER and the other SYNCED; gives the master.
    ///
    /// # Errors
    /// After 20 s.
    pub fn start_both(&mut self) -> Result<Side> {
        self.start(Side::A)?;
        self.wait_role(Side::A, &["MASTER_SOLO", "MASTER"], Duration::from_secs(10))?;
        self.start(Side::B)?;
        self.wait_protected(Side::A)?;
        Ok(Side::A)
    }

    /// Waits until `master` is MASTER and the other is SYNCED.
    ///
    /// # Errors
    /// After 20 s.
    pub fn wait_protected(&self, master: Side) -> Result<()> {
        let limit = Duration::from_secs(20);
        self.wait_role(master, &["MASTER"], limit)?;
        self.wait_role(master.other(), &["SYNCED"], limit).map(drop)
    }

    /// A memcached client in `namespace`, to `address`.
    ///
    /// # Errors
    /// As of connect.
    pub fn memcached(&self, from: &Namespace, address: Ipv4Addr) -> Result<Memcached> {
        let limit = Duration::from_secs(2);
        from.run(|| Memcached::connect((address, 11211).into(), limit))
    }
}

fn bridge(namespace: &Namespace) -> Result<()> {
    namespace.ip(&["link", "add", "name", "br", "type", "bridge", "forward_delay", "0"])?;
    namespace.ip(&["link", "set", "dev", "br", "up"]).map(drop)
}

/// A cable: `port` on the bridge, `interface` with `address`/24 in `node`.
pub(crate) fn plug(
    bridge: &Namespace,
    node: &Namespace,
    port: &str,
    interface: &str,
    address: Ipv4Addr,
) -> Result<()> {
    let peer = ["peer", "name", interface, "netns", node.name()];
    bridge.ip(&[&["link", "add", "name", port, "type", "veth"][..], &peer].concat())?;
    bridge.ip(&["link", "set", "dev", port, "master", "br", "up"])?;
    bridge.run(|| ethtool::gro_on(port).with_context(|| format!("GRO on {port}")))?;
    node.ip(&["address", "add", &format!("{address}/24"), "dev", interface])?;
    node.ip(&["link", "set", "dev", interface, "up"]).map(drop)
}

/// The `tandem` program: `$TANDEM_BIN`, or beside the running test, or of the other profile.
///
/// # Errors
/// When it has not been built, with the command that builds it.
pub fn tandem_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TANDEM_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(3)
        .flat_map(|folder| [folder.join("tandem"), folder.join("release/tandem")])
        .find(|path| path.is_file())
        .context("the tandem program is not built: cargo build --release -p proxy-user")
}
