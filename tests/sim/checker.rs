//! The checkers: they see every answer that a client got, every role word, every crown, and at some
//! moments both stores. They know the history; the workload does not know them.
//!
//! 1. *Protected.* An answer given while the pair was protected (role MASTER, all the time from the
//!    command's sending to the answer's arrival; or MASTER_SOLO, where the peer is SYNCED and
//!    heard) is held by both stores. It survives any one
//!    failure, and is never replaced by an older one. It may be lost only when both memories that
//!    held it are lost, or when, two failures or more since both held it, a node without it was
//!    master and the other followed it (`unsynced_takeover`, a holder that cannot serve).
//! 2. *Monotone.* No answer is older than one given before its command was sent; answers of
//!    MASTER_SOLO bind only that node's reign (they are not protected), until the peer is told
//!    that it is in sync: then they are protected too.
//! 3. *Eligible.* A node that is not SYNCED never becomes master while it hears its peer, but for
//!    the election of two nodes in BOOT.
//! 4. *One at a time.* While a MASTER's lease is valid no other role word says master.
//! 5. *Epochs* are persisted before use, never used twice, and grow on each node. After calm both
//!    stores are equal, one node is MASTER and answers for the VIP, the other is SYNCED.
//! 6. *One owner.* Two nodes that hear each other do not both answer for the address for longer
//!    than a lease. What the master of the end does not hold of the last answers was reported as
//!    lost (an alarm), or went with a memory.
//! 7. *Alive.* While a node is healthy for long enough, somebody serves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proxy_user::node::{Cause, State};

use crate::clients::{Pending, What};
use crate::prng::Prng;
use crate::world::{MS, Nanos};

/// Beats come each 10 ms; a peer whose last beat is older may be lost.
const HEARING: Nanos = 15 * MS;

/// Two nodes that hear each other agree on one in so long: a lease, and a turn of each.
const TWO: Nanos = 50 * MS;

/// So long a silence may have been `T_dead`, by a fast clock.
const DIVISION: Nanos = 39 * MS;

/// Key number to the number of the value; absent keys are not in it.
pub(crate) type Content = BTreeMap<usize, u64>;

/// What an answer must not be older than, as known when its command was sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Required {
    floor: u64,
    soft: [u64; 2],
}

#[derive(Debug, Default)]
struct Key {
    name: String,
    /// Protected: whatever comes later is at least this.
    floor: u64,
    /// Whose stores hold `floor`.
    holders: [bool; 2],
    /// When both held it.
    held_at: Nanos,
    /// Answered by that node's present reign.
    soft: [u64; 2],
    /// Answered last, by whomever.
    last: u64,
    /// Writes sent, by number; true = a delete.
    writes: Vec<bool>,
}

/// Who can have answered a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Protected(usize),
    Solo(usize),
    Unclear,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Checker {
    evicts: bool,
    keys: Vec<Key>,
    roles: Vec<(Nanos, usize, State, u16)>,
    now_roles: [State; 2],
    /// When a beat of the other was last handled.
    heard: [Nanos; 2],
    /// When the last silence of about `T_dead` ended: a true division, after which both may reign.
    reunited: [Nanos; 2],
    memory_since: [Nanos; 2],
    epochs: BTreeSet<u16>,
    last_epoch: [u16; 2],
    /// Failures: when each began and ended; those of one moment are one.
    failures: Vec<(Nanos, Nanos)>,
    healthy_since: [Option<Nanos>; 2],
    served_at: Nanos,
    two_since: Option<Nanos>,
    complaint: Option<String>,
    pub(crate) checks: u64,
    pub(crate) protected: u64,
    pub(crate) answered: u64,
    /// Protected answers whose both memories were lost.
    pub(crate) doubly_lost: u64,
}

impl Checker {
    pub(crate) fn new(evicts: bool) -> Self {
        Self {
            evicts,
            keys: Vec::new(),
            roles: Vec::new(),
            now_roles: [State::Boot; 2],
            heard: [0; 2],
            reunited: [0; 2],
            memory_since: [0; 2],
            epochs: BTreeSet::new(),
            last_epoch: [0; 2],
            failures: Vec::new(),
            healthy_since: [None; 2],
            served_at: 0,
            two_since: None,
            complaint: None,
            checks: 0,
            protected: 0,
            answered: 0,
            doubly_lost: 0,
        }
    }

    pub(crate) fn complain(&mut self, now: Nanos, text: String) {
        let at = now as f64 / MS as f64;
        self.complaint.get_or_insert_with(|| format!("{at:.3} ms: {text}"));
    }

    pub(crate) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    fn check(&mut self, now: Nanos, holds: bool, text: impl FnOnce() -> String) {
        self.checks += 1;
        if !holds {
            self.complain(now, text());
        }
    }

