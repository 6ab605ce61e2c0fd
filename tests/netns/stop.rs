//! A planned stop: what is in flight is answered, what is new is served by the other node, and what
//! was answered stays.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use tests::eventually;
use tests::probe;
use tests::process::tail;
use tests::slow;
use tests::topology::{CLIENT, Options, Pair, Side, VIP};
use tests::watch::pass;

/// Requests in flight when the master is told to stop.
const IN_FLIGHT: usize = 16;
/// Paths, and the length of what is answered after 800 ms or more.
const SMALL: (&str, usize) = ("/wait/800/100", 100);
/// Too much for what the kernel sends without hearing of the client.
const LARGE: (&str, usize) = ("/wait/800/3000000", 3_000_000);
/// Each is acknowledged by the client, and the next must come after that.
const PIECES: (&str, usize) = ("/drip/12/100", 48);
const KEYS: usize = 250_000;
/// What a new client may wait: the goal is 100 ms, and the machine is shared; a node that nobody
/// replaces at once costs 3 s.
const OUTAGE_MAX: Duration = Duration::from_millis(900);

/// A pair whose balancer has one server, beside the client.
fn pair([xdp, io]: [&str; 2], engine: &str) -> Result<(Pair, Side)> {
    let options = Options { xdp: xdp.into(), io: io.into(), ..Options::default() };
    let mut pair = Pair::build("tandem-test", options)?;
    for side in Side::ALL {
        pair.edit_config(side, |text| {
            let (head, rest) = text.split_once("servers = ").unwrap_or((text, ""));
            let rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            let server = format!("servers = [ {{ address = \"{CLIENT}:8080\" }} ]\n");
            format!("{head}{server}{rest}").replace("[engine]\n", &format!("[engine]\n{engine}\n"))
        })?;
    }
    let master = pair.start_both()?;
    Ok((pair, master))
}

fn http() -> SocketAddr {
    (VIP, 80).into()
}

