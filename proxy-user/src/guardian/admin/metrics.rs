//! `/metrics`: OpenMetrics text, made anew from a [`Status`] for each scrape. Names begin with
//! `tandem_`; a counter's sample ends in `_total`. Names and labels are part of the program's
//! public face.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::control::counters::{Counter, Kind};
use crate::control::role::State;
use crate::guardian::status::{
    EngineStatus, Health, PeerStatus, Status, StatusHandle, UpstreamStatus,
};
use crate::http::Reason;

/// Everything under one prefix.
pub(super) fn registry(status: StatusHandle) -> Registry {
    let mut registry = Registry::with_prefix("tandem");
    registry.register_collector(Box::new(Metrics(status)));
    registry
}

#[derive(Debug)]
struct Metrics(StatusHandle);

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.read();
        let mut out = Out(encoder);
        node(&mut out, &status)?;
        addresses(&mut out, &status)?;
        peer(&mut out, &status.peer)?;
        sync(&mut out, &status)?;
        engine(&mut out, &status.engine)?;
        backends(&mut out, &status.backends)?;
        self.counters(&mut out, &status)
    }
}

impl Metrics {
    /// Everything that the workers count.
    fn counters(&self, out: &mut Out<'_>, status: &Status) -> fmt::Result {
        let page = self.0.page();
        for &counter in Counter::ALL {
            let (name, help, value) = (counter.name(), counter.help(), page.sum(counter));
            match counter.kind() {
                Kind::Total => out.counter(name, help, value)?,
                Kind::Gauge => out.gauge(name, help, value)?,
            }
        }
        if let Some(cache) = &status.cache {
            out.gauge("cache_memory_bytes", "Memory of the store.", cache.memory)?;
        }
        let refusals = Reason::ALL.iter().map(|&reason| {
            let labels =
                vec![("reason", reason.code().to_owned()), ("status", reason.status().to_string())];
            (labels, page.refusals(reason))
        });
        let help = "HTTP requests refused or ended by this node, by reason.";
        out.counters("http_refusals", help, refusals)
    }
}

fn node(out: &mut Out<'_>, status: &Status) -> fmt::Result {
    let build = vec![
        ("version", status.version.to_owned()),
        ("node", status.node.clone()),
        ("cluster", status.cluster.clone().unwrap_or_default()),
        ("side", status.side.unwrap_or_default().to_owned()),
    ];
    out.infos("build", "The program and its node.", [build])?;
    let uptime = status.uptime_ms as f64 / 1e3;
    out.gauge("uptime_seconds", "Time since the guardian started.", uptime)?;
    let serving = flag(status.health == Health::Serving);
    out.gauge("serving", "1 when clients are served: what /healthz says.", serving)?;
    let state = |state: &State| {
        let name = state.as_str();
        (vec![("state", name.to_owned())], flag(name == status.role.state))
    };
    out.gauges("role", "1 for the node's state.", State::ALL.iter().map(state))?;
    let role = &status.role;
    out.gauge("epoch", "Epoch of the reign, or of the one followed.", u64::from(role.epoch))?;
    let held = role.for_ms as f64 / 1e3;
    out.gauge("role_seconds", "Time since the state was entered.", held)?;
    out.counter("role_changes", "Changes of role.", role.changes)
}

fn addresses(out: &mut Out<'_>, status: &Status) -> fmt::Result {
    let answering = status.vips.iter().map(|vip| {
        let labels =
            vec![("address", vip.address.to_string()), ("interface", vip.interface.clone())];
        (labels, flag(vip.answering))
    });
    out.gauges("vip_answering", "1 when this node answers for the address.", answering)?;
    let interfaces = status.xdp.interfaces.iter().map(|interface| {
        vec![
            ("interface", interface.interface.clone()),
            ("mode", interface.mode.clone()),
            ("reason", interface.reason.clone()),
        ]
    });
    out.infos("xdp", "How the addresses of an interface are answered for.", interfaces)?;
    let frames = status.xdp.frames.iter();
    let frames = frames.map(|(reason, count)| (vec![("reason", (*reason).to_owned())], *count));
    out.counters("xdp_frames", "Frames seen by the XDP program, by what it did.", frames)
}

