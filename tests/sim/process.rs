//! An engine as a process of a host: started, woken, stopped, killed; its messages on their way.
//!
//! A killed engine's successor gets the same store, whole: that a region survives a kill at any
//! moment is the business of the store's own tests and of the kill loop.

use std::sync::Arc;

use cache::{Cache, Layout, Region, StoreConfig};
use proxy_user::node::{EngineEvent, Epoch};

use crate::checker::Content;
use crate::engine::{Engine, Input, Output};
use crate::host;
use crate::network::Use;
use crate::world::{Ev, LINKS, MS, Nanos, US, World};

/// A world that evicts has so little memory; others never fill theirs.
const MEMORY: u64 = 256 << 10;
/// Distance of the turns of a slow engine.
const SLOW: Nanos = 30 * MS;

impl World {
    /// A message from the guardian; they stay in order.
    pub(crate) fn tell_engine(&mut self, host: usize, input: Input) {
        if let Some(engine) = &mut self.hosts[host].engine {
            engine.inbox.push_back(input);
            self.wake_engine(host);
        }
    }

    pub(crate) fn wake_engine(&mut self, host: usize) {
        let slow = self.hosts[host].slow_until > self.now;
        let delay = if slow { SLOW } else { 10 * US };
        self.engine_turn_at(host, self.now + delay);
    }

    fn engine_turn_at(&mut self, host: usize, at: Nanos) {
        let this = &mut self.hosts[host];
        let at = at.max(this.engine_paused);
        let Some(engine) = &mut this.engine else { return };
        if engine.turn_at.is_some_and(|already| already <= at) {
            return;
        }
        engine.turn_at = Some(at);
        self.at(at, Ev::Engine(host));
    }

    pub(crate) fn engine_turn(&mut self, host: usize) {
        let now = self.clock(host);
        let seconds = 1_000 + self.now / (1_000 * MS);
        let this = &mut self.hosts[host];
        let Some(engine) = &mut this.engine else { return };
        if engine.turn_at.is_some_and(|at| at > self.now) {
            return; // a later turn was arranged
        }
        engine.turn_at = None;
        if this.engine_paused > self.now {
            let at = this.engine_paused;
            return self.engine_turn_at(host, at);
        }
        let life = engine.life;
        let outputs = engine.turn(&this.page, now, seconds);
        this.page.alone += engine.take_alone();
        if engine.wants_time() {
            self.engine_turn_at(host, self.now + 4 * MS);
        }
        for output in outputs {
            self.engine_output(host, life, output);
        }
    }

    fn engine_output(&mut self, host: usize, life: u64, output: Output) {
        match output {
            Output::Guardian(event) => self.tell_guardian(host, host::Input::Engine(event)),
            Output::Client { client, conn, bytes, end } => {
                self.answer_client(host, life, client, conn, bytes, end);
            }
            Output::Link { link, id, bytes } => self.send(Use::Link(link), id, host, bytes),
            Output::CloseLinks => {
                for link in 0..LINKS {
                    self.close(Use::Link(link), host, 0);
                    self.after(5 * MS, Ev::Dial(Use::Link(link)));
                }
            }
        }
    }

    pub(crate) fn link_opened(&mut self, host: usize, link: usize, id: u64) {
        self.tell_engine(host, Input::LinkOpened { link, id });
    }

    pub(crate) fn link_ended(&mut self, host: usize, link: usize) {
        self.tell_engine(host, Input::LinkEnded { link });
    }

    pub(crate) fn link_bytes(&mut self, host: usize, link: usize, id: u64, bytes: Vec<u8>) {
        self.tell_engine(host, Input::LinkBytes { link, id, bytes });
    }

    /// Every thread of the engine is dead at once; its sockets close `teardown` later at most.
    pub(crate) fn kill_engine(&mut self, host: usize, teardown: Nanos) {
        if self.hosts[host].engine.take().is_none() {
            return;
        }
        self.hosts[host].engine_paused = 0;
        let delay = self.rng.range(100 * US, teardown);
        for link in 0..LINKS {
            self.close(Use::Link(link), host, delay);
        }
        self.clients_lose_engine(host, delay);
        if let Some(life) = self.hosts[host].guardian.as_ref().map(|g| g.life) {
            let learned = self.rng.range(50 * US, 300 * US);
            self.after(learned, Ev::EngineDied { host, life });
        }
    }

    pub(crate) fn engine_death_learned(&mut self, host: usize, life: u64) {
        if self.hosts[host].guardian.as_ref().is_some_and(|g| g.life == life) {
            self.tell_guardian(host, host::Input::Engine(EngineEvent::Died));
            let up = self.rng.range(2 * MS, 60 * MS);
            self.after(up, Ev::EngineUp { host, life });
        }
    }

    pub(crate) fn engine_up(&mut self, host: usize, life: u64) {
        let lives = self.hosts[host].guardian.as_ref().is_some_and(|g| g.life == life);
        if !lives || self.hosts[host].engine.is_some() {
            return;
        }
        let fresh = self.hosts[host].store.is_none();
        let store = self.hosts[host].store.get_or_insert_with(|| new_store(host)).clone();
        let data = (0..cache::PARTITIONS).map(|p| store.lock_partition(p).partition().epoch());
        let data_epoch = Epoch::new(data.max().unwrap_or(0)).unwrap_or_default();
        let life = self.new_life();
        self.hosts[host].engine = Some(Engine::new(life, store, self.options.mutation));
        let up = EngineEvent::Up { fresh, data_epoch };
        self.tell_guardian(host, host::Input::Engine(up));
    }

    /// Both stores, for the checker: the replica has just been told that it is in sync.
    pub(crate) fn became_synced(&mut self, host: usize) {
        let contents = [0, 1].map(|host| self.content(host));
        self.checker.synced(self.now, host, &contents);
    }

    /// What a host's store holds of every key that clients ever wrote.
    pub(crate) fn content(&self, host: usize) -> Option<Content> {
        let store = self.hosts[host].store.as_ref()?;
        let seconds = cache::StoreTime(1_000);
        let mut content = Content::new();
        for (index, key) in self.checker.keys() {
            let mut locked = store.lock(key.as_bytes());
            if let Some(item) = locked.peek(seconds) {
                content.insert(index, crate::clients::value_index(&item.value.to_vec()));
            }
        }
        Some(content)
    }
}

fn new_store(host: usize) -> Arc<Cache> {
    let layout = Layout::for_memory(MEMORY);
    let store_id = host as u128 + 1;
    let config = StoreConfig { store_id, item_limit: 16 << 10, ..StoreConfig::default() };
    Arc::new(Cache::create(config, Region::leaked(&layout)).expect("layout's own region"))
}
