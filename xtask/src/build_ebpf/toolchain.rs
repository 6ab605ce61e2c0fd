//! Finds, or installs, what compiles for the kernel: a rustc whose standard library's source is
//! there, and a bpf-linker whose LLVM is not older than that rustc's (newer bitcode is refused by
//! an older LLVM with "Invalid record").

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::Missing;
use crate::step::Steps;

/// bpf-linker, and the LLVM it is built on: the one Debian ships beside its rustc.
const LINKER_VERSION: &str = "0.13.0";
const LINKER_LLVM: u32 = 22;
/// The workspace's rust-version: an older rustc refuses proxy-common.
const RUSTC_MINOR_MIN: u32 = 95;
/// Debian 12's packages (bookworm-security): rustc with the library's source, and LLVM.
const DEBIAN_RUSTC: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const DEBIAN_LLVM: [&str; 5] =
    ["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev", "g++"];

/// A compiler that can build `core` for the kernel.
pub(crate) struct Rustc {
    /// The real binary, never a rustup proxy: it is given to cargo as RUSTC.
    pub(crate) path: PathBuf,
    release: String,
    llvm: u32,
}

impl Rustc {
    /// One word for a stamp and for a line of output.
    pub(crate) fn describe(&self) -> String {
        format!("{} ({}, LLVM {})", self.path.display(), self.release, self.llvm)
    }
}

/// The linker found.
pub(crate) struct Linker {
    /// Its binary.
    pub(crate) path: PathBuf,
}

impl Linker {
    /// One word for a stamp and for a line of output.
    pub(crate) fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

/// The first rustc that will do, in the order `$EBPF_RUSTC`, `rustup run nightly`,
/// `rustup run stable`, /usr/bin/rustc; else Debian's packages are installed.
///
/// # Errors
/// [`Missing`] when none is there and none can be installed.
pub(crate) fn rustc(steps: &mut Steps) -> Result<Rustc> {
    const TITLE: &str = "rustc with its library's source";
    if let Some(path) = std::env::var_os("EBPF_RUSTC") {
        let rustc = probe(Path::new(&path)).map_err(|why| {
            Missing(format!("$EBPF_RUSTC is {}, but {why}.", path.to_string_lossy()))
        })?;
        steps.note(TITLE, &rustc.describe());
        return Ok(rustc);
    }
    let mut refused = Vec::new();
    let rustup = ["nightly", "stable"].into_iter().filter_map(rustup_rustc);
    for path in rustup.chain(["/usr/bin/rustc".into()]).filter(|p| p.exists()) {
        match probe(&path) {
            Ok(rustc) => {
                steps.note(TITLE, &rustc.describe());
                return Ok(rustc);
            }
            Err(why) => refused.push(format!("{}: {why}", path.display())),
        }
    }
    let seen = if refused.is_empty() { "none found".to_owned() } else { refused.join("; ") };
    steps.note(TITLE, &format!("{seen}; taking Debian's"));
    // bpf-linker's packages come along, when it will need them: one visit to the archive.
    let mut packages = DEBIAN_RUSTC.to_vec();
    if !linker_path().exists() && !llvm_ready() {
        packages.extend(DEBIAN_LLVM);
    }
    debian(steps, &packages, "with rustup run `rustup component add rust-src`")?;
    probe(Path::new("/usr/bin/rustc")).map_err(|why| {
        Missing(format!(
            "Debian's rustc-web was installed, but {why}: use `rustup component add rust-src`."
        ))
        .into()
    })
}

/// bpf-linker from the project's cache, installed there once.
///
/// # Errors
/// [`Missing`] when LLVM's development files are missing and cannot be installed, or without
/// network.
pub(crate) fn linker(steps: &mut Steps, rustc: &Rustc) -> Result<Linker> {
    const TITLE: &str = "bpf-linker";
    let linker = Linker { path: linker_path() };
    if linker.path.exists() {
        let found = format!("{LINKER_VERSION} (LLVM {LINKER_LLVM}, rustc's is {})", rustc.llvm);
        steps.note(TITLE, &found);
        return Ok(linker);
    }
    if !llvm_ready() {
        debian(steps, &DEBIAN_LLVM, "put an LLVM 22 with headers into /usr/lib/llvm-22")?;
    }
    let prefix = llvm_prefix();
    let title = format!("{TITLE} {LINKER_VERSION} (once)");
    let mut install = Command::new(super::cargo());
    install
        .env("LLVM_SYS_221_PREFIX", &prefix)
        .env("LLVM_PREFIX", &prefix)
        .env_remove("CARGO_TARGET_DIR")
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
        .args(["--no-default-features", "--features", &format!("llvm-{LINKER_LLVM}"), "--root"])
        .arg(linker_root());
    steps.run(&title, &mut install).map_err(|error| {
        Missing(format!(
            "bpf-linker could not be installed ({error:#}). If the network is missing, run this \
             again with it; {WITHOUT_XDP}"
        ))
    })?;
    Ok(linker)
}

/// clippy of the same toolchain as `rustc`.
///
/// # Errors
/// [`Missing`] when it is not there and cannot be installed.
pub(crate) fn clippy(steps: &Steps, rustc: &Rustc) -> Result<PathBuf> {
    let clippy = rustc.path.with_file_name("cargo-clippy");
    if !clippy.exists() {
        debian(steps, &["rust-web-clippy"], &format!("put it at {}", clippy.display()))?;
    }
    if clippy.exists() {
        return Ok(clippy);
    }
    Err(Missing(format!("{} is missing: `rustup component add clippy`.", clippy.display())).into())
}

/// In the project, by version: `cargo install` elsewhere is neither used nor changed.
fn linker_root() -> PathBuf {
    crate::top().join(format!(".cache/bpf-linker-{LINKER_VERSION}-llvm{LINKER_LLVM}"))
}

fn linker_path() -> PathBuf {
    linker_root().join("bin/bpf-linker")
}

fn llvm_prefix() -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{LINKER_LLVM}"))
}

