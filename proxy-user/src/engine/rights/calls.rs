//! The system calls of a serving engine. Both drivers, both C libraries: a call that only one of
//! them makes stands here too. What an engine calls before its listeners open (mapping the store,
//! rings, threads, affinity) is over by then and does not stand here.

use std::collections::BTreeMap;

use libc::*;
use seccompiler::{Error, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// Calls that may be made with any arguments, and what for.
#[rustfmt::skip]
const FREE: &[(&str, &[c_long])] = &[
    ("the uring driver: the rings are there already", &[SYS_io_uring_enter]),
    ("the epoll driver", &[SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_accept4,
        SYS_connect, SYS_recvfrom, SYS_readv, SYS_writev]),
    ("sockets that are there: the driver, the guardian's channel", &[SYS_sendto, SYS_sendmsg,
        SYS_recvmsg, SYS_shutdown, SYS_getsockopt, SYS_getpeername, SYS_getsockname, SYS_ppoll]),
    ("wake-ups, stderr, the access log", &[SYS_read, SYS_write, SYS_close]),
    ("threads that wait for one another; seats", &[SYS_futex, SYS_futex_waitv, SYS_sched_yield,
        SYS_membarrier]),
    ("memory of the allocator; the store is made present in the background", &[SYS_brk,
        SYS_munmap, SYS_mremap, SYS_madvise]),
    ("clocks, where the vDSO has none; sleeping", &[SYS_clock_gettime, SYS_clock_getres,
        SYS_gettimeofday, SYS_nanosleep, SYS_clock_nanosleep, SYS_getcpu]),
    ("memcached's stats", &[SYS_getrusage]),
    ("keys of sessions and of hashes", &[SYS_getrandom]),
    ("who am I: seats, log lines, the number of malloc's arenas", &[SYS_getpid, SYS_gettid,
        SYS_sched_getaffinity]),
    ("signals: fatal ones mark their seat; a call goes on after SIGSTOP", &[SYS_rt_sigaction,
        SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_restart_syscall]),
    ("the first and last steps of a thread", &[SYS_sigaltstack, SYS_set_robust_list, SYS_rseq,
        SYS_exit]),
    ("the end", &[SYS_exit_group]),
];

/// Forms that later architectures do without.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[SYS_epoll_wait, SYS_poll, SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

/// What the C library and a backtrace ask of files, by name: told that they may not, and go on
/// without. (glibc's malloc asks for vm.overcommit_memory when it first gives memory back.)
const REFUSED: &[c_long] = &[SYS_openat, SYS_readlinkat, SYS_newfstatat, SYS_statx, SYS_getcwd];
/// The same, of architectures that began with them.
#[cfg(target_arch = "x86_64")]
const REFUSED_OLD: &[c_long] = &[SYS_open, SYS_readlink, SYS_stat];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_OLD: &[c_long] = &[];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls that fail with a word instead of ending the process; they are on the list for that.
pub(super) fn refused() -> Rules {
    REFUSED.iter().chain(REFUSED_OLD).map(|call| (*call, Vec::new())).collect()
}

/// The list as seccompiler's rules, for the process `pid`.
///
/// # Errors
/// None but a mistake in this file.
pub(super) fn rules(pid: u32) -> Result<Rules, Error> {
    let mut rules: Rules = FREE
        .iter()
        .flat_map(|(_, calls)| *calls)
        .chain(OLD)
        .copied()
        .map(|call| (call, Vec::new()))
        .collect();
    rules.extend(refused());
    let number = |value: c_int| u64::from(value.cast_unsigned());
    // Streams to servers and to the peer's engine: no other family, nothing raw, no datagram.
    let stream = || is_masked(1, number(SOCK_NONBLOCK | SOCK_CLOEXEC), number(SOCK_STREAM));
    let families = [AF_INET, AF_INET6].map(|family| (is(0, number(family)), stream()));
    for (family, kind) in families {
        rules.entry(SYS_socket).or_default().push(SeccompRule::new(vec![family?, kind?])?);
    }
    // Options of streams; no filter, no program, no other protocol on top.
    let options = [
        (SOL_SOCKET, SO_LINGER),
        (SOL_SOCKET, SO_KEEPALIVE),
        (IPPROTO_TCP, TCP_NODELAY),
        (IPPROTO_TCP, TCP_KEEPIDLE),
        (IPPROTO_TCP, TCP_KEEPINTVL),
        (IPPROTO_TCP, TCP_USER_TIMEOUT),
    ];
    for (level, name) in options {
        let rule = SeccompRule::new(vec![is(1, number(level))?, is(2, number(name))?])?;
        rules.entry(SYS_setsockopt).or_default().push(rule);
    }
    for command in [F_GETFL, F_SETFL, F_GETFD, F_SETFD, F_DUPFD_CLOEXEC] {
        one(&mut rules, SYS_fcntl, is(1, number(command)))?;
    }
    one(&mut rules, SYS_ioctl, is(1, FIONBIO))?;
    // Memory, never code.
    for call in [SYS_mmap, SYS_mprotect] {
        one(&mut rules, call, is_masked(2, !number(PROT_EXEC), 0))?;
    }
    // Names of threads.
    one(&mut rules, SYS_prctl, is(0, number(PR_SET_NAME)))?;
    // Signals to itself: abort.
    one(&mut rules, SYS_tgkill, is(0, u64::from(pid)))?;
    Ok(rules)
}

type Condition = Result<SeccompCondition, seccompiler::BackendError>;

fn one(rules: &mut Rules, call: c_long, condition: Condition) -> Result<(), Error> {
    rules.entry(call).or_default().push(SeccompRule::new(vec![condition?])?);
    Ok(())
}

/// The argument is `value`. The kernel reads these arguments as 32 bits, and so does the filter.
fn is(argument: u8, value: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// The argument without the bits of `ignored` is `value`.
fn is_masked(argument: u8, ignored: u64, value: u64) -> Condition {
    let mask = !ignored & u64::from(u32::MAX);
    let op = SeccompCmpOp::MaskedEq(mask);
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)
}
