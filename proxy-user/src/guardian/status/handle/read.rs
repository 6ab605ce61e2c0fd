//! How a [`Status`] is made of what the threads left and what the page says.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::{
    CacheStatus, EngineStatus, EventStatus, Health, HttpStatus, PathStatus, PeerStatus, RoleStatus,
    ServerStatus, Status, SyncStatus, UpstreamStatus, VipStatus, WorkerStatus, XdpStatus,
};
use super::{
    EngineFacts, NO_ERROR, Path, PeerFacts, Server, StatusHandle, TIMED_OUT, Upstream, Vip, unix_ms,
};
use crate::control::counters::Counter;
use crate::control::role::State;
use crate::control::shared::{Liveness, Seat, monotonic_ns};
use crate::guardian::steering::Counters;
use crate::http::Reason;

impl StatusHandle {
    /// This moment.
    #[must_use]
    pub fn read(&self) -> Status {
        let inner = &*self.0;
        let now = monotonic_ns();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            node: inner.node.clone(),
            cluster: inner.pair.as_ref().map(|(cluster, _)| cluster.clone()),
            side: inner.pair.as_ref().map(|(_, side)| *side),
            time_unix_ms: unix_ms(),
            uptime_ms: now.saturating_sub(inner.started_ns) / 1_000_000,
            health: self.health(),
            role: self.role(now),
            vips: self.vips(),
            xdp: XdpStatus {
                wanted: inner.xdp_wanted,
                interfaces: Vec::clone(&inner.xdp.load()),
                frames: frames(&inner.frames.load()),
            },
            peer: self.peer_status(now),
            sync: self.sync(now),
            engine: self.engine(now),
            backends: inner.upstreams.iter().map(Upstream::status).collect(),
            cache: inner.memory.map(|memory| self.cache(memory)),
            http: self.http(),
            events: inner.events.load().iter().map(|event| EventStatus::clone(event)).collect(),
        }
    }

    /// Whether clients are served.
    #[must_use]
    pub fn health(&self) -> Health {
        let state = self.0.page.role().state;
        if self.0.stopping.load(Ordering::Relaxed) {
            Health::Stopping
        } else if self.0.engine.load().state != "serving" || self.0.page.engine_is_gone() {
            Health::EngineDown
        } else if state == State::Boot {
            Health::Boot
        } else if state == State::Fenced {
            Health::Fenced
        } else {
            Health::Serving
        }
    }

    fn role(&self, now: u64) -> RoleStatus {
        let facts = self.0.role.load();
        let role = self.0.page.role();
        RoleStatus {
            state: role.state.as_str(),
            epoch: role.epoch,
            since_unix_ms: facts.since_unix_ms,
            for_ms: now.saturating_sub(facts.since_ns) / 1_000_000,
            cause: facts.cause,
            changes: facts.changes,
        }
    }

    fn vips(&self) -> Vec<VipStatus> {
        let answering = self.0.answering.load(Ordering::Relaxed);
        let status = |vip: &Vip| VipStatus {
            address: vip.config.address,
            prefix: vip.config.prefix,
            interface: vip.config.interface.clone(),
            vrid: vip.config.vrid,
            answering,
            carrier: match vip.carrier.load(Ordering::Relaxed) {
                0 => None,
                carrier => Some(carrier == 2),
            },
        };
        self.0.vips.iter().map(status).collect()
    }

    fn peer_status(&self, now: u64) -> PeerStatus {
        let facts = PeerFacts::clone(&self.0.peer.load());
        let known = |ns: u64| (ns != 0).then_some(ns);
        let path = |path: &Path| PathStatus {
            address: path.address,
            last_beat_ms_ago: known(path.heard_ns.load(Ordering::Relaxed))
                .map(|heard| milliseconds(now.saturating_sub(heard))),
            rtt_us: known(path.rtt_ns.load(Ordering::Relaxed)).map(|rtt| rtt / 1000),
        };
        PeerStatus {
            configured: self.is_pair(),
            connected: facts.connected,
            name: facts.name,
            version: facts.version,
            state: facts.state.map(State::as_str),
            epoch: facts.epoch,
            paths: self.0.paths.iter().map(path).collect(),
            beats_sent: facts.beats_sent,
            beats_received: facts.beats_received,
            refused: facts.refused,
            refused_reason: facts.refused_reason,
            datagrams_refused: facts.datagrams_refused,
        }
    }

    fn sync(&self, now: u64) -> SyncStatus {
        let page = self.0.page;
        let facts = self.0.role.load();
        let unprotected = facts.unprotected_ns + facts.unprotected_since(self.is_pair(), now);
        let state = match page.role().state {
            _ if !self.is_pair() => "single",
            State::Master | State::Synced => "in_sync",
            State::MasterSolo => "alone",
            State::Join => "joining",
            State::Catchup => "catching_up",
            _ => "none",
        };
        SyncStatus {
            state,
            lag_records: page.sum(Counter::ReplicationLagRecords),
            lag_bytes: page.sum(Counter::ReplicationLagBytes),
            full_syncs: self.0.full_syncs.load(Ordering::Relaxed),
            acks_late: self.0.acks_late.load(Ordering::Relaxed),
            held_answers: page.sum(Counter::AnswersHeld),
            oldest_held_ms: page.held_since().map(|at| milliseconds(now.saturating_sub(at))),
            unprotected_seconds: Duration::from_nanos(unprotected).as_secs_f64(),
            unprotected_writes: page.sum(Counter::AnswersUnprotected),
        }
    }

    fn engine(&self, now: u64) -> EngineStatus {
        let facts = EngineFacts::clone(&self.0.engine.load());
        let page = self.0.page;
        let count = u16::try_from(page.workers()).unwrap_or(u16::MAX);
        let worker = |index| {
            let worker = page.worker(index)?;
            let turn = worker.turn();
            Some(WorkerStatus {
                alive: matches!(page.liveness(Seat::Worker(index)), Liveness::Alive(_)),
                loops: turn / 2,
                idle: turn % 2 == 1,
                connections: worker.get(Counter::Connections),
            })
        };
        EngineStatus {
            state: facts.state,
            pid: facts.pid,
            restarts: facts.starts.saturating_sub(1),
            last_end: facts.last_end,
            serving_ms: facts.serving_ns.map(|since| now.saturating_sub(since) / 1_000_000),
            io: facts.io,
            store: facts.store,
            workers: (0..count).filter_map(worker).collect(),
            accepted: page.sum(Counter::Accepted),
            connections: page.sum(Counter::Connections),
            connections_refused: page.sum(Counter::ConnectionsRefused),
        }
    }

    fn cache(&self, memory: u64) -> CacheStatus {
        let of = |counter| self.0.page.sum(counter);
        let (gets, hits) = (of(Counter::CacheGets), of(Counter::CacheHits));
        CacheStatus {
            items: of(Counter::CacheItems),
            bytes: of(Counter::CacheBytes),
            memory,
            commands: of(Counter::CacheCommands),
            gets,
            hits,
            misses: gets.saturating_sub(hits),
            sets: of(Counter::CacheSets),
            evictions: of(Counter::CacheEvictions),
            expired: of(Counter::CacheExpired),
            protocol_errors: of(Counter::CacheProtocolErrors),
            forwarded_out: of(Counter::ForwardedOut),
            forwarded_in: of(Counter::ForwardedIn),
        }
    }

    fn http(&self) -> HttpStatus {
        let page = self.0.page;
        let of = |counter| page.sum(counter);
        let replies = [
            ("2xx", of(Counter::HttpReplies2xx)),
            ("3xx", of(Counter::HttpReplies3xx)),
            ("4xx", of(Counter::HttpReplies4xx)),
            ("5xx", of(Counter::HttpReplies5xx)),
        ];
        let refusals = Reason::ALL.iter().map(|&reason| (reason.code(), page.refusals(reason)));
        HttpStatus {
            requests: of(Counter::HttpRequests),
            replies: BTreeMap::from(replies),
            refused: of(Counter::HttpRefused),
            refusals: refusals.filter(|&(_, count)| count > 0).collect(),
            retries: of(Counter::HttpRetries),
            upstream_connects: of(Counter::UpstreamConnects),
            upstream_failures: of(Counter::UpstreamFailures),
        }
    }
}

impl Upstream {
    fn status(&self) -> UpstreamStatus {
        let servers = self.servers.iter().map(Server::status).collect();
        UpstreamStatus { upstream: self.name.clone(), servers }
    }
}

impl Server {
    fn status(&self) -> ServerStatus {
        let checked_up = self.up.load(Ordering::Relaxed);
        let removed = self.removed.load(Ordering::Relaxed);
        let reason = match self.error.load(Ordering::Relaxed) {
            NO_ERROR if removed => "requests failed".to_owned(),
            NO_ERROR => String::new(),
            TIMED_OUT => "check: timed out".to_owned(),
            error => format!("check: {}", io::Error::from_raw_os_error(error)),
        };
        ServerStatus {
            address: self.address,
            weight: self.weight,
            route: self.route.clone(),
            up: checked_up && !removed,
            checked: self.checked,
            fails: self.fails.load(Ordering::Relaxed),
            removed,
            reason,
        }
    }
}

fn frames(counters: &Counters) -> BTreeMap<&'static str, u64> {
    counters.iter().map(|(reason, count)| (reason.name(), count)).collect()
}

fn milliseconds(ns: u64) -> f64 {
    Duration::from_nanos(ns / 1000 * 1000).as_secs_f64() * 1e3
}
