//! What an answer stands on: gate, sessions, streams.

use super::{Mutant, lib, seeds};

const GATE: &str = "cache/src/replication/gate.rs";
const OUTPUT: &str = "cache/src/session/output.rs";
const SENDER: &str = "cache/src/replication/sender.rs";
const RECEIVER: &str = "cache/src/replication/receiver.rs";
const STREAM: &str = "cache/src/replication/stream.rs";

pub(super) const ROWS: &[Mutant] = &[
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
];
