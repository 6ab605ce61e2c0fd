//! A protected pair on a host whose processors belong to others: nobody may be taken for dead.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::probe;
use tests::process::Process;
use tests::topology::{Options, Pair, Side, VIP};
use tests::watch::pass;

use crate::number;

/// What came of a run.
struct Busy {
    promotions: usize,
    /// Of numbered writes.
    lost: u64,
}

/// So many spinning processes beside a pair with these lines in its `[node]`.
fn busy(profile: &str, node_extra: &str) -> Result<Busy> {
    let time = Duration::from_secs(number("SOAK_BUSY_SECONDS", 3600));
    let spinning = number("SOAK_SPINNING", 4);
    let options = Options { node_extra: node_extra.into(), ..Options::default() };
    let mut pair = Pair::build("tandem-soak", options)?;
    pair.start_both()?;
    let log = pair.file("spin.log");
    let spin = |_| {
        let mut command = std::process::Command::new("sh");
        Process::start("spinning", command.args(["-c", "while :; do :; done"]), &log)
    };
    let spinning: Vec<Process> = (0..spinning).map(spin).collect::<Result<_>>()?;
    let writer = probe::writer(pair.client.name(), (VIP, 11211).into(), 200);
    let before = Side::ALL.map(|side| pair.promotions(side));
    let begun = Instant::now();
    let mut promotions = 0;
    while begun.elapsed() < time {
        pass(Duration::from_secs(1).min(time))?;
        let now: usize =
            Side::ALL.iter().map(|side| pair.promotions(*side) - before[*side as usize]).sum();
        if now > promotions {
            eprintln!("{profile}: after {:.0?}: {now} promotions", begun.elapsed());
            promotions = now;
        }
    }
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    drop(spinning);
    let written = writer.stop()?;
    pair.wait_any_protected(Duration::from_secs(60))?;
    let mut reader = pair.memcached(&pair.client, VIP)?;
    let lost = written.lost(|key| reader.get(key))?;
    eprintln!(
        "{profile}: {promotions} promotions in {time:?}, load {}, writer {:?}, {lost} lost",
        load.trim(),
        written.outage,
    );
    for side in Side::ALL {
        let log = pair.log(side);
        log.lines().filter(|line| line.contains(" role ")).for_each(|line| eprintln!("{line}"));
    }
    Ok(Busy { promotions, lost })
}

/// With the defaults nobody takes over.
#[test]
#[ignore = "soak: takes an hour, run it by hand"]
fn no_takeover_on_a_busy_host() -> Result<()> {
    let busy = busy("default", "")?;
    ensure!(busy.promotions == 0, "{} promotions without a fault", busy.promotions);
    ensure!(busy.lost == 0, "{} answered writes lost", busy.lost);
    Ok(())
}

/// The fast profile of docs/OPERATIONS.md is for hosts that are not busy; whatever it does here,
/// nothing is lost.
#[test]
#[ignore = "soak: takes an hour, run it by hand"]
fn nothing_is_lost_on_a_busy_host_in_the_fast_profile() -> Result<()> {
    let busy = busy("fast", "heartbeat = \"5ms\"\ndead_after = 3")?;
    ensure!(busy.lost == 0, "{} answered writes lost", busy.lost);
    Ok(())
}
