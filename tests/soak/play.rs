//! Plays one step on a protected pair and says what was seen.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tests::filter::{Rule, Way, What};
use tests::netns::enter;
use tests::stall::Program;
use tests::stranger::{advert, flood, multicast};
use tests::topology::{Pair, Side};
use tests::watch::{Seen, Watch, pass};

use crate::plan::{Fault, Step};

/// How long the pair may take until it is protected again after the heal.
const SETTLE: Duration = Duration::from_secs(30);
/// Time for a process to end.
const END: Duration = Duration::from_secs(10);

/// What one step came to.
pub(crate) struct Played {
    pub(crate) seen: Seen,
    /// From the heal until the pair was protected again.
    pub(crate) settled: Duration,
    /// The node that the fault happened to.
    pub(crate) victim: Side,
    pub(crate) master: Side,
}

pub(crate) fn play(pair: &mut Pair, step: &Step, master: Side) -> Result<Played> {
    let victim = if step.at_master { master } else { master.other() };
    let watch = Watch::start(pair).context("before the fault")?;
    if step.double {
        // It may be restarting after the last step.
        pair.kill_engine(victim.other()).map(drop).unwrap_or_default();
    }
    inflict(pair, &step.fault, victim)?;
    let healed = Instant::now();
    mend(pair, victim)?;
    pair.wait_any_protected(SETTLE)?;
    let settled = healed.elapsed();
    pass(Duration::from_millis(200))?;
    let seen = watch.stop(pair)?;
    Ok(Played { seen, settled, victim, master })
}

/// Whatever was done to a node's cables is undone, and a node that ended is started.
fn mend(pair: &mut Pair, victim: Side) -> Result<()> {
    pair.filter(&[])?;
    pair.heal(victim)?;
    if !pair.is_running(victim) {
        pair.start(victim)?;
    }
    Ok(())
}

fn inflict(pair: &mut Pair, fault: &Fault, victim: Side) -> Result<()> {
    match fault {
        Fault::Kill(Program::Engine) => {
            pair.kill_engine(victim)?;
            pass(Duration::from_millis(300))
        }
        Fault::Kill(Program::Guardian) => {
            pair.kill_guardian(victim)?;
            pass(Duration::from_millis(300))
        }
        Fault::Stop(program, time) => pair.stall(victim, *program, *time),
        Fault::Restart => {
            pair.node(victim)?.signal(Signal::SIGTERM)?;
            pair.node(victim)?.wait(END).map(drop)
        }
        Fault::Lost => pair.kill_node(victim),
        Fault::Carrier(networks, time) => {
            for up in [false, true] {
                for network in networks {
                    pair.carrier_of(victim, *network, up)?;
                }
                if !up {
                    pass(*time)?;
                }
            }
            Ok(())
        }
        Fault::Silence(way, networks, time) => {
            filtered(pair, &Rule::silence(victim, *way, networks), *time)
        }
        Fault::Cut(time) => {
            pair.cut(victim)?;
            pass(*time)?;
            pair.heal(victim)
        }
        Fault::CutOne(network, time) => {
            let rules = Way::ALL.map(|way| Rule::silence(victim, way, &[*network])).concat();
            filtered(pair, &rules, *time)
        }
        Fault::Loss(many, time) => {
            filtered(pair, &Rule::everywhere(victim, What::OneIn(*many)), *time)
        }
        Fault::Port(port, time) => {
            filtered(pair, &Rule::everywhere(victim, What::Port(*port)), *time)
        }
        Fault::Flood(time) => pair.client.run(|| {
            let made = flood(victim.address(), &[7700, 7701, 11211, 80], *time);
            if made == 0 { bail!("no connection of the flood was made") } else { Ok(()) }
        }),
        Fault::Adverts(time) => adverts(pair, *time),
    }
}

fn filtered(pair: &Pair, rules: &[Rule], time: Duration) -> Result<()> {
    pair.filter(rules)?;
    pass(time)?;
    pair.filter(&[])
}

fn adverts(pair: &Pair, time: Duration) -> Result<()> {
    let payload = advert(255)?;
    let name = pair.client.name();
    std::thread::scope(|scope| {
        let body = || {
            enter(name)?;
            let end = Instant::now() + time;
            while Instant::now() < end {
                multicast(&payload, 255)?;
                std::thread::park_timeout(Duration::from_millis(100));
            }
            Ok(())
        };
        scope.spawn(body).join().map_err(|_panic| anyhow::anyhow!("the sender panicked"))?
    })
}
