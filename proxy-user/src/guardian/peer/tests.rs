//! Two links in one process, over loopback sockets.

use std::net::{TcpListener, UdpSocket};

use super::session::tests::introduction;
use super::*;

fn sockets() -> (PeerSockets, SocketAddr) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        // The same port for datagrams, unless somebody has it.
        let Ok(udp) = UdpSocket::bind(address) else { continue };
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        return (PeerSockets { tcp: vec![tcp], udp: vec![udp] }, address);
    }
}

fn pair(a: Introduction, b: Introduction, keys: [u8; 2]) -> (PeerLink, PeerLink) {
    let now = Instant::now();
    let ((at_a, address_a), (at_b, address_b)) = (sockets(), sockets());
    let key = |byte| Secret([byte; 32]);
    (
        PeerLink::new(now, a, key(keys[0]), vec![address_b], at_a),
        PeerLink::new(now, b, key(keys[1]), vec![address_a], at_b),
    )
}

/// The reasons for which it has refused something.
fn reasons(link: &PeerLink) -> Vec<(&'static str, u64)> {
    link.stats().refused.into_iter().filter(|(_, count)| *count > 0).collect()
}

/// Turns both until `done` says so.
fn turn_until(
    a: &mut PeerLink,
    b: &mut PeerLink,
    mut done: impl FnMut(&[Input], &[Input]) -> bool,
) -> (Vec<Input>, Vec<Input>) {
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    let limit = Instant::now() + Duration::from_secs(10);
    while !done(&at_a, &at_b) {
        assert!(Instant::now() < limit, "nothing happens: {at_a:?} {at_b:?}");
        let now = Instant::now();
        at_a.extend(a.turn(now));
        at_b.extend(b.turn(now));
    }
    (at_a, at_b)
}

fn connected(inputs: &[Input]) -> bool {
    inputs.contains(&Input::Control(ControlEvent::Connected))
}