    pub(crate) fn new_key(&mut self, name: String) -> usize {
        self.keys.push(Key { name, writes: vec![true], ..Key::default() });
        self.keys.len() - 1
    }

    pub(crate) fn key_name(&self, key: usize) -> &str {
        &self.keys[key].name
    }

    pub(crate) fn any_key(&self, rng: &mut Prng) -> usize {
        rng.index(self.keys.len())
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = (usize, &str)> {
        self.keys.iter().enumerate().map(|(index, key)| (index, key.name.as_str()))
    }

    /// A command goes out.
    pub(crate) fn sent(&mut self, _now: Nanos, key: usize, what: What) -> Required {
        let key = &mut self.keys[key];
        match what {
            What::Write(_) => key.writes.push(false),
            What::Delete(_) => key.writes.push(true),
            What::Read => {}
        }
        Required { floor: key.floor, soft: key.soft }
    }

    /// A new beat of its peer was handled by `host`.
    pub(crate) fn heard(&mut self, now: Nanos, host: usize) {
        if now >= self.heard[host] + DIVISION {
            self.reunited[host] = now;
        }
        self.heard[host] = now;
    }

    /// A role word was written.
    pub(crate) fn role(&mut self, now: Nanos, host: usize, state: State, epoch: u16) {
        let before = std::mem::replace(&mut self.now_roles[host], state);
        self.roles.push((now, host, state, epoch));
        if before.is_master() && !state.is_master() {
            // the reign is over: what it answered alone is not protected
            for key in &mut self.keys {
                key.soft[host] = 0;
            }
        }
        if state == State::Catchup {
            self.follows(now, host);
        }
    }

    /// A holder takes a full sync from another: what the other lacks goes.
    fn follows(&mut self, now: Nanos, host: usize) {
        let failures = self.failures.clone();
        let mut lost = None;
        for key in &mut self.keys {
            if key.holders[host] && !key.holders[1 - host] && key.floor > 0 {
                if since(&failures, key.held_at) < 2 {
                    lost = Some((key.name.clone(), key.floor));
                }
                key.holders[host] = false;
                key.floor = 0;
                self.doubly_lost += 1;
            }
        }
        if let Some((key, floor)) = lost {
            self.complain(now, format!("{key}: {floor} was protected, its last holder follows"));
        }
    }

    /// A failure was injected, and lasts. Several at one moment are one.
    pub(crate) fn failure(&mut self, now: Nanos, length: Nanos) {
        match self.failures.last_mut() {
            Some((begun, end)) if *begun == now => *end = (*end).max(now + length),
            _ => self.failures.push((now, now + length)),
        }
    }

    /// A host's store is gone.
    pub(crate) fn memory_lost(&mut self, now: Nanos, host: usize) {
        self.memory_since[host] = now;
        for key in &mut self.keys {
            key.soft[host] = 0;
            key.holders[host] = false;
            if key.floor > 0 && key.holders == [false; 2] {
                key.floor = 0;
                self.doubly_lost += 1;
            }
        }
    }

    /// Who was master between two times, and how.
    fn server(&self, from: Nanos, to: Nanos) -> Server {
        let mut hosts = [false; 2];
        let mut solo = false;
        let mut see = |host: usize, state: State| {
            if state.is_master() {
                hosts[host] = true;
                solo |= state == State::MasterSolo;
            }
        };
        let mut begun = [false; 2];
        let mut synced = [true; 2];
        let mut epochs = [0; 2];
        for (at, host, state, epoch) in self.roles.iter().rev() {
            if *at > to || begun[*host] {
                continue;
            }
            see(*host, *state);
            synced[*host] &= *state == State::Synced;
            epochs[*host] = *epoch;
            begun[*host] = *at < from;
            if begun == [true; 2] {
                break;
            }
        }
        match (hosts, solo) {
            ([true, true] | [false, false], _) => Server::Unclear,
            ([a, _], false) => Server::Protected(usize::from(!a)),
            ([a, _], true) => {
                let host = usize::from(!a);
                // it hears a peer that is in sync by its word: it must not answer alone
                let hears = self.heard[host] + HEARING >= to;
                let hears = hears && from >= self.reunited[host] + HEARING;
                let wrong = synced[1 - host] && epochs[0] == epochs[1] && hears;
                if wrong { Server::Protected(host) } else { Server::Solo(host) }
            }
        }
    }

    /// A client got an answer; `read`: of a read, the number or absence it saw.
    pub(crate) fn answered(
        &mut self,
        now: Nanos,
        client: usize,
        pending: &Pending,
        read: Option<Option<u64>>,
    ) {
        self.answered += 1;
        let server = self.server(pending.since, now);
        let Required { floor, soft } = pending.required;
        let required = match server {
            Server::Protected(_) => floor.max(soft[0]).max(soft[1]),
            Server::Solo(host) => floor.max(soft[host]),
            Server::Unclear => floor,
        };
        let required = if self.excused(pending.key, server) { 0 } else { required };
        let number = match (pending.what, read) {
            (What::Write(n) | What::Delete(n), _) => Some(n),
            (What::Read, Some(Some(n))) => {
                self.check_value(now, client, pending, n, required, server);
                Some(n)
            }
            (What::Read, _) => self.check_miss(now, client, pending, required, server),
        };
        if let Some(number) = number {
            let key = &mut self.keys[pending.key];
            key.last = key.last.max(number);
            self.raise(pending, server, number);
        }
    }

    /// Two failures since both held it, and whoever answered does not hold it.
    fn excused(&self, key: usize, server: Server) -> bool {
        let key = &self.keys[key];
        let without = match server {
            Server::Protected(host) | Server::Solo(host) => !key.holders[host],
            Server::Unclear => key.holders != [true; 2],
        };
        without && since(&self.failures, key.held_at) >= 2
    }

    fn check_value(
        &mut self,
        now: Nanos,
        client: usize,
        pending: &Pending,
        n: u64,
        required: u64,
        server: Server,
    ) {
        let key = &self.keys[pending.key];
        let name = key.name.clone();
        let written = key.writes.get(n as usize) == Some(&false);
        self.check(now, written, || format!("client {client} read {name} = {n}, never written"));
        self.check(now, n >= required, || {
            format!("client {client} read {name} = {n}, but {required} was answered ({server:?})")
        });
    }

    /// The oldest absence that this miss can be.
    fn check_miss(
        &mut self,
        now: Nanos,
        client: usize,
        pending: &Pending,
        required: u64,
        server: Server,
    ) -> Option<u64> {
        let key = &self.keys[pending.key];
        let deleted = key.writes.iter().enumerate().skip(required as usize);
        let deleted = deleted.filter(|(_, delete)| **delete).map(|(n, _)| n as u64).next();
        if self.evicts {
            return None;
        }
        let name = key.name.clone();
        self.check(now, deleted.is_some(), || {
            format!("client {client} missed {name}, but {required} was answered ({server:?})")
        });
        deleted
    }

    fn raise(&mut self, pending: &Pending, server: Server, number: u64) {
        let kept = self.memory_since.map(|since| since < pending.since);
        // an answer may be on its way when the reign that gave it is over
        let reigns = self.now_roles.map(State::is_master);
        let key = &mut self.keys[pending.key];
        match server {
            Server::Protected(host) => {
                self.protected += 1;
                key.soft[host] = key.soft[host].max(number);
                if number >= key.floor && kept != [false; 2] {
                    key.floor = number;
                    key.holders = kept;
                    key.held_at = pending.since;
                }
            }
            Server::Solo(host) if kept[host] && reigns[host] => {
                key.soft[host] = key.soft[host].max(number)
            }
            Server::Solo(_) | Server::Unclear => {}
        }
    }

    /// The replica `host` has just become SYNCED.
    pub(crate) fn synced(&mut self, now: Nanos, host: usize, contents: &[Option<Content>; 2]) {
        let master = 1 - host;
        let (Some(held), Some(_)) = (&contents[host], &contents[master]) else {
            return self.complain(now, "SYNCED without a store".to_owned());
        };
        let mut missing = None;
        for (index, key) in self.keys.iter_mut().enumerate() {
            let answered = key.floor.max(key.soft[master]);
            let holds = match held.get(&index) {
                Some(n) => *n >= answered,
                None => self.evicts || key.writes[answered as usize..].contains(&true),
            };
            if !holds {
                missing = Some((key.name.clone(), answered, held.get(&index).copied()));
            }
            key.floor = answered;
            key.holders = [true; 2];
            key.held_at = now;
        }
        self.check(now, missing.is_none(), || {
            format!("SYNCED, but of {missing:?} it does not hold what was answered")
        });
    }

    /// A reign begins.
    pub(crate) fn crowned(&mut self, now: Nanos, host: usize, epoch: u16, disk: u16) {
        let new = self.epochs.insert(epoch);
        let last = std::mem::replace(&mut self.last_epoch[host], epoch);
        self.check(now, new, || format!("epoch {epoch} used twice"));
        self.check(now, epoch > last, || format!("epoch {epoch} after {last}"));
        self.check(now, disk >= epoch, || format!("epoch {epoch} used, {disk} persisted"));
        self.check(now, usize::from(epoch & 1) == host, || format!("{epoch} is the other's"));
    }

    /// A state was entered; `last`: when a beat of the peer was last handled, and what it said.
    #[expect(clippy::too_many_arguments, reason = "one event's fields")]
    pub(crate) fn changed(
        &mut self,
        now: Nanos,
        host: usize,
        from: State,
        to: State,
        cause: Cause,
        last: Option<(Nanos, State)>,
        dead: Duration,
    ) {
        if from.is_master() || !to.is_master() || from == State::Synced {
            return;
        }
        let dead = dead.as_nanos() as Nanos * 99 / 100;
        let heard = last.filter(|(at, _)| now < at + dead).map(|(_, state)| state);
        let allowed = match from {
            State::Boot => !heard.is_some_and(State::is_master),
            _ => heard.is_none(),
        };
        self.check(now, allowed, || {
            format!("host {host} became master from {from} by {cause:?}, hearing {heard:?}")
        });
    }

    /// Rule 4, at a moment: role words, and whether leases are valid.
    pub(crate) fn look_at_leases(&mut self, now: Nanos, states: [State; 2], leased: [bool; 2]) {
        for host in 0..2 {
            let alone = !(states[host] == State::Master && leased[host]);
            let two = states[1 - host].is_master();
            self.check(now, alone || !two, || {
                format!("host {host} is MASTER with a lease, the other is {}", states[1 - host])
            });
        }
    }

    /// With a witness that must be asked: never two that answer, in whatever division.
    pub(crate) fn look_at_votes(&mut self, now: Nanos, states: [State; 2], leased: [bool; 2]) {
        let answers = [0, 1].map(|host| states[host].is_master() && leased[host]);
        self.check(now, answers != [true; 2], || {
            format!("two answer, with a witness: {} and {}", states[0], states[1])
        });
    }

    /// Rule 6, at a moment.
    pub(crate) fn look_at_life(
        &mut self,
        now: Nanos,
        healthy: [bool; 2],
        serves: bool,
        bound: Nanos,
    ) {
        for (since, healthy) in self.healthy_since.iter_mut().zip(healthy) {
            *since = healthy.then(|| since.unwrap_or(now));
        }
        if serves {
            self.served_at = now;
        }
        let since = self.healthy_since.into_iter().flatten().min();
        let late = since.is_some_and(|since| now > since.max(self.served_at) + bound);
        self.check(now, !late, || "a healthy node, and nobody serves".to_owned());
    }

    /// Keys whose last answer the master of the end does not hold.
    pub(crate) fn lost(&self, content: &Content) -> Vec<String> {
        let lost = |(index, key): &(usize, &Key)| match content.get(index) {
            Some(n) => *n < key.last,
            None => !key.writes[key.last as usize..].contains(&true),
        };
        let lost = self.keys.iter().enumerate().filter(lost);
        lost.map(|(index, key)| {
            format!("{}: {} answered, {:?} held", key.name, key.last, content.get(&index))
        })
        .collect()
    }

    /// Both nodes hear each other, and both answer for the address: for how long?
    pub(crate) fn look_at_answers(&mut self, now: Nanos, both: bool) {
        let hear = self.heard.iter().all(|at| now < *at + HEARING);
        if !(both && hear) {
            self.two_since = None;
            return;
        }
        let since = *self.two_since.get_or_insert(now);
        self.check(now, now < since + TWO, || {
            format!("both answer for the address, and hear each other, since {since} ns")
        });
    }

    /// The end: everything is mended for long.
    pub(crate) fn quiet(
        &mut self,
        now: Nanos,
        states: [State; 2],
        answers: [bool; 2],
        contents: &[Option<Content>; 2],
    ) {
        let sorted = {
            let mut states = states;
            states.sort();
            states
        };
        self.check(now, sorted == [State::Synced, State::Master], || {
            format!("quiet, and the nodes are {} and {}", states[0], states[1])
        });
        let owner = states.map(|state| state == State::Master);
        self.check(now, owner == answers, || format!("{states:?} answer for the VIP {answers:?}"));
        if self.evicts {
            return;
        }
        let differ = self.keys.iter().enumerate().find_map(|(index, key)| {
            let [a, b] = [0, 1].map(|host| contents[host].as_ref().and_then(|c| c.get(&index)));
            (a != b).then(|| format!("{}: {a:?} and {b:?}", key.name))
        });
        self.check(now, differ.is_none(), || format!("quiet, and the stores differ in {differ:?}"));
    }
}

/// Failures that began, or went on, after `at`: also one that the answer of that time just escaped.
fn since(failures: &[(Nanos, Nanos)], at: Nanos) -> usize {
    failures.iter().filter(|(_, end)| *end + 50 * MS >= at).count()
}
