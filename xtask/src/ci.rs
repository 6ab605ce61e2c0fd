//! `cargo xtask ci`: what must pass before a change lands, the cheap first. The tests come last, so
//! that their total is the last line.

use std::process::Command;

use anyhow::Result;

use crate::build_ebpf;
use crate::step::Steps;
use crate::{test, tidy};

/// Runs the verb.
///
/// # Errors
/// The first check that fails.
pub(crate) fn run() -> Result<()> {
    let mut steps = Steps::new(8);
    let top = crate::top();
    let cargo = |args: &[&str]| {
        let mut command = Command::new(build_ebpf::cargo());
        command.current_dir(&top).args(args);
        command
    };
    steps.run("fmt", &mut cargo(&["fmt", "--all", "--check"]))?;
    let mut fmt_ebpf = cargo(&["fmt", "--check"]);
    steps.run("fmt, eBPF", fmt_ebpf.current_dir(top.join("proxy-ebpf")))?;
    let mut clippy = cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    steps.run("clippy", &mut clippy)?;
    build_ebpf::clippy(&mut steps)?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    steps.run("doc", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    tidy::run()?;
    test::run()
}
