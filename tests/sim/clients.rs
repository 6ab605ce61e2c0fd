//! Clients: they write and read through the VIP as it is answered, or at a node's own address, one
//! command after the other, and tell the checker what they sent and what they got.
//!
//! A key has one writer, which writes growing numbers. A writer that got no answer leaves the key
//! for good and goes on with the next generation of it: so of each key only the last write may be
//! in doubt, and the checker can be exact. Everybody reads every key.

use std::collections::BTreeMap;

use crate::checker::Required;
use crate::world::{Ev, MS, Nanos, US, World};

/// Clients on the segment, and one on each host.
pub(crate) const CLIENTS: usize = 5;
/// Keys that a client writes.
const SLOTS: usize = 3;
/// The same where the store is to evict: 120 values of 3,000 bytes in 256 KiB.
const SLOTS_EVICTING: usize = 24;
/// A command without an answer for so long is given up, with its connection.
const PATIENCE: Nanos = 150 * MS;

/// What a client waits for.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) key: usize,
    pub(crate) what: What,
    pub(crate) since: Nanos,
    /// What an answer must not be older than.
    pub(crate) required: Required,
}

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Number `n` of the key.
    Write(u64),
    /// Number `n` of the key is its absence.
    Delete(u64),
    Read,
}

#[derive(Debug, Clone)]
struct Connection {
    id: u64,
    host: usize,
    engine: u64,
    /// Bytes do not overtake each other.
    to_engine: Nanos,
    to_client: Nanos,
}

#[derive(Debug, Clone)]
struct Slot {
    key: usize,
    generation: u64,
    last: u64,
}

/// See the module's text.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    id: usize,
    /// On that host; `None` = on the segment, reaching whoever owns the VIP.
    home: Option<usize>,
    /// Whose MAC the VIP has, as far as this client knows.
    arp: Option<usize>,
    connection: Option<Connection>,
    pending: Option<Pending>,
    received: Vec<u8>,
    slots: Vec<Slot>,
    /// The last command was not answered: try again later.
    refused: bool,
    pub(crate) commands: u64,
}

impl Client {
    pub(crate) fn all() -> Vec<Self> {
        let home = |id: usize| id.checked_sub(CLIENTS - 2);
        let client = |id| Self {
            id,
            home: home(id),
            arp: None,
            connection: None,
            pending: None,
            received: Vec::new(),
            slots: Vec::new(),
            refused: false,
            commands: 0,
        };
        (0..CLIENTS).map(client).collect()
    }
}

