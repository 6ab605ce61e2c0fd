//! A lab that stays up, and the orders given to it over a UNIX socket.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tests::eventually::INTERRUPTED;
use tests::filter::{Network, Rule, Way, What};
use tests::netns::run;
use tests::topology::{Pair, Side, VIP};

use crate::PREFIX;

/// Where a running lab listens for orders.
const SOCKET: &str = "/run/tandem-lab.sock";

/// The socket file goes with the lab.
struct Socket(UnixListener);

impl Socket {
    fn bind() -> Result<Self> {
        if UnixStream::connect(SOCKET).is_ok() {
            bail!("a lab is running already: ./run lab status");
        }
        if Path::new(SOCKET).exists() {
            fs::remove_file(SOCKET)?;
        }
        let listener = UnixListener::bind(SOCKET).context(SOCKET)?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(SOCKET) {
            eprintln!("{SOCKET}: {error}");
        }
    }
}

/// Runs both nodes until interrupted, obeying orders.
pub(crate) fn serve(mut pair: Pair) -> Result<()> {
    let socket = Socket::bind()?;
    println!("starting two nodes ...");
    let master = pair.start_both()?;
    println!("{}", welcome(&pair, master));
    while !INTERRUPTED.load(Ordering::Relaxed) {
        match socket.0.accept() {
            Ok((stream, _)) => {
                if let Err(error) = answer(&mut pair, stream) {
                    eprintln!("an order was not answered: {error:#}");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::park_timeout(Duration::from_millis(50));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("accepting orders"),
        }
    }
    println!("taking the lab down");
    Ok(())
}

fn welcome(pair: &Pair, master: Side) -> String {
    let client = pair.client.name();
    let [a, b] = Side::ALL.map(|side| pair.namespace(side).name().to_owned());
    format!(
        "up: node a (10.77.0.1) and node b (10.77.0.2), {VIP} is at {}; Ctrl-C takes it down\n\
         \n\
         through the virtual address, as a client:\n\
         \x20 ip netns exec {client} curl -i http://{VIP}/text\n\
         \x20 ip netns exec {client} bash -c 'exec 3<>/dev/tcp/{VIP}/11211; \
         printf \"set k 0 0 1\\r\\n1\\r\\nget k\\r\\nquit\\r\\n\" >&3; cat <&3'\n\
         status pages:\n\
         \x20 ip netns exec {a} curl -s http://127.0.0.1:9900/status.json\n\
         \x20 ip netns exec {b} curl -s http://127.0.0.1:9900/status.json\n\
         from another terminal:\n\
         \x20 ./run lab status | kill-engine a | kill-guardian a | kill-node a | cut a | deaf a | \
         mute a | filter a | return a\n\
         logs: {} and {}",
        master.name(),
        pair.log_path(Side::A).display(),
        pair.log_path(Side::B).display(),
    )
}

fn answer(pair: &mut Pair, stream: UnixStream) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut line = String::new();
    let mut reader = BufReader::new(stream);
    reader.read_line(&mut line)?;
    let text = match obey(pair, line.trim()) {
        Ok(text) => format!("ok {text}"),
        Err(error) => format!("failed: {error:#}"),
    };
    println!("{}: {text}", line.trim());
    Ok(reader.get_mut().write_all(text.as_bytes())?)
}

fn obey(pair: &mut Pair, line: &str) -> Result<String> {
    let (verb, node) = line.split_once(' ').unwrap_or((line, "a"));
    let side: Side = node.parse()?;
    match verb {
        "status" => {}
        "kill-engine" => drop(pair.kill_engine(side)?),
        "kill-guardian" => pair.kill_guardian(side)?,
        "kill-node" => pair.kill_node(side)?,
        "cut" => pair.cut(side)?,
        "deaf" => pair.filter(&Rule::silence(side, Way::In, &[Network::Lan]))?,
        "mute" => pair.filter(&Rule::silence(side, Way::Out, &[Network::Lan]))?,
        "filter" => pair.filter(&Rule::everywhere(side, What::Port(7700)))?,
        "return" => {
            pair.filter(&[])?;
            pair.heal(side)?;
            if !pair.is_running(side) {
                pair.start(side)?;
            }
        }
        _ => bail!("no such order: {verb}"),
    }
    let role = |side| pair.role(side).unwrap_or_else(|_silent| "does not answer".to_owned());
    Ok(format!("a: {}, b: {}", role(Side::A), role(Side::B)))
}

/// Gives an order to the running lab and prints its answer.
pub(crate) fn order(line: &str) -> Result<()> {
    let mut stream =
        UnixStream::connect(SOCKET).context("no lab is running: start one with ./run lab")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    let text = answer.strip_prefix("ok ").with_context(|| answer.clone())?;
    println!("{text}");
    Ok(())
}

/// Removes namespaces of labs whose process is gone, and ends what still runs inside them.
pub(crate) fn clean() -> Result<()> {
    let list = run("ip", &["netns", "list"])?;
    let mut removed = 0;
    for name in list.lines().filter_map(|line| line.split(' ').next()) {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_prefix('-')?.split('-').next()?.parse::<u32>().ok());
        let Some(owner) = owner else { continue };
        if Path::new(&format!("/proc/{owner}")).exists() {
            println!("{name}: its lab (pid {owner}) still runs");
            continue;
        }
        for pid in run("ip", &["netns", "pids", name])?.split_whitespace() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().context("ip netns pids")?);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
        }
        run("ip", &["netns", "del", name])?;
        removed += 1;
    }
    println!("{removed} namespaces removed");
    ensure!(
        UnixStream::connect(SOCKET).is_ok()
            || fs::remove_file(SOCKET).is_ok()
            || !Path::new(SOCKET).exists()
    );
    Ok(())
}
