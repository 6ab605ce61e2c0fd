//! Runs with a plan by hand: each single failure with what it may cost, and the planted faults.

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
    planted(Mutation::AnswerBeforeAck, 7, &faults);
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
