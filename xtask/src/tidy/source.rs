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
    pub(super) fn new(path: &str, text: String) -> Self {
        let all_tests = is_test(path);
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

/// Good enough for rules: a `//` inside a string ends the line too, which can only hide a name.
fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// All Rust files below `top`, by path.
pub(super) fn all(top: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    collect(top, top, &mut sources)?;
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn collect(top: &Path, folder: &Path, sources: &mut Vec<Source>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(top, &path, sources)?;
            }
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("read {}", path.display()))?;
            let relative = path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned();
            sources.push(Source::new(&relative, text));
        }
    }
    Ok(())
}
