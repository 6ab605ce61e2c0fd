//! Runs with a plan by hand: each single failure with what it may cost, and the planted faults.

use crate::clients::CLIENTS;
use crate::faults::{Fault, Plan};
use crate::network::Use;
use crate::report;
use crate::world::{MS, Mutation, Nanos, Options, World};

/// A plan by hand, for the scripted tests: side a becomes master, then these faults.
fn scripted(faults: &[(u64, Fault)]) -> Plan {
    let faults = faults.iter().map(|(ms, fault)| (ms * MS, *fault)).collect();
    Plan { faults, ..Plan::calm(3_000 * MS) }
}

fn play_plan(seed: u64, mutation: Mutation, plan: Plan) -> World {
    let print = std::env::var("SIM_SEED").is_ok();
    let mut world = World::new(Options { seed, mutation, plan: Some(plan), print });
    world.run();
    world.look_at_the_end();
    world
}

/// A planted fault is found by its pinned seed and plan, which are clean without it.
fn planted(mutation: Mutation, seed: u64, faults: &[(u64, Fault)]) {
    let found = play_plan(seed, mutation, scripted(faults));
    let complaint = found.checker.complaint().expect("the checkers find the planted fault");
    println!("planted {mutation:?}, seed {seed}: found: {complaint}");
    assert!(complaint.contains("was answered"), "{complaint}");
    let sound = play_plan(seed, Mutation::Sound, scripted(faults));
    assert!(sound.checker.complaint().is_none(), "{}", report(&sound, seed));
}

/// An answer leaves before the peer has acked what it stands on; then the master dies.
#[test]
fn planted_answer_before_ack_is_found() {
    let faults = [
        (700, Fault::Slow { host: 1, length: 100 * MS }),
        (750, Fault::Power { host: 0, back: 400 * MS }),
        (1_600, Fault::Calm),
    ];
    planted(Mutation::AnswerBeforeAck, 11, &faults);
}

/// A master goes solo on an OutOfSync that its peer never heard, and so never confirmed; the peer,
/// in sync by all it knows, takes over.
#[test]
fn planted_unconfirmed_out_of_sync_is_found() {
    let faults = [
        (700, Fault::Cut { path: 0, from: 0 }),
        (700, Fault::Cut { path: 1, from: 0 }),
        (1_200, Fault::Mend { path: 0 }),
        (1_200, Fault::Mend { path: 1 }),
        (1_600, Fault::Calm),
    ];
    planted(Mutation::UnconfirmedOutOfSync, 7, &faults);
}

/// When the failure happens: the pair is in sync for long, side a is master.
const AT: u64 = 700;

/// One failure, and what it may cost.
struct Row {
    name: &'static str,
    faults: Vec<(u64, Fault)>,
    /// Milliseconds until the peer reigns, at most; `None`: it must not.
    takeover: Option<Nanos>,
}

fn cut(from: &[usize]) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    for path in 0..2 {
        faults.extend(from.iter().map(|from| (AT, Fault::Cut { path, from: *from })));
        faults.push((AT + 300, Fault::Mend { path }));
    }
    faults
}

fn stop(host: usize, guardian: bool, engine: bool, ms: u64) -> Fault {
    Fault::Stop { host, guardian, engine, length: ms * MS }
}

/// Of the master: what must make the peer take over, and how soon. `T_dead` is 40 ms; the state
/// file takes up to 2 ms.
fn failures_of_the_master() -> Vec<Row> {
    let row = |name, faults, ms| Row { name, faults, takeover: Some(ms) };
    let back = 400 * MS;
    vec![
        row("engine killed", vec![(AT, Fault::Engine { host: 0, lost: false })], 5),
        row("engine killed, store lost", vec![(AT, Fault::Engine { host: 0, lost: true })], 5),
        row("guardian killed", vec![(AT, Fault::Guardian { host: 0, back, keeps: false })], 8),
        row(
            "guardian restarted at once",
            vec![(AT, Fault::Guardian { host: 0, back: 2 * MS, keeps: true })],
            8,
        ),
        row("power lost", vec![(AT, Fault::Power { host: 0, back })], 50),
        // its kernel answers: that takes longer to believe
        row("stopped and continued", vec![(AT, stop(0, true, true, 300))], 240),
        row("guardian stopped and continued", vec![(AT, stop(0, true, false, 300))], 240),
        row("carrier lost", vec![(AT, Fault::Carrier { host: 0, up: false })], 5),
        row("unheard, but hears", cut(&[0]), 50),
        row("divided", cut(&[0, 1]), 50),
    ]
}

