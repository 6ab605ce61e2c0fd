//! `cargo xtask ci`: what must pass before a change lands: fmt, clippy (host and eBPF), doc, tidy,
//! test. All checks run, also after one failed, so that one run tells everything; each that failed
//! counts as a failure in the total, which is the last line.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::build_ebpf;
use crate::step::Steps;
use crate::test::{self, Tally};
use crate::tidy;

/// Runs the verb.
///
/// # Errors
/// [`test::Failed`] when anything failed; what failed is printed.
pub(crate) fn run() -> Result<()> {
    let mut steps = Steps::new(7);
    let mut tally = Tally::default();
    let top = crate::top();
    let cargo = |args: &[&str]| {
        let mut command = Command::new(build_ebpf::cargo());
        command.current_dir(&top).args(args);
        command
    };
    let mut begun = Instant::now();
    let mut check = |stage: &str, done: Result<()>| {
        tally.stage(stage, begun.elapsed());
        begun = Instant::now();
        if let Err(error) = done {
            eprintln!("{error:#}");
            tally.broken(&format!("{error:#}"));
        }
    };
    check("fmt", steps.run("fmt", &mut cargo(&["fmt", "--all", "--check"])));
    let mut fmt_ebpf = cargo(&["fmt", "--check"]);
    let fmt_ebpf = fmt_ebpf.current_dir(top.join("proxy-ebpf"));
    check("fmt, eBPF", steps.run("fmt, eBPF", fmt_ebpf));
    let mut clippy = cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    check("clippy", steps.run("clippy", &mut clippy));
    check("clippy, eBPF", build_ebpf::clippy(&mut steps));
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    // Private items are documented too: for those who work here.
    doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links");
    check("doc", steps.run("doc", &mut doc));
    check("tidy", tidy::run());
    test::run(tally)
}
