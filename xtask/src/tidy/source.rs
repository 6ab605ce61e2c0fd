//! The Rust files of the tree, with what the rules need to know of each.

use std::path::Path;

use anyhow::{Context, Result};

/// One file.
pub(super) struct Source {
    /// Relative to the top, with `/`.
    pub(super) path: String,
    /// As it is.
    pub(super) text: String,
    /// The same lines, without comments, and empty where tests are.
    pub(super) code: String,
    /// How many lines come before its tests.
    pub(super) lines_without_tests: usize,
}

impl Source {
    #[cfg(test)]
    pub(super) fn new(path: &str, text: String) -> Self {
        Self::read(path, text, is_test(path))
    }

    fn read(path: &str, text: String, all_tests: bool) -> Self {
        let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        let (before, _) = text.split_at(if all_tests { 0 } else { tests });
        let code = before.lines().map(without_comment).collect::<Vec<_>>().join("\n");
        let lines_without_tests = before.lines().count();
        Self { path: path.to_owned(), code, lines_without_tests, text }
    }
}

/// Files that are nothing but tests: the package `tests`, and `tests.rs` or `tests/` in a crate.
fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Where the modules are that the file at `path` declares for its tests or fuzz
/// targets: `#[cfg(test)] mod name;`.
fn test_modules<'a>(path: &str, text: &'a str) -> impl Iterator<Item = String> + use<'a> {
    let stem = path.trim_end_matches(".rs");
    let is_root = ["mod", "lib", "main"].iter().any(|root| stem.ends_with(&format!("/{root}")));
    let folder = match stem.rsplit_once('/') {
        Some((folder, _)) if is_root => folder.to_owned(),
        _ => stem.to_owned(),
    };
    let attributes = ["#[cfg(test)]\n", "#[cfg(any(test, fuzzing))]\n"];
    let found = attributes.into_iter().flat_map(|attribute| text.match_indices(attribute));
    found.filter_map(move |(at, attribute)| {
        let line = text[at + attribute.len()..].lines().next()?.trim();
        let name =
            line.trim_start_matches("pub(crate) ").strip_prefix("mod ")?.strip_suffix(';')?;
        Some(format!("{folder}/{name}"))
    })
}

/// Good enough for rules: a `//` inside a string ends the line too, which can only hide a name.
fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// All Rust files below `top`, by path.
pub(super) fn all(top: &Path) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    collect(top, top, &mut files)?;
    files.sort();
    let tests: Vec<String> =
        files.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let of_tests = |path: &str| {
        tests.iter().any(|test| path.strip_prefix(test).is_some_and(|p| p.starts_with(['.', '/'])))
    };
    let sources = files.into_iter().map(|(path, text)| {
        let all_tests = is_test(&path) || of_tests(&path);
        Source::read(&path, text, all_tests)
    });
    Ok(sources.collect())
}

fn collect(top: &Path, folder: &Path, files: &mut Vec<(String, String)>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(top, &path, files)?;
            }
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("read {}", path.display()))?;
            let relative = path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned();
            files.push((relative, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_declared_for_tests_is_found_beside_or_below_its_parent() {
        let found = |path, text| test_modules(path, text).collect::<Vec<_>>();
        let text = "mod a;\n#[cfg(any(test, fuzzing))]\nmod fuzz;\n#[cfg(test)]\nfn helper() {}\n";
        assert_eq!(found("cache/src/session/mod.rs", text), ["cache/src/session/fuzz"]);
        assert_eq!(found("cache/src/session.rs", text), ["cache/src/session/fuzz"]);
        assert!(found("cache/src/session.rs", "mod fuzz;\n").is_empty());
    }
}