/// Whether bpf-linker can be compiled: LLVM's and Polly's libraries, and a C++ compiler for them.
fn llvm_ready() -> bool {
    let prefix = llvm_prefix();
    prefix.join("lib/libPolly.a").exists()
        && prefix.join("bin/llvm-config").exists()
        && Path::new("/usr/bin/g++").exists()
}

const WITHOUT_XDP: &str =
    "`cargo xtask build-ebpf --no-xdp` builds a Tandem that runs with xdp = \"off\".";

/// The real rustc of a rustup toolchain, when rustup and the toolchain are there.
fn rustup_rustc(toolchain: &str) -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("RUSTUP_AUTO_INSTALL", "0")
        .output()
        .ok()?;
    let sysroot = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| Path::new(sysroot.trim()).join("bin/rustc"))
}

/// Whether `path` can build for the kernel; why not, as the end of a sentence.
fn probe(path: &Path) -> Result<Rustc, String> {
    let ask = |args: &[&str]| -> Result<String, String> {
        let output = Command::new(path)
            .args(args)
            .output()
            .map_err(|error| format!("it does not start ({error})"))?;
        String::from_utf8(output.stdout).map_err(|error| format!("its answer is no text ({error})"))
    };
    let sysroot = ask(&["--print", "sysroot"])?;
    if !Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").exists() {
        return Err("it has no rust-src".to_owned());
    }
    let (release, llvm) = parse_version(&ask(&["-vV"])?).ok_or("its version is unreadable")?;
    let minor = release.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(0);
    if minor < RUSTC_MINOR_MIN {
        return Err(format!("it is {release}, older than 1.{RUSTC_MINOR_MIN}"));
    }
    if llvm > LINKER_LLVM {
        return Err(format!("its LLVM {llvm} is newer than bpf-linker's {LINKER_LLVM}"));
    }
    Ok(Rustc { path: path.to_path_buf(), release, llvm })
}

/// (release, LLVM major) from `rustc -vV`.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((field("release: ")?.to_owned(), llvm))
}

/// apt-get with its arguments, meanwhile without starting the services that a package brings: a
/// memcached or nginx started by its package would hold the ports that Tandem serves.
const APT: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
fi
apt-get "$@"
"#;

/// Installs Debian packages, or says why not and what else helps.
pub(crate) fn debian(steps: &Steps, packages: &[&str], instead: &str) -> Result<()> {
    let list = packages.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        let text = format!("{list} are needed and this is no Debian: {instead};");
        return Err(Missing(format!("{text} {WITHOUT_XDP}")).into());
    }
    if !is_root()? {
        return Err(Missing(format!(
            "Debian's {list} must be installed, which needs root: run `sudo cargo xtask \
             build-ebpf` once, or {instead}; {WITHOUT_XDP}"
        ))
        .into());
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("sh");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-c", APT, "apt-get", "-q"]);
        command.args(["-o", "APT::Update::Error-Mode=any"]).args(args);
        command
    };
    steps
        .run_part("      apt-get update", &mut apt(&["update"]))
        .and_then(|()| {
            let mut install = apt(&["install", "-y", "--no-install-recommends"]);
            steps.run_part(&format!("      apt-get install {list}"), install.args(packages))
        })
        .map_err(|error| {
            Missing(format!(
                "Debian's packages could not be installed ({error:#}). If the network is missing, \
                 run this again with it, or {instead}; {WITHOUT_XDP}"
            ))
            .into()
        })
}

/// Whether this process may install packages.
///
/// # Errors
/// `id` cannot be run.
pub(crate) fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output().context("run id -u")?;
    Ok(output.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_rustc() {
        let text = "rustc 1.96.0 (x 2026)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(text), Some(("1.96.0".to_owned(), 22)));
        assert_eq!(parse_version("release: 1.96.0\n"), None);
    }

    #[test]
    fn a_compiler_that_is_none_is_refused_with_a_reason() {
        assert_eq!(probe(Path::new("/bin/true")).err().as_deref(), Some("it has no rust-src"));
        let why = probe(Path::new("/nonexistent/rustc")).err();
        assert!(why.is_some_and(|why| why.starts_with("it does not start")));
    }
}
