//! Hundreds of random faults on a real pair under numbered writes, in each way of answering ARP and
//! with both drivers. After each: no answered write is gone (but of a stated double fault), never
//! two answerers for longer than the lease, and the pair is protected again.
//!
//! Run by hand, with a release build:
//! `SOAK_FAULTS=300 cargo test -p tests --test soak -- --ignored --nocapture random_faults`
//!
//! | variable | what | default |
//! |---|---|---|
//! | `SOAK_FAULTS` | faults to play | 300 |
//! | `SOAK_SEED`, `SOAK_FIRST` | which ones: a failure prints both to replay it alone | 1, 0 |
//! | `SOAK_BUSY_SECONDS`, `SOAK_SPINNING` | a busy host: how long, spinning processes | 3600, 4 |
//! | `SOAK_KILLS`, `SOAK_FILL_MIB` | kills that are timed, and what the store holds then | 30, 0 |

mod busy;
mod plan;
mod play;
mod report;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plan::Step;
use play::Played;
use report::Report;
use tests::process::tail;
use tests::topology::{Options, Pair, Side, VIP};
use tests::watch::{kill_to_answer, spread};

/// Failures after which the rest is not played.
const FAILURES_MAX: usize = 10;
/// Two answerers for the address: the lease is 30 ms, and the asker is a process among others.
const CONTESTED_MAX: Duration = Duration::from_millis(100);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A pair that several steps use, until the mode changes or a step fails.
struct Stage {
    pair: Pair,
    master: Side,
    mode: (&'static str, &'static str),
}

impl Stage {
    fn build(step: &Step) -> Result<Self> {
        let mode = (step.xdp, step.io);
        let options = Options { xdp: step.xdp.into(), io: step.io.into(), ..Options::default() };
        let mut pair = Pair::build("tandem-soak", options)?;
        let master = pair.start_both()?;
        Ok(Self { pair, master, mode })
    }

    /// Plays a step, notes what was seen, and judges it.
    fn step(&mut self, step: &Step, report: &mut Report) -> Result<()> {
        let played = play::play(&mut self.pair, step, self.master)?;
        report.add(step, &played);
        eprintln!("{}", played.seen.line(&format!("{} {}", step.index, step.fault.kind())));
        self.master = self.pair.wait_any_protected(Duration::from_secs(20))?;
        judge(step, &played)
    }
}

fn judge(step: &Step, played: &Played) -> Result<()> {
    let seen = &played.seen;
    ensure!(seen.lost == 0 || step.double, "{} answered writes lost", seen.lost);
    let contested = seen.answers.contested();
    ensure!(contested < CONTESTED_MAX, "two answered for {contested:?}");
    Ok(())
}

#[test]
#[ignore = "soak: takes a quarter of an hour and more, run it by hand"]
fn random_faults() -> Result<()> {
    let (seed, first) = (number("SOAK_SEED", 1), number("SOAK_FIRST", 0));
    let faults = number("SOAK_FAULTS", 300);
    eprintln!("SOAK_SEED={seed} SOAK_FIRST={first} SOAK_FAULTS={faults}\n{}", tests::watch::HEAD);
    let mut report = Report::default();
    let mut failures = Vec::new();
    let mut stage: Option<Stage> = None;
    for index in first..first + faults {
        let step = plan::step(seed, index);
        let mut here = match stage.take().filter(|stage| stage.mode == (step.xdp, step.io)) {
            Some(stage) => stage,
            None => Stage::build(&step)?,
        };
        match here.step(&step, &mut report) {
            Ok(()) => stage = Some(here),
            Err(error) => {
                let logs = Side::ALL.map(|side| tail(&here.pair.log_path(side), 40)).join("\n");
                eprintln!(
                    "FAILED {step}: {error:#}\n{logs}\nreplay: SOAK_SEED={seed} \
                     SOAK_FIRST={index} SOAK_FAULTS=1"
                );
                failures.push(format!("{step}: {}", error.root_cause()));
                if failures.len() >= FAILURES_MAX {
                    break;
                }
            }
        }
    }
    report.print();
    ensure!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
    Ok(())
}

/// 50 ms to 3 s of each process of each node: who serves, how long nobody did.
#[test]
#[ignore = "soak: takes minutes, run it by hand"]
fn table_of_stalls() -> Result<()> {
    let mut pair = Pair::build("tandem-soak", Options::default())?;
    let master = pair.start_both()?;
    tests::stall::table(&mut pair, master, &tests::stall::STALLS)
}

/// SIGKILL of the master's engine until the other node answers for the address.
#[test]
#[ignore = "soak: takes minutes, run it by hand"]
fn engine_killed_until_the_peer_answers() -> Result<()> {
    let (kills, fill) = (number("SOAK_KILLS", 30), number("SOAK_FILL_MIB", 0));
    let memory = format!("{}MiB", (fill + fill / 4).max(64));
    let mut pair = Pair::build("tandem-soak", Options { memory, ..Options::default() })?;
    let mut master = pair.start_both()?;
    let mut client = pair.memcached(&pair.client, VIP)?;
    for index in 0..fill * 2 {
        let stored = client.set(&format!("fill:{index}"), &[b'x'; 512 << 10])?;
        ensure!(stored == "STORED", "{stored}");
    }
    let mut times = Vec::new();
    for kill in 0..kills {
        let took = kill_to_answer(&mut pair, master).with_context(|| format!("kill {kill}"))?;
        times.push(took);
        master = pair.wait_any_protected(Duration::from_secs(60))?;
    }
    eprintln!("engine killed until the peer answers, {fill} MiB held: {}", spread(&mut times));
    Ok(())
}