/// What must not change the master.
fn failures_of_no_master() -> Vec<Row> {
    let row = |name, faults| Row { name, faults, takeover: None };
    let back = 400 * MS;
    let links = Fault::Refuse(Use::Link(1), 300 * MS);
    let control = Fault::Refuse(Use::Control, 300 * MS);
    let mute = vec![
        (AT, Fault::Filter),
        (AT + 300, Fault::Mend { path: 0 }),
        (AT + 300, Fault::Mend { path: 1 }),
    ];
    vec![
        row("the backup's engine killed", vec![(AT, Fault::Engine { host: 1, lost: false })]),
        row(
            "the backup's guardian killed",
            vec![(AT, Fault::Guardian { host: 1, back, keeps: true })],
        ),
        row("the backup's power lost", vec![(AT, Fault::Power { host: 1, back })]),
        row("the backup stopped and continued", vec![(AT, stop(1, true, true, 300))]),
        row("the backup slow", vec![(AT, Fault::Slow { host: 1, length: 300 * MS })]),
        row("the backup's carrier lost", vec![(AT, Fault::Carrier { host: 1, up: false })]),
        row("a hung engine of the master", vec![(AT, stop(0, false, true, 100))]),
        row("the master hears nothing, but is heard", cut(&[1])),
        row("datagrams filtered", mute),
        row("control connection refused", vec![(AT, control)]),
        row("a stream's link refused", vec![(AT, links)]),
        row("one path lost", vec![(AT, Fault::Cut { path: 1, from: 0 })]),
        row("the master's disk full", vec![(AT, Fault::Disk { host: 0, broken: true })]),
    ]
}

/// No protected answer is lost (the checkers see to that), the peer reigns in time or not at all,
/// and nothing else moves: neither the old master's return nor the healing takes the role back.
#[test]
fn each_single_failure_costs_what_it_may() {
    for row in failures_of_the_master().into_iter().chain(failures_of_no_master()) {
        for seed in 0..4 {
            let mut faults = row.faults.clone();
            faults.push((AT + 800, Fault::Calm));
            let world = play_plan(seed, Mutation::Sound, scripted(&faults));
            let Row { name, takeover, .. } = row;
            assert!(world.checker.complaint().is_none(), "{name}: {}", report(&world, seed));
            let crowns = &world.figures.crowns;
            assert_eq!(crowns.first().map(|(_, host)| *host), Some(0), "{name}, seed {seed}");
            match takeover {
                None => assert_eq!(crowns.len(), 1, "{name}, seed {seed}: {crowns:?}"),
                Some(ms) => {
                    assert_eq!(crowns.len(), 2, "{name}, seed {seed}: {crowns:?}");
                    let (at, host) = crowns[1];
                    let late = at.saturating_sub(AT * MS);
                    assert!(late <= ms * MS && host == 1, "{name}, seed {seed}: {late} ns");
                }
            }
        }
    }
}

/// Nothing comes in (deaf) or goes out (mute), at a host's end of the clients' segment (path 0), of
/// the second network, or of both; carrier stays up.
fn port(host: usize, deaf: bool, paths: &[usize], ms: u64) -> Vec<(u64, Fault)> {
    let mut faults: Vec<_> =
        paths.iter().map(|path| (AT, Fault::Port { host, path: *path, deaf })).collect();
    faults.extend(paths.iter().map(|path| (AT + ms, Fault::Mend { path: *path })));
    faults
}

/// Deaf and mute nodes: who cannot be reached on the segment never keeps the address while the
/// other can serve, and nothing that was answered is lost.
#[test]
fn deaf_and_mute_nodes_never_own_the_address() {
    let mut table = Vec::new();
    for (host, who) in [(0, "master"), (1, "backup")] {
        for (deaf, how) in [(true, "deaf"), (false, "mute")] {
            for (paths, place) in [(&[0][..], "LAN"), (&[1], "second"), (&[0, 1], "both")] {
                let moves = host == 0 && paths.contains(&0);
                let name = format!("{who} {how} on {place}");
                let late = each_seed(&name, &port(host, deaf, paths, 600), moves.then_some(120));
                table.push(format!("{name}: {late}"));
            }
        }
    }
    println!("{}", table.join("\n"));
}

/// Both cables of the backup cut, carrier up: no role change that a client could see, nothing lost.
#[test]
fn cuts_of_the_backup_change_nothing() {
    for ms in [20, 30, 40, 50, 150, 300, 1_000] {
        let mut faults = port(1, true, &[0, 1], ms);
        faults.extend(port(1, false, &[0, 1], ms));
        each_seed(&format!("backup cut for {ms} ms"), &faults, None);
        // and one direction only
        for deaf in [true, false] {
            each_seed(&format!("deaf {deaf} {ms} ms"), &port(1, deaf, &[0, 1], ms), None);
        }
    }
}

