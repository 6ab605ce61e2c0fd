//! The rules that are broken on purpose. A row: what the break comes to, where, the text (once in
//! its file) and what stands there instead, and the test that must fail then.

/// One broken rule.
#[derive(Debug)]
pub(super) struct Mutant {
    /// What the node does now that it must not.
    pub(super) name: &'static str,
    /// From the top of the tree.
    pub(super) file: &'static str,
    /// Exactly this text, once in the file.
    pub(super) find: &'static str,
    /// Instead of it.
    pub(super) replace: &'static str,
    /// The test that must not pass.
    pub(super) found_by: FoundBy,
}

/// A test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundBy {
    pub(super) package: &'static str,
    /// The test target; empty for the library's own tests.
    pub(super) target: &'static str,
    /// Its whole name.
    pub(super) name: &'static str,
    /// `SIM_SEEDS`, for the simulation.
    pub(super) seeds: &'static str,
}

impl FoundBy {
    /// For people.
    pub(super) fn words(&self) -> String {
        let target = if self.target.is_empty() { self.package } else { self.target };
        let seeds = if self.seeds.is_empty() { "" } else { " seeds " };
        format!("{target}: {}{seeds}{}", self.name, self.seeds)
    }
}

/// A test of a library.
const fn lib(package: &'static str, name: &'static str) -> FoundBy {
    FoundBy { package, target: "", name, seeds: "" }
}

/// A seed, or a range of them, of the simulation.
const fn seeds(seeds: &'static str) -> FoundBy {
    FoundBy { package: "tests", target: "sim", name: "seeds_hold", seeds }
}