/// Stops the master with requests for `paths` in flight; all must be answered, while a stream of
/// new ones and numbered writes go on.
fn stop_with_requests_in_flight(mode: [&str; 2], paths: &[(&str, usize)]) -> Result<()> {
    let (mut pair, master) = pair(mode, "")?;
    let client = pair.client.name().to_owned();
    let server = slow::server(&client, 8080);
    let writer = probe::writer(&client, (VIP, 11211).into(), KEYS);
    let stream = slow::stream_of_requests(&client, http());
    eventually("the balancer to answer", Duration::from_secs(5), || {
        slow::request(&client, http(), "/now").join().map_err(|_panic| anyhow::anyhow!("panic"))?
    })?;
    pass(Duration::from_millis(300))?;
    let requests = paths.iter().cycle().take(IN_FLIGHT);
    let requests: Vec<_> = requests
        .map(|(path, length)| (*path, *length, slow::request(&client, http(), path)))
        .collect();
    pass(Duration::from_millis(200))?;
    pair.node(master)?.signal(Signal::SIGTERM)?;
    let mut refused = Vec::new();
    for (path, length, request) in requests {
        // a head that left before the stop could not say that the connection ends
        let says = !path.starts_with("/drip");
        match request.join().ok().context("a client panicked")? {
            Ok((got, closes)) => {
                ensure!(got == length && (closes || !says), "{path}: {got}, {closes}");
            }
            Err(error) => refused.push(format!("{error:#}")),
        }
    }
    let ended = pair.node(master)?.wait(Duration::from_secs(12))?;
    pair.wait_role(master.other(), &["MASTER_SOLO"], Duration::from_secs(5))?;
    let (stream, written) = (stream.stop()?, writer.stop()?);
    server.stop()?;
    let mut reader = pair.memcached(&pair.client, VIP)?;
    let lost = written.lost_at(&mut reader)?;
    eprintln!(
        "{mode:?}: {} of {IN_FLIGHT} answered; {} new ones, {} failed, longest wait {:?}; \
         writer {:?}, {lost} lost",
        IN_FLIGHT - refused.len(),
        stream.answered,
        stream.failed.len(),
        stream.longest,
        written.outage,
    );
    let logs = || Side::ALL.map(|side| tail(&pair.log_path(side), 25)).join("\n");
    ensure!(stream.longest < OUTAGE_MAX, "{:?} without an answer:\n{}", stream.longest, logs());
    ensure!(refused.is_empty(), "{} requests broken: {refused:?}", refused.len());
    ensure!(stream.failed.is_empty(), "new requests failed: {:?}", stream.failed);
    ensure!(lost == 0, "{lost} answered writes lost");
    ensure!(ended.success(), "{ended}");
    Ok(())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_stop_breaks_no_request() -> Result<()> {
    stop_with_requests_in_flight(["native", "uring"], &[SMALL, LARGE])
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_stop_breaks_no_request_off_epoll() -> Result<()> {
    stop_with_requests_in_flight(["off", "epoll"], &[SMALL, PIECES])
}

/// The replica has just been slow: the stop waits until it is in sync again.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_stop_waits_for_a_slow_replica() -> Result<()> {
    let (mut pair, master) = pair(["auto", "auto"], "")?;
    let client = pair.client.name().to_owned();
    let writer = probe::writer(&client, (VIP, 11211).into(), KEYS);
    let engine = pair.engine(master.other())?;
    kill(engine, Signal::SIGSTOP)?;
    let told = pair.wait_role(master, &["MASTER_SOLO"], Duration::from_secs(5));
    kill(engine, Signal::SIGCONT)?;
    told?;
    pair.node(master)?.signal(Signal::SIGTERM)?;
    ensure!(pair.node(master)?.wait(Duration::from_secs(12))?.success());
    pair.wait_role(master.other(), &["MASTER_SOLO"], Duration::from_secs(5))?;
    let written = writer.stop()?;
    let lost = written.lost_at(&mut pair.memcached(&pair.client, VIP)?)?;
    eprintln!("slow replica: writer {:?}, {lost} lost", written.outage);
    ensure!(lost == 0, "{lost} answered writes lost");
    ensure!(written.outage.longest < Duration::from_secs(1), "a gap: {:?}", written.outage);
    Ok(())
}

/// Asks for an answer that takes eight seconds, tells the master to stop, and calls `then` half a
/// second later; how long the node lived on, and what became of the request.
fn stop_with_a_long_request(
    patience: &str,
    then: impl FnOnce(&mut Pair, Side) -> Result<()>,
) -> Result<(Duration, Result<(usize, bool)>)> {
    let patience = format!("stop_patience = \"{patience}\"");
    let (mut pair, master) = pair(["auto", "auto"], &patience)?;
    let client = pair.client.name().to_owned();
    let server = slow::server(&client, 8080);
    let mut idle = pair.memcached(&pair.client, VIP)?;
    ensure!(idle.set("k", b"1")? == "STORED");
    let request = slow::request(&client, http(), "/wait/8000/100");
    pass(Duration::from_millis(300))?;
    let told = Instant::now();
    pair.node(master)?.signal(Signal::SIGTERM)?;
    ensure!(idle.line().is_err_and(|error| error.to_string().contains("was closed")), "idle");
    ensure!(told.elapsed() < Duration::from_millis(300), "an idle connection was kept");
    pass(Duration::from_millis(500))?;
    ensure!(pair.is_running(master), "it did not wait");
    then(&mut pair, master)?;
    ensure!(pair.node(master)?.wait(Duration::from_secs(5))?.success());
    let lived = told.elapsed();
    let request = request.join().ok().context("the client panicked")?;
    drop(server);
    Ok((lived, request))
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_stop_waits_no_longer_than_its_patience() -> Result<()> {
    let (lived, request) = stop_with_a_long_request("1500ms", |_, _| Ok(()))?;
    ensure!((1500..3000).contains(&lived.as_millis()), "it ended after {lived:?}");
    ensure!(request.is_err(), "{request:?}");
    Ok(())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_second_sigterm_ends_at_once() -> Result<()> {
    let again = |pair: &mut Pair, master| pair.node(master)?.signal(Signal::SIGTERM);
    let (lived, request) = stop_with_a_long_request("60s", again)?;
    ensure!(lived < Duration::from_millis(1500), "it ended after {lived:?}");
    ensure!(request.is_err(), "{request:?}");
    Ok(())
}
