//! The status page: one screen, made by the server, fetched again each second by a few lines of
//! script (`page.js`), or by the browser where scripts are off.

use std::fmt::Display;

use super::html::{Bytes, Count, Html, Span};
use crate::guardian::status::{
    CacheStatus, EngineStatus, HttpStatus, PeerStatus, Status, SyncStatus, UpstreamStatus,
};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Most servers shown of one upstream; the rest is counted.
const SERVERS_MAX: usize = 40;
/// Most events shown.
const EVENTS_MAX: usize = 10;

/// The whole page. `nonce` is what lets its style and its script run.
pub(super) fn render(status: &Status, nonce: &str) -> String {
    let mut html = Html::with_capacity(24 << 10);
    html.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    html.raw("<title>").text(status.role.state).raw(" \u{b7} ").text(&status.node);
    html.raw(" \u{b7} Tandem</title><link rel=\"icon\" href=\"data:,\">");
    html.raw("<noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>");
    html.raw("<style nonce=\"").text(nonce).raw("\">\n").raw(STYLE).raw("</style></head><body>");
    html.raw("<p id=\"lost\">The guardian does not answer; this is what it last said.</p>");
    html.raw("<main>");
    head(&mut html, status);
    html.raw("<div class=\"grid\">");
    vips(&mut html, status);
    peer(&mut html, &status.peer);
    sync(&mut html, &status.sync);
    engine(&mut html, &status.engine);
    if let Some(cache) = &status.cache {
        show_cache(&mut html, cache);
    }
    http(&mut html, &status.http);
    backends(&mut html, &status.backends);
    events(&mut html, status);
    html.raw("</div>");
    foot(&mut html, status);
    html.raw("</main><script nonce=\"").text(nonce).raw("\">\n").raw(SCRIPT);
    html.raw("</script></body></html>\n");
    html.finish()
}

/// Colour and meaning of a state.
fn meaning(state: &str, pair: bool) -> (&'static str, &'static str) {
    match state {
        "MASTER" => {
            ("good", "Owns the addresses; no answer leaves before the peer holds what it says.")
        }
        "MASTER_SOLO" if pair => {
            ("warn", "Owns the addresses alone: what it answers now is on this node only.")
        }
        "MASTER_SOLO" => ("good", "A single node: it answers for everything."),
        "SYNCED" => ("calm", "Backup that holds whatever the master has answered."),
        "CATCHUP" => ("idle", "Taking over the master's content; it cannot take the role yet."),
        "JOIN" => ("idle", "Hears a master; the stream from it is not up yet."),
        "BOOT" => ("idle", "Who is master is not known yet; memcached clients are not served."),
        "HANDOVER" => ("idle", "A planned switch to the peer is running."),
        _ => ("bad", "Must not answer: isolated, or another node owns the addresses."),
    }
}

fn head(html: &mut Html, status: &Status) {
    let role = &status.role;
    let (colour, words) = meaning(role.state, status.peer.configured);
    html.raw("<header><h1>Tandem \u{b7} ").text(&status.node).raw("<small>");
    match (&status.cluster, status.side) {
        (Some(cluster), Some(side)) => {
            html.raw("side ").text(side).raw(" of pair ").text(cluster);
        }
        _ => {
            html.raw("single node");
        }
    }
    html.raw("</small></h1><div class=\"role ").raw(colour).raw("\">").text(role.state);
    html.raw("</div><p class=\"say\">").raw(words).raw("<small>epoch ").text(role.epoch);
    html.raw(" \u{b7} for ").text(Span(role.for_ms)).raw(" \u{b7} cause: ").text(role.cause);
    html.raw(" \u{b7} clients: ").text(status.health.word()).raw("</small></p></header>");
}

fn section<'a>(html: &'a mut Html, width: &'static str, title: &'static str) -> &'a mut Html {
    html.raw("<section class=\"").raw(width).raw("\"><h2>").raw(title)
}

