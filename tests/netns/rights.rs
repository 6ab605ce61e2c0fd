//! What the processes of a serving pair may still do, and that they serve with no more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::Pid;
use tests::clients::http_get;
use tests::eventually;
use tests::rights::{Rights, parent_of};
use tests::topology::{Options, Pair, Side, VIP};

/// Bits by capabilities(7).
const DAC_OVERRIDE: u64 = 1 << 1;
const KILL: u64 = 1 << 5;
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;
const SETPCAP: u64 = 1 << 8;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const IPC_LOCK: u64 = 1 << 14;
const SYS_NICE: u64 = 1 << 23;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// As docs/OPERATIONS.md says.
const WITH_ADDRESS: u64 = DAC_OVERRIDE
    | KILL
    | SETGID
    | SETUID
    | SETPCAP
    | NET_BIND_SERVICE
    | NET_ADMIN
    | NET_RAW
    | SYS_NICE;

/// Locked memory without a bound, by the limit or else by the capability.
fn lock() -> Result<u64> {
    const SYS_RESOURCE: u64 = 1 << 24;
    let own = Rights::of(Pid::this())?;
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    let bounded = own.effective & SYS_RESOURCE == 0 && hard != RLIM_INFINITY;
    Ok(if bounded { IPC_LOCK } else { 0 })
}

/// `user` is what the engine must run as.
fn check(pair: &mut Pair, side: Side, expected: u64, user: (u32, u32)) -> Result<()> {
    let engine = pair.engine(side)?;
    let (uid, gid) = user;
    let rights = Rights {
        uid,
        gid,
        groups: Vec::new(),
        effective: 0,
        permitted: 0,
        inheritable: 0,
        bounding: 0,
        no_new_privileges: true,
        seccomp: 2,
    };
    ensure!(Rights::of(engine)? == rights, "engine: {:#x?}", Rights::of(engine)?);
    let guardian = Rights::of(parent_of(engine)?)?;
    let stated = Rights {
        uid: 0,
        gid: 0,
        groups: guardian.groups.clone(),
        effective: expected,
        permitted: expected,
        bounding: expected,
        seccomp: 0,
        ..rights
    };
    ensure!(guardian == stated, "guardian: {guardian:#x?}");
    Ok(())
}

/// Both services through the address.
fn served(pair: &Pair) -> Result<()> {
    let mut client = pair.memcached(&pair.client, VIP)?;
    ensure!(client.set("rights", b"few")? == "STORED");
    ensure!(client.get("rights")?.as_deref() == Some(&b"few"[..]));
    ensure!(!client.stats()?.is_empty());
    eventually("the balancer", Duration::from_secs(10), || {
        let get = || http_get((VIP, 80).into(), "/text", Duration::from_secs(2));
        let (status, body) = pair.client.run(get)?;
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
        Ok(())
    })
}

fn few_rights(xdp: &str, io: &str, expected: u64) -> Result<()> {
    let (xdp, io) = (xdp.to_owned(), io.to_owned());
    let options = Options { xdp, io, demo: true, ..Options::default() };
    let mut pair = Pair::build("tandem-test", options)?;
    // One node's engine as `nobody`, the other's by a name.
    let named = |text: &str| text.replace("[engine]", "[engine]\nuser = \"daemon\"");
    pair.edit_config(Side::B, named)?;
    let master = pair.start_both()?;
    served(&pair)?;
    let daemon = nix::unistd::User::from_name("daemon")?.context("a user daemon")?;
    let daemon = (daemon.uid.as_raw(), daemon.gid.as_raw());
    let expected = expected | lock()?;
    check(&mut pair, Side::A, expected, (65_534, 65_534))?;
    check(&mut pair, Side::B, expected, daemon)?;
    // Whoever comes after an engine has no more than it had.
    pair.kill_engine(master)?;
    pair.wait_protected(master.other())?;
    served(&pair)?;
    check(&mut pair, Side::A, expected, (65_534, 65_534))?;
    check(&mut pair, Side::B, expected, daemon)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn few_rights_native_uring() -> Result<()> {
    few_rights("native", "auto", WITH_ADDRESS | BPF | PERFMON)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn few_rights_native_epoll() -> Result<()> {
    few_rights("native", "epoll", WITH_ADDRESS | BPF | PERFMON)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn few_rights_off_uring() -> Result<()> {
    few_rights("off", "auto", WITH_ADDRESS)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn few_rights_off_epoll() -> Result<()> {
    few_rights("off", "epoll", WITH_ADDRESS)
}