#[test]
fn beats_by_datagram_and_by_frame() {
    let (mut a, mut b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    turn_until(&mut a, &mut b, |at_a, at_b| connected(at_a) && connected(at_b));
    let now = Instant::now();
    a.send(now, &PeerMessage::Bye);
    b.send(now, &PeerMessage::Bye);
    let both = |inputs: &[Input]| {
        let via = Some(Via { ours: 0, theirs: 0 });
        [None, via].iter().all(|via| inputs.contains(&Input::Message(PeerMessage::Bye, *via)))
    };
    turn_until(&mut a, &mut b, |at_a, at_b| both(at_a) && both(at_b));
    assert_eq!((a.stats().beats_received, b.stats().beats_received), (1, 1));
    assert_eq!(a.stats().name.as_deref(), Some("b"));
    assert_eq!(b.stats().connections, 1);
}

#[test]
fn a_closed_connection_is_told_and_dialled_again() {
    let (mut a, mut b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    turn_until(&mut a, &mut b, |at_a, at_b| connected(at_a) && connected(at_b));
    // As a killed guardian's kernel does: the sockets close.
    b.links.clear();
    b.current = None;
    let closed = Input::Control(ControlEvent::ClosedByPeer);
    let (at_a, at_b) = turn_until(&mut a, &mut b, |at_a, at_b| {
        at_a.contains(&closed) && connected(at_a) && connected(at_b)
    });
    assert_eq!(at_a.first(), Some(&closed));
    assert!(connected(&at_b));
    let refused = Input::Control(ControlEvent::Refused);
    assert!(!at_a.contains(&refused), "a guardian listens: an end alone proves nothing");
}

#[test]
fn a_dead_guardian_is_one_whose_kernel_refuses() {
    let (mut a, mut b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    turn_until(&mut a, &mut b, |at_a, at_b| connected(at_a) && connected(at_b));
    drop(b);
    let refused = Input::Control(ControlEvent::Refused);
    let limit = Instant::now() + Duration::from_secs(10);
    let mut seen = Vec::new();
    while !seen.contains(&refused) {
        assert!(Instant::now() < limit, "not refused: {seen:?}");
        seen.extend(a.turn(Instant::now()));
    }
    assert_eq!(seen.first(), Some(&Input::Control(ControlEvent::ClosedByPeer)));
    assert_eq!(reasons(&a), [], "no stranger was seen");
}

#[test]
fn datagrams_outlive_their_connection() {
    let (mut a, mut b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    turn_until(&mut a, &mut b, |at_a, at_b| connected(at_a) && connected(at_b));
    let now = Instant::now();
    a.dial_at[0] = None;
    a.end(now, 0, &End::Lost, &mut Vec::new());
    a.dial_at[0] = None;
    a.send(now, &PeerMessage::Bye);
    let bye = Input::Message(PeerMessage::Bye, Some(Via { ours: 0, theirs: 0 }));
    turn_until(&mut a, &mut b, |_, at_b| at_b.contains(&bye));
    b.send(now, &PeerMessage::Bye);
    turn_until(&mut a, &mut b, |at_a, _| at_a.contains(&bye));
}

#[test]
fn a_restarted_peer_replaces_its_former_boot() {
    let (mut a, mut b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    turn_until(&mut a, &mut b, |at_a, at_b| connected(at_a) && connected(at_b));
    // A new boot of a, whose former connection b still holds.
    let (mut again, _) = pair(introduction(Side::A, 9), introduction(Side::B, 2), [1, 1]);
    again.paths = a.paths.clone();
    let (_, at_b) = turn_until(&mut again, &mut b, |_, at_b| connected(at_b));
    let told = [Input::Control(ControlEvent::Lost), Input::Control(ControlEvent::Connected)];
    assert_eq!(at_b, told);
    assert_eq!((b.links.len(), b.kept.len()), (1, 0));
}

#[test]
fn strangers_are_refused_and_counted_on_both_sides() {
    let us = introduction(Side::A, 1);
    let peer = introduction(Side::B, 2);
    let other = Introduction { cluster: "other".to_owned(), ..peer.clone() };
    let twin = Introduction { side: Side::A, ..peer.clone() };
    let slow = Introduction { dead_after: 9, ..peer.clone() };
    for (peer, keys, reason) in [
        (peer, [1, 2], "wrong_key"),
        (other, [1, 1], "wrong_cluster"),
        (twin, [1, 1], "same_side"),
        (slow, [1, 1], "wrong_timing"),
    ] {
        let (mut a, mut b) = pair(us.clone(), peer, keys);
        let limit = Instant::now() + Duration::from_secs(10);
        let has = |link: &PeerLink, one| reasons(link).iter().any(|(reason, _)| *reason == one);
        while !has(&a, "by_peer") || !has(&b, reason) {
            assert!(Instant::now() < limit, "{:?} {:?}", reasons(&a), reasons(&b));
            let now = Instant::now();
            assert_eq!((a.turn(now), b.turn(now)), (vec![], vec![]));
        }
        let now = Instant::now();
        a.send(now, &PeerMessage::Bye);
        assert_eq!(a.stats().beats_sent, 0, "nothing without a session");
        assert_eq!(b.turn(now), vec![]);
    }
}

#[test]
fn garbage_is_counted() {
    let (mut a, b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    let to = a.sockets.udp[0].local_addr().unwrap();
    for garbage in [&[1; 60][..], &[0xff; 60], &[2; 32]] {
        b.sockets.udp[0].send_to(garbage, to).unwrap();
    }
    let stranger = std::net::TcpStream::connect(to).unwrap();
    std::io::Write::write_all(&mut &stranger, &[0xff; 40]).unwrap();
    let limit = Instant::now() + Duration::from_secs(10);
    let all = [("datagram_version", 2), ("malformed", 1), ("datagram_malformed", 1)];
    while reasons(&a) != all {
        assert!(Instant::now() < limit, "counted: {:?}", reasons(&a));
        assert_eq!(a.turn(Instant::now()), vec![]);
    }
}

/// Whatever is recorded on the wire is worth nothing when it is played again.
#[test]
fn recorded_handshakes_and_datagrams_are_refused() {
    let (mut a, mut b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    turn_until(&mut a, &mut b, |at_a, at_b| connected(at_a) && connected(at_b));
    let to = b.sockets.tcp[0].local_addr().unwrap();
    let beat = [&PeerMessage::Bye.encode()[..], &[0]].concat();
    let datagram = a.newest().unwrap().seal_datagram(&beat).unwrap();
    for _ in 0..3 {
        a.sockets.udp[0].send_to(&datagram, to).unwrap();
    }
    // the dialler's first message, as it was on the wire, and nothing true after it
    let mut shake = session::Handshake::new(&Secret([1; 32]), true).unwrap();
    let first = shake.write(&introduction(Side::A, 1)).unwrap();
    let first = [&u16::try_from(first.len()).unwrap().to_be_bytes()[..], &first].concat();
    let recorded = [&first[..], &[0, 16], &[7; 16]].concat();
    let streams = [first, recorded].map(|bytes| {
        let mut stream = std::net::TcpStream::connect(to).unwrap();
        std::io::Write::write_all(&mut stream, &bytes).unwrap();
        stream
    });
    let limit = Instant::now() + Duration::from_secs(10);
    let mut heard = Vec::new();
    // the one that says nothing more is refused when its time is over
    while reasons(&b) != [("unproved", 2), ("datagram_replay", 2)] {
        assert!(Instant::now() < limit, "{:?}", reasons(&b));
        heard.extend(b.turn(Instant::now()));
    }
    assert_eq!(heard.len(), 2, "heard once: {heard:?}");
    assert_eq!(b.stats().connections, 1);
    drop(streams);
}

#[test]
fn who_says_nothing_is_refused_in_time() {
    let (a, mut b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    let silent = std::net::TcpStream::connect(b.sockets.tcp[0].local_addr().unwrap()).unwrap();
    let limit = Instant::now() + Duration::from_secs(10);
    while reasons(&b) != [("silent", 1)] {
        assert!(Instant::now() < limit, "{:?}", reasons(&b));
        b.turn(Instant::now());
    }
    drop((a, silent));
}

/// A crowd at one listener: a turn takes no more than its bound from all of them together, and the
/// one that comes to another listener is among them.
#[test]
fn a_turn_accepts_a_bounded_number_from_all_listeners_in_turn() {
    let (_a, mut b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    b.sockets.tcp.extend((0..3).map(|_| sockets().0.tcp.remove(0)));
    let connect = |link: &PeerLink, listener: usize, from: u8| {
        let to = link.sockets.tcp[listener].local_addr().unwrap();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 1, from], 0)).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        socket
    };
    let taken = |link: &PeerLink| -> u64 {
        let refused: u64 = reasons(link).iter().map(|(_, count)| count).sum();
        refused + u64::try_from(link.links.len()).unwrap()
    };
    for last in 0..4 {
        let crowd: Vec<_> = (0..100).map(|n| connect(&b, (last + 1 + n % 3) % 4, 10)).collect();
        let one = connect(&b, last, 9);
        let before = taken(&b);
        b.turn(Instant::now());
        assert_eq!(taken(&b) - before, 16, "in one turn");
        let own = one.local_addr().unwrap().as_socket();
        let among = b.links.iter().any(|link| Some(link.connection.remote) == own);
        assert!(among, "listener {last} was left out");
        drop(crowd);
        (0..20).for_each(|_| drop(b.turn(Instant::now())));
        b.links.clear();
    }
}

/// An end that a write meets first, not a read, is told all the same.
#[test]
fn an_end_that_sending_meets_is_told() {
    let (mut a, mut b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    turn_until(&mut a, &mut b, |at_a, at_b| connected(at_a) && connected(at_b));
    // unread bytes: the kernel resets instead of closing in order
    a.send(Instant::now(), &PeerMessage::Bye);
    drop(b);
    let limit = Instant::now() + Duration::from_secs(10);
    while a.stats().connections > 0 {
        assert!(Instant::now() < limit, "sending never met the end");
        a.send(Instant::now(), &PeerMessage::Bye);
    }
    let told = a.turn(Instant::now());
    assert!(told.contains(&Input::Control(ControlEvent::Lost)), "{told:?}");
}

/// Whatever a crowd without the key does, the peer is let in at once, and its beats go on.
#[test]
fn a_crowd_without_the_key_keeps_nobody_out() {
    let (mut a, mut b) = pair(introduction(Side::A, 1), introduction(Side::B, 2), [1, 1]);
    let to = b.sockets.tcp[0].local_addr().unwrap();
    // loopback is the peer's own address here: the crowd must come from another
    let from = |n: u8| SocketAddr::from(([127, 0, 1, n], 0));
    let crowd: Vec<socket2::Socket> = (1..=200_u8)
        .map(|n| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.unwrap();
            socket.bind(&from(n).into()).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&to.into()).err();
            socket
        })
        .collect();
    let begun = Instant::now();
    turn_until(&mut a, &mut b, |at_a, at_b| connected(at_a) && connected(at_b));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(b.links.len() <= 16, "{} places", b.links.len());
    let reasons = reasons(&b);
    assert!(reasons.iter().any(|(reason, _)| *reason == "no_free_place"), "{reasons:?}");
    drop(crowd);
}
