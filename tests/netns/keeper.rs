//! What outlives a guardian: sockets, memory, addresses taken off; with and without a service
//! manager.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use proxy_user::control::keeper::adopt_passed;
use tests::clients::Memcached;
use tests::eventually;
use tests::process::{Process, child_running, end};
use tests::topology::{Options, Pair, Side, VIP};
use tests::watch::Watch;

const SETTLE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(10);

fn next_guardian(pair: &mut Pair, side: Side, before: Pid) -> Result<Pid> {
    eventually("another guardian", SOON, || {
        let now = pair.guardian(side)?;
        ensure!(now != before, "it is the old one");
        Ok(now)
    })
}

fn fill(client: &mut Memcached, keys: usize) -> Result<()> {
    for number in 0..keys {
        let stored = client.set(&format!("k{number}"), format!("v{number}").as_bytes())?;
        ensure!(stored == "STORED", "{stored}");
    }
    Ok(())
}

fn missing(client: &mut Memcached, keys: usize) -> Result<usize> {
    let mut missing = 0;
    for number in 0..keys {
        let found = client.get(&format!("k{number}"))?;
        missing += usize::from(found.as_deref() != Some(format!("v{number}").as_bytes()));
    }
    Ok(missing)
}

/// A node that serves alone is killed down to its keeper: the next guardian is there within 50 ms,
/// and the node is master again with everything that it had answered.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_lone_node_returns_with_its_content() -> Result<()> {
    for xdp in ["auto", "off"] {
        let mut pair =
            Pair::build("tandem-test", Options { xdp: xdp.into(), ..Options::default() })?;
        pair.start(Side::A)?;
        pair.wait_role(Side::A, &["MASTER_SOLO"], SOON)?;
        fill(&mut pair.memcached(&pair.client, VIP)?, 1000)?;
        for _ in 0..3 {
            let before = pair.guardian(Side::A)?;
            let killed = Instant::now();
            end(before)?;
            next_guardian(&mut pair, Side::A, before)?;
            let there = killed.elapsed();
            pair.wait_role(Side::A, &["MASTER_SOLO"], SOON)?;
            eprintln!(
                "{xdp}: another guardian after {there:?}, master after {:?}",
                killed.elapsed()
            );
            let mut client = pair.memcached(&pair.client, VIP)?;
            let missing = missing(&mut client, 1000)?;
            ensure!(missing == 0, "{xdp}: {missing} of 1000 are gone");
        }
        let status = pair.status(Side::A)?;
        ensure!(status["guardian_restarts"] == 3, "{}", status["guardian_restarts"]);
        ensure!(pair.log(Side::A).matches("is up:").count() == 1, "the user is told once");
    }
    Ok(())
}

/// The peer takes over meanwhile; the node comes back as its backup with what it had, and what was
/// answered is there on both. A killed backup does not disturb its master.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn either_node_of_a_pair_returns_by_itself() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let mut master = pair.start_both()?;
    for victim in [master.other(), master, master, master.other()] {
        let watch = Watch::start(&pair)?;
        let before = pair.guardian(victim)?;
        pair.kill_guardian(victim)?;
        next_guardian(&mut pair, victim, before)?;
        let now = pair.wait_any_protected(SETTLE)?;
        let seen = watch.stop(&pair)?;
        eprintln!("{}", seen.line(&format!("guardian of {} killed", victim.name())));
        ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
        if victim != master {
            ensure!(now == master && !seen.claimed_by(victim), "its master was disturbed");
        }
        master = now;
    }
    Ok(())
}

/// A stopped guardian where the kernel answers: the address goes when its lease is over, the
/// guardian is killed, and the node comes back.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_hanging_guardian_loses_the_address() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options { xdp: "off".into(), ..Options::default() })?;
    let master = pair.start_both()?;
    let watch = Watch::start(&pair)?;
    let before = pair.guardian(master)?;
    kill(before, Signal::SIGSTOP)?;
    let stopped = Instant::now();
    let gone = |pair: &Pair| {
        let addresses = pair.namespace(master).ip(&["-4", "-o", "address"])?;
        ensure!(!addresses.contains(&VIP.to_string()), "it stands: {addresses}");
        Ok(stopped.elapsed())
    };
    let gone = eventually("its address to go", SOON, || gone(&pair))?;
    next_guardian(&mut pair, master, before)?;
    pair.wait_any_protected(SETTLE)?;
    let seen = watch.stop(&pair)?;
    eprintln!("{}; address gone after {gone:?}", seen.line("guardian stopped, xdp off"));
    ensure!(gone < Duration::from_millis(500), "the address stood for {gone:?}");
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    let log = pair.log(master);
    ensure!(log.contains("the guardian hangs: it is killed"), "{log}");
    Ok(())
}

/// Without its keeper a guardian stops the node as if it had been asked to: the peer has the role,
/// nothing is left.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_killed_keeper_is_a_stop() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let master = pair.start_both()?;
    let watch = Watch::start(&pair)?;
    let (guardian, engine) = (pair.guardian(master)?, pair.engine(master)?);
    pair.node(master)?.signal(Signal::SIGKILL)?;
    pair.wait_role(master.other(), &["MASTER_SOLO"], SETTLE)?;
    eventually("guardian and engine to end", SOON, || {
        for pid in [guardian, engine] {
            // a zombie that nobody has reaped yet is an end, too
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            ensure!(stat.is_empty() || stat.contains(") Z "), "{pid} runs: {stat}");
        }
        Ok(())
    })?;
    let seen = watch.stop(&pair)?;
    eprintln!("{}", seen.line("keeper killed"));
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    let addresses = pair.namespace(master).ip(&["-4", "-o", "address"])?;
    ensure!(!addresses.contains(&VIP.to_string()), "it stands: {addresses}");
    Ok(())
}

