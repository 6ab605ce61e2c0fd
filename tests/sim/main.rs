//! Deterministic simulation of the pair: two real `Node`s with real VRRP instances, real stores,
//! sessions and replication ends, in a world of seeded faults.
//!
//! * Grammar: a seed draws a plan (wires, clocks, starts, faults in time; `faults.rs`), the world
//!   (`world.rs`, `host.rs`, `process.rs`, `network.rs`) plays it, clients (`clients.rs`) work, the
//!   checkers (`checker.rs`, where the invariants are listed) watch.
//! * Replay: `SIM_SEED=n cargo test -p tests --test sim -- --nocapture` prints one row per event.
//!   `SIM_SEEDS=from..to` runs a range of seeds instead of the built-in one.
//! * The same seed gives the same rows: that is itself a test.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test: what cannot be made must fail, and the trace is printed on request"
)]

mod checker;
mod clients;
mod engine;
mod faults;
mod host;
mod look;
mod network;
mod prng;
mod process;
mod scripted;
mod trace;
mod witness;
mod world;

use world::{Mutation, Options, World};

/// Seeds of one test run.
const SEEDS: std::ops::Range<u64> = 0..256;

fn play(seed: u64, mutation: Mutation, print: bool) -> World {
    let mut world = World::new(Options { seed, mutation, plan: None, print });
    world.run();
    world.look_at_the_end();
    world
}

fn report(world: &World, seed: u64) -> String {
    let complaint = world.checker.complaint().unwrap_or("nothing");
    format!(
        "{}\n\nseed {seed}: {complaint}\nplan: {:#?}\n\
         replay: SIM_SEED={seed} cargo test -p tests --test sim -- --nocapture",
        world.trace.tail(),
        world.plan.faults,
    )
}

fn seeds() -> std::ops::Range<u64> {
    let range = std::env::var("SIM_SEEDS").ok();
    let parsed = range.as_deref().and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    parsed.unwrap_or(SEEDS)
}

#[test]
fn seeds_hold() {
    if let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        let world = play(seed, Mutation::Sound, true);
        assert!(world.checker.complaint().is_none(), "{}", report(&world, seed));
        return;
    }
    let seeds = seeds();
    let begun = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let sum = std::thread::scope(|scope| {
        let share = |first: usize| {
            let mine = seeds.clone().skip(first).step_by(threads);
            scope.spawn(move || mine.fold(Sum::default(), |sum, seed| sum.with(seed)))
        };
        let shares: Vec<_> = (0..threads).map(share).collect();
        let sums = shares.into_iter().map(|share| share.join().expect("no run panics"));
        sums.fold(Sum::default(), Sum::and)
    });
    let Sum {
        numbers: [events, failovers, commands, answered, protected, doubly, evicted, checks],
        bad,
    } = sum;
    println!(
        "simulation: {} seeds, {events} events, {failovers} failovers, {commands} commands, \
         {answered} answered, {protected} of them protected, {doubly} keys lost with both \
         memories, {evicted} evicted, {checks} checks, {:.1} s",
        seeds.count(),
        begun.elapsed().as_secs_f64()
    );
    assert!(bad.is_empty(), "{} bad seeds; one of them:\n{}", bad.len(), bad[0]);
}

/// Figures of many runs.
#[derive(Default)]
struct Sum {
    numbers: [u64; 8],
    bad: Vec<String>,
}

impl Sum {
    fn with(mut self, seed: u64) -> Self {
        let world = play(seed, Mutation::Sound, false);
        if let Some(complaint) = world.checker.complaint() {
            println!("seed {seed}: {complaint}");
            self.bad.push(report(&world, seed));
        }
        let checker = &world.checker;
        let numbers = [
            world.figures.events,
            // the first crown of a run is no failover
            world.figures.crowns.len().saturating_sub(1) as u64,
            world.commands(),
            checker.answered,
            checker.protected,
            checker.doubly_lost,
            world.evicted(),
            checker.checks,
        ];
        self.and(Self { numbers, bad: Vec::new() })
    }

    fn and(mut self, other: Self) -> Self {
        for (sum, number) in self.numbers.iter_mut().zip(other.numbers) {
            *sum += number;
        }
        self.bad.extend(other.bad);
        self
    }
}

#[test]
fn same_seed_same_trace() {
    for seed in [3, 77] {
        let [one, two] = [0, 1].map(|_| play(seed, Mutation::Sound, false));
        assert_eq!(one.trace.rows(), two.trace.rows(), "seed {seed}");
        assert_eq!(one.trace.hash(), two.trace.hash(), "seed {seed}");
    }
    let other = play(4, Mutation::Sound, false);
    assert_ne!(play(3, Mutation::Sound, false).trace.hash(), other.trace.hash());
}
