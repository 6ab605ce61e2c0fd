//! Who is master: evidence, lease, epochs, claims, promotion, heal.

use super::{Mutant, lib, seeds, sim};

const SLOTS: &str = "proxy-user/src/guardian/slots.rs";
const CLAIM: &str = "proxy-user/src/node/claim.rs";
const MESSAGE: &str = "proxy-user/src/node/message.rs";
const PEER: &str = "proxy-user/src/node/peer.rs";
const RULES: &str = "proxy-user/src/node/rules.rs";
const PERFORM: &str = "proxy-user/src/node/perform.rs";
const INPUTS: &str = "proxy-user/src/node/inputs.rs";
const SILENCE: &str = "proxy-user/src/node/silence.rs";
const SEGMENT: &str = "proxy-user/src/node/segment.rs";

const SESSION: &str = "proxy-user/src/guardian/peer/session.rs";
const REFUSALS: &str = "proxy-user/src/guardian/peer/refusals.rs";
const DOOR: &str = "proxy-user/src/guardian/peer/door.rs";
const PLACES: &str = "proxy-user/src/guardian/peer/places.rs";
const CONNECTION: &str = "proxy-user/src/guardian/peer/connection.rs";

/// A test of the peer link.
macro_rules! link {
    ($name:literal) => {
        lib("proxy-user", concat!("guardian::peer::", $name))
    };
}

/// A test of the role machine: the name of its module is spelled once.
macro_rules! node {
    ($name:literal) => {
        lib("proxy-user", concat!("node::tests::", $name))
    };
}