const GATE: &str = "cache/src/replication/gate.rs";
const OUTPUT: &str = "cache/src/session/output.rs";
const SENDER: &str = "cache/src/replication/sender.rs";
const RECEIVER: &str = "cache/src/replication/receiver.rs";
const STREAM: &str = "cache/src/replication/stream.rs";
const VRRP: &str = "vrrp/src/fsm.rs";
const PACKET: &str = "vrrp/src/packet.rs";
const EPOCH: &str = "proxy-user/src/guardian/epoch.rs";
const CLAIM: &str = "proxy-user/src/node/claim.rs";
const MESSAGE: &str = "proxy-user/src/node/message.rs";
const DECIDE: &str = "proxy-ebpf/common/src/decide.rs";

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "an answer leaves before its ack",
        file: GATE,
        find: "self.acked(depends.partition) >= depends.version",
        replace: "self.acked(depends.partition) <= depends.version",
        found_by: seeds("0..16"),
    },
    Mutant {
        name: "an answer leaves one version before its ack",
        file: GATE,
        find: "self.acked(depends.partition) >= depends.version",
        replace: "self.acked(depends.partition) + 1 >= depends.version",
        found_by: lib(
            "cache",
            "replication::tests::a_gated_answer_leaves_only_when_the_replica_has_it",
        ),
    },
    Mutant {
        name: "a MASTER's answers wait for nobody",
        file: GATE,
        find: "self.role == GateRole::Master && self.ack_mode",
        replace: "self.role == GateRole::Closed && self.ack_mode",
        found_by: lib(
            "cache",
            "replication::tests::a_gated_answer_leaves_only_when_the_replica_has_it",
        ),
    },
    Mutant {
        name: "an answer of a former reign leaves",
        file: OUTPUT,
        find: "if !ctx.gate.serves() || ctx.gate.epoch != self.epoch {",
        replace: "if !ctx.gate.serves() {",
        found_by: lib(
            "cache",
            "session::tests::gate::answers_of_another_role_or_epoch_never_leave",
        ),
    },
    Mutant {
        name: "an answer leaves without a lease",
        file: OUTPUT,
        find: "if !ctx.gate.lease_valid {",
        replace: "if ctx.now.wall == u64::MAX {",
        found_by: lib("cache", "session::tests::gate::no_lease_holds_and_local_waits_for_nobody"),
    },
    Mutant {
        name: "what was answered alone leaves a MASTER unmarked",
        file: OUTPUT,
        find: "        if self.unmarked {\n",
        replace: "        if self.unmarked && ctx.now.wall == u64::MAX {\n",
        found_by: lib(
            "cache",
            "session::tests::gate::what_solo_produced_waits_once_the_node_is_master",
        ),
    },
    Mutant {
        name: "a node that is no master runs commands itself",
        file: "cache/src/session.rs",
        find: "if !ctx.gate.serves() {",
        replace: "if ctx.now.wall == u64::MAX {",
        found_by: lib("cache", "session::tests::gate::a_node_that_is_no_master_runs_nothing"),
    },
    Mutant {
        name: "a new link begins with the acks of the one before",
        file: SENDER,
        find: "            ctx.shared.forget(partition);\n",
        replace: "",
        found_by: lib("cache", "replication::tests::a_new_link_knows_of_no_ack"),
    },
    Mutant {
        name: "caught up when the walk has ended, not when it is acked",
        file: SENDER,
        find: "ended.is_some_and(|version| ctx.shared.acked(partition) >= version)",
        replace: "ended.is_some()",
        found_by: lib("cache", "replication::tests::caught_up_is_said_after_the_last_ack"),
    },
    Mutant {
        name: "records of another epoch go on over an old link",
        file: SENDER,
        find: "        let (state, stream) = locked.split();\n        \
               if state.epoch() != self.config.session.epoch {\n            \
               return Err(LinkLost::EpochChanged(partition));\n        }\n        \
               stream.take(",
        replace: "        let (_, stream) = locked.split();\n        stream.take(",
        found_by: lib(
            "cache",
            "replication::tests::a_promotion_ends_the_links_of_the_reign_before",
        ),
    },
    Mutant {
        name: "a gap in a stream is not noticed",
        file: RECEIVER,
        find: "have.checked_add(1) == Some(version)",
        replace: "version > have",
        found_by: lib("cache", "replication::tests::missing_and_repeated_records_are_noticed"),
    },
    Mutant {
        name: "a replica applies records of a lower epoch",
        file: RECEIVER,
        find: "if got < have { Err",
        replace: "if got > have { Err",
        found_by: lib(
            "cache",
            "replication::tests::a_promoted_replica_takes_and_acknowledges_nothing_more",
        ),
    },
    Mutant {
        name: "a replica keeps what the full sync did not name",
        file: RECEIVER,
        find: "let mut cursor = Some(Cursor::START);\n",
        replace: "let mut cursor = None;\n",
        found_by: lib("cache", "replication::tests::stores_are_equal_after_a_sync_under_writes"),
    },
    Mutant {
        name: "a partition is acked before its walk has ended",
        file: RECEIVER,
        find: "        self.begun |= bit;\n",
        replace: "        self.begun |= bit;\n        self.ended |= bit;\n",
        found_by: lib("cache", "replication::tests::stores_are_equal_after_a_sync_under_writes"),
    },
    Mutant {
        name: "a delete at the replica leaves no trace for misses",
        file: RECEIVER,
        find: "                state.raise_last_delete(version);\n",
        replace: "",
        found_by: lib("cache", "replication::tests::stores_are_equal_after_a_sync_under_writes"),
    },
    Mutant {
        name: "an older link takes a partition back",
        file: STREAM,
        find: "self.source.is_some_and(|have| have > session)",
        replace: "self.source.is_some_and(|have| have < session)",
        found_by: lib("cache", "replication::tests::a_newer_link_shuts_the_older_out"),
    },
    Mutant {
        name: "records beyond the backlog are dropped in silence",
        file: STREAM,
        find: "            self.overrun = true;\n",
        replace: "",
        found_by: lib(
            "cache",
            "replication::tests::a_peer_that_does_not_read_costs_the_backlog_and_no_more",
        ),
    },
    Mutant {
        name: "silence of VRRP promotes by itself",
        file: VRRP,
        find: "                    self.active_router = None;\n                    \
               self.arm_down(now);\n",
        replace: "                    self.enter_active(now, GarpReason::Promoted);\n",
        found_by: lib("vrrp", "fsm::tests::coupled::silence_is_no_promotion"),
    },
    Mutant {
        name: "the peer's higher priority deposes a master",
        file: VRRP,
        find: "(true, Mode::Coupled { .. }) if from_peer => {}",
        replace: "(true, Mode::Coupled { .. }) if from_peer => self.enter_backup(now),",
        found_by: lib("vrrp", "fsm::tests::coupled::the_peer_never_deposes_by_priority"),
    },
    Mutant {
        name: "a stranger's resignation speaks for the peer",
        file: VRRP,
        find: "self.active_router.is_some_and(|r| r != source)",
        replace: "self.active_router.is_some_and(|_| false)",
        found_by: lib(
            "vrrp",
            "fsm::tests::coupled::a_strangers_resignation_does_not_speak_for_the_peer",
        ),
    },
    Mutant {
        name: "forged adverts are answered without a limit",
        file: VRRP,
        find: "let due = self.last_answer.is_none_or(|last| now >= last + ANSWER_GAP);",
        replace: "let due = true;",
        found_by: lib("vrrp", "fsm::tests::plain::immediate_answers_are_at_least_10_ms_apart"),
    },
    Mutant {
        name: "a router's burst outlives its reign",
        file: VRRP,
        find: "            // its burst must not outlive a newer master's\n            \
               self.outputs.push_back(Output::StopGarp);\n",
        replace: "",
        found_by: lib("vrrp", "fsm::tests::coupled::resigning_with_announcement_says_zero_once"),
    },
    Mutant {
        name: "adverts from beyond a router are believed",
        file: PACKET,
        find: "            return Err(Refusal::HopLimit(received.hop_limit));\n",
        replace: "",
        found_by: lib("vrrp", "packet::tests::checks_come_in_the_order_of_the_rfc"),
    },
    Mutant {
        name: "the checksum of an advert is not checked",
        file: PACKET,
        find: "verify_checksum(received, version, message).ok_or(Refusal::Checksum)?",
        replace: "verify_checksum(received, version, message).unwrap_or_default()",
        found_by: lib("vrrp", "packet::tests::every_flipped_bit_is_refused"),
    },
    Mutant {
        name: "an epoch is written over the one in force",
        file: EPOCH,
        find: "        self.next = 1 - self.next;\n",
        replace: "",
        found_by: lib("proxy-user", "guardian::epoch::tests::a_torn_write_leaves_the_one_before"),
    },
    Mutant {
        name: "a damaged slot of the state file counts",
        file: EPOCH,
        find: "(bytes == slot(epoch)).then_some(epoch)",
        replace: "Some(epoch)",
        found_by: lib("proxy-user", "guardian::epoch::tests::a_damaged_file_is_refused"),
    },
    Mutant {
        name: "the older slot of the state file counts",
        file: EPOCH,
        find: "if second > first => Some((second, 0))",
        replace: "if second < first => Some((second, 0))",
        found_by: lib("proxy-user", "guardian::epoch::tests::persists_and_never_goes_back"),
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
        name: "the program answers ARP for a hung guardian",
        file: DECIDE,
        find: "        return Verdict::Drop(Reason::ArpStale);\n",
        replace: "",
        found_by: lib(
            "proxy-common",
            "decide::tests::a_backup_and_a_node_without_a_living_guardian_drop_requests",
        ),
    },
    Mutant {
        name: "a backup answers ARP",
        file: DECIDE,
        find: "        return Verdict::Drop(Reason::ArpBackup);\n",
        replace: "",
        found_by: lib(
            "proxy-common",
            "decide::tests::a_backup_and_a_node_without_a_living_guardian_drop_requests",
        ),
    },
];

#[cfg(test)]
mod tests {
    use super::super::change;
    use super::*;

    #[test]
    fn every_row_fits_the_tree() {
        let mut names: Vec<_> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MUTANTS.len(), "a name twice");
        let mut bad = Vec::new();
        for mutant in MUTANTS {
            let text = std::fs::read_to_string(crate::top().join(mutant.file)).unwrap();
            if let Err(misfit) = change::apply(&text, mutant.find, mutant.replace) {
                bad.push(format!("{}: {misfit}", mutant.name));
            }
        }
        assert!(bad.is_empty(), "{bad:#?}");
    }
}