/// A second `tandem run` on the same folder is refused, also in the moment between two guardians,
/// and names the keeper's process.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn the_lock_is_held_between_two_guardians() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    pair.start(Side::A)?;
    pair.wait_role(Side::A, &["MASTER_SOLO"], SOON)?;
    let keeper = pair.node(Side::A)?.pid();
    let file = pair.file("node-a.toml");
    let again = |pair: &Pair| -> Result<String> {
        let mut command = pair.namespace(Side::A).command(pair.tandem());
        let output = command.arg("run").arg("--config").arg(&file).output()?;
        ensure!(output.status.code() == Some(1), "{:?}", output.status);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let told = again(&pair)?;
    ensure!(told.contains(&format!("another tandem (pid {keeper})")), "{told}");
    // the keeper cannot start the next one
    kill(keeper, Signal::SIGSTOP)?;
    pair.kill_guardian(Side::A)?;
    let told = again(&pair);
    kill(keeper, Signal::SIGCONT)?;
    let told = told?;
    ensure!(told.contains("another tandem"), "{told}");
    pair.wait_role(Side::A, &["MASTER_SOLO"], SOON).map(drop)
}

/// What a service manager would have received: the sentences, and the descriptors by name.
struct Manager {
    socket: UnixDatagram,
    kept: Vec<(String, OwnedFd)>,
    said: Vec<String>,
}

impl Manager {
    /// Takes what has arrived.
    fn listen(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let mut control = nix::cmsg_space!([RawFd; 8]);
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let received =
                recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags);
            let received = match received {
                Ok(received) => received,
                Err(nix::errno::Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let (length, mut descriptors) = (received.bytes, Vec::new());
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    descriptors.extend(adopt_passed(raw));
                }
            }
            let text =
                String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
            if let Some(name) = name {
                if text.contains("FDSTOREREMOVE=1") {
                    self.kept.retain(|(kept, _)| kept != name);
                }
                self.kept.extend(descriptors.into_iter().map(|fd| (name.to_owned(), fd)));
            }
            self.said.push(text);
        }
    }
}

/// With systemd's protocol (`Type=notify`, `FileDescriptorStoreMax=`): the content survives a stop
/// and a start of the unit, that is, an upgrade; also when the keeper was killed.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_service_manager_keeps_the_content_across_a_restart() -> Result<()> {
    let pair = Pair::build("tandem-test", Options::default())?;
    let path = pair.file("notify");
    let socket = UnixDatagram::bind(&path)?;
    let mut manager = Manager { socket, kept: Vec::new(), said: Vec::new() };
    for (round, ending) in [None, Some(Signal::SIGTERM), Some(Signal::SIGKILL)].iter().enumerate() {
        let mut command = pair.namespace(Side::A).command("sh");
        // from number 3 on, for the process that sh becomes
        let us = std::process::id();
        let open = (3..).zip(&manager.kept);
        let open = open.map(|(n, (_, fd))| format!("exec {n}<>/proc/{us}/fd/{}; ", fd.as_raw_fd()));
        let script = open.collect::<String>() + "LISTEN_PID=$$ exec \"$0\" run --config \"$1\"";
        command.args(["-c", &script]);
        command.arg(pair.tandem()).arg(pair.file("node-a.toml")).env("NOTIFY_SOCKET", &path);
        let names: Vec<&str> = manager.kept.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let mut node = Process::start("node", &mut command, &pair.log_path(Side::A))?;
        eventually("the manager to hear READY=1", SOON, || {
            manager.listen()?;
            ensure!(manager.said.iter().any(|text| text.contains("READY=1")), "not ready");
            Ok(())
        })
        .with_context(|| pair.log(Side::A))?;
        pair.wait_role(Side::A, &["MASTER_SOLO"], SOON)?;
        let mut client = pair.memcached(&pair.client, VIP)?;
        if round == 0 {
            fill(&mut client, 1000)?;
        }
        let missing = missing(&mut client, 1000)?;
        ensure!(missing == 0, "round {round}: {missing} of 1000 are gone");
        let mut names: Vec<&str> = manager.kept.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        ensure!(names == ["lasting-legacy", "lasting-store"], "{names:?}");
        let ending = ending.unwrap_or(Signal::SIGTERM);
        let guardian = child_running(node.pid(), "guardian").context("a guardian")?;
        node.signal(ending)?;
        node.wait(SOON)?;
        eventually("the guardian to end", SOON, || {
            ensure!(File::open(format!("/proc/{guardian}/stat")).is_err(), "it runs");
            Ok(())
        })?;
        manager.listen()?;
        let told = manager.said.iter().any(|text| text.contains("STOPPING=1"));
        ensure!(told == (ending == Signal::SIGTERM), "{:?}", manager.said);
        manager.said.clear();
    }
    Ok(())
}