pub(super) const ROWS: &[Mutant] = &[
    Mutant {
        name: "an epoch is written over the one in force",
        file: SLOTS,
        find: "        self.next = 1 - self.next;\n",
        replace: "",
        found_by: lib("proxy-user", "guardian::slots::tests::a_torn_write_leaves_the_one_before"),
    },
    Mutant {
        name: "a damaged slot of the state file counts",
        file: SLOTS,
        find: "(bytes == slot(name, &content)?).then_some(content)",
        replace: "Some(content)",
        found_by: lib("proxy-user", "guardian::slots::tests::a_damaged_file_is_refused"),
    },
    Mutant {
        name: "the older slot of the state file counts",
        file: SLOTS,
        find: "if second.serial > first.serial => Some((second, 0))",
        replace: "if second.serial < first.serial => Some((second, 0))",
        found_by: lib("proxy-user", "guardian::slots::tests::the_newest_is_read_back"),
    },
    Mutant {
        name: "of two that began apart the younger wins",
        file: CLAIM,
        find: "Self::Apart(epoch) => (1, Epoch::MAX.0 - epoch.0)",
        replace: "Self::Apart(epoch) => (1, epoch.0)",
        found_by: lib("proxy-user", "node::claim::tests::claims_in_order"),
    },
    Mutant {
        name: "an empty store's claim beats content",
        file: CLAIM,
        find: "Self::Empty => (0, 0)",
        replace: "Self::Empty => (3, 0)",
        found_by: lib("proxy-user", "node::claim::tests::claims_in_order"),
    },
    Mutant {
        name: "both sides take the same epoch",
        file: CLAIM,
        find: "(self.0 & !1) + 2 + side.bit()",
        replace: "(self.0 & !1) + 2 + (side.bit() & 0)",
        found_by: lib("proxy-user", "node::claim::tests::next_epoch"),
    },
    Mutant {
        name: "a message of another version is read",
        file: MESSAGE,
        find: "            return Err(MessageError::Version(version));\n",
        replace: "",
        found_by: lib("proxy-user", "node::message::tests::refusals"),
    },
    Mutant {
        name: "bytes after a message are ignored",
        file: MESSAGE,
        find: "Ok((message, [])) => Ok(message)",
        replace: "Ok((message, _)) => Ok(message)",
        found_by: lib("proxy-user", "node::message::tests::round_trip_and_size"),
    },
    Mutant {
        name: "a lease lasts 50 ms longer",
        file: "proxy-user/src/control/shared/mod.rs",
        find: "now_ns < self.lease()",
        replace: "now_ns < self.lease().saturating_add(50_000_000)",
        found_by: lib("proxy-user", "control::shared::tests::role_lease_and_counters"),
    },
    Mutant {
        name: "a lease counts 50 ms more from its beat",
        file: PEER,
        find: "Some(*at + self.config.lease_time())",
        replace: "Some(*at + self.config.lease_time() + Duration::from_millis(50))",
        found_by: node!("a_lease_counts_from_the_sending_of_the_echoed_beat"),
    },
    Mutant {
        name: "a connection that was lost counts as closed by the peer",
        file: PEER,
        find: "ControlEvent::Lost if self.control == Control::Up => Control::Reset,",
        replace: "ControlEvent::Lost if self.control == Control::Up => Control::Closed(now),",
        found_by: node!("a_closed_connection_is_a_death_unless_a_beat_denies_it"),
    },
    Mutant {
        name: "a closed connection is a death that no beat denies",
        file: PEER,
        find: "(ended && echo.is_some_and(|number| number > self.ended_after))",
        replace: "(ended && echo.is_some_and(|number| number > u64::MAX - 1))",
        found_by: node!("a_closed_connection_is_a_death_unless_a_beat_denies_it"),
    },
    Mutant {
        name: "a stall of ours is taken for the peer's silence",
        file: INPUTS,
        find: "        if stall.is_zero() {\n",
        replace: "        if stall.is_zero() || now > last {\n",
        found_by: node!("a_stall_of_ours_is_not_the_peers_silence"),
    },
    Mutant {
        name: "the heal's comparison is turned",
        file: RULES,
        find: "if rival.claim.beats(self.claim()) {",
        replace: "if self.claim().beats(rival.claim) {",
        found_by: node!("the_better_of_two_masters_stays_and_says_so"),
    },
    Mutant {
        name: "FENCED is left out: an isolated master goes on",
        file: RULES,
        find: "Silence::Isolated => fenced(Cause::Isolated),",
        replace: "Silence::Isolated => solo,",
        found_by: sim("scripted::deaf_and_mute_nodes_never_own_the_address"),
    },
    Mutant {
        name: "silence needs no answer of the segment",
        file: SILENCE,
        find: "        let reached = self.reached(now);\n",
        replace: "        let reached = !self.stopping;\n",
        found_by: node!("silence_needs_an_answer_of_the_segment"),
    },
    Mutant {
        name: "a silent guardian on a living host is given no time",
        file: SILENCE,
        find: "            if now < heard + patience {\n",
        replace: "            if now < heard {\n",
        found_by: node!("a_silent_guardian_on_a_living_host_is_given_time"),
    },
    Mutant {
        name: "whoever owns the addresses is taken for dead",
        file: SILENCE,
        find: "            (segment.claimed_after(since) && !refused)\n",
        replace: "            (segment.claimed_after(since) && self.stopping)\n",
        found_by: node!("whoever_owns_the_addresses_is_not_taken_for_dead"),
    },
    Mutant {
        name: "the witness's refusal is a grant",
        file: SILENCE,
        find: "            Some(Answer::Refused { .. }) => Ballot::Refused,\n",
        replace: "            Some(Answer::Refused { .. }) => Ballot::Granted,\n",
        found_by: node!("a_witness_is_asked_once_at_each_silence"),
    },
    Mutant {
        name: "promotions without proof are not damped",
        file: SILENCE,
        find: "Self::STEP.saturating_mul(1 << over.min(20))",
        replace: "Self::STEP.saturating_mul(over.min(20) / 20)",
        found_by: lib("proxy-user", "node::silence::tests::the_damper_doubles_and_forgets"),
    },
    Mutant {
        name: "a master that lost its segment keeps the addresses",
        file: RULES,
        find: "if self.reach(now) != Reach::Lost || !self.may_resign(now) {",
        replace: "if self.reach(now) != Reach::Lost || self.may_resign(now) {",
        found_by: node!("a_master_without_its_segment_hands_over_to_who_has_it"),
    },
    Mutant {
        name: "carrier lost is not noticed",
        file: SEGMENT,
        find: "        if !self.carrier {\n            return Reach::Lost;\n        }\n",
        replace: "",
        found_by: node!("a_carrier_lost_resigns_or_fences"),
    },
    Mutant {
        name: "who was asked in vain still reaches its segment",
        file: SEGMENT,
        find: "None if self.targets && now >= since + dead => Reach::Lost,",
        replace: "None if self.targets && now >= since + dead * 1000 => Reach::Lost,",
        found_by: lib("proxy-user", "node::segment::tests::reach_by_what_is_known"),
    },
    Mutant {
        name: "epochs seen are not persisted",
        file: PERFORM,
        find: "            self.push(Effect::PersistEpoch(wanted));\n",
        replace: "",
        found_by: node!("a_single_node_is_promoted_in_order"),
    },
    Mutant {
        name: "who has decided to take over goes on echoing",
        file: PERFORM,
        find: "let echo = if decided { last_echo } else { peer.echo() };",
        replace: "let echo = if decided { peer.echo() } else { peer.echo().or(last_echo) };",
        found_by: node!("whoever_decided_to_take_over_echoes_nothing_new"),
    },
    Mutant {
        name: "out of sync is not confirmed before answers go alone",
        file: RULES,
        find: "                Some(Step::TellOutOfSync)\n",
        replace: "                solo(Cause::OutOfSync)\n",
        found_by: node!("out_of_sync_is_confirmed_before_anything_is_answered_alone"),
    },
    Mutant {
        name: "in sync is told before every worker gates",
        file: RULES,
        find: "self.master.gated.then_some(Step::Tell(boot, session))",
        replace: "Some(Step::Tell(boot, session))",
        found_by: seeds("0..256"),
    },
    Mutant {
        name: "a foreign router that fell silent fences for ever",
        file: PERFORM,
        find: "        self.foreign = self.foreign.filter(quiet);\n",
        replace: "",
        found_by: node!("a_foreign_master_fences_until_it_is_silent"),
    },
    Mutant {
        name: "an epoch is used before it is on disk",
        file: RULES,
        find: "Stage::Persisting => persisted.then_some(Step::Prepare),",
        replace: "Stage::Persisting => Some(Step::Prepare),",
        found_by: sim("scripted::strangers_move_nothing"),
    },
    Mutant {
        name: "a crown before the engine is prepared",
        file: RULES,
        find: "(engine && address).then_some(Step::Crown)",
        replace: "(engine || address).then_some(Step::Crown)",
        found_by: node!("whoever_decided_to_take_over_echoes_nothing_new"),
    },
    Mutant {
        name: "a takeover by silence opens no fork",
        file: PERFORM,
        find: "            lineage => lineage.forked(epoch),\n",
        replace: "            lineage => lineage.continued(epoch),\n",
        found_by: node!("a_synced_node_takes_over_on_silence_and_not_before"),
    },
    Mutant {
        name: "a SYNCED node that stalled takes over all the same",
        file: RULES,
        find: "        if self.replica.given_up {\n",
        replace: "        if self.replica.given_up && self.stopping {\n",
        found_by: node!("a_stall_of_ours_is_not_the_peers_silence"),
    },
    Mutant {
        name: "a crowd at one listener is accepted without end",
        file: DOOR,
        find: "(accepted, empty) = (accepted + 1, 0);",
        replace: "(accepted, empty) = (accepted, 0);",
        found_by: link!("tests::a_turn_accepts_a_bounded_number_from_all_listeners_in_turn"),
    },
    Mutant {
        name: "a crowd at one listener keeps who comes to another out",
        file: DOOR,
        find: "self.next_listener = (self.next_listener + 1) % self.sockets.tcp.len();",
        replace: "self.next_listener = empty;",
        found_by: link!("tests::a_turn_accepts_a_bounded_number_from_all_listeners_in_turn"),
    },
    Mutant {
        name: "strangers take the peer's place",
        file: PLACES,
        find: "_ => Admission::Take(PEER_TIME),",
        replace: "_ => Admission::Refuse,",
        found_by: link!("places::tests::strangers_have_few_places_and_the_peer_has_its_own"),
    },
    Mutant {
        name: "a recorded handshake opens a connection",
        file: CONNECTION,
        find: "Ok(if self.dialled { Stage::Open } else { Stage::Unproved })",
        replace: "Ok(if self.dialled { Stage::Open } else { Stage::Open })",
        found_by: link!("tests::recorded_handshakes_and_datagrams_are_refused"),
    },
    Mutant {
        name: "a datagram is believed as often as it comes",
        file: SESSION,
        find: "        self.window.mark(counter);\n        Ok(opened)\n",
        replace: "        Ok(opened)\n",
        found_by: link!("tests::recorded_handshakes_and_datagrams_are_refused"),
    },
    Mutant {
        name: "a peer of another version is let in",
        file: SESSION,
        find: "if version != WIRE_VERSION {",
        replace: "if version > WIRE_VERSION {",
        found_by: link!("session::tests::another_version_is_named"),
    },
    Mutant {
        name: "a reason for refusing is a cause for ever",
        file: REFUSALS,
        find: "last.refused.explains() && now.saturating_duration_since(last.at) < FRESH",
        replace: "last.refused.explains() && now >= last.at",
        found_by: link!(
            "refusals::tests::a_cause_is_the_peers_the_plainest_and_no_older_than_some_seconds"
        ),
    },
    Mutant {
        name: "every refusal is a line of the log",
        file: REFUSALS,
        find: "        if new == 0 || early {\n",
        replace: "        if new == 0 || (early && self.told > self.count) {\n",
        found_by: link!(
            "refusals::tests::the_first_is_said_at_once_and_then_one_line_a_minute_for_each_reason"
        ),
    },
];
