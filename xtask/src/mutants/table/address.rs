//! Who answers for the addresses: VRRP and the XDP program.

use super::{Mutant, lib};

const VRRP: &str = "vrrp/src/fsm.rs";
const PACKET: &str = "vrrp/src/packet.rs";
const DECIDE: &str = "proxy-ebpf/common/src/decide.rs";

pub(super) const ROWS: &[Mutant] = &[
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
        name: "the program answers ARP beyond its lease",
        file: DECIDE,
        find: "        return withhold(Reason::ArpStale);\n",
        replace: "",
        found_by: lib(
            "proxy-common",
            "decide::tests::a_backup_and_a_node_whose_lease_has_ended_drop_requests",
        ),
    },
    Mutant {
        name: "a backup answers ARP",
        file: DECIDE,
        find: "        return withhold(Reason::ArpBackup);\n",
        replace: "",
        found_by: lib(
            "proxy-common",
            "decide::tests::a_backup_and_a_node_whose_lease_has_ended_drop_requests",
        ),
    },
];
