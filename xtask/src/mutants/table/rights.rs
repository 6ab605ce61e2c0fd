//! What the engine may not do, and what the guardian keeps.

use super::{Mutant, lib};

const RIGHTS: &str = "proxy-user/src/engine/rights/mod.rs";
const CALLS: &str = "proxy-user/src/engine/rights/calls.rs";
const BOUNDED: &str = "engine::rights::tests::what_is_not_listed_ends_the_process";

pub(super) const ROWS: &[Mutant] = &[
    Mutant {
        name: "a call off the list is made",
        file: RIGHTS,
        find: "SeccompAction::KillProcess",
        replace: "SeccompAction::Log",
        found_by: lib("proxy-user", BOUNDED),
    },
    Mutant {
        name: "the list holds for one thread only",
        file: RIGHTS,
        find: "seccompiler::apply_filter_all_threads(&program)?;",
        replace: "seccompiler::apply_filter(&program)?;",
        found_by: lib("proxy-user", BOUNDED),
    },
    Mutant {
        name: "an engine opens files",
        file: RIGHTS,
        find: "let refusal = SeccompAction::Errno(libc::EACCES.cast_unsigned());",
        replace: "let refusal = SeccompAction::Allow;",
        found_by: lib("proxy-user", BOUNDED),
    },
    Mutant {
        name: "an engine makes new code",
        file: CALLS,
        find: "is_masked(2, !number(PROT_EXEC), 0)",
        replace: "is_masked(2, u64::MAX, 0)",
        found_by: lib("proxy-user", BOUNDED),
    },
    Mutant {
        name: "an engine opens sockets of any kind",
        file: CALLS,
        find: "is_masked(1, number(SOCK_NONBLOCK | SOCK_CLOEXEC), number(SOCK_STREAM))",
        replace: "is_masked(1, u64::MAX, 0)",
        found_by: lib("proxy-user", BOUNDED),
    },
    Mutant {
        name: "a ring does what the engine may not",
        file: "proxy-user/src/engine/driver/probe.rs",
        find: "    submitter.register_restrictions(&mut allowed)?;\n",
        replace: "",
        found_by: lib(
            "proxy-user",
            "engine::driver::probe::tests::a_restricted_ring_refuses_other_operations",
        ),
    },
    Mutant {
        name: "a guardian without addresses administers the network",
        file: "proxy-user/src/guardian/rights.rs",
        find: "let mut groups = vec![ALWAYS];",
        replace: "let mut groups = vec![ALWAYS, ADDRESS];",
        found_by: lib(
            "proxy-user",
            "guardian::rights::tests::capabilities_follow_what_is_configured",
        ),
    },
];
