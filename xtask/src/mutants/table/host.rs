//! A planned stop, and what the host does to a node.

use super::{Mutant, lib};

const RULES: &str = "proxy-user/src/node/rules.rs";
const PERFORM: &str = "proxy-user/src/node/perform.rs";
const EXCHANGE: &str = "proxy-user/src/exchange/mod.rs";
const MEMCACHED: &str = "proxy-user/src/engine/connections/memcached.rs";
const STRAYS: &str = "proxy-user/src/guardian/start/strays.rs";
const RELAY: &str = "proxy-user/src/guardian/steering/relay.rs";

pub(super) const ROWS: &[Mutant] = &[
    Mutant {
        name: "a planned stop cuts off what is under way",
        file: RULES,
        find: "if self.may_resign(now) { State::Handover } else { State::Boot }",
        replace: "State::Boot",
        found_by: lib("proxy-user", "node::tests::commands"),
    },
    Mutant {
        name: "a stop does not wait for a replica that was slow",
        file: "proxy-user/src/node/mod.rs",
        find: "self.state.is_master() && follows && !self.may_resign(now)",
        replace: "self.state.is_master() && !follows && !self.may_resign(now)",
        found_by: lib("proxy-user", "node::tests::who_is_to_leave_waits_for_its_replica"),
    },
    Mutant {
        name: "packets come here before they can be sent back",
        file: PERFORM,
        find: "        self.steer_strays(now); // before the first packet comes here\n",
        replace: "",
        found_by: lib("proxy-user", "node::tests::strays_go_to_who_hands_over"),
    },
    Mutant {
        name: "packets go to a node that has ended",
        file: RULES,
        find: "view.is_some_and(|beat| beat.state == State::Handover)",
        replace: "view.is_some()",
        found_by: lib("proxy-user", "node::tests::strays_go_to_who_hands_over"),
    },
    Mutant {
        name: "a stop closes a connection whose first request is on the way",
        file: EXCHANGE,
        find: "if self.phase == Phase::Idle && self.requests > 0 {",
        replace: "if self.phase == Phase::Idle {",
        found_by: lib(
            "proxy-user",
            "exchange::tests::a_stop_ends_idle_connections_and_lets_answers_finish",
        ),
    },
    Mutant {
        name: "a stop closes a client of the cache that waits for its answer",
        file: MEMCACHED,
        find: "if self.leaving && !self.is_busy() {",
        replace: "if self.leaving {",
        found_by: lib(
            "proxy-user",
            "engine::tests::a_rest_answers_what_was_asked_and_closes_what_is_idle",
        ),
    },
    Mutant {
        name: "a connection's beginning goes to the sink",
        file: STRAYS,
        find: "libc::BPF_JSET | libc::BPF_K, 1, 0, SYN",
        replace: "libc::BPF_JSET | libc::BPF_K, 0, 1, SYN",
        found_by: lib(
            "proxy-user",
            "guardian::start::strays::tests::\
             the_sink_gets_what_begins_nothing_and_goes_to_an_address",
        ),
    },
    Mutant {
        name: "an own connection's packets are sent away",
        file: RELAY,
        find: "            if self.ours.len() < OURS_MAX {",
        replace: "            if self.ours.len() > OURS_MAX {",
        found_by: lib(
            "proxy-user",
            "guardian::steering::relay::tests::a_connection_is_ours_by_its_beginning",
        ),
    },
    Mutant {
        name: "any address may be listened on, here or not",
        file: "proxy-user/src/guardian/start/listeners.rs",
        find: "config.vips.iter().any(|vip| IpAddr::V4(vip.address) == address.ip())",
        replace: "config.vips.len() > 0 && address.is_ipv4()",
        found_by: lib(
            "proxy-user",
            "guardian::start::tests::a_virtual_address_may_be_listened_on_before_it_comes",
        ),
    },
    Mutant {
        name: "adverts are summed for an address that the interface had",
        file: "vrrp/src/fsm.rs",
        find: "        self.config.source = source;\n",
        replace: "        let _ = source;\n",
        found_by: lib("vrrp", "fsm::tests::coupled::adverts_follow_the_source"),
    },
];