fn peer(out: &mut Out<'_>, peer: &PeerStatus) -> fmt::Result {
    if !peer.configured {
        return Ok(());
    }
    out.gauge("peer_connected", "1 when the peer's guardian is connected.", flag(peer.connected))?;
    let state = |state: &State| {
        let name = state.as_str();
        (vec![("state", name.to_owned())], flag(Some(name) == peer.state))
    };
    out.gauges(
        "peer_role",
        "1 for the peer's state, as last heard.",
        State::ALL.iter().map(state),
    )?;
    if let Some(epoch) = peer.epoch {
        out.gauge("peer_epoch", "The peer's epoch, as last heard.", u64::from(epoch))?;
    }
    let path = |address: std::net::SocketAddr| vec![("path", address.to_string())];
    let ages = peer.paths.iter().filter_map(|of| Some((path(of.address), of.last_beat_ms_ago?)));
    let ages = ages.map(|(labels, ms)| (labels, ms / 1e3));
    out.gauges("peer_beat_age_seconds", "Age of the last beat heard, by path.", ages)?;
    let rtts = peer.paths.iter().filter_map(|of| Some((path(of.address), of.rtt_us?)));
    let rtts = rtts.map(|(labels, us)| (labels, us as f64 / 1e6));
    out.gauges("peer_rtt_seconds", "Round trip of a beat, by path.", rtts)?;
    out.counter("peer_beats_sent", "Beats sent.", peer.beats_sent)?;
    out.counter("peer_beats_received", "Beats received.", peer.beats_received)?;
    let help = "Handshakes of guardians refused: wrong key, cluster, side or version.";
    out.counter("peer_refused", help, peer.refused)?;
    let help = "Datagrams that belong to no session of the peer.";
    out.counter("peer_datagrams_refused", help, peer.datagrams_refused)
}

fn sync(out: &mut Out<'_>, status: &Status) -> fmt::Result {
    let sync = &status.sync;
    let in_sync = flag(sync.state == "in_sync");
    out.gauge("in_sync", "1 when both nodes hold every answered write.", in_sync)?;
    out.counter("full_syncs", "Full syncs received whole.", sync.full_syncs)?;
    let help = "Times the peer's ack was late and answers were held.";
    out.counter("acks_late", help, sync.acks_late)?;
    let oldest = sync.oldest_held_ms.unwrap_or(0.0) / 1e3;
    out.gauge("oldest_held_answer_seconds", "Age of the eldest answer held.", oldest)?;
    let help = "Time that a node of a pair was master alone.";
    out.counter("unprotected_seconds", help, sync.unprotected_seconds)
}

fn engine(out: &mut Out<'_>, engine: &EngineStatus) -> fmt::Result {
    out.gauge("engine_up", "1 when an engine serves.", flag(engine.state == "serving"))?;
    out.counter("engine_restarts", "Engines started after the first.", engine.restarts)?;
    let io = vec![("kind", engine.io.backend.clone()), ("reason", engine.io.reason.clone())];
    out.infos("io_backend", "The engine's driver; why, if another was wanted.", [io])?;
    let alive = (0..).zip(&engine.workers).map(|(index, worker): (usize, _)| {
        (vec![("worker", index.to_string())], flag(worker.alive))
    });
    out.gauges("worker_alive", "1 when the worker's thread lives.", alive)?;
    if let Some(store) = &engine.store {
        let help = "Shards that the engine had to rebuild when it started.";
        out.gauge("store_shards_rebuilt", help, u64::from(store.shards_rebuilt))?;
        let help = "Items that the engine dropped when it started: their check failed.";
        out.gauge("store_items_dropped", help, store.items_dropped)?;
    }
    Ok(())
}

fn backends(out: &mut Out<'_>, backends: &[UpstreamStatus]) -> fmt::Result {
    let servers = || {
        backends.iter().flat_map(|of| {
            of.servers.iter().map(|server| {
                let labels =
                    vec![("upstream", of.upstream.clone()), ("server", server.address.to_string())];
                (labels, server)
            })
        })
    };
    let up = servers().map(|(labels, server)| (labels, flag(server.up)));
    out.gauges("backend_up", "1 when the server gets requests.", up)?;
    let fails = servers().map(|(labels, server)| (labels, u64::from(server.fails)));
    out.gauges("backend_check_fails", "Failed checks in a row.", fails)
}

fn flag(on: bool) -> u64 {
    u64::from(on)
}

type Labels = Vec<(&'static str, String)>;

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    fn infos(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = Labels>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Info)?;
        rows.into_iter().try_for_each(|labels| metric.encode_info(&labels))
    }

    fn counters<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            let mut row = metric.encode_family(&labels)?;
            row.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}
