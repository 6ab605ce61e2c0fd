//! HTML that cannot be broken out of: markup is text of this program, everything else is escaped.

use std::fmt::{self, Display, Write};

/// A page in the making.
#[derive(Debug, Default)]
pub(super) struct Html(String);

impl Html {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    /// Markup; only what is written in this program.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Anything, escaped; good between tags and in quoted attributes.
    pub(super) fn text(&mut self, value: impl Display) -> &mut Self {
        // A String takes everything; a value that fails to show itself is cut off there.
        write!(Escape(&mut self.0), "{value}").unwrap_or_default();
        self
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

struct Escape<'a>(&'a mut String);

impl Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\0' => self.0.push('\u{fffd}'),
                _ => self.0.push(character),
            }
        }
        Ok(())
    }
}

/// A whole number with a thin space between groups of three digits.
pub(super) struct Count(pub(super) u64);

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.char_indices() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_char('\u{202f}')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// Milliseconds as a person says them: two units at most.
pub(super) struct Span(pub(super) u64);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1000;
        let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
        let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
        match self.0 {
            0..1000 => write!(f, "{} ms", self.0),
            1000..60_000 => write!(f, "{seconds} s"),
            60_000..3_600_000 => write!(f, "{minutes} min {rest} s"),
            3_600_000..86_400_000 => write!(f, "{hours} h {minutes} min"),
            _ => write!(f, "{days} d {hours} h"),
        }
    }
}

/// Bytes in binary units.
pub(super) struct Bytes(pub(super) u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize::b(self.0).display().iec().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped() {
        let mut html = Html::default();
        html.raw("<b title=\"").text("\"'><script>&\0").raw("\">");
        let expected = "<b title=\"&quot;&#39;&gt;&lt;script&gt;&amp;\u{fffd}\">";
        assert_eq!(html.finish(), expected);
    }

    #[test]
    fn counts() {
        let shown = |n| Count(n).to_string().replace('\u{202f}', "_");
        for (n, expected) in [(0, "0"), (999, "999"), (1000, "1_000"), (12_345_678, "12_345_678")] {
            assert_eq!(shown(n), expected);
        }
    }

    #[test]
    fn spans() {
        for (ms, expected) in [
            (7, "7 ms"),
            (59_999, "59 s"),
            (61_000, "1 min 1 s"),
            (3_600_000, "1 h 0 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(Span(ms).to_string(), expected);
        }
        assert_eq!(Bytes(64 << 20).to_string(), "64.0 MiB");
    }
}
