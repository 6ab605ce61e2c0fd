//! The arrows of docs/ARCHITECTURE.md §2: which crate, and which module of proxy-user, may name
//! which.

use super::{Broken, source::Source};

/// A crate, and which of ours it may depend on.
pub(super) struct Manifest {
    pub(super) path: &'static str,
    may: &'static [&'static str],
}

/// Our crates by package name.
const OURS: [&str; 7] =
    ["proxy-common", "proxy-ebpf", "vrrp", "cache", "proxy-user", "tests", "xtask"];

/// `proxy-common <- {proxy-ebpf, vrrp, proxy-user}`, `{vrrp, cache} <- proxy-user <- tests`.
pub(super) const MANIFESTS: &[Manifest] = &[
    Manifest { path: "proxy-ebpf/common/Cargo.toml", may: &[] },
    Manifest { path: "proxy-ebpf/Cargo.toml", may: &["proxy-common"] },
    Manifest { path: "vrrp/Cargo.toml", may: &["proxy-common"] },
    Manifest { path: "cache/Cargo.toml", may: &[] },
    Manifest { path: "proxy-user/Cargo.toml", may: &["proxy-common", "vrrp", "cache"] },
    Manifest { path: "tests/Cargo.toml", may: &["proxy-common", "vrrp", "cache", "proxy-user"] },
    Manifest { path: "xtask/Cargo.toml", may: &[] },
];

/// Arrows between crates that `manifest`, whose file holds `text`, breaks.
pub(super) fn crates(manifest: &Manifest, text: &str) -> Vec<Broken> {
    let mut in_dependencies = false;
    let mut broken = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
            continue;
        }
        let name = line.split(['.', '=', ' ']).next().unwrap_or("").trim_matches('"');
        if in_dependencies && OURS.contains(&name) && !manifest.may.contains(&name) {
            let place = format!("{}:{number}", manifest.path);
            broken.push(Broken { place, rule: format!("must not depend on {name}") });
        }
    }
    broken
}

const CORES: &[&str] = &["http", "balance", "exchange", "node", "config", "witness"];

/// What the files of one top module of proxy-user may name.
struct Module {
    name: &'static str,
    modules: &'static [&'static [&'static str]],
    not_crates: &'static [&'static str],
}

/// `{http, balance, exchange, node, config, witness} <- control <- {keeper, guardian, engine} <-
/// main`; the demo and telemetry serve all processes. `main`, `lib` and `cli` may name all.
const MODULES: &[Module] = &[
    Module { name: "http", modules: &[CORES], not_crates: &["vrrp", "cache"] },
    Module { name: "balance", modules: &[CORES], not_crates: &["vrrp", "cache"] },
    Module { name: "exchange", modules: &[CORES], not_crates: &["vrrp", "cache"] },
    Module { name: "node", modules: &[CORES], not_crates: &[] },
    Module { name: "config", modules: &[CORES], not_crates: &[] },
    Module { name: "witness", modules: &[CORES], not_crates: &["vrrp", "cache"] },
    Module { name: "control", modules: &[CORES, &["telemetry"]], not_crates: &[] },
    Module { name: "telemetry", modules: &[CORES, &["control"]], not_crates: &[] },
    Module { name: "demo", modules: &[CORES, &["telemetry"]], not_crates: &["vrrp"] },
    Module {
        name: "keeper",
        modules: &[CORES, &["control", "telemetry", "cli"]],
        not_crates: &["cache"],
    },
    Module {
        name: "guardian",
        modules: &[CORES, &["control", "telemetry", "demo"]],
        not_crates: &["cache"],
    },
    Module { name: "engine", modules: &[CORES, &["control", "telemetry"]], not_crates: &["vrrp"] },
];

/// Arrows between modules of proxy-user that `source` breaks: line and rule.
pub(super) fn modules(source: &Source) -> Vec<(usize, String)> {
    let Some(inside) = source.path.strip_prefix("proxy-user/src/") else { return Vec::new() };
    let top = inside.split(['/', '.']).next().unwrap_or("");
    let Some(module) = MODULES.iter().find(|module| module.name == top) else {
        return Vec::new();
    };
    let mut broken = Vec::new();
    for (at, named) in named(&source.code) {
        let may = named == top || module.modules.iter().any(|list| list.contains(&named));
        if !may && MODULES.iter().any(|other| other.name == named) {
            broken.push((line_of(&source.code, at), format!("{top} must not name crate::{named}")));
        }
    }
    for name in module.not_crates {
        let path = format!("{name}::");
        for (at, _) in source.code.match_indices(&path) {
            let before = source.code[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                let rule = format!("{top} must not name the crate {name}");
                broken.push((line_of(&source.code, at), rule));
            }
        }
    }
    broken
}

/// Each first segment behind `crate::`, also those of a braced list, with its place.
fn named(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let start = at + prefix.len();
        let Some(list) = code[start..].strip_prefix('{') else {
            found.push((at, first_word(&code[start..])));
            continue;
        };
        let (mut depth, mut item) = (1, 0);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || (depth == 1 && c == ',') {
                found.push((at, first_word(list[item..i].trim_start())));
                item = i + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

fn first_word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, code: &str) -> Vec<(usize, String)> {
        modules(&Source::new(path, code.to_owned()))
    }

    #[test]
    fn an_arrow_the_wrong_way_is_found_however_it_is_written() {
        let rule = |name: &str| format!("engine must not name crate::{name}");
        let engine = "proxy-user/src/engine/worker.rs";
        assert_eq!(broken(engine, "\nuse crate::guardian::x;"), [(2, rule("guardian"))]);
        assert_eq!(broken(engine, "use crate::{http::{a, b}, guardian};"), [(1, rule("guardian"))]);
        assert_eq!(broken(engine, "fn f() { crate::guardian::g() }"), [(1, rule("guardian"))]);
        assert!(broken(engine, "use crate::{http, control::Role, engine::x};").is_empty());
        assert!(broken(engine, "// crate::guardian").is_empty());
        assert!(broken("proxy-user/src/main.rs", "use crate::guardian;").is_empty());
    }

    #[test]
    fn crates_that_a_module_must_not_know() {
        assert_eq!(broken("proxy-user/src/guardian/a.rs", "use cache::store::Cache;").len(), 1);
        assert!(broken("proxy-user/src/guardian/a.rs", "use crate::config::cache::X;").is_empty());
        assert_eq!(broken("proxy-user/src/engine/a.rs", "let x = vrrp::Instance::new();").len(), 1);
        assert!(broken("proxy-user/src/engine/a.rs", "use cache::Cache;").is_empty());
    }

    #[test]
    fn a_crate_depends_only_on_what_it_may() {
        let vrrp = &MANIFESTS[2];
        let text = "[package]\nname = \"vrrp\"\n[dependencies]\nlibc.workspace = true\n";
        assert!(crates(vrrp, text).is_empty());
        for line in ["cache.workspace = true", "cache = { path = \"../cache\" }"] {
            let broken = crates(vrrp, &format!("{text}[dev-dependencies]\n{line}\n"));
            assert_eq!(broken.len(), 1, "{line}");
            assert_eq!(broken[0].place, "vrrp/Cargo.toml:6");
        }
    }
}
