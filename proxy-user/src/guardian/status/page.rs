//! The status page: one screen, made by the server, fetched again each second by a few lines of
//! script (`page.js`), or by the browser where scripts are off. The heading knows the role; the
//! rest is a walk over the facts: a card for each group that is a section, a table for each list.

use super::fact::{Fact, Tone, Unit, Value};
use super::html::{Bytes, Count, Html, Span};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Most lines shown of one table; the rest is counted.
const LINES_MAX: usize = 40;
/// Most events shown.
const EVENTS_MAX: usize = 10;

type Fields = [(&'static Fact, Value)];

/// The whole page. `nonce` is what lets its style and its script run.
pub(super) fn render(status: &Value, nonce: &str) -> String {
    let mut html = Html::with_capacity(24 << 10);
    html.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    html.raw("<title>").text(text(status, "role")).raw(" \u{b7} ").text(text(status, "node"));
    html.raw(" \u{b7} Tandem</title><link rel=\"icon\" href=\"data:,\">");
    html.raw("<noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>");
    html.raw("<style nonce=\"").text(nonce).raw("\">\n").raw(STYLE).raw("</style></head><body>");
    html.raw("<p id=\"lost\">The guardian does not answer; this is what it last said.</p>");
    html.raw("<main>");
    head(&mut html, status);
    html.raw("<div class=\"grid\">");
    sections(&mut html, status);
    events(&mut html, status);
    html.raw("</div>");
    foot(&mut html, status);
    html.raw("</main><script nonce=\"").text(nonce).raw("\">\n").raw(SCRIPT);
    html.raw("</script></body></html>\n");
    html.finish()
}

fn text<'a>(group: &'a Value, name: &str) -> &'a str {
    group.get(name).map_or("", Value::text)
}

fn count(group: &Value, name: &str) -> u64 {
    match group.get(name) {
        Some(Value::Count(count, _)) => *count,
        _ => 0,
    }
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

fn head(html: &mut Html, status: &Value) {
    let (state, side) = (text(status, "role"), text(status, "side"));
    let (colour, words) = meaning(state, !side.is_empty());
    html.raw("<header><h1>Tandem \u{b7} ").text(text(status, "node")).raw("<small>");
    if side.is_empty() {
        html.raw("single node");
    } else {
        html.raw("side ").text(side).raw(" of pair ").text(text(status, "cluster"));
    }
    html.raw("</small></h1><div class=\"role ").raw(colour).raw("\">").text(state);
    html.raw("</div><p class=\"say\">")
        .raw(words)
        .raw("<small>epoch ")
        .text(count(status, "epoch"));
    html.raw(" \u{b7} for ").text(Span(count(status, "for_ms"))).raw(" \u{b7} cause: ");
    html.text(text(status, "cause")).raw(" \u{b7} clients: ").text(text(status, "health"));
    html.raw("</small></p></header>");
}

/// In the order of their declaration: a table for each list that has a title, a card for each group
/// that has one; then the tables within groups.
fn sections(html: &mut Html, status: &Value) {
    let Value::Group(fields) = status else { return };
    for (fact, group) in fields {
        let Some(title) = fact.section else { continue };
        if let Value::List(items) = group {
            table(html, title, "", items);
        }
        let Value::Group(inside) = group else { continue };
        html.raw("<section class=\"third\"><h2>").raw(title);
        if let Some(Value::Flag(false)) = group.get("configured") {
            html.raw("</h2><p class=\"note\">No ").text(title.to_lowercase());
            html.raw(" configured.</p></section>");
            continue;
        }
        headline(html, inside);
        html.raw("</h2><dl>");
        rows(html, inside);
        html.raw("</dl></section>");
    }
    for (fact, value) in fields {
        match value {
            Value::Group(_) => tables(html, value, ""),
            Value::List(items) if fact.section.is_none() => {
                items.iter().for_each(|item| tables(html, item, text(item, "upstream")));
            }
            _ => {}
        }
    }
}

fn headline(html: &mut Html, fields: &Fields) {
    for (fact, value) in fields {
        match value {
            Value::Group(inside) if fact.flat => headline(html, inside),
            Value::Flag(on) if fact.headline => {
                html.raw(if *on { "<span class=\"good\">" } else { "<span class=\"bad\">not " });
                html.text(fact.name).raw("</span>");
            }
            Value::Text(word) if fact.headline => {
                let colour = match word.as_str() {
                    "serving" | "in_sync" | "ok" | "granted" => "good",
                    "alone" | "slow" | "refused" => "warn",
                    "down" | "hung" | "failed" | "unreachable" => "bad",
                    _ => "idle",
                };
                html.raw("<span class=\"").raw(colour).raw("\">").text(word.replace('_', " "));
                html.raw("</span>");
            }
            _ => {}
        }
    }
}

/// Rows of a card, those of the groups within too.
fn rows(html: &mut Html, fields: &Fields) {
    for (fact, value) in fields {
        if let Value::Group(inside) = value {
            rows(html, inside);
        }
        let Some((title, tone)) = fact.row else { continue };
        if matches!(value, Value::Nothing) || matches!(value, Value::Text(text) if text.is_empty())
        {
            continue;
        }
        html.raw("<dt>").raw(title).raw("</dt><dd class=\"").raw(colour(value, tone)).raw("\">");
        show(html, value);
        html.raw("</dd>");
        let Value::Counts { rows, .. } = value else { continue };
        for (labels, count) in rows.iter().filter(|(_, count)| *count > 0) {
            html.raw("<dt>\u{2003}").text(labels.first().map_or("", |(_, name)| name));
            html.raw("</dt><dd>").text(Count(*count)).raw("</dd>");
        }
    }
}

/// Each list with a title in a group; `of` names what it belongs to.
fn tables(html: &mut Html, group: &Value, of: &str) {
    let Value::Group(fields) = group else { return };
    for (fact, value) in fields {
        if let (Some(title), Value::List(items)) = (fact.section, value) {
            table(html, title, of, items);
        }
    }
}

fn table(html: &mut Html, title: &'static str, of: &str, items: &[Value]) {
    let columns: Vec<_> = items.iter().map(cells).collect();
    let Some(first) = columns.first() else { return };
    html.raw("<section class=\"full\"><h2>").raw(title).raw(" ").text(of).raw("</h2><table><tr>");
    for (fact, value) in first {
        html.raw(if is_number(value) { "<th class=\"n\">" } else { "<th>" });
        html.raw(fact.row.map_or("", |(title, _)| title));
    }
    for line in columns.iter().take(LINES_MAX) {
        html.raw("<tr>");
        for (fact, value) in line {
            let tone = fact.row.map_or(Tone::Plain, |(_, tone)| tone);
            html.raw("<td class=\"").raw(if is_number(value) { "n " } else { "" });
            html.raw(colour(value, tone)).raw("\">");
            show(html, value);
        }
    }
    html.raw("</table>");
    if let Some(more) = columns.len().checked_sub(LINES_MAX + 1) {
        html.raw("<p class=\"note\">and ").text(more + 1).raw(" more: see /status.json</p>");
    }
    html.raw("</section>");
}

/// What a line of a table shows of a group.
fn cells(item: &Value) -> Vec<(&'static Fact, &Value)> {
    let Value::Group(fields) = item else { return Vec::new() };
    let cells = fields.iter().flat_map(|(fact, value)| match value {
        Value::Group(_) => cells(value),
        value => vec![(*fact, value)],
    });
    cells.filter(|(fact, _)| fact.row.is_some()).collect()
}

fn is_number(value: &Value) -> bool {
    matches!(value, Value::Count(..) | Value::Real(..) | Value::Counts { .. })
}

fn colour(value: &Value, tone: Tone) -> &'static str {
    match (tone, value) {
        (Tone::Warn, value) if value.is_some() => "warn",
        (Tone::Bad, value) if value.is_some() => "bad",
        (Tone::Must, Value::Flag(false)) => "bad",
        (Tone::Must, Value::Flag(true)) => "good",
        _ => "",
    }
}