/// Ends the heading with a word at its right, and begins the list.
fn word<'a>(html: &'a mut Html, colour: &'static str, word: impl Display) -> &'a mut Html {
    html.raw("<span class=\"").raw(colour).raw("\">").text(word).raw("</span></h2><dl>")
}

fn vips(html: &mut Html, status: &Status) {
    section(html, "third", "Addresses");
    if status.vips.is_empty() {
        word(html, "idle", "none").raw("</dl><p class=\"note\">No virtual address configured.</p>");
        html.raw("</section>");
        return;
    }
    let answering = status.vips.iter().any(|vip| vip.answering);
    let (colour, says) = if answering { ("good", "answering") } else { ("idle", "silent") };
    word(html, colour, says);
    for vip in &status.vips {
        html.raw("<dt><b>").text(vip.address).raw("/").text(vip.prefix).raw("</b></dt><dd>");
        html.text(&vip.interface).raw(", VRID ").text(vip.vrid).raw("</dd>");
        if vip.carrier == Some(false) {
            html.row_in("bad", "carrier", "lost");
        }
    }
    for interface in &status.xdp.interfaces {
        html.raw("<dt>XDP on ").text(&interface.interface).raw("</dt><dd>");
        html.text(&interface.mode).raw("</dd>");
    }
    if status.xdp.frames.values().any(|&count| count > 0) {
        let frames = |reason| status.xdp.frames.get(reason).copied().unwrap_or_default();
        html.row("ARP answered", Count(frames("arp_answered")));
        html.row("ARP left to the peer", Count(frames("arp_backup")));
        if frames("arp_conflict") > 0 {
            html.row_in("bad", "claims by strangers", Count(frames("arp_conflict")));
        }
    }
    html.raw("</dl>");
    for interface in &status.xdp.interfaces {
        html.raw("<p class=\"note\">").text(&interface.reason).raw("</p>");
        for warning in &interface.warnings {
            html.raw("<p class=\"note warn\">").text(warning).raw("</p>");
        }
    }
    html.raw("</section>");
}

fn peer(html: &mut Html, peer: &PeerStatus) {
    section(html, "third", "Peer");
    if !peer.configured {
        word(html, "idle", "none").raw("</dl><p class=\"note\">No peer configured.</p></section>");
        return;
    }
    let (colour, says) = match (peer.connected, peer.state) {
        (true, _) => ("good", "connected"),
        (false, Some(_)) => ("warn", "heard, not connected"),
        (false, None) => ("bad", "not heard"),
    };
    word(html, colour, says);
    html.row("name", peer.name.as_deref().unwrap_or("\u{2013}"));
    if let Some(version) = &peer.version {
        html.row("version", version);
    }
    if let Some(state) = peer.state {
        html.row_in(meaning(state, true).0, "state", state);
    }
    if let Some(epoch) = peer.epoch {
        html.row("epoch", epoch);
    }
    for path in &peer.paths {
        html.raw("<dt>").text(path.address).raw("</dt>");
        match path.last_beat_ms_ago {
            Some(age) => {
                html.raw(if age < 1000.0 { "<dd>" } else { "<dd class=\"bad\">" });
                html.text(format_args!("beat {age:.0} ms ago"));
            }
            None => {
                html.raw("<dd class=\"bad\">no beat yet");
            }
        }
        if let Some(rtt) = path.rtt_us {
            html.raw(" \u{b7} rtt ").text(rtt).raw(" \u{b5}s");
        }
        html.raw("</dd>");
    }
    let refused = if peer.refused > 0 { "warn" } else { "" };
    html.row_in(refused, "refused", Count(peer.refused));
    html.row("stray datagrams", Count(peer.datagrams_refused)).raw("</dl>");
    if let Some(reason) = &peer.refused_reason {
        html.raw("<p class=\"note warn\">last refused: ").text(reason).raw("</p>");
    }
    html.raw("</section>");
}

