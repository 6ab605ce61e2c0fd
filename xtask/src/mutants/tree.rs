//! A copy of the tree to break: what Git knows or would add, and nothing else. A file that is the
//! same already is not written again, so that cargo need not build what it has built.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The copy.
#[derive(Debug)]
pub(super) struct Tree {
    folder: PathBuf,
}

impl Tree {
    /// Makes `folder` the same as the working tree at `top`.
    ///
    /// # Errors
    /// Git does not run, or a file cannot be read or written.
    pub(super) fn copy(top: &Path, folder: &Path) -> Result<Self> {
        let listed = Command::new("git")
            .current_dir(top)
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .context("run git")?;
        ensure!(listed.status.success(), "git ls-files: {}", listed.status);
        let names = String::from_utf8(listed.stdout).context("a file's name is no text")?;
        let names: BTreeSet<&str> = names.split('\0').filter(|name| !name.is_empty()).collect();
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        remove_others(folder, folder, &names)?;
        for name in names {
            // A file that was removed and not yet from the index.
            if top.join(name).is_file() {
                copy_file(&top.join(name), &folder.join(name))?;
            }
        }
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// Where it is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file's text.
    ///
    /// # Errors
    /// It is not there.
    pub(super) fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.folder.join(name)).with_context(|| format!("read {name}"))
    }

    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join(name), text).with_context(|| format!("write {name}"))
    }
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if fs::read(to).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    // The mode comes along; the time is now, as cargo needs it.
    fs::copy(from, to).with_context(|| format!("write {}", to.display()))?;
    Ok(())
}

fn remove_others(top: &Path, folder: &Path, names: &BTreeSet<&str>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.strip_prefix(top).ok().and_then(Path::to_str).unwrap_or_default();
        if path.is_dir() {
            remove_others(top, &path, names)?;
        } else if !names.contains(name) && name != "Cargo.lock" {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_the_tree_and_stays_untouched_where_nothing_changed() {
        let folder = std::env::temp_dir().join(format!("xtask-tree-{}", std::process::id()));
        let (top, copy) = (folder.join("top"), folder.join("copy"));
        fs::create_dir_all(top.join("in")).unwrap();
        for (name, text) in [("in/a", "1"), ("b", "2"), (".gitignore", "c\n"), ("c", "3")] {
            fs::write(top.join(name), text).unwrap();
        }
        let init = Command::new("git").current_dir(&top).args(["init", "-q"]).status().unwrap();
        assert!(init.success());
        let tree = Tree::copy(&top, &copy).unwrap();
        assert_eq!(tree.read("in/a").unwrap(), "1");
        assert!(tree.read("c").is_err(), "ignored");
        let written = fs::metadata(copy.join("b")).unwrap().modified().unwrap();
        tree.write("in/a", "broken").unwrap();
        fs::write(copy.join("left"), "").unwrap();
        let tree = Tree::copy(&top, &copy).unwrap();
        assert_eq!(tree.read("in/a").unwrap(), "1", "what an aborted run broke is whole again");
        assert!(tree.read("left").is_err());
        assert_eq!(fs::metadata(copy.join("b")).unwrap().modified().unwrap(), written);
        fs::remove_dir_all(folder).unwrap();
    }
}