fn show(html: &mut Html, value: &Value) {
    match value {
        Value::Nothing => html.raw("\u{2013}"),
        Value::Flag(on) => html.raw(if *on { "yes" } else { "no" }),
        Value::Count(count, Unit::Bytes) => html.text(Bytes(*count)),
        Value::Count(count, Unit::Milliseconds) => html.text(Span(*count)),
        Value::Count(count, Unit::Microseconds) => html.text(*count).raw(" \u{b5}s"),
        Value::Count(count, Unit::Seconds) => html.text(*count).raw(" s"),
        Value::Count(count, Unit::Name) => html.text(*count),
        Value::Count(count, Unit::One) => html.text(Count(*count)),
        Value::Real(number, Unit::Milliseconds) => html.text(format_args!("{number:.1} ms")),
        Value::Real(number, _) => html.text(format_args!("{number:.1} s")),
        Value::Text(text) => html.text(text),
        Value::Counts { rows, .. } => html.text(Count(rows.iter().map(|(_, count)| count).sum())),
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                html.raw(if index == 0 { "" } else { "; " }).text(item.text());
            }
            html
        }
        Value::Group(_) => html,
    };
}

fn events(html: &mut Html, status: &Value) {
    html.raw("<section class=\"full\"><h2>Last events</h2>");
    let events = match status.get("events") {
        Some(Value::List(events)) if !events.is_empty() => events,
        _ => {
            html.raw("<p class=\"note\">None yet.</p></section>");
            return;
        }
    };
    html.raw("<ol>");
    for event in events.iter().take(EVENTS_MAX) {
        let ago = count(status, "time_unix_ms").saturating_sub(count(event, "time_unix_ms"));
        html.raw("<li><time>").text(Span(ago)).raw(" ago</time><span>").text(text(event, "text"));
        html.raw("</span></li>");
    }
    html.raw("</ol></section>");
}

fn foot(html: &mut Html, status: &Value) {
    html.raw("<footer>Tandem ").text(text(status, "version")).raw(", up for ");
    html.text(Span(count(status, "uptime_ms")));
    html.raw(" \u{b7} <a href=\"/status.json\">status.json</a> \u{b7} ");
    html.raw("<a href=\"/metrics\">metrics</a> \u{b7} <a href=\"/healthz\">healthz</a></footer>");
}
