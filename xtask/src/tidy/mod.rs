//! `cargo xtask tidy`: the tree's own rules, checked on its text. A rule nobody checks is a wish.
//!
//! Arrows between crates and between the modules of proxy-user, purity of the cores, file sizes,
//! line lengths, words that say "later". A new rule is one more function in [`rules`].

mod arrows;
mod source;

use anyhow::{Context, Result, bail};

use source::Source;

/// Lines of a file, its tests not counted.
const FILE_LINES_MAX: usize = 700;
/// Columns of a line.
const LINE_COLUMNS_MAX: usize = 100;
/// Pure code: fed with time and bytes, it has neither socket nor clock, thread or chance.
const PURE: [&str; 10] = [
    "cache/src/",
    "vrrp/src/",
    "proxy-ebpf/common/src/",
    "proxy-user/src/http/",
    "proxy-user/src/balance/",
    "proxy-user/src/exchange.rs",
    "proxy-user/src/exchange/",
    "proxy-user/src/node/",
    "proxy-user/src/config/",
    "proxy-user/src/witness/",
];
/// Shells inside those.
const NOT_PURE: [&str; 1] = ["vrrp/src/io/"];
/// What pure code must not name.
const IMPURE: [&str; 20] = [
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "ToSocketAddrs",
    "socket2::",
    "mio::",
    "tokio::",
    "Instant::now",
    "SystemTime",
    "thread::spawn",
    "thread::sleep",
    "thread::Builder",
    "rand::",
    "getrandom",
    "RandomState::new",
    "tracing::",
    "std::process",
];

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Broken {
    place: String,
    rule: String,
}

/// Runs the verb.
///
/// # Errors
/// A rule is broken; each place is printed.
pub(crate) fn run() -> Result<()> {
    let top = crate::top();
    let sources = source::all(&top)?;
    let mut broken: Vec<_> = sources.iter().flat_map(rules).collect();
    for manifest in arrows::MANIFESTS {
        let text = std::fs::read_to_string(top.join(manifest.path))
            .with_context(|| format!("read {}", manifest.path))?;
        broken.extend(arrows::crates(manifest, &text));
    }
    if broken.is_empty() {
        eprintln!("tidy: {} files keep the rules", sources.len());
        return Ok(());
    }
    for Broken { place, rule } in &broken {
        println!("{place}: {rule}");
    }
    bail!("tidy: {} broken rules", broken.len())
}

/// All rules about one file.
fn rules(source: &Source) -> Vec<Broken> {
    let mut broken = Vec::new();
    let mut say = |line: usize, rule: String| {
        broken.push(Broken { place: format!("{}:{line}", source.path), rule });
    };
    if source.lines_without_tests > FILE_LINES_MAX {
        let lines = source.lines_without_tests;
        say(1, format!("{lines} lines without tests, more than {FILE_LINES_MAX}"));
    }
    for (number, line) in (1..).zip(source.text.lines()) {
        let columns = line.chars().count();
        if columns > LINE_COLUMNS_MAX {
            say(number, format!("{columns} columns, more than {LINE_COLUMNS_MAX}"));
        }
        if let Some(word) = later(line) {
            say(number, format!("{word} left in"));
        }
    }
    if is_pure(&source.path) {
        for (number, line) in (1..).zip(source.code.lines()) {
            for word in IMPURE.iter().filter(|word| names(line, word)) {
                say(number, format!("pure code names {word}"));
            }
        }
    }
    for (number, rule) in arrows::modules(source) {
        say(number, rule);
    }
    broken
}

/// A word that says "later". Spelled in pieces here, or this file would break its own rule.
fn later(line: &str) -> Option<String> {
    let words = [["TO", "DO"], ["FIX", "ME"], ["unimpl", "emented!"], ["to", "do!"]];
    words.map(|pieces| pieces.concat()).into_iter().find(|word| names(line, word))
}

fn is_pure(path: &str) -> bool {
    PURE.iter().any(|pure| path.starts_with(pure))
        && !NOT_PURE.iter().any(|shell| path.starts_with(shell))
}

/// Whether `line` has `word`, not as the end of a longer one.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> Vec<String> {
        let broken = rules(&Source::new(path, text.to_owned()));
        broken.into_iter().map(|b| format!("{} {}", b.place, b.rule)).collect()
    }

    #[test]
    fn pure_code_names_no_socket_and_its_tests_and_comments_may() {
        let text = "//! SystemTime\nfn f() { Instant::now(); }\n";
        assert_eq!(
            broken("cache/src/a.rs", text),
            ["cache/src/a.rs:2 pure code names Instant::now"]
        );
        assert!(broken("vrrp/src/io/a.rs", text).is_empty());
        assert!(broken("cache/src/a/tests.rs", text).is_empty());
        let in_tests = "#[cfg(test)]\nmod tests {\n    fn f() { Instant::now(); }\n}\n";
        assert!(broken("cache/src/a.rs", in_tests).is_empty());
        assert!(broken("cache/src/a.rs", "fn f() { operand::x(); }\n").is_empty());
    }

    #[test]
    fn long_files_long_lines_and_later_are_found() {
        let long = "fn f() {}\n".repeat(FILE_LINES_MAX);
        assert!(broken("xtask/src/a.rs", &long).is_empty());
        let tests = format!("{long}#[cfg(test)]\nmod tests {{\n{long}}}\n");
        assert!(broken("xtask/src/a.rs", &tests).is_empty());
        assert_eq!(broken("xtask/src/a.rs", &format!("{long}\nfn g() {{}}\n")).len(), 1);
        assert_eq!(broken("xtask/src/a.rs", &format!("// {}\n", "x".repeat(97))).len(), 0);
        assert_eq!(broken("xtask/src/a.rs", &format!("// {}\n", "x".repeat(98))).len(), 1);
        let later = ["// TO", "DO: more\n"].concat();
        assert_eq!(broken("xtask/src/a.rs", &later).len(), 1);
    }
}