fn sync(html: &mut Html, sync: &SyncStatus) {
    section(html, "third", "Sync");
    let (colour, says) = match sync.state {
        "single" => ("idle", "no peer"),
        "in_sync" => ("good", "in sync"),
        "alone" => ("warn", "not protected"),
        "joining" => ("idle", "joining"),
        "catching_up" => ("idle", "catching up"),
        _ => ("idle", "none"),
    };
    word(html, colour, says);
    if sync.state == "single" {
        html.raw("</dl><p class=\"note\">What this node holds is held nowhere else.</p></section>");
        return;
    }
    let lag = format_args!("{} records, {}", Count(sync.lag_records), Bytes(sync.lag_bytes));
    html.row("not acknowledged", lag);
    html.row("answers held", Count(sync.held_answers));
    if let Some(oldest) = sync.oldest_held_ms {
        html.row("eldest waits", format_args!("{oldest:.1} ms"));
    }
    html.row("full syncs received", Count(sync.full_syncs));
    html.row("late acks", Count(sync.acks_late));
    let colour = if sync.unprotected_writes > 0 { "warn" } else { "" };
    html.row("time unprotected", format_args!("{:.1} s", sync.unprotected_seconds));
    html.row_in(colour, "unprotected writes", Count(sync.unprotected_writes));
    html.raw("</dl></section>");
}

fn engine(html: &mut Html, engine: &EngineStatus) {
    section(html, "third", "Engine");
    let colour = if engine.state == "serving" { "good" } else { "bad" };
    word(html, colour, engine.state);
    if let Some(pid) = engine.pid {
        html.row("process", pid);
    }
    if let Some(serving) = engine.serving_ms {
        html.row("serving for", Span(serving));
    }
    html.row_in(if engine.restarts > 0 { "warn" } else { "" }, "restarts", engine.restarts);
    if !engine.io.backend.is_empty() {
        html.row("driver", &engine.io.backend);
    }
    let alive = engine.workers.iter().filter(|worker| worker.alive).count();
    let colour = if alive == engine.workers.len() { "" } else { "bad" };
    html.row_in(colour, "workers", format_args!("{alive} of {}", engine.workers.len()));
    let loops = engine.workers.iter().map(|worker| worker.loops).sum();
    html.row("loops", Count(loops));
    html.row("connections", Count(engine.connections));
    html.row("accepted", Count(engine.accepted));
    if engine.connections_refused > 0 {
        html.row_in("warn", "refused, no room", Count(engine.connections_refused));
    }
    html.raw("</dl>");
    if !engine.io.reason.is_empty() {
        html.raw("<p class=\"note\">not the driver wanted: ").text(&engine.io.reason).raw("</p>");
    }
    if let Some(how) = &engine.last_end {
        html.raw("<p class=\"note\">the last one ended: ").text(how).raw("</p>");
    }
    if let Some(store) = &engine.store {
        html.raw("<p class=\"note\">store: ");
        if store.fresh {
            html.raw("began empty");
        } else {
            html.text(Count(store.items)).raw(" items found, ").text(store.shards_rebuilt);
            html.raw(" shards rebuilt, ").text(Count(store.items_dropped)).raw(" items dropped");
        }
        if let Some(note) = &store.note {
            html.raw("; ").text(note);
        }
        html.raw("</p>");
    }
    html.raw("</section>");
}

fn show_cache(html: &mut Html, cache: &CacheStatus) {
    section(html, "third", "Cache");
    let hits = match cache.gets {
        0 => "no gets yet".to_owned(),
        gets => format!("{:.1} % hits", 100.0 * cache.hits as f64 / gets as f64),
    };
    word(html, "idle", hits);
    html.row("items", Count(cache.items));
    let used = format_args!("{} of {}", Bytes(cache.bytes), Bytes(cache.memory));
    html.row("keys and values", used).raw("</dl><meter min=\"0\" max=\"");
    html.text(cache.memory).raw("\" value=\"").text(cache.bytes).raw("\"></meter><dl>");
    html.row("commands", Count(cache.commands));
    html.row("gets: hits", Count(cache.hits)).row("gets: misses", Count(cache.misses));
    html.row("sets", Count(cache.sets)).row("expired", Count(cache.expired));
    let colour = if cache.evictions > 0 { "warn" } else { "" };
    html.row_in(colour, "evicted", Count(cache.evictions));
    html.row("forwarded to master", Count(cache.forwarded_out));
    html.row("done for the peer", Count(cache.forwarded_in));
    html.row("error lines", Count(cache.protocol_errors)).raw("</dl></section>");
}

