//! One event, one line: time, level, where, what, fields. Under systemd's journal the time is left
//! out (it has its own) and the level is a prefix that it understands (sd-daemon(3)).

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// How lines look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines {
    /// Colour of the level; for terminals.
    pub(super) colour: bool,
    /// stderr goes to the journal.
    pub(super) journal: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        self.start(&mut writer, *metadata.level())?;
        let target = metadata.target();
        let target = target.strip_prefix(concat!(env!("CARGO_CRATE_NAME"), "::")).unwrap_or(target);
        write!(writer, "{target}: ")?;
        for span in context.event_scope().into_iter().flatten() {
            write!(writer, "{}", span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && !fields.is_empty()
            {
                write!(writer, "{{{fields}}}")?;
            }
            write!(writer, ": ")?;
        }
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        write!(writer, "{}", OneLine(&text))?;
        writeln!(writer)
    }
}

impl Lines {
    fn start(self, writer: &mut Writer<'_>, level: Level) -> fmt::Result {
        let (name, colour, priority) = match level {
            Level::ERROR => ("ERROR", 31, 3),
            Level::WARN => (" WARN", 33, 4),
            Level::INFO => (" INFO", 32, 6),
            Level::DEBUG => ("DEBUG", 34, 7),
            Level::TRACE => ("TRACE", 35, 7),
        };
        if self.journal {
            return write!(writer, "<{priority}>");
        }
        write_time(writer, SystemTime::now())?;
        if self.colour {
            write!(writer, " \x1b[{colour}m{name}\x1b[0m ")
        } else {
            write!(writer, " {name} ")
        }
    }
}

/// Text in one line without control characters, whatever was logged.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(|c: char| c.is_control()) {
            let (plain, after) = rest.split_at(at);
            let mut characters = after.chars();
            f.write_str(plain)?;
            if let Some(control) = characters.next() {
                write!(f, "{}", control.escape_default())?;
            }
            rest = characters.as_str();
        }
        f.write_str(rest)
    }
}

/// RFC 3339, UTC, milliseconds.
fn write_time(writer: &mut impl fmt::Write, time: SystemTime) -> fmt::Result {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let shown = UNIX_EPOCH + std::time::Duration::from_secs(since.as_secs());
    let text = humantime::format_rfc3339_seconds(shown);
    let millis = since.subsec_millis();
    let text = text.to_string();
    write!(writer, "{}.{millis:03}Z", text.trim_end_matches('Z'))
}

/// Whether stderr is the stream that systemd named in `JOURNAL_STREAM` (systemd.exec(5)).
pub(super) fn is_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(std::io::stderr()).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(lines: Lines, log: impl FnOnce()) -> String {
        let kept = Kept::default();
        let made = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(lines.colour)
            .event_format(lines)
            .with_writer(move || made.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_line() {
        let plain = Lines { colour: false, journal: false };
        let line = logged(plain, || tracing::warn!(epoch = 3, who = "b", "role changed"));
        let (time, rest) = line.split_at(24);
        assert!(humantime::parse_rfc3339(time).is_ok(), "{line}");
        assert_eq!(rest, "  WARN telemetry::format::tests: role changed epoch=3 who=\"b\"\n");
    }

    #[test]
    fn journal_and_colour() {
        let journal = Lines { colour: false, journal: true };
        let line = logged(journal, || tracing::error!("gone"));
        assert_eq!(line, "<3>telemetry::format::tests: gone\n");
        let colour = Lines { colour: true, journal: false };
        let line = logged(colour, || tracing::info!("here"));
        assert!(line.contains("\x1b[32m INFO\x1b[0m "), "{line}");
    }

    #[test]
    fn strangers_cannot_forge_lines() {
        let journal = Lines { colour: false, journal: true };
        let name = "x\n<3>forged\x1b[31m\u{9b}1m";
        let line = logged(journal, || tracing::info!("peer {name}"));
        assert_eq!(line, "<6>telemetry::format::tests: peer x\\n<3>forged\\x1b[31m\\u{9b}1m\n");
    }

    #[test]
    fn time_has_milliseconds() {
        let mut text = String::new();
        write_time(&mut text, UNIX_EPOCH + Duration::from_millis(1_700_000_000_007)).unwrap();
        assert_eq!(text, "2023-11-14T22:13:20.007Z");
    }
}
