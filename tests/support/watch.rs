//! A protected pair under load and observation: numbered writes, a UDP probe each millisecond and
//! an ARP request each 5 ms from the client, from before a fault until after it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::eventually;
use crate::probe::{self, Outage, Probe, Written};
use crate::topology::{CLIENT, Pair, Side, VIP};
use crate::wire::{Answers, Mac, asker, mac};

const ECHO: u16 = 7007;
/// So many that no key comes round again within the seconds of an event: a write that was
/// answered and then lost is not hidden by the next one.
const KEYS: usize = 250_000;

/// What runs while a fault is played. Each part is stopped by [`Watch::stop`].
#[derive(Debug)]
pub struct Watch {
    echoes: [Probe<u64>; 2],
    udp: Probe<Outage>,
    writer: Probe<Written>,
    asker: Probe<Answers>,
    macs: [Mac; 2],
    promotions: [usize; 2],
    epoch: u64,
    begun: Instant,
}

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    /// By the UDP probe.
    pub udp: Outage,
    /// By the writer.
    pub written: Written,
    /// Keys whose answered write is gone, all read back from the address at the end.
    pub lost: u64,
    /// Who answered ARP for the address.
    pub answers: Answers,
    /// Promotions that each node began meanwhile.
    pub promotions: [usize; 2],
    /// How far the highest epoch of the pair rose.
    pub epochs: u64,
    macs: [Mac; 2],
    begun: Instant,
}

impl Watch {
    /// Starts everything and waits until writes are under way.
    ///
    /// # Errors
    /// When the address does not serve.
    pub fn start(pair: &Pair) -> Result<Self> {
        let client = pair.client.name();
        let echo =
            |side: Side| probe::udp_echo(pair.namespace(side).name(), VIP, ECHO, side.name());
        let watch = Self {
            echoes: Side::ALL.map(echo),
            udp: probe::udp(client, VIP, ECHO),
            writer: probe::writer(client, (VIP, 11211).into(), KEYS),
            asker: asker(&pair.client, CLIENT, VIP)?,
            macs: [mac(pair.namespace(Side::A), "lan")?, mac(pair.namespace(Side::B), "lan")?],
            promotions: Side::ALL.map(|side| pair.promotions(side)),
            epoch: pair.highest_epoch(),
            begun: Instant::now(),
        };
        // a node that has just come knows nobody on the segment who could say that it is cut off
        for side in Side::ALL.into_iter().filter(|side| pair.status(*side).is_ok()) {
            pair.wait_askable(side)?;
        }
        eventually("writes to be under way", Duration::from_secs(5), || {
            let mut reader = pair.memcached(&pair.client, VIP)?;
            reader.get("lab:7")?.context("not written yet").map(drop)
        })?;
        Ok(watch)
    }

    /// Waits until a new client's write is answered, stops everything, reads every answered key.
    ///
    /// # Errors
    /// When the address does not serve within 15 s, or the probe never worked.
    pub fn stop(self, pair: &Pair) -> Result<Seen> {
        let limit = Duration::from_secs(15);
        let served = eventually("a new client's write to be answered", limit, || {
            let mut own = pair.memcached(&pair.client, VIP)?;
            ensure!(own.set("after", b"1")? == "STORED");
            Ok(())
        });
        let (udp, written) = (self.udp.stop()?, self.writer.stop()?);
        let answers = self.asker.stop()?;
        for echo in self.echoes {
            echo.stop()?;
        }
        served?;
        let mut reader = pair.memcached(&pair.client, VIP)?;
        let lost = written.lost_at(&mut reader)?;
        ensure!(udp.successes > 0, "the UDP probe never worked");
        let promotions =
            Side::ALL.map(|side| pair.promotions(side) - self.promotions[side as usize]);
        let epochs = pair.highest_epoch().saturating_sub(self.epoch);
        let (macs, begun) = (self.macs, self.begun);
        Ok(Seen { udp, written, lost, answers, promotions, epochs, macs, begun })
    }
}

impl Seen {
    /// Which node answered for the address last.
    #[must_use]
    pub fn owner(&self) -> Option<Side> {
        let owner = self.answers.owner()?;
        Side::ALL.into_iter().find(|side| self.macs[*side as usize] == owner)
    }

    /// True when `side` answered for the address, or announced it, at any time.
    #[must_use]
    pub fn claimed_by(&self, side: Side) -> bool {
        self.answers.heard_since(self.macs[side as usize], self.begun)
    }

    /// One line of a table; [`HEAD`] is above it.
    #[must_use]
    pub fn line(&self, name: &str) -> String {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let [a, b] = self.promotions;
        format!(
            "{name:<30} {:>8.1} {:>9.1} {:>5} {:>9.1} {:>6} {:>6}  {}",
            ms(self.udp.longest),
            ms(self.written.outage.longest),
            self.lost,
            ms(self.answers.contested()),
            format!("{a}+{b}"),
            self.epochs,
            self.owner().map_or("nobody", Side::name),
        )
    }
}

