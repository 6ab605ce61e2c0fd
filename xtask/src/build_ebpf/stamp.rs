//! A fingerprint of inputs, kept in a file beside what was built from them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A hash of file names, file contents and a word about the tools. Not a safeguard against malice:
/// it only answers "has anything changed?".
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

impl Stamp {
    /// The stamp of all files under `inputs` (files or folders, relative to `top`) and `tools`.
    ///
    /// # Errors
    /// An input cannot be read.
    pub(crate) fn of(top: &Path, inputs: &[&str], tools: &str) -> Result<Self> {
        let mut hasher = DefaultHasher::new();
        tools.hash(&mut hasher);
        for input in inputs {
            let mut files = Vec::new();
            collect(&top.join(input), &mut files)?;
            files.sort();
            for file in files {
                file.strip_prefix(top).unwrap_or(&file).hash(&mut hasher);
                std::fs::read(&file)
                    .with_context(|| format!("read {}", file.display()))?
                    .hash(&mut hasher);
            }
        }
        Ok(Self(hasher.finish()))
    }

    /// Whether `file` holds this stamp.
    pub(crate) fn is_in(&self, file: &Path) -> bool {
        std::fs::read_to_string(file).is_ok_and(|text| text.trim() == self.text())
    }

    /// Writes this stamp to `file`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("make {}", folder.display()))?;
        }
        std::fs::write(file, self.text()).with_context(|| format!("write {}", file.display()))
    }

    fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_changes_with_a_file_its_name_and_the_tools_and_with_nothing_else() {
        let top = std::env::temp_dir().join(format!("xtask-stamp-{}", std::process::id()));
        std::fs::create_dir_all(top.join("in")).unwrap();
        std::fs::write(top.join("in/a"), "1").unwrap();
        let of = |tools| Stamp::of(&top, &["in"], tools).unwrap();
        let first = of("t");
        assert_eq!(first, of("t"));
        assert_ne!(first, of("u"));
        first.write(&top.join("out/stamp")).unwrap();
        assert!(first.is_in(&top.join("out/stamp")));
        std::fs::write(top.join("in/a"), "2").unwrap();
        let second = of("t");
        assert_ne!(first, second);
        std::fs::rename(top.join("in/a"), top.join("in/b")).unwrap();
        assert_ne!(second, of("t"));
        std::fs::remove_dir_all(&top).unwrap();
    }
}