/// Carrier gone for longer than every patience, on both networks, and back: no reign in between.
#[test]
fn carrier_back_after_long_makes_no_master() {
    for host in [0, 1] {
        let mut faults = vec![(AT, Fault::Carrier { host, up: false })];
        faults.extend([0, 1].map(|from| (AT, Fault::Cut { path: 1, from })));
        faults.push((AT + 1_500, Fault::Carrier { host, up: true }));
        faults.push((AT + 1_500, Fault::Mend { path: 1 }));
        let takeover = (host == 0).then_some(70);
        each_seed(&format!("carrier of node {host} back after 1.5 s"), &faults, takeover);
    }
}

/// Both cables of the master cut: the peer reigns, nothing is lost, and the master that returns
/// changes nothing.
#[test]
fn cuts_of_the_master_lose_nothing() {
    for ms in [20, 30] {
        let mut faults = port(0, true, &[0, 1], ms);
        faults.extend(port(0, false, &[0, 1], ms));
        each_seed(&format!("master cut for {ms} ms"), &faults, None);
    }
    for ms in [150, 300, 1_000] {
        let mut faults = port(0, true, &[0, 1], ms);
        faults.extend(port(0, false, &[0, 1], ms));
        each_seed(&format!("master cut for {ms} ms"), &faults, Some(70));
    }
}

/// A single division with all clients on one side loses nothing, whichever side that is.
#[test]
fn a_division_with_clients_on_one_side_loses_nothing() {
    for side in [0, 1] {
        let mut sides = [side; CLIENTS];
        (sides[CLIENTS - 2], sides[CLIENTS - 1]) = (0, 1);
        let mut faults = vec![(AT, Fault::Split(Some(sides))), (AT + 500, Fault::Split(None))];
        for from in [0, 1] {
            faults.push((AT, Fault::Cut { path: 1, from }));
        }
        faults.push((AT + 500, Fault::Mend { path: 1 }));
        let takeover = (side == 1).then_some(70);
        each_seed(&format!("all clients with node {side}"), &faults, takeover);
    }
}

/// What strangers and boxes in between may do to a whole pair: nothing.
#[test]
fn strangers_move_nothing() {
    let rows = [
        ("foreign adverts", Fault::Foreign { length: 1_000 * MS, claims: false }),
        ("a foreign router that claims", Fault::Foreign { length: 1_000 * MS, claims: true }),
        ("a false end, to the backup", Fault::FalseEnd { host: 1 }),
        ("a false end, to the master", Fault::FalseEnd { host: 0 }),
        ("the backup's disk hangs", Fault::Hang { host: 1, length: 600 * MS }),
    ];
    for (name, fault) in rows {
        each_seed(name, &[(AT, fault)], None);
    }
    // and a frozen disk of the backup does not keep it from taking over
    let back = 400 * MS;
    let faults = [
        (AT, Fault::Hang { host: 1, length: 900 * MS }),
        (AT + 200, Fault::Power { host: 0, back }),
    ];
    each_seed("the backup's disk hangs, the master dies", &faults, Some(260));
}

/// Plays a row under some seeds: nothing is lost, the peer reigns in time or not at all. Gives the
/// takeover's time, least and most.
fn each_seed(name: &str, faults: &[(u64, Fault)], takeover: Option<Nanos>) -> String {
    let (mut least, mut most) = (Nanos::MAX, 0);
    for seed in 0..6 {
        let last = faults.iter().map(|(ms, _)| *ms).max().unwrap_or(AT);
        let mut faults = faults.to_vec();
        faults.push((last.max(AT + 800), Fault::Calm));
        let plan = Plan { end: (last + 2_400) * MS, ..scripted(&faults) };
        let world = play_plan(seed, Mutation::Sound, plan);
        assert!(world.checker.complaint().is_none(), "{name}: {}", report(&world, seed));
        assert_eq!(world.figures.lost, 0, "{name}: {}", report(&world, seed));
        let crowns = &world.figures.crowns;
        assert_eq!(crowns.first().map(|(_, host)| *host), Some(0), "{name}, seed {seed}");
        let Some(ms) = takeover else {
            assert_eq!(crowns.len(), 1, "{name}: {crowns:?} {}", report(&world, seed));
            continue;
        };
        assert_eq!(crowns.len(), 2, "{name}: {crowns:?} {}", report(&world, seed));
        let (at, host) = crowns[1];
        let late = at.saturating_sub(AT * MS);
        assert!(late <= ms * MS && host == 1, "{name}: {late} ns {}", report(&world, seed));
        (least, most) = (least.min(late), most.max(late));
    }
    match most {
        0 => "the master stays".to_owned(),
        _ => format!("the peer reigns after {}-{} ms", least / MS, most / MS),
    }
}
