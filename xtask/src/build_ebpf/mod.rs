//! `cargo xtask build-ebpf`: everything `./run` needs, from a clean clone.
//!
//! Steps: a rustc with its standard library's source, bpf-linker, the eBPF object
//! (target/ebpf/tandem.bpf.o), the release binaries. Each is skipped when its result is there for
//! the same inputs. The eBPF crate is built by the *current* cargo with `RUSTC` set to the rustc
//! found: any stable one will do, because `RUSTC_BOOTSTRAP` opens `-Zbuild-std` for this one build.

mod stamp;
pub(crate) mod toolchain;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::step::Steps;
use toolchain::{Linker, Rustc};

use stamp::Stamp;

/// What `build-ebpf` can be told.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Build the release binaries only; Tandem then runs with `xdp = "off"`
    #[arg(long, conflicts_with = "object_only")]
    no_xdp: bool,
    /// Build the eBPF object only
    #[arg(long)]
    pub(crate) object_only: bool,
}

/// Where the object is built to.
pub(crate) fn object_path() -> PathBuf {
    crate::top().join("target/ebpf/tandem.bpf.o")
}

/// Runs the verb.
///
/// # Errors
/// As [`build`].
pub(crate) fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    build(options)?;
    if !options.object_only {
        let run = if toolchain::is_root()? { "./run" } else { "sudo ./run" };
        eprintln!("\nbuilt in {:.1} s. Next:", start.elapsed().as_secs_f32());
        eprintln!("    {run:<16} one node: balancer :8080, cache :11211, status 127.0.0.1:9900");
        eprintln!("    {:<16} two nodes, a client and backends here", format!("{run} lab"));
    }
    Ok(())
}

/// Builds what is not there yet.
///
/// # Errors
/// [`crate::Missing`] when root, network or a toolchain is missing; else the step that failed.
pub(crate) fn build(options: &Options) -> Result<()> {
    let mut steps = Steps::new(match (options.no_xdp, options.object_only) {
        (true, _) => 1,
        (_, true) => 3,
        _ => 4,
    });
    if !options.no_xdp {
        let rustc = toolchain::rustc(&mut steps)?;
        let linker = toolchain::linker(&mut steps, &rustc)?;
        object(&mut steps, &rustc, &linker)?;
    }
    if !options.object_only {
        let mut release = Command::new(cargo());
        release.args(["build", "--release", "-p", "proxy-user", "-p", "tests"]);
        steps.run("release binaries (tandem, lab)", release.current_dir(crate::top()))?;
    }
    give_back()
}

/// The cargo that runs this xtask.
pub(crate) fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// Under sudo: the build's files belong to who called it, so that a later plain build works.
fn give_back() -> Result<()> {
    let (Ok(uid), Ok(gid)) = (std::env::var("SUDO_UID"), std::env::var("SUDO_GID")) else {
        return Ok(());
    };
    let top = crate::top();
    let paths: Vec<PathBuf> =
        [".cache", "target"].iter().map(|p| top.join(p)).filter(|p| p.exists()).collect();
    let status =
        Command::new("chown").args(["-R", &format!("{uid}:{gid}")]).args(paths).status()?;
    anyhow::ensure!(status.success(), "chown of target/ to {uid}:{gid}: {status}");
    Ok(())
}

/// `program` (cargo, or its clippy) on the eBPF crate with its own toolchain.
fn cargo_ebpf(program: &Path, rustc: &Rustc, linker: &Path) -> Command {
    let top = crate::top();
    let mut flags = format!("-C linker={} -C link-arg=--btf", linker.display());
    flags.push_str(" --cfg bpf_target_arch=\"x86_64\" -C debuginfo=2");
    if cfg!(target_arch = "aarch64") {
        flags = flags.replace("x86_64", "aarch64");
    }
    let mut command = Command::new(program);
    for leak in [
        "RUSTUP_TOOLCHAIN",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(leak);
    }
    command
        .current_dir(top.join("proxy-ebpf"))
        .env("RUSTC", &rustc.path)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", top.join("target/ebpf/build"))
        .env("CARGO", cargo());
    command
}

/// What makes a cargo command one for the kernel.
const FOR_THE_KERNEL: [&str; 5] =
    ["--release", "--locked", "-Zbuild-std=core", "--target", "bpfel-unknown-none"];

/// clippy over the eBPF crate: that of the rustc which builds it, since another one cannot read its
/// library.
///
/// # Errors
/// [`crate::Missing`] as for [`build`], or clippy's complaints.
pub(crate) fn clippy(steps: &mut Steps) -> Result<()> {
    let rustc = toolchain::rustc(steps)?;
    let linker = toolchain::linker(steps, &rustc)?;
    let program = toolchain::clippy(steps, &rustc)?;
    let mut command = cargo_ebpf(&program, &rustc, &linker.path);
    command.arg("clippy").args(FOR_THE_KERNEL).args(["--", "-D", "warnings"]);
    steps.run("clippy, eBPF", &mut command)
}

fn object(steps: &mut Steps, rustc: &Rustc, linker: &Linker) -> Result<()> {
    let (top, object) = (crate::top(), object_path());
    let inputs = [
        "proxy-ebpf/Cargo.toml",
        "proxy-ebpf/Cargo.lock",
        "proxy-ebpf/src",
        "proxy-ebpf/common",
        "xtask/src/build_ebpf",
    ];
    let tools = format!("{} {}", rustc.describe(), linker.describe());
    let stamp = Stamp::of(&top, &inputs, &tools)?;
    let stamp_file = top.join("target/ebpf/stamp");
    if object.exists() && stamp.is_in(&stamp_file) {
        steps.note("eBPF object", "unchanged");
        return Ok(());
    }
    let mut command = cargo_ebpf(&cargo(), rustc, &linker.path);
    steps.run("eBPF object", command.arg("build").args(FOR_THE_KERNEL))?;
    let built = top.join("target/ebpf/build/bpfel-unknown-none/release/tandem");
    // By rename: a Tandem that starts meanwhile finds the old object or the new one, whole.
    let fresh = object.with_extension("new");
    std::fs::copy(&built, &fresh).with_context(|| format!("copy {}", built.display()))?;
    std::fs::rename(&fresh, &object).with_context(|| format!("rename to {}", object.display()))?;
    stamp.write(&stamp_file)
}
