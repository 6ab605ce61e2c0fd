//! Five percent of all IP packets between the nodes lost: nobody takes over, nothing is lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::eventually;
use tests::netns::run;
use tests::probe;
use tests::topology::{Options, Pair, Side, VIP};

/// Drops one in twenty packets that arrive from the other node.
fn lossy(pair: &Pair, side: Side) -> Result<()> {
    let rules = "table inet loss {
        chain input {
            type filter hook input priority 0
            iifname { \"lan\", \"hb\" } numgen random mod 20 == 0 drop
        }
    }\n";
    let file = pair.file(&format!("loss-{}.nft", side.name()));
    std::fs::write(&file, rules)?;
    let name = pair.namespace(side).name().to_owned();
    run("ip", &["netns", "exec", &name, "nft", "-f", &file.to_string_lossy()]).map(drop)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn no_false_takeover_at_five_percent_loss() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let master = pair.start_both()?;
    for side in Side::ALL {
        lossy(&pair, side)?;
    }
    let epoch = pair.status(master)?["epoch"].clone();
    let writer = probe::writer(pair.client.name(), (VIP, 11211).into(), 200);
    let end = std::time::Instant::now() + Duration::from_secs(8);
    eventually("eight seconds to pass", Duration::from_secs(20), || {
        ensure!(std::time::Instant::now() >= end, "not yet");
        Ok(())
    })?;
    let written = writer.stop()?;
    ensure!(pair.status(master)?["epoch"] == epoch, "somebody took over");
    ensure!(pair.role(master)?.starts_with("MASTER"), "the master is {}", pair.role(master)?);
    let mut reader = pair.memcached(&pair.client, VIP)?;
    ensure!(written.lost(|key| reader.get(key))? == 0, "an answered write is gone");
    eprintln!("writer at 5 % loss: {:?}", written.outage);
    Ok(())
}
