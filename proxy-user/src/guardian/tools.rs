//! The small verbs: `check`, `keygen`, `status`.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::fault::Fault;
use super::start;
use crate::cli;

/// Time for the admin server to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer taken.
const ANSWER_MAX: u64 = 4 << 20;

/// `tandem check FILE`.
///
/// # Errors
/// What is wrong with the file, with line and hint.
pub fn check(file: &Path) -> Result<String, Fault> {
    let config = start::load(file)?;
    let mut text = format!("{}: good", file.display());
    for vip in &config.vips {
        if nix::net::if_::if_nametoindex(vip.interface.as_str()).is_err() {
            // Writing to a String cannot fail.
            write!(text, "\nnote: this host has no interface {}", vip.interface).ok();
        }
    }
    if let Some(pair) = &config.node.pair
        && let Err(fault) = start::PairKey::read(&pair.key_file)
    {
        write!(text, "\nnote: {fault}").ok();
    }
    Ok(text)
}

/// `tandem keygen FILE`.
///
/// # Errors
/// It exists, or cannot be written.
pub fn keygen(file: &Path) -> Result<String, Fault> {
    start::keygen(file)
}

/// `tandem status`.
///
/// # Errors
/// No node answers there.
pub fn show_status(options: &cli::Status) -> Result<String, Fault> {
    let json = fetch(options.admin).map_err(|error| {
        Fault::Runtime(format!(
            "no tandem answers on {}: {error}\n  hint: is it running? --admin ADDRESS if it \
             listens elsewhere",
            options.admin
        ))
    })?;
    if options.json {
        return Ok(json);
    }
    let report = serde_json::from_str(&json);
    let report: Value = report.map_err(|error| Fault::of("what answers is no tandem", error))?;
    Ok(summary(&report))
}

fn fetch(admin: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /status.json HTTP/1.0\r\nHost: {admin}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other("the answer is no status")),
    }
}

/// For people: what `/status.json` says in a few lines. A field that is not there is left out.
fn summary(report: &Value) -> String {
    let text = |pointer: &str| match report.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let mut lines = vec![
        format!("{}: {}, epoch {}", text("/node"), text("/role"), text("/epoch")),
        format!("health: {}", text("/health")),
    ];
    for vip in report["vips"].as_array().into_iter().flatten() {
        let answers = if vip["answering"] == true { "answered here" } else { "not answered here" };
        let (address, interface) = (plain(&vip["address"]), plain(&vip["interface"]));
        let modes = report["xdp"]["interfaces"].as_array().into_iter().flatten();
        let mode = modes.filter(|of| plain(&of["interface"]) == interface).map(|of| &of["mode"]);
        let mode = mode.map(plain).next().unwrap_or("-");
        lines.push(format!("vip {address} on {interface}: {answers}, xdp {mode}"));
    }
    if report["peer"]["configured"] == true {
        let link = if report["peer"]["connected"] == true { "connected" } else { "not connected" };
        lines.push(format!("peer {}: {}, {link}", text("/peer/name"), text("/peer/state")));
        lines.extend(refused(&report["peer"]["refused"]));
        lines.push(format!("sync: {}", text("/sync/state")));
    }
    for alarm in report["alarms"].as_array().into_iter().flatten() {
        lines.push(format!("ALARM: {}", plain(&alarm["cause"])));
    }
    lines.push(format!(
        "engine: {}, {}, restarted {} times",
        text("/engine/state"),
        text("/engine/io/backend"),
        text("/engine/restarts")
    ));
    for upstream in report["backends"].as_array().into_iter().flatten() {
        let servers = upstream["servers"].as_array().map_or(&[][..], Vec::as_slice);
        let up = servers.iter().filter(|server| server["up"] == true).count();
        lines.push(format!(
            "upstream {}: {up} of {} up",
            plain(&upstream["upstream"]),
            servers.len()
        ));
    }
    if report["cache"].is_object() {
        let (items, gets) = (text("/cache/items"), text("/cache/gets"));
        let (hits, sets) = (text("/cache/hits"), text("/cache/sets"));
        lines.push(format!("cache: {items} items, {gets} gets, {hits} hits, {sets} sets"));
    }
    lines.push(format!("http: {} requests", text("/http/requests")));
    lines.join("\n")
}

/// What was refused on the peer's port, if anything was.
fn refused(by_reason: &Value) -> Option<String> {
    let reasons = by_reason.as_object()?.iter();
    let reasons: Vec<String> = reasons.map(|(reason, count)| format!("{reason} {count}")).collect();
    (!reasons.is_empty()).then(|| format!("refused on the peer's port: {}", reasons.join(", ")))
}

/// A string without its quotes.
fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_by_reason_are_in_the_summary() {
        let report = |refused: &str| {
            let peer = format!("{{\"configured\": true, \"refused\": {refused}}}");
            serde_json::from_str::<Value>(&format!("{{\"peer\": {peer}}}")).unwrap()
        };
        let said = summary(&report("{\"wrong_key\": 3, \"silent\": 1}"));
        assert!(said.contains("\nrefused on the peer's port: silent 1, wrong_key 3\n"), "{said}");
        let said = summary(&report("{}"));
        assert!(said.contains("peer ") && !said.contains("refused"), "{said}");
    }
}
