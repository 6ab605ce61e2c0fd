//! The story: sessions are written through the virtual address while the master's engine, its
//! guardian and then the whole node die, a cable is cut and mended, and each comes back. After each
//! event: what three kinds of client saw, and whether an answered write is gone.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::eventually;
use tests::eventually::INTERRUPTED;
use tests::probe::{self, Outage, Probe, Written};
use tests::topology::{Options, Pair, Side, VIP};

use crate::PREFIX;

/// UDP port of the echo that the probes talk to.
const ECHO: u16 = 7007;
/// Keys that the writer goes round.
const KEYS: usize = 500;

/// One line of the table.
struct Row {
    event: String,
    udp: Outage,
    connections: Outage,
    written: Written,
    lost: u64,
    answered: usize,
    master: Side,
}

/// Plays it and prints the table.
pub(crate) fn play(options: Options) -> Result<()> {
    println!("tandem lab demo: xdp {}, ack {}, io {}", options.xdp, options.ack, options.io);
    let mut pair = Pair::build(PREFIX, options)?;
    let master = pair.start_both()?;
    for side in Side::ALL {
        let status = pair.status(side)?;
        println!("node {}: role {}, xdp {}", side.name(), status["role"], status["xdp"]);
    }
    let echoes =
        Side::ALL.map(|side| probe::udp_echo(pair.namespace(side).name(), VIP, ECHO, side.name()));
    warm_up(&pair)?;
    let mut rows = Vec::new();
    let mut story = Story { pair: &mut pair, master, rows: &mut rows };
    let outcome = story.tell();
    print_table(&rows);
    for echo in echoes {
        echo.stop()?;
    }
    outcome?;
    let lost: u64 = rows.iter().map(|row| row.lost).sum();
    let answered: usize = rows.iter().map(|row| row.answered).sum();
    println!("answered writes lost: {lost} of {answered} keys checked");
    ensure!(lost == 0, "{lost} answered writes were lost");
    Ok(())
}

/// The first request through everything, so that no row measures a first ARP or a cold backend.
fn warm_up(pair: &Pair) -> Result<()> {
    eventually("the demo page through the virtual address", Duration::from_secs(10), || {
        pair.client.run(|| {
            let (status, body) =
                tests::clients::http_get((VIP, 80).into(), "/text", Duration::from_secs(1))?;
            ensure!(status == 200, "{status} {}", String::from_utf8_lossy(&body));
            Ok(())
        })
    })
}

struct Story<'a> {
    pair: &'a mut Pair,
    master: Side,
    rows: &'a mut Vec<Row>,
}

