//! What the host does to a node: its program file, its processes, its disk, its network lock.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tests::eventually;
use tests::stall::{self, STALLS};
use tests::topology::{Options, Pair, Side, VIP};

const LIMIT: Duration = Duration::from_secs(15);

/// An upgrade put another program in the place of the one that runs, or removed it: a dead engine
/// is replaced by one of the guardian's own version, and a dead guardian by one of the keeper's.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn the_program_is_replaced_on_disk() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let program = pair.copy_program()?;
    let master = pair.start_both()?;
    let backup = master.other();
    let other = pair.file("other");
    fs::write(&other, "#!/bin/sh\nexit 3\n")?;
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755))?;
    fs::rename(&other, &program)?;
    for deleted in [false, true] {
        if deleted {
            fs::remove_file(&program)?;
        }
        pair.kill_engine(backup)?;
        pair.wait_role(backup, &["JOIN", "CATCHUP"], LIMIT)?;
        pair.wait_protected(master)?;
        let name = fs::read_to_string(format!("/proc/{}/comm", pair.engine(backup)?))?;
        ensure!(name.trim() == "tandem", "the process is called {name}");
        let before = pair.guardian(backup)?;
        pair.kill_guardian(backup)?;
        eventually("another guardian of the same version", LIMIT, || {
            ensure!(pair.guardian(backup)? != before, "it is the old one");
            Ok(())
        })?;
        pair.wait_protected(master)?;
    }
    Ok(())
}

/// A service on the virtual address alone: on either node it can be listened for before the address
/// comes, and it is served by whoever has it.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_service_on_the_virtual_address_alone() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    for side in Side::ALL {
        pair.edit_config(side, |text| {
            let text = text.replace("0.0.0.0:11211", &format!("{VIP}:11211"));
            text.replace("0.0.0.0:80", &format!("{VIP}:80"))
        })?;
    }
    let master = pair.start_both()?;
    let served = |pair: &Pair| -> Result<()> {
        let mut client = pair.memcached(&pair.client, VIP)?;
        ensure!(client.set("k", b"1")? == "STORED");
        ensure!(client.get("k")?.as_deref() == Some(&b"1"[..]));
        Ok(())
    };
    served(&pair)?;
    for side in Side::ALL {
        ensure!(pair.memcached(&pair.client, side.address()).is_err(), "its own address serves");
    }
    pair.node(master)?.signal(Signal::SIGTERM)?;
    pair.wait_role(master.other(), &["MASTER_SOLO"], LIMIT)?;
    served(&pair)
}

/// 50 ms and 1 s of each process of each node: who serves, how long nobody did. (300 ms and 3 s,
/// too, are in `tests/soak`.)
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn table_of_stalls() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let master = pair.start_both()?;
    let [short, _, long, _] = STALLS;
    stall::table(&mut pair, master, &[short, long])
}