/// The number that a value carries.
pub(crate) fn value_index(value: &[u8]) -> u64 {
    let digits = value.split(|b| *b == b'.').next().unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

impl World {
    /// A client's time has come: connect, send, or lose patience.
    pub(crate) fn client_acts(&mut self, id: usize) {
        let pause = match self.clients[id].refused {
            _ if self.quiet => 30 * MS,
            true => self.rng.range(10 * MS, 40 * MS),
            false => self.rng.range(MS, 8 * MS),
        };
        self.clients[id].refused = false;
        self.after(pause, Ev::Client(id));
        if let Some(pending) = &self.clients[id].pending {
            if self.now < pending.since + PATIENCE {
                return;
            }
            self.give_up(id);
        }
        if self.clients[id].connection.is_none() && !self.connect(id) {
            return;
        }
        self.send_command(id);
    }

    /// A gratuitous ARP of `host` is on the segment.
    pub(crate) fn clients_learn(&mut self, host: usize) {
        for id in 0..CLIENTS {
            let hears = self.same_side(host, id) && !self.rng.chance(self.plan.deaf_clients);
            if self.clients[id].home.is_none() && hears {
                self.clients[id].arp = Some(host);
            }
        }
    }

    fn connect(&mut self, id: usize) -> bool {
        let host = match self.clients[id].home {
            Some(home) => home,
            None => {
                let known = self.clients[id].arp.filter(|host| self.reaches(*host, id));
                let Some(host) = known.or_else(|| self.resolve(id)) else { return false };
                host
            }
        };
        self.clients[id].arp = Some(host);
        let Some(engine) = self.hosts[host].engine.as_ref().map(|engine| engine.life) else {
            self.clients[id].arp = None; // refused: ask again
            return false;
        };
        let conn = self.new_life();
        let (to_engine, to_client) = (self.now, self.now);
        self.clients[id].received.clear();
        self.clients[id].connection =
            Some(Connection { id: conn, host, engine, to_engine, to_client });
        true
    }

    /// Does the segment lead from a client to a host that lives?
    fn reaches(&self, host: usize, client: usize) -> bool {
        let this = &self.hosts[host];
        let open = !self.paths[0].ports[host].deaf && self.same_side(host, client);
        this.powered && this.carrier && open
    }

    /// And back?
    fn is_reached_by(&self, host: usize, client: usize) -> bool {
        let open = !self.paths[0].ports[host].mute && self.same_side(host, client);
        self.hosts[host].carrier && open
    }

    /// On a divided segment: is the client on the host's side?
    pub(crate) fn same_side(&self, host: usize, client: usize) -> bool {
        self.split.is_none_or(|sides| sides[client] == host)
    }

    /// ARP: whoever answers; of two the later one wins, by chance.
    fn resolve(&mut self, client: usize) -> Option<usize> {
        let answers = |host: &usize| {
            let both = self.reaches(*host, client) && self.is_reached_by(*host, client);
            both && self.answers_arp(*host)
        };
        let hosts: Vec<usize> = (0..2).filter(answers).collect();
        (!hosts.is_empty()).then(|| hosts[self.rng.index(hosts.len())])
    }

    fn send_command(&mut self, id: usize) {
        self.name_keys(id);
        let read = self.quiet || self.rng.chance(400);
        let (key, what) = if read {
            (self.checker.any_key(&mut self.rng), What::Read)
        } else {
            self.next_write(id)
        };
        let name = self.checker.key_name(key).to_owned();
        let bytes = match what {
            What::Read => format!("get {name}\r\n"),
            What::Delete(_) => format!("delete {name}\r\n"),
            What::Write(n) => {
                let fill = if self.plan.evicts { 3000 } else { 20 };
                let value = format!("{n}.{}", "x".repeat(fill));
                format!("set {name} 0 0 {}\r\n{value}\r\n", value.len())
            }
        };
        let required = self.checker.sent(self.now, key, what);
        let since = self.now;
        self.clients[id].pending = Some(Pending { key, what, since, required });
        self.clients[id].commands += 1;
        let delay = self.rng.range(20 * US, 200 * US);
        let Some(connection) = &mut self.clients[id].connection else { return };
        connection.to_engine = connection.to_engine.max(self.now + delay) + US;
        let event = Ev::ToEngine {
            host: connection.host,
            engine: connection.engine,
            client: id,
            conn: connection.id,
            bytes: bytes.into_bytes(),
        };
        let at = connection.to_engine;
        self.at(at, event);
    }

    /// Names the keys that this client will write.
    fn name_keys(&mut self, id: usize) {
        let slots = if self.plan.evicts { SLOTS_EVICTING } else { SLOTS };
        while self.clients[id].slots.len() < slots {
            let slot = self.clients[id].slots.len();
            let key = self.checker.new_key(format!("c{id}.{slot}.0"));
            self.clients[id].slots.push(Slot { key, generation: 0, last: 0 });
        }
    }

    fn next_write(&mut self, id: usize) -> (usize, What) {
        let at = self.rng.index(self.clients[id].slots.len());
        let deletes = self.rng.chance(120);
        let slot = &mut self.clients[id].slots[at];
        slot.last += 1;
        let n = slot.last;
        (slot.key, if deletes { What::Delete(n) } else { What::Write(n) })
    }

    /// No answer will come: a write stays in doubt, its key is left alone.
    fn give_up(&mut self, id: usize) {
        if let Some(connection) = self.clients[id].connection.take() {
            let Connection { id: conn, host, engine, .. } = connection;
            let event = Ev::ToEngine { host, engine, client: id, conn, bytes: Vec::new() };
            self.after(100 * US, event);
            if self.clients[id].home.is_none() && self.rng.chance(800) {
                self.clients[id].arp = None; // most neighbours ask again; some take long
            }
        }
        let Some(pending) = self.clients[id].pending.take() else { return };
        self.clients[id].refused = true;
        if pending.what == What::Read {
            return;
        }
        let client = &mut self.clients[id];
        for (index, slot) in client.slots.iter_mut().enumerate() {
            if slot.key == pending.key {
                slot.generation += 1;
                slot.last = 0;
                let name = format!("c{}.{index}.{}", client.id, slot.generation);
                slot.key = self.checker.new_key(name);
            }
        }
    }

    pub(crate) fn client_bytes_arrive(
        &mut self,
        host: usize,
        engine: u64,
        client: usize,
        conn: u64,
        bytes: Vec<u8>,
    ) {
        let local = self.clients[client].home.is_some();
        if !local && !self.reaches(host, client) || !self.hosts[host].powered {
            return; // silence
        }
        if self.hosts[host].engine.as_ref().is_none_or(|e| e.life != engine) {
            // a segment that no socket knows is answered with RST
            return self.after(100 * US, Ev::ToClient { client, conn, bytes: vec![], end: true });
        }
        self.tell_engine(host, crate::engine::Input::Client { client, conn, bytes });
    }

    pub(crate) fn answer_client(
        &mut self,
        host: usize,
        engine: u64,
        client: usize,
        conn: u64,
        bytes: Vec<u8>,
        end: bool,
    ) {
        let delay = self.rng.range(20 * US, 200 * US);
        let local = self.clients[client].home.is_some();
        if !local && !self.is_reached_by(host, client) {
            return;
        }
        let now = self.now;
        let Some(connection) = &mut self.clients[client].connection else { return };
        if connection.id != conn || connection.engine != engine {
            return;
        }
        connection.to_client = connection.to_client.max(now + delay) + US;
        let at = connection.to_client;
        self.at(at, Ev::ToClient { client, conn, bytes, end });
    }

    /// The kernel closes the connections of a dead engine, a little later.
    pub(crate) fn clients_lose_engine(&mut self, host: usize, delay: Nanos) {
        for client in 0..CLIENTS {
            let Some(connection) = &self.clients[client].connection else { continue };
            if connection.host == host {
                let (conn, bytes) = (connection.id, Vec::new());
                self.after(delay, Ev::ToClient { client, conn, bytes, end: true });
            }
        }
    }

    pub(crate) fn client_hears(&mut self, id: usize, conn: u64, bytes: &[u8], end: bool) {
        if self.clients[id].connection.as_ref().is_none_or(|c| c.id != conn) {
            return;
        }
        self.clients[id].received.extend_from_slice(bytes);
        let received = std::mem::take(&mut self.clients[id].received);
        match parse(&received) {
            Some(answer) => self.answered(id, answer),
            None => self.clients[id].received = received,
        }
        if end {
            self.give_up(id);
        }
    }

    fn answered(&mut self, id: usize, answer: Answer) {
        let Some(pending) = self.clients[id].pending.take() else {
            return self.checker.complain(self.now, format!("client {id}: answer to nothing"));
        };
        match (pending.what, answer) {
            (What::Write(_), Answer::Stored)
            | (What::Delete(_), Answer::Deleted | Answer::NotFound) => {}
            (What::Read, Answer::Value(_) | Answer::Miss) => {}
            (_, Answer::Error) => {
                // refused, by what it says; but the key is left alone
                self.clients[id].pending = Some(pending);
                return self.give_up(id);
            }
            (what, answer) => {
                let text = format!("client {id}: {what:?} answered by {answer:?}");
                return self.checker.complain(self.now, text);
            }
        }
        let read = match answer {
            Answer::Value(n) => Some(Some(n)),
            Answer::Miss => Some(None),
            _ => None,
        };
        self.checker.answered(self.now, id, &pending, read);
        if self.trace.print {
            let key = self.checker.key_name(pending.key).to_owned();
            self.note(None, &format!("client {id} {key} {:?} -> {answer:?}", pending.what));
        }
    }

    /// Commands sent by all clients.
    pub(crate) fn commands(&self) -> u64 {
        self.clients.iter().map(|client| client.commands).sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Stored,
    Deleted,
    NotFound,
    Value(u64),
    Miss,
    Error,
}

/// A whole answer, if there is one.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let fixed: BTreeMap<&[u8], Answer> = BTreeMap::from([
        (&b"STORED\r\n"[..], Answer::Stored),
        (b"DELETED\r\n", Answer::Deleted),
        (b"NOT_FOUND\r\n", Answer::NotFound),
        (b"END\r\n", Answer::Miss),
    ]);
    if let Some(answer) = fixed.get(bytes) {
        return Some(*answer);
    }
    if !bytes.ends_with(b"\r\n") {
        return None;
    }
    if bytes.starts_with(b"VALUE ") {
        let line = bytes.iter().position(|b| *b == b'\n')?;
        return bytes
            .ends_with(b"\r\nEND\r\n")
            .then(|| Answer::Value(value_index(&bytes[line + 1..])));
    }
    Some(Answer::Error)
}