impl Story<'_> {
    fn tell(&mut self) -> Result<()> {
        self.event("nothing (idle pair)", |_, _| Ok(()), |_| Ok(()))?;
        let old = self.master;
        self.event(
            "engine of the master killed",
            |pair, master| pair.kill_engine(master).map(drop),
            |pair| takeover(pair, old),
        )?;
        // Its engine is started again by itself; the next event needs a protected pair.
        self.pair.wait_protected(self.master)?;
        let old = self.master;
        self.event(
            "guardian of the master killed",
            |pair, master| pair.kill_guardian(master),
            |pair| takeover(pair, old),
        )?;
        // Its keeper starts another one by itself.
        self.pair.wait_protected(self.master)?;
        let old = self.master;
        self.event(
            "node of the master lost in silence",
            |pair, master| pair.kill_node(master),
            |pair| takeover(pair, old),
        )?;
        self.event("it comes back", |pair, master| bring_back(pair, master.other()), |_| Ok(()))?;
        let old = self.master;
        self.event(
            "master cut off both networks",
            |pair, master| pair.cut(master),
            |pair| takeover(pair, old),
        )?;
        self.event(
            "the cut is mended",
            |pair, master| {
                pair.heal(master.other())?;
                pair.wait_protected(master)
            },
            |_| Ok(()),
        )?;
        let old = self.master;
        self.event(
            "master stopped by SIGTERM",
            |pair, master| pair.node(master)?.signal(nix::sys::signal::Signal::SIGTERM),
            |pair| takeover(pair, old),
        )?;
        self.event("it comes back", |pair, master| bring_back(pair, master.other()), |_| Ok(()))
    }

    /// Starts the probes, lets the event happen, waits for `settled`, reads every answered write.
    fn event(
        &mut self,
        name: &str,
        act: impl FnOnce(&mut Pair, Side) -> Result<()>,
        settled: impl Fn(&Pair) -> Result<()>,
    ) -> Result<()> {
        ensure!(!INTERRUPTED.load(std::sync::atomic::Ordering::Relaxed), "interrupted");
        let client = self.pair.client.name().to_owned();
        let cache: SocketAddr = (VIP, 11211).into();
        let udp = probe::udp(&client, VIP, ECHO);
        let connections = probe::connections(&client, (VIP, 80).into());
        let writer = probe::writer(&client, cache, KEYS);
        quiet(Duration::from_millis(300))?;
        act(self.pair, self.master).with_context(|| name.to_owned())?;
        eventually(&format!("{name}: the pair to settle"), Duration::from_secs(15), || {
            settled(self.pair)
        })?;
        quiet(Duration::from_millis(700))?;
        self.master = holder(self.pair)?;
        self.record(name, udp, connections, writer)
    }

    fn record(
        &mut self,
        name: &str,
        udp: Probe<Outage>,
        connections: Probe<Outage>,
        writer: Probe<Written>,
    ) -> Result<()> {
        let (udp, connections, written) = (udp.stop()?, connections.stop()?, writer.stop()?);
        let mut reader = self.pair.memcached(&self.pair.client, VIP)?;
        let lost = written.lost(|key| reader.get(key))?;
        let answered = written.answered.iter().flatten().count();
        ensure!(answered > 0, "{name}: no write was answered at all");
        let row = Row {
            event: name.to_owned(),
            udp,
            connections,
            written,
            lost,
            answered,
            master: self.master,
        };
        println!("{}", line(&row));
        self.rows.push(row);
        Ok(())
    }
}

/// Lets the probes run for a while; ends early when interrupted.
fn quiet(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    eventually("time to pass", time * 2, || {
        ensure!(Instant::now() >= until, "not yet");
        Ok(())
    })
}

/// The node that holds the address.
fn holder(pair: &Pair) -> Result<Side> {
    Side::ALL
        .into_iter()
        .find(|side| pair.role(*side).is_ok_and(|role| role == "MASTER" || role == "MASTER_SOLO"))
        .context("nobody is master")
}

fn takeover(pair: &Pair, old: Side) -> Result<()> {
    let role = pair.role(old.other())?;
    ensure!(role.starts_with("MASTER"), "the other node is {role}");
    Ok(())
}

fn bring_back(pair: &mut Pair, side: Side) -> Result<()> {
    pair.heal(side)?;
    if !pair.is_running(side) {
        pair.start(side)?;
    }
    pair.wait_protected(side.other())
}

fn milliseconds(outage: Outage) -> String {
    format!("{:.1}", outage.longest.as_secs_f64() * 1e3)
}

fn line(row: &Row) -> String {
    format!(
        "{:<36} {:>9} {:>12} {:>12} {:>9} {:>6}  {}",
        row.event,
        milliseconds(row.udp),
        milliseconds(row.connections),
        milliseconds(row.written.outage),
        row.answered,
        row.lost,
        row.master.name(),
    )
}

fn print_table(rows: &[Row]) {
    println!(
        "\n{:<36} {:>9} {:>12} {:>12} {:>9} {:>6}  master",
        "event", "UDP ms", "new conn ms", "in flight ms", "answered", "lost"
    );
    for row in rows {
        println!("{}", line(row));
    }
    println!(
        "longest time without a success: UDP probe each ms; a new connection with one HTTP\n\
         request; one set always in flight, reconnecting at once. answered: keys with an\n\
         answered write, all read back from the master afterwards."
    );
}
