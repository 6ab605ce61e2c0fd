//! A single node whose engine is killed: it serves again with the cache's content, no connection is
//! refused, and whatever instruction the kill hits, the region never gives a wrong byte.
//!
//! `SURVIVAL_KILLS=50 cargo test -p tests --test survival -- --ignored` for a short run;
//! `SURVIVAL_SEED=n` replays the workload (the moment of a kill is the machine's own).

mod node;
mod region;
mod workload;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use node::Node;
use region::Check;
use tests::eventually;
use workload::{Writer, expected};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The kill loop: under writes, at random moments, each kill followed by a check of the whole
/// region as the dead engine left it, and then of every answered write through the next engine.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn no_kill_ever_shows_a_wrong_byte() -> Result<()> {
    let kills = number("SURVIVAL_KILLS", 1000);
    let seed = number("SURVIVAL_SEED", 1);
    let mut node = Node::start("32MiB")?;
    let mut check = Check::new("32MiB")?;
    let mut random = workload::Random::new(seed);
    let mut writers: Vec<Writer> = (0..2).map(|index| Writer::new(index, seed)).collect();
    let mut totals = region::Totals::default();
    for kill in 0..kills {
        let moment = Duration::from_micros(random.below(15_000));
        node.write_until_killed(&mut writers, moment)
            .and_then(|()| check.region(&node, &writers, &mut totals))
            .and_then(|()| node.resume())
            .and_then(|()| node.read_back(&mut writers))
            .with_context(|| format!("kill {kill} of seed {seed}; log:\n{}", node.log_tail()))?;
    }
    eprintln!(
        "{kills} kills: {} shards found mid-change, {} items dropped by checks, {} items read \
         whole, 0 wrong bytes, {} answered writes checked",
        totals.odd, totals.dropped, totals.items, totals.answered
    );
    ensure!(totals.items > 0 && totals.answered > 0, "the loop checked nothing");
    Ok(())
}

/// Time from the kill of the engine to the first answer with the content, and the waits of fresh
/// connections meanwhile: none refused.
fn again(memory: &str, fill: usize) -> Result<()> {
    let mut node = Node::start(memory)?;
    node.fill(fill)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        node.kill_engine()?;
        let waits = node.connect_until_answer(&expected("keep", 1))?;
        times.push(begun.elapsed());
        eprintln!("{memory}: answered after {:?}, {waits} connections, none refused", times.last());
        eventually("the predecessor to be reaped", Duration::from_secs(5), || node.settled())?;
    }
    times.sort();
    let median = times[times.len() / 2];
    ensure!(median < Duration::from_millis(400), "serving again took {median:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn serves_again_with_its_content() -> Result<()> {
    again("64MiB", 30)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn serves_again_at_one_gibibyte() -> Result<()> {
    again("1280MiB", 1024)
}

/// The change of user disarms the signal of the parent's death, and the right to send one to
/// another user is needed for it.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_hung_engine_ends_with_its_guardian() -> Result<()> {
    Node::start("64MiB")?.kill_guardian_of_hung_engine()
}

/// Whoever brings code into an engine dies with it at the first call that no engine makes; the
/// guardian says so, and the next engine has the content.
#[cfg(target_arch = "x86_64")]
fn forbidden(io: &str) -> Result<()> {
    let mut node = Node::start_with("64MiB", io)?;
    let calls = [
        ("makes a file", libc::SYS_mknodat),
        ("starts a program", libc::SYS_execve),
        ("makes a process", libc::SYS_clone),
        ("makes a ring", libc::SYS_io_uring_setup),
        ("becomes root", libc::SYS_setuid),
        ("traces", libc::SYS_ptrace),
        ("loads a program into the kernel", libc::SYS_bpf),
        ("listens", libc::SYS_bind),
        ("signals its guardian", libc::SYS_kill),
    ];
    for (number, (what, call)) in (1..).zip(calls) {
        node.force_call(call).context(what)?;
        let limit = Duration::from_secs(5);
        eventually("the engine to end", limit, || node.settled()).context(what)?;
        // Of the next engine.
        node.connect_until_answer(&expected("keep", 1)).context(what)?;
        eventually("the guardian to name the cause", limit, || {
            let named = node.logged("a system call that is not on its list");
            ensure!(named == number, "{what}: named {named} times of {number}");
            Ok(())
        })
        .with_context(|| node.log_tail())?;
    }
    Ok(())
}

#[test]
#[cfg(target_arch = "x86_64")]
#[ignore = "needs root: cargo xtask test"]
fn a_forbidden_call_ends_the_engine_and_not_its_content() -> Result<()> {
    forbidden("auto")
}

#[test]
#[cfg(target_arch = "x86_64")]
#[ignore = "needs root: cargo xtask test"]
fn a_forbidden_call_ends_the_engine_and_not_its_content_epoll() -> Result<()> {
    forbidden("epoll")
}
