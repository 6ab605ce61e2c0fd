//! Cables cut for a while with the carrier up. Of the backup: clients see nothing of it, however
//! long it lasts. Of the master, with the clients on the backup's side: one side answers, and
//! nothing that was answered is lost at the heal.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::topology::{Options, Pair, Side};
use tests::watch::{HEAD, Seen, Watch, pass};

use crate::table::CONTESTED_MAX;

const SETTLE: Duration = Duration::from_secs(20);

/// Cuts both cables of `victim` for `time`; what clients saw until half a second after the heal,
/// or until the pair is protected again, if that is later.
fn cut(pair: &Pair, victim: Side, time: Duration) -> Result<(Seen, Side)> {
    let watch = Watch::start(pair)?;
    let begun = Instant::now();
    pair.cut(victim)?;
    pass(time)?;
    pair.heal(victim)?;
    let lasted = begun.elapsed();
    pass(Duration::from_millis(500))?;
    let master = pair.wait_any_protected(SETTLE)?;
    let seen = watch.stop(pair)?;
    eprintln!("{}", seen.line(&format!("{} cut for {lasted:.0?}", victim.name())));
    Ok((seen, master))
}

/// What clients see is judged. A reign that begins at the very moment of the heal and is given up
/// before anybody is answered is told.
fn of_the_backup(pair: &Pair, master: Side, time: Duration) -> Result<()> {
    let (seen, after) = cut(pair, master.other(), time)?;
    ensure!(after == master, "the address moved");
    ensure!(!seen.claimed_by(master.other()), "the cut node answered, or announced the address");
    ensure!(seen.owner() == Some(master), "{:?} owns the address", seen.owner());
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    let promoted = seen.promotions[master.other() as usize];
    if promoted > 0 {
        eprintln!("  unseen: the cut node was promoted and gave it up");
    }
    Ok(())
}

fn backup(times_ms: &[u64]) -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let mut master = pair.start_both()?;
    let mut refused = Vec::new();
    eprintln!("{HEAD}");
    for time in times_ms {
        let time = Duration::from_millis(*time);
        if let Err(error) = of_the_backup(&pair, master, time) {
            refused.push(format!("cut of {time:?}: {error:#}"));
        }
        master = pair.wait_any_protected(SETTLE).with_context(|| refused.join("\n"))?;
    }
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    Ok(())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn cuts_of_the_backup_are_not_seen() -> Result<()> {
    backup(&[20, 30, 40, 50, 150, 300, 5000])
}

/// The lengths at which a takeover begins and the heal meets it half way, again and again.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn cuts_about_the_dead_time_are_not_seen() -> Result<()> {
    backup(&[35, 38, 40, 42, 44, 46, 48, 55, 60, 70])
}

/// The master is cut off, the clients are with the backup: it takes over, and keeps the address
/// at the heal, because it alone answered clients.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn cut_of_the_master_with_clients_on_the_other_side() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let mut master = pair.start_both()?;
    eprintln!("{HEAD}");
    for time in [300, 5000] {
        let (seen, after) = cut(&pair, master, Duration::from_millis(time))?;
        ensure!(seen.lost == 0, "{time} ms: {} answered writes lost", seen.lost);
        ensure!(after == master.other(), "{time} ms: the side that answered keeps the address");
        ensure!(seen.owner() == Some(after), "{time} ms: {:?} owns it", seen.owner());
        let contested = seen.answers.contested();
        ensure!(contested < CONTESTED_MAX, "{time} ms: two answered for {contested:?}");
        ensure!(seen.promotions[master as usize] == 0, "the cut one was promoted");
        master = after;
    }
    Ok(())
}
