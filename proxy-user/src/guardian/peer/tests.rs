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
    assert_eq!(a.stats().refused, 0, "no stranger was seen");
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
    for (peer, keys) in [(peer, [1, 2]), (other, [1, 1]), (twin, [1, 1])] {
        let (mut a, mut b) = pair(us.clone(), peer, keys);
        let limit = Instant::now() + Duration::from_secs(10);
        while a.stats().refused == 0 || b.stats().refused == 0 {
            assert!(Instant::now() < limit, "not refused");
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
    b.sockets.udp[0].send_to(&[1; 60], to).unwrap();
    let stranger = std::net::TcpStream::connect(to).unwrap();
    io::Write::write_all(&mut &stranger, &[0xff; 40]).unwrap();
    let limit = Instant::now() + Duration::from_secs(10);
    while a.stats().refused == 0 || a.stats().datagrams_refused == 0 {
        assert!(Instant::now() < limit, "not counted");
        assert_eq!(a.turn(Instant::now()), vec![]);
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
    assert!(b.stats().refused > 0);
    drop(crowd);
}
