//! `[node]` and `[[vip]]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::super::raw::{At, Raw, RawNode, RawVip};
use super::super::{LonelySegment, Node, Pair, Side, UnsyncedTakeover, Vip};
use super::Checker;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

impl Checker<'_> {
    pub(super) fn node(&mut self, raw: &Raw) -> Option<Node> {
        let Some(spanned) = &raw.node else {
            if let Some(vip) = raw.vip.first() {
                let hint = "add [node] with name; with a second node also side, peer, key_file";
                self.problem(vip.span(), "[[vip]] needs a [node] table", hint);
                return None;
            }
            return Some(Node { name: "single".to_owned(), state_dir: None, pair: None });
        };
        let (node, span) = (spanned.get_ref(), spanned.span());
        let name = self.name(&node.name, &span, "[node] name", None);
        let pair = match &node.peer {
            Some(_) => Some(self.pair(node, &span)?),
            None => {
                self.needs_peer(node);
                None
            }
        };
        let state_dir = node.state_dir.as_ref().map(|at| at.get_ref().into());
        Some(Node { name: name?, state_dir, pair })
    }

    /// Keys that mean nothing without a peer are a mistake, not a preparation.
    fn needs_peer(&mut self, node: &RawNode) {
        let strings = [
            ("side", &node.side),
            ("cluster", &node.cluster),
            ("key_file", &node.key_file),
            ("heartbeat", &node.heartbeat),
            ("unsynced_takeover", &node.unsynced_takeover),
            ("lonely_segment", &node.lonely_segment),
            ("boot_wait", &node.boot_wait),
        ];
        for (key, at) in strings {
            if let Some(at) = at {
                self.peerless(key, at.span());
            }
        }
        if let Some(at) = &node.listen {
            self.peerless("listen", at.span());
        }
        if let Some(at) = &node.dead_after {
            self.peerless("dead_after", at.span());
        }
    }

    fn peerless(&mut self, key: &str, span: Range<usize>) {
        let message = format!("[node] {key} means nothing without a peer");
        self.problem(span, message, "add peer = \"ip:port\", or remove the key");
    }

    fn name(
        &mut self,
        at: &At<String>,
        owner: &Range<usize>,
        key: &str,
        unset: Option<&str>,
    ) -> Option<String> {
        if at.is_none() && unset.is_some() {
            return unset.map(str::to_owned);
        }
        let at = self.required(at, owner.clone(), key, "name it, such as \"a\"")?;
        let name = at.get_ref();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
            self.problem(
                at.span(),
                format!("{key} = {name:?} is not a name"),
                "1 to 32 letters, digits, '-', '_' or '.'",
            );
            return None;
        }
        Some(name.clone())
    }

    fn pair(&mut self, node: &RawNode, span: &Range<usize>) -> Option<Pair> {
        let side_hint = "side = \"a\" on one node and side = \"b\" on the other";
        let side = self.required(&node.side, span.clone(), "[node] side", side_hint).is_some();
        let side = side.then(|| {
            self.word(&node.side, "[node] side", Side::A, &[("a", Side::A), ("b", Side::B)])
        });
        let key_hint = "make one with `tandem keygen pair.key` and copy it to both nodes";
        let key = self.required(&node.key_file, span.clone(), "[node] key_file", key_hint);
        let key_file = key.map(|at| at.get_ref().into());
        let cluster = self.name(&node.cluster, span, "[node] cluster", Some("tandem"));
        let peers = self.addresses(&node.peer, "[node] peer");
        self.peer_ports(node, peers.as_deref().unwrap_or_default());
        let listen = match &node.listen {
            Some(_) => self.addresses(&node.listen, "[node] listen"),
            None => peers.as_ref().map(|peers| default_listen(peers)),
        };
        let heartbeat = self.time(&node.heartbeat, "[node] heartbeat", 10 * MS, MS..=SECOND);
        let dead_after = self.number(&node.dead_after, "[node] dead_after", 4, 3..=100);
        let boot =
            self.time(&node.boot_wait, "[node] boot_wait", 3 * SECOND, 50 * MS..=60 * SECOND);
        let unsynced_takeover = self.unsynced(&node.unsynced_takeover);
        let words = [("takeover", LonelySegment::Takeover), ("hold", LonelySegment::Hold)];
        let lonely_segment = self.word(
            &node.lonely_segment,
            "[node] lonely_segment",
            LonelySegment::Takeover,
            &words,
        );
        Some(Pair {
            side: side?,
            cluster: cluster?,
            peers: peers?,
            listen: listen?,
            key_file: key_file?,
            heartbeat,
            dead_after,
            unsynced_takeover,
            boot_wait: boot,
            lonely_segment,
        })
    }

    /// Engines use the next port, and a peer on our own host is a copied file.
    fn peer_ports(&mut self, node: &RawNode, peers: &[SocketAddr]) {
        let Some(span) = node.peer.as_ref().map(Spanned::span) else { return };
        if peers.iter().any(|peer| peer.port() == u16::MAX) {
            let hint = "engines speak on the next port, so 65534 is the last that works";
            self.problem(span.clone(), "[node] peer: port 65535 is too high", hint);
        }
        if peers.iter().any(|peer| peer.ip().is_unspecified() || peer.ip().is_multicast()) {
            let hint = "name the other node's own address";
            self.problem(span, "[node] peer is not one host's address", hint);
        }
    }

    fn unsynced(&mut self, at: &At<String>) -> UnsyncedTakeover {
        let unset = UnsyncedTakeover::After(3 * SECOND);
        match at.as_ref().map(|at| at.get_ref().as_str()) {
            None => unset,
            Some("never") => UnsyncedTakeover::Never,
            Some("now") => UnsyncedTakeover::Now,
            Some(_) => {
                let limits = 100 * MS..=3600 * SECOND;
                let key = "[node] unsynced_takeover";
                UnsyncedTakeover::After(self.time(at, key, 3 * SECOND, limits))
            }
        }
    }

    pub(super) fn vips(&mut self, raw: &Raw) -> Vec<Vip> {
        let mut vips: Vec<Vip> = Vec::new();
        for spanned in &raw.vip {
            let Some(vip) = self.vip(spanned.get_ref(), &spanned.span()) else { continue };
            let clash = vips.iter().any(|other| {
                other.address == vip.address
                    || (other.vrid == vip.vrid && other.interface == vip.interface)
            });
            if clash {
                let message = format!("[[vip]] {}: address or vrid is used twice", vip.address);
                self.problem(spanned.span(), message, "each [[vip]] has its own");
            }
            vips.push(vip);
        }
        vips
    }

    fn vip(&mut self, vip: &RawVip, span: &Range<usize>) -> Option<Vip> {
        let hint = "write address = \"192.0.2.100/24\"";
        let address = self.required(&vip.address, span.clone(), "[[vip]] address", hint);
        let address = address.and_then(|at| self.network(at));
        let hint = "name the interface of the clients' segment, such as \"eth0\"";
        let interface = self.required(&vip.interface, span.clone(), "[[vip]] interface", hint);
        let interface = interface.and_then(|at| self.interface(at));
        let hint = "1 to 255, the same on both nodes, unique on the segment";
        let vrid = self.required(&vip.vrid, span.clone(), "[[vip]] vrid", hint).is_some();
        let vrid = self.number(&vip.vrid, "[[vip]] vrid", u8::from(vrid), 1..=255);
        let priority = self.number(&vip.priority, "[[vip]] priority", 100, 1..=254);
        let advert = self.advert(&vip.advert);
        let (address, prefix) = address?;
        Some(Vip { address, prefix, interface: interface?, vrid, priority, advert })
    }

    fn network(&mut self, at: &Spanned<String>) -> Option<(Ipv4Addr, u8)> {
        let text = at.get_ref();
        let (ip, prefix) = text.split_once('/').unwrap_or((text, "32"));
        if ip.parse::<Ipv6Addr>().is_ok() {
            let message = format!("[[vip]] address = \"{text}\": IPv6 is not served yet");
            self.problem(at.span(), message, "use an IPv4 address");
            return None;
        }
        let prefix = prefix.parse::<u8>().ok().filter(|prefix| (1..=32).contains(prefix));
        let ip = ip.parse::<Ipv4Addr>().ok().filter(|ip| {
            !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback())
        });
        if let (Some(ip), Some(prefix)) = (ip, prefix) {
            return Some((ip, prefix));
        }
        let message = format!("[[vip]] address = \"{text}\" is not a host address with prefix");
        self.problem(at.span(), message, "write it as \"192.0.2.100/24\"");
        None
    }

    fn interface(&mut self, at: &Spanned<String>) -> Option<String> {
        let name = at.get_ref();
        let plain = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        if !name.is_empty() && name.len() <= 15 && name.chars().all(plain) {
            return Some(name.clone());
        }
        let message = format!("[[vip]] interface = {name:?} is not an interface name");
        self.problem(at.span(), message, "1 to 15 characters, as `ip link` shows it");
        None
    }

    /// RFC 9568 section 5.2.7: centiseconds in twelve bits.
    fn advert(&mut self, at: &At<String>) -> Duration {
        let limits = 10 * MS..=40_950 * MS;
        let advert = self.time(at, "[[vip]] advert", 100 * MS, limits);
        if !advert.as_nanos().is_multiple_of(10_000_000) {
            let span = at.as_ref().map_or(0..0, Spanned::span);
            let message = "[[vip]] advert is not whole centiseconds";
            self.problem(span, message, "VRRP counts in steps of 10ms");
        }
        advert
    }
}

fn default_listen(peers: &[SocketAddr]) -> Vec<SocketAddr> {
    let Some(first) = peers.first() else { return Vec::new() };
    let any = match first.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    vec![SocketAddr::new(any, first.port())]
}