/// Above [`Seen::line`]s.
pub const HEAD: &str =
    "fault                            UDP ms writer ms  lost    two ms promo. epochs  owner";

impl Pair {
    /// Promotions that a node has begun since its first start: lines of its log.
    #[must_use]
    pub fn promotions(&self, side: Side) -> usize {
        self.log(side).lines().filter(|line| line.contains("promoting")).count()
    }

    /// What a node has printed since its first start.
    #[must_use]
    pub fn log(&self, side: Side) -> String {
        std::fs::read_to_string(self.log_path(side)).unwrap_or_default()
    }

    /// The highest epoch that either node shows; 0 when neither answers.
    #[must_use]
    pub fn highest_epoch(&self) -> u64 {
        let of = |side| self.status(side).ok()?["epoch"].as_u64();
        Side::ALL.into_iter().filter_map(of).max().unwrap_or(0)
    }

    /// The node that says it is the master; with two, the first.
    ///
    /// # Errors
    /// When neither does.
    pub fn master(&self) -> Result<Side> {
        let is = |side: &Side| self.role(*side).is_ok_and(|role| role.starts_with("MASTER"));
        Side::ALL.into_iter().find(is).context("nobody is master")
    }

    /// Waits until one node, whichever, is MASTER and the other SYNCED; gives the master.
    ///
    /// # Errors
    /// After `limit`; the ends of both logs are in the error.
    pub fn wait_any_protected(&self, limit: Duration) -> Result<Side> {
        let settled = eventually("the pair to be protected", limit, || {
            let roles = [self.role(Side::A)?, self.role(Side::B)?];
            match [roles[0].as_str(), roles[1].as_str()] {
                ["MASTER", "SYNCED"] => Ok(Side::A),
                ["SYNCED", "MASTER"] => Ok(Side::B),
                other => anyhow::bail!("roles are {other:?}"),
            }
        });
        settled.with_context(|| {
            Side::ALL.map(|side| crate::process::tail(&self.log_path(side), 25)).join("\n")
        })
    }

    /// Texts of a node's last events, newest first; empty while it does not answer.
    #[must_use]
    pub fn events(&self, side: Side) -> Vec<String> {
        let Ok(status) = self.status(side) else { return Vec::new() };
        let events = status["events"].as_array().map(Vec::as_slice).unwrap_or_default();
        events.iter().filter_map(|event| Some(event["text"].as_str()?.to_owned())).collect()
    }
}

/// Lets `time` pass, while everything goes on; ends early when interrupted.
///
/// # Errors
/// When interrupted.
pub fn pass(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    eventually("time to pass", time * 2 + Duration::from_secs(1), || {
        ensure!(Instant::now() >= until, "not yet");
        Ok(())
    })
}

/// SIGKILL to the engine of `master`, and the time until the other node answers a datagram that is
/// sent to the address every half millisecond.
///
/// # Errors
/// When nobody answers within 5 s.
pub fn kill_to_answer(pair: &mut Pair, master: Side) -> Result<Duration> {
    let echoes =
        Side::ALL.map(|side| probe::udp_echo(pair.namespace(side).name(), VIP, ECHO, side.name()));
    let socket = pair.client.run(|| {
        let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((VIP, ECHO))?;
        socket.set_read_timeout(Some(Duration::from_micros(500)))?;
        Ok(socket)
    })?;
    let answered_by = |side: Side| {
        eventually("an echo", Duration::from_secs(5), || {
            let end = Instant::now() + Duration::from_millis(50);
            let mut buffer = [0; 16];
            while Instant::now() < end {
                if socket.send(b"?").is_ok()
                    && let Ok(length) = socket.recv(&mut buffer)
                    && buffer.get(..length).is_some_and(|b| b.ends_with(side.name().as_bytes()))
                {
                    return Ok(());
                }
            }
            anyhow::bail!("nothing from {}", side.name())
        })
    };
    answered_by(master)?;
    let engine = pair.engine(master)?;
    let killed = Instant::now();
    nix::sys::signal::kill(engine, nix::sys::signal::Signal::SIGKILL)?;
    answered_by(master.other())?;
    let took = killed.elapsed();
    for echo in echoes {
        echo.stop()?;
    }
    Ok(took)
}

/// Sorts and describes times: how many, lowest, median, highest.
#[must_use]
pub fn spread(times: &mut [Duration]) -> String {
    times.sort();
    let at = |index: usize| times.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3;
    let last = times.len().saturating_sub(1);
    let (low, median, high) = (at(0), at(last / 2), at(last));
    format!("{} runs, {low:.1} to {high:.1} ms, median {median:.1} ms", times.len())
}
