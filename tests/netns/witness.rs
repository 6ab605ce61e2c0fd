//! With a witness on a third host a division of the two nodes from each other, and from nobody
//! else, leaves one master; without its word none.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::eventually;
use tests::process::tail;
use tests::third::{Third, divide};
use tests::topology::{Options, Pair, Side, VIP};

const LIMIT: Duration = Duration::from_secs(20);

fn is_master(role: &str) -> bool {
    role.starts_with("MASTER")
}

/// The roles of both, as one moment after the other shows them.
fn roles(pair: &Pair) -> Result<[String; 2]> {
    Ok([pair.role(Side::A)?, pair.role(Side::B)?])
}

/// Starts both; the master. One alone would wait: nobody is granted anything by an empty register.
fn start_both(pair: &mut Pair) -> Result<Side> {
    for side in Side::ALL {
        pair.start(side)?;
    }
    either_protected(pair)?;
    Ok(if is_master(&pair.role(Side::A)?) { Side::A } else { Side::B })
}

/// The register has followed the pair: from here on a generation is agreed on.
fn registered(pair: &Pair, master: Side) -> Result<()> {
    eventually("the master to be registered", LIMIT, || {
        let status = pair.status(master)?;
        ensure!(status["witness"]["state"] == "granted", "witness: {}", status["witness"]);
        Ok(())
    })
}

fn either_protected(pair: &Pair) -> Result<()> {
    eventually("the pair to be whole again", Duration::from_secs(30), || {
        let roles = roles(pair)?;
        let whole =
            roles.iter().any(|role| role == "MASTER") && roles.iter().any(|role| role == "SYNCED");
        ensure!(whole, "{roles:?}");
        Ok(())
    })
    .with_context(|| Side::ALL.map(|side| tail(&pair.log_path(side), 25)).join("\n"))
}

/// Both nodes are whole, with clients and a witness, and do not hear each other: exactly one goes
/// on, the other is FENCED, and the clients are served by it, with what was answered before.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn of_two_divided_nodes_one_goes_on() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let mut third = Third::build("tandem-test", &pair, "")?;
    third.start(&pair)?;
    let master = start_both(&mut pair)?;
    registered(&pair, master)?;
    ensure!(pair.memcached(&pair.client, VIP)?.set("before", b"1")? == "STORED");
    divide(&pair, true)?;
    eventually("one to go on", LIMIT, || {
        let roles = roles(&pair)?;
        let masters = roles.iter().filter(|role| is_master(role)).count();
        let fenced = roles.iter().any(|role| role == "FENCED");
        ensure!(masters == 1 && fenced, "{roles:?}");
        Ok(())
    })?;
    let of = |roles: &[String; 2]| roles.iter().position(|role| is_master(role));
    let winner = of(&roles(&pair)?);
    // it stays so: each of them asks again each second
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let roles = roles(&pair)?;
        ensure!(of(&roles) == winner, "{roles:?}");
        ensure!(roles.iter().filter(|role| is_master(role)).count() == 1, "{roles:?}");
    }
    let mut client = pair.memcached(&pair.client, VIP)?;
    ensure!(client.get("before")?.as_deref() == Some(&b"1"[..]));
    ensure!(client.set("meanwhile", b"2")? == "STORED");
    divide(&pair, false)?;
    either_protected(&pair)?;
    let mut client = pair.memcached(&pair.client, VIP)?;
    ensure!(client.get("meanwhile")?.as_deref() == Some(&b"2"[..]));
    Ok(())
}

/// The same division with the witness down, by `unreachable`.
fn divided_without_witness(extra: &str, masters: usize) -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let mut third = Third::build("tandem-test", &pair, extra)?;
    third.start(&pair)?;
    let master = start_both(&mut pair)?;
    registered(&pair, master)?;
    third.stop()?;
    divide(&pair, true)?;
    eventually("the witness to be missed", LIMIT, || {
        let roles = roles(&pair)?;
        let fenced = roles.iter().filter(|role| *role == "FENCED").count();
        ensure!(fenced == 2 - masters, "{roles:?}");
        let backup = pair.status(master.other())?;
        ensure!(backup["witness"]["state"] == "unreachable", "{}", backup["witness"]);
        Ok(())
    })?;
    let found = roles(&pair)?;
    ensure!(found.iter().filter(|role| is_master(role)).count() == masters, "{found:?}");
    ensure!(masters == 0 || is_master(&pair.role(master)?), "{found:?}");
    divide(&pair, false)?;
    either_protected(&pair).context("with the witness still down")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn without_the_witness_nobody_goes_on() -> Result<()> {
    divided_without_witness("", 0)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn without_the_witness_the_master_may_be_preferred() -> Result<()> {
    divided_without_witness("unreachable = \"prefer_master\"", 1)
}