fn http(html: &mut Html, http: &HttpStatus) {
    section(html, "third", "HTTP");
    word(html, "idle", format_args!("{} requests", Count(http.requests)));
    for (class, count) in &http.replies {
        let colour = if *class == "5xx" && *count > 0 { "warn" } else { "" };
        html.raw("<dt>replies ").raw(class).raw("</dt><dd class=\"").raw(colour).raw("\">");
        html.text(Count(*count)).raw("</dd>");
    }
    html.row("tried twice", Count(http.retries));
    html.row("server connects", Count(http.upstream_connects));
    let colour = if http.upstream_failures > 0 { "warn" } else { "" };
    html.row_in(colour, "server failures", Count(http.upstream_failures));
    html.row("refused or cut", Count(http.refused));
    for (reason, count) in &http.refusals {
        html.raw("<dt>\u{2003}").raw(reason).raw("</dt><dd>").text(Count(*count)).raw("</dd>");
    }
    html.raw("</dl></section>");
}

fn backends(html: &mut Html, backends: &[UpstreamStatus]) {
    for of in backends {
        let up = of.servers.iter().filter(|server| server.up).count();
        section(html, "full", "Servers of ").text(&of.upstream);
        let colour = match up {
            0 => "bad",
            up if up < of.servers.len() => "warn",
            _ => "good",
        };
        html.raw("<span class=\"").raw(colour).raw("\">").text(up).raw(" of ");
        html.text(of.servers.len()).raw(" up</span></h2><table><tr><th>address<th>state");
        html.raw("<th class=\"n\">weight<th>route<th>checked<th class=\"n\">failed checks<th>why");
        for server in of.servers.iter().take(SERVERS_MAX) {
            html.raw("<tr><td>").text(server.address);
            html.raw(if server.up { "<td class=\"good\">up" } else { "<td class=\"bad\">down" });
            html.raw("<td class=\"n\">").text(server.weight).raw("<td>");
            html.text(server.route.as_deref().unwrap_or("\u{2013}"));
            html.raw(if server.checked { "<td>yes" } else { "<td>no" });
            html.raw("<td class=\"n\">").text(server.fails).raw("<td>").text(&server.reason);
        }
        html.raw("</table>");
        if let Some(more) = of.servers.len().checked_sub(SERVERS_MAX + 1) {
            html.raw("<p class=\"note\">and ").text(more + 1);
            html.raw(" more: see /status.json</p>");
        }
        html.raw("</section>");
    }
}

fn events(html: &mut Html, status: &Status) {
    section(html, "full", "Last events").raw("</h2>");
    if status.events.is_empty() {
        html.raw("<p class=\"note\">None yet.</p></section>");
        return;
    }
    html.raw("<ol>");
    for event in status.events.iter().take(EVENTS_MAX) {
        let ago = status.time_unix_ms.saturating_sub(event.time_unix_ms);
        html.raw("<li><time>").text(Span(ago)).raw(" ago</time><span>").text(&event.text);
        html.raw("</span></li>");
    }
    html.raw("</ol></section>");
}

fn foot(html: &mut Html, status: &Status) {
    html.raw("<footer>Tandem ").text(status.version).raw(", up for ").text(Span(status.uptime_ms));
    html.raw(" \u{b7} <a href=\"/status.json\">status.json</a> \u{b7} ");
    html.raw("<a href=\"/metrics\">metrics</a> \u{b7} <a href=\"/healthz\">healthz</a></footer>");
}
