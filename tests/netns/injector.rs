//! The fault injector itself: what it drops is dropped, ARP too, and nothing else; healed, all
//! comes through again. No node runs here.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::eventually;
use tests::filter::{Network, Rule, Way, What};
use tests::netns::{Namespace, enter};
use tests::topology::{CLIENT, Options, Pair, Side};
use tests::wire::{Answers, asker};

const PORT: u16 = 7700;
const LIMIT: Duration = Duration::from_secs(5);

fn pair() -> Result<Pair> {
    Pair::build("tandem-test", Options::default())
}

/// Asks for a node's own address by ARP until `enough` requests were made; the answers.
fn asked(pair: &Pair, of: Ipv4Addr) -> Result<Answers> {
    let probe = asker(&pair.client, CLIENT, of)?;
    tests::watch::pass(Duration::from_millis(100))?;
    probe.stop()
}

/// True when a datagram from `from` to `to` arrives.
fn arrives(from: &Namespace, to: &Namespace, address: Ipv4Addr, port: u16) -> Result<bool> {
    let receiver = to.run(|| Ok(UdpSocket::bind((address, port))?))?;
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    let sender = from.run(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
    let mut buffer = [0; 8];
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        // "Host unreachable" is a way of not arriving.
        if sender.send_to(b"?", (address, port)).is_ok() && receiver.recv(&mut buffer).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A to B on the LAN, B to A on the LAN, A to B on the second network, B to A there.
fn reach(pair: &Pair) -> Result<[bool; 4]> {
    let [a, b] = Side::ALL.map(|side| pair.namespace(side));
    Ok([
        arrives(a, b, Side::B.address(), PORT)?,
        arrives(b, a, Side::A.address(), PORT)?,
        arrives(a, b, Side::B.second(), PORT)?,
        arrives(b, a, Side::A.second(), PORT)?,
    ])
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn deaf_and_mute_are_one_way_and_include_arp() -> Result<()> {
    let pair = pair()?;
    ensure!(reach(&pair)? == [true; 4], "everything arrives at first");
    for (way, hears, is_heard) in [(Way::In, false, true), (Way::Out, true, false)] {
        pair.filter(&Rule::silence(Side::A, way, &[Network::Lan]))?;
        ensure!(reach(&pair)? == [is_heard, hears, true, true], "{way:?}: {:?}", reach(&pair)?);
        let answers = asked(&pair, Side::A.address())?.replies.len();
        ensure!(answers == 0, "{way:?}: {answers} answers to ARP");
        ensure!(!asked(&pair, Side::B.address())?.replies.is_empty(), "the other answers");
        pair.filter(&Rule::silence(Side::A, way, &Network::ALL))?;
        ensure!(reach(&pair)? == [is_heard, hears, is_heard, hears], "{way:?} on both");
    }
    pair.filter(&[])?;
    ensure!(reach(&pair)? == [true; 4], "healed");
    ensure!(!asked(&pair, Side::A.address())?.replies.is_empty(), "healed: ARP");
    Ok(())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_port_or_a_protocol_is_dropped_alone() -> Result<()> {
    let pair = pair()?;
    let [a, b] = Side::ALL.map(|side| pair.namespace(side));
    pair.filter(&Rule::everywhere(Side::B, What::Port(PORT)))?;
    ensure!(reach(&pair)? == [false; 4], "the port is filtered on each path");
    ensure!(arrives(a, b, Side::B.address(), PORT + 1)?, "the next port is not");
    ensure!(!asked(&pair, Side::B.address())?.replies.is_empty(), "nor is ARP");
    pair.filter(&Rule::everywhere(Side::B, What::Arp))?;
    ensure!(asked(&pair, Side::B.address())?.replies.is_empty(), "ARP alone");
    ensure!(!asked(&pair, Side::A.address())?.replies.is_empty(), "of one node alone");
    pair.filter(&[])?;
    ensure!(reach(&pair)? == [true; 4], "healed");
    Ok(())
}

/// A cut drops both ways on both networks and is there and gone at once.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_cut_lasts_as_long_as_is_said() -> Result<()> {
    let pair = pair()?;
    ensure!(reach(&pair)? == [true; 4], "neighbours are known now");
    pair.cut(Side::A)?;
    ensure!(reach(&pair)? == [false; 4], "cut");
    pair.heal(Side::A)?;
    ensure!(reach(&pair)? == [true; 4], "healed");
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let begun = Instant::now();
        pair.cut(Side::A)?;
        pair.heal(Side::A)?;
        longest = longest.max(begun.elapsed());
    }
    eprintln!("a cut and its heal took {longest:?} at most");
    // Counted at the far end: datagrams of a steady stream that a cut of 40 ms swallows.
    let swallowed = swallowed(&pair, Duration::from_millis(40))?;
    ensure!((20..=400).contains(&swallowed), "{swallowed} of one a millisecond");
    Ok(())
}

fn swallowed(pair: &Pair, cut: Duration) -> Result<u64> {
    let receiver = pair.namespace(Side::B).run(|| Ok(UdpSocket::bind((Side::B.address(), 9))?))?;
    receiver.set_read_timeout(Some(Duration::from_millis(20)))?;
    let name = pair.namespace(Side::A).name().to_owned();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<u64> {
            enter(&name)?;
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                sent += u64::from(socket.send_to(b"?", (Side::B.address(), 9)).is_ok());
                std::thread::park_timeout(Duration::from_millis(1));
            }
            Ok(sent)
        });
        let played = tests::watch::pass(Duration::from_millis(50))
            .and_then(|()| pair.cut(Side::A))
            .and_then(|()| tests::watch::pass(cut))
            .and_then(|()| pair.heal(Side::A))
            .and_then(|()| tests::watch::pass(Duration::from_millis(50)));
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_panic| anyhow::anyhow!("the sender panicked"))??;
        played?;
        let mut received = 0;
        eventually("the stream to end", LIMIT, || {
            while receiver.recv(&mut [0; 8]).is_ok() {
                received += 1;
            }
            Ok(())
        })?;
        Ok(sent - received)
    })
}
