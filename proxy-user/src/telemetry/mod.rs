//! Logs: one line an event, on stderr. Every process of the program calls [`init`] once, first.
//!
//! ```text
//! 2026-11-22T20:01:02.345Z  INFO guardian::role: role changed from=SYNCED to=MASTER_SOLO
//! ```
//! No thread that logs ever waits for whoever reads stderr: lines go to a bounded buffer, and a
//! thread of its own writes them ([`writer`]); a terminal that is held must not look like a dead
//! node. [`RateLimit`] keeps what strangers can cause to one line per reason and interval.
//!
//! Not here: the HTTP access log (the engine's), metrics (`guardian::status`).

mod format;
mod rate;
mod writer;

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config;

pub use rate::RateLimit;

use format::Lines;
use writer::Writer;

/// Environment variable whose directives come before the configuration's level.
pub const VARIABLE: &str = "RUST_LOG";

/// Keeps the writer's thread; what was logged before its drop is written, unless nobody reads for a
/// second. Drop it before `std::process::exit`.
#[must_use = "logs are written until it is dropped"]
#[derive(Debug)]
pub struct Guard(Writer);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Starts logging. A [`VARIABLE`] that cannot be read is said and ignored.
///
/// # Errors
/// The level is unknown, no thread can be started, or logging was started before.
pub fn init(log: &config::Log) -> anyhow::Result<Guard> {
    let (filter, complaint) = filter(log, std::env::var(VARIABLE).ok().as_deref())?;
    let writer = Writer::start()?;
    let lines = Lines { colour: std::io::stderr().is_terminal(), journal: format::is_journal() };
    let made = writer.clone();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(lines.colour)
        .event_format(lines)
        .with_writer(move || made.clone())
        .try_init()
        .map_err(|error| anyhow::anyhow!("logging: {error}"))?;
    let panicking = writer.clone();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        panicking.flush();
        before(info);
    }));
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
    Ok(Guard(writer))
}

/// What is shown, and what is wrong with the variable.
fn filter(
    log: &config::Log,
    variable: Option<&str>,
) -> anyhow::Result<(EnvFilter, Option<String>)> {
    let level: LevelFilter =
        log.level.parse().map_err(|_error| anyhow::anyhow!("unknown log level {}", log.level))?;
    let plain = || EnvFilter::new(level.to_string());
    let Some(text) = variable.filter(|text| !text.trim().is_empty()) else {
        return Ok((plain(), None));
    };
    // A directive for everything in `text` takes the place of the first.
    match EnvFilter::try_new(format!("{level},{text}")) {
        Ok(filter) => Ok((filter, None)),
        Err(error) => Ok((plain(), Some(format!("{VARIABLE} is ignored: {error}")))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::Stdio;

    use super::*;

    fn log(level: &str) -> config::Log {
        config::Log { level: level.to_owned(), ..config::Log::default() }
    }

    /// The child of the tests below: logs much more than a pipe or the buffer holds.
    #[test]
    fn child() {
        let Ok(mode) = std::env::var(CHILD) else { return };
        let guard = init(&log("info")).unwrap();
        for number in 0..LINES {
            tracing::info!(number, "{}", "x".repeat(1000));
        }
        if mode == "flush" {
            // So that there is room for it.
            guard.0.flush();
            tracing::warn!("the last line");
        }
        println!("all is logged");
        drop(guard);
        std::process::exit(0);
    }

    const CHILD: &str = "TANDEM_TEST_LOG_CHILD";
    const LINES: usize = 2000;

    fn run_child(mode: &str) -> std::process::Child {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "telemetry::tests::child", "--nocapture"])
            .env(CHILD, mode)
            .env_remove(VARIABLE)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Nobody reads stderr: who logs goes on, and the end does not wait for ever.
    #[test]
    fn a_held_terminal_stops_nobody() {
        let mut child = run_child("held");
        let _unread = child.stderr.take().unwrap();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("all is logged"), "{said}");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn the_last_line_is_written() {
        let child = run_child("flush");
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.last().unwrap().ends_with("telemetry::tests: the last line"), "{text}");
        let lost: usize = lines
            .iter()
            .filter_map(|line| line.strip_prefix('(')?.split(' ').next()?.parse::<usize>().ok())
            .sum();
        let shown = lines.iter().filter(|line| line.contains(" number=")).count();
        assert_eq!(shown + lost, LINES, "each line is there or counted");
    }

    #[test]
    fn level_and_variable() {
        let shown = |level, variable| filter(&log(level), variable).unwrap();
        assert_eq!(shown("info", None).0.to_string(), "info");
        assert_eq!(shown("debug", Some("")).0.to_string(), "debug");
        let (filter, complaint) = shown("warn", Some("proxy_user=debug"));
        assert_eq!(filter.to_string(), "proxy_user=debug,warn");
        assert_eq!(complaint, None);
        assert_eq!(shown("warn", Some("trace")).0.to_string(), "trace");
        let (filter, complaint) = shown("warn", Some("a=b=c"));
        assert_eq!(filter.to_string(), "warn");
        assert!(complaint.unwrap().starts_with("RUST_LOG is ignored"));
        assert!(super::filter(&log("loud"), None).is_err());
    }
}
