//! `cargo xtask test`: what the tests need is installed, everything is built, all tests run, first
//! those that need no rights, then, as root, the others one at a time. The last line is the total,
//! `N passed, N failed, N skipped`; every skip is listed with its reason.

mod long;
mod tally;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::build_ebpf::{self, toolchain};
use crate::step::Steps;
pub(crate) use long::{Long, run as run_long};
pub(crate) use tally::Tally;

/// What the tests run, and Debian's package of it. Missing ones are installed.
const PROGRAMS: [(&str, &str); 10] = [
    ("ip", "iproute2"),
    ("memcached", "memcached"),
    ("nginx", "nginx-light"),
    ("haproxy", "haproxy"),
    ("keepalived", "keepalived"),
    ("strace", "strace"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("tcpdump", "tcpdump"),
    ("etcd", "etcd-server"),
];
/// Bits of CapEff (linux/capability.h): what the privileged suites do.
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (39, "CAP_BPF")];

/// Runs the verb; `tally` has what was counted before.
///
/// # Errors
/// [`Failed`], or a step that the tests need.
pub(crate) fn run(mut tally: Tally) -> Result<()> {
    let mut steps = Steps::new(2);
    let may = missing_rights()?;
    programs(&steps, may.is_none())?;
    let begun = Instant::now();
    let built = build_ebpf::build(&build_ebpf::Options::default());
    tally.stage("build", begun.elapsed());
    let lacking = match built {
        Err(error) if error.is::<crate::Missing>() => Some(error.to_string()),
        other => other.map(|()| None)?,
    };
    unprivileged(&mut steps, &mut tally)?;
    match may.or(lacking) {
        None => privileged(&mut steps, &mut tally)?,
        Some(why) => tally.skip_waiting(&why),
    }
    tally.print();
    if tally.failed() > 0 { Err(Failed.into()) } else { Ok(()) }
}

/// Tests failed. All is said already, and the total stays the last line.
#[derive(Debug)]
pub(crate) struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("tests failed")
    }
}

impl std::error::Error for Failed {}

/// Why the privileged suites cannot run; `None`: they can.
fn missing_rights() -> Result<Option<String>> {
    if !toolchain::is_root()? {
        return Ok(Some("not root".to_owned()));
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let lacks = CAPABILITIES.into_iter().find(|(bit, _)| effective >> bit & 1 == 0);
    Ok(lacks.map(|(_, name)| format!("root without {name}")))
}

fn programs(steps: &Steps, may_install: bool) -> Result<()> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"];
    let is_there = |program: &str| folders.iter().any(|f| Path::new(f).join(program).exists());
    let missing = PROGRAMS.into_iter().filter(|(program, _)| !is_there(program));
    let packages: Vec<_> = missing.map(|(_, package)| package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    if may_install {
        return toolchain::debian(steps, &packages, "install them by hand");
    }
    eprintln!("not installed, and this is not root: {}", packages.join(", "));
    Ok(())
}

fn cargo_test(arguments: &[&str]) -> Command {
    let mut command = Command::new(build_ebpf::cargo());
    command
        .current_dir(crate::top())
        .env("TANDEM_BIN", crate::top().join("target/release/tandem"))
        .env("CARGO_TERM_COLOR", "never")
        .env("RUST_BACKTRACE", "0")
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments);
    command
}

fn unprivileged(steps: &mut Steps, tally: &mut Tally) -> Result<()> {
    let mut command = cargo_test(&["--", "--show-output"]);
    tally.one_at_a_time(None);
    suite(steps, "tests that need no rights", &mut command, tally)
}

fn privileged(steps: &mut Steps, tally: &mut Tally) -> Result<()> {
    let (needy, others) = tally.split_waiting();
    if needy == 0 {
        return Ok(());
    }
    let mut arguments = vec!["--tests", "--", "--ignored", "--test-threads=1", "--show-output"];
    arguments.push("--exact");
    for name in &others {
        arguments.extend(["--skip", name]);
    }
    tally.one_at_a_time(Some(Duration::ZERO));
    suite(steps, "tests that need root, one at a time", &mut cargo_test(&arguments), tally)
}

fn suite(steps: &mut Steps, title: &str, command: &mut Command, tally: &mut Tally) -> Result<()> {
    let failed_before = tally.failed();
    let (stage, begun) = (title, Instant::now());
    let title = steps.title(title);
    let mut last = String::new();
    let (status, log) = steps.watch(&title, command, |line| {
        tally.feed(line, begun.elapsed());
        if line.starts_with("error") {
            last = line.to_owned();
        }
    })?;
    tally.stage(stage, begun.elapsed());
    eprintln!("{title}: the whole output is in {}", log.display());
    // Without a failed test, the tests themselves were not built, or one ended the process.
    if !status.success() && tally.failed() == failed_before {
        tally.broken(&format!("{title}: {last}"));
    }
    Ok(())
}
