//! Looks at the whole world, for the checkers that need more than one host's view.

use proxy_user::config::{UnreachableWitness, UnsyncedTakeover};
use proxy_user::node::Lease;

use crate::world::{MS, Nanos, World};

impl World {
    fn leased(&self, host: usize) -> bool {
        match self.hosts[host].page.lease {
            Lease::Unlimited => true,
            Lease::Until(until) => self.clock(host) < until,
            Lease::Expired => false,
        }
    }

    /// The program answers for the address, but no longer than the lease says.
    pub(crate) fn answers_arp(&self, host: usize) -> bool {
        self.hosts[host].page.answers && self.leased(host)
    }

    /// After every role word and every lease.
    pub(crate) fn look_at_leases(&mut self) {
        let states = [0, 1].map(|host| self.hosts[host].page.state);
        let leased = [self.leased(0), self.leased(1)];
        self.checker.look_at_leases(self.now, states, leased);
        if self.plan.peer.witness == Some(UnreachableWitness::Hold) {
            self.checker.look_at_votes(self.now, states, leased);
        }
    }

    /// Each 10 ms.
    pub(crate) fn look_at_all(&mut self) {
        // with a witness, who is refused (or does not reach it) waits for the other
        let never = self.plan.peer.unsynced_takeover == UnsyncedTakeover::Never
            || self.plan.peer.witness.is_some();
        let healthy = [0, 1].map(|index| {
            let host = &self.hosts[index];
            let up = host.guardian.is_some() && host.engine.is_some() && host.carrier;
            up && !host.is_paused(self.now) && !host.disk_broken && (!never || self.quiet)
        });
        let serves =
            (0..2).any(|host| self.hosts[host].page.state.is_master() && self.leased(host));
        let both = self.answers_arp(0) && self.answers_arp(1);
        self.checker.look_at_answers(self.now, both);
        self.checker.look_at_life(self.now, healthy, serves, self.life_bound());
    }

    /// Every wait that can stand between a healthy node and its reign, one after the other.
    fn life_bound(&self) -> Nanos {
        let peer = &self.plan.peer;
        let unsynced = match peer.unsynced_takeover {
            UnsyncedTakeover::After(wait) => wait,
            UnsyncedTakeover::Now | UnsyncedTakeover::Never => peer.dead_time(),
        };
        let waits = [peer.boot_wait, unsynced, peer.engine_wait, peer.dead_time() * 2];
        let sum: std::time::Duration = waits.into_iter().sum();
        // and a state file that is tried again each 250 ms
        sum.as_nanos() as Nanos + 350 * MS
    }

    /// The end of the run.
    pub(crate) fn look_at_the_end(&mut self) {
        if self.checker.complaint().is_some() {
            return;
        }
        let states = [0, 1].map(|host| self.hosts[host].page.state);
        let answers = [0, 1].map(|host| self.hosts[host].page.answers);
        let contents = [self.content(0), self.content(1)];
        self.checker.quiet(self.now, states, answers, &contents);
        let master = states.iter().position(|state| state.is_master());
        let content = master.and_then(|host| contents[host].as_ref());
        let lost = content.map(|content| self.checker.lost(content)).unwrap_or_default();
        self.figures.lost = if self.plan.evicts { 0 } else { lost.len() };
        if self.figures.lost > 0 && !self.figures.reported {
            let text = format!("answers lost, and nobody said so: {lost:?}");
            self.checker.complain(self.now, text);
        }
    }

    /// Items that the stores had to evict, as far as they still know.
    pub(crate) fn evicted(&self) -> u64 {
        let stores = self.hosts.iter().filter_map(|host| host.store.as_ref());
        stores.map(|store| store.counters().evictions).sum()
    }
}
