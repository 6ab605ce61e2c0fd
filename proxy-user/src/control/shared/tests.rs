//! The page between processes, and the futex promises.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

const CHILD: &str = "TANDEM_TEST_PAGE_CHILD";

fn until(limit: Duration) -> Option<u64> {
    Some(monotonic_ns() + u64::try_from(limit.as_nanos()).unwrap())
}

#[test]
fn role_lease_and_counters() {
    let (page, fd) = SharedPage::create(2).unwrap();
    use std::os::fd::AsFd;
    let other = SharedPage::open(fd.as_fd()).unwrap();
    assert_eq!(other.role(), Role::BOOT);
    let role = page.set_role(State::Master, 6);
    assert_eq!((other.role(), role.serial), (role, 1));
    let now = monotonic_ns();
    assert!(!other.lease_valid(now));
    page.set_lease(now + 1);
    assert!(other.lease_valid(now) && !other.lease_valid(now + 1));
    let worker = other.worker(1).unwrap();
    assert!(other.worker(2).is_none());
    worker.add(Counter::CacheGets, 5);
    page.worker(0).unwrap().add(Counter::CacheGets, 2);
    worker.set(Counter::Connections, 9);
    assert_eq!(page.sum(Counter::CacheGets), 7);
    page.reset_engine();
    assert_eq!((page.sum(Counter::CacheGets), page.sum(Counter::Connections)), (7, 0));
}

#[test]
fn turns_tell_polling_from_working() {
    let (page, _fd) = SharedPage::create(1).unwrap();
    let worker = page.worker(0).unwrap();
    worker.enter_poll();
    assert_eq!(worker.turn() % 2, 1);
    worker.enter_poll();
    assert_eq!(worker.turn(), 1);
    worker.leave_poll();
    assert_eq!(worker.turn(), 2);
}

#[test]
fn foreign_memory_is_refused() {
    let (_page, fd) = SharedPage::create(1).unwrap();
    let file = std::fs::File::from(fd);
    std::os::unix::fs::FileExt::write_all_at(&file, b"other", 0).unwrap();
    use std::os::fd::AsFd;
    assert!(SharedPage::open(file.as_fd()).is_err());
    let plain = tempfile::tempfile().unwrap();
    assert!(SharedPage::open(plain.as_fd()).is_err());
    assert!(SharedPage::create(65).is_err());
}

#[test]
fn a_seat_has_one_holder() {
    let (page, _fd) = SharedPage::create(1).unwrap();
    let held = page.hold(Seat::Guardian).unwrap();
    assert!(matches!(page.liveness(Seat::Guardian), Liveness::Alive(_)));
    assert!(page.hold(Seat::Guardian).is_err());
    drop(held);
    assert_eq!(page.liveness(Seat::Guardian), Liveness::Left);
    let again = page.hold(Seat::Guardian);
    assert!(again.is_ok(), "{again:?}");
}

#[test]
fn thread_exit_marks_and_wakes() {
    let (page, _fd) = SharedPage::create(1).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let held = page.hold(Seat::Worker(0)).unwrap();
        sender.send(()).unwrap();
        while page.poked() == 0 {
            std::thread::yield_now();
        }
        // The thread ends without giving its seat back.
        std::mem::forget(held);
    });
    receiver.recv().unwrap();
    let watcher = std::thread::spawn(move || {
        page.watch(&[Seat::Worker(0)], 1, until(Duration::from_secs(10)))
    });
    page.poke();
    thread.join().unwrap();
    let woken = watcher.join().unwrap().unwrap();
    let died = Woken::Seat(Seat::Worker(0), Liveness::Died);
    assert!(woken == died || woken == Woken::Poked(0), "{woken:?}");
    assert_eq!(page.liveness(Seat::Worker(0)), Liveness::Died);
    assert!(page.engine_is_gone());
}

#[test]
fn pokes_and_timeouts() {
    let (page, _fd) = SharedPage::create(1).unwrap();
    let _held = page.hold(Seat::Guardian).unwrap();
    let seats = [Seat::Guardian];
    let none = page.watch(&seats, 0, until(Duration::from_millis(1))).unwrap();
    assert_eq!(none, Woken::Timeout);
    let poker = std::thread::spawn(move || page.poke());
    let poked = page.watch(&seats, 0, until(Duration::from_secs(10))).unwrap();
    assert_eq!(poked, Woken::Poked(1));
    poker.join().unwrap();
    let empty = page.watch(&[Seat::Worker(0)], 1, None).unwrap();
    assert_eq!(empty, Woken::Seat(Seat::Worker(0), Liveness::Empty));
}

/// Not a test of its own: the victim of the tests below, this same binary run again. Its standard
/// input is the page.
#[test]
fn child_process() {
    let Ok(how) = std::env::var(CHILD) else { return };
    use std::os::fd::AsFd;
    let page = SharedPage::open_as_engine(io::stdin().as_fd()).unwrap();
    if forges(&how, page) {
        return;
    }
    mark_on_fatal_signals().unwrap();
    let threads = (0..2).map(|worker| {
        std::thread::spawn(move || {
            let held = page.hold(Seat::Worker(worker)).unwrap();
            page.worker(worker).unwrap().add(Counter::CacheGets, 10);
            while page.role().state != State::Master || worker == 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(held);
        })
    });
    let threads: Vec<_> = threads.collect();
    while (0..2).any(|w| page.liveness(Seat::Worker(w)) == Liveness::Empty) {
        std::thread::yield_now();
    }
    let _held = page.hold(Seat::Engine).unwrap();
    io::stderr().write_all(b"ready\n").unwrap();
    for thread in threads {
        if how == "abort" {
            std::process::abort();
        }
        thread.join().unwrap();
    }
}

/// What a stranger's code would try in an engine; true if it was tried, and did not end it.
#[allow(unsafe_code, reason = "a protection is changed")]
fn forges(how: &str, page: SharedPage) -> bool {
    if !["role", "lease", "word", "protection"].contains(&how) {
        return false;
    }
    // Waiting for the guardian needs no right to write.
    let woken = page.watch(&[Seat::Guardian], page.poked(), until(Duration::from_millis(5)));
    assert_eq!(woken.unwrap(), Woken::Timeout);
    io::stderr().write_all(b"ready\n").unwrap();
    match how {
        "role" => drop(page.set_role(State::Master, 2)),
        "lease" => page.set_lease(u64::MAX),
        "word" => page.word(Seat::Guardian).unwrap().store(0, Ordering::SeqCst),
        _ => {
            let start = std::ptr::NonNull::from_ref(page.0).cast();
            let both = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
            // SAFETY: it takes nothing away from what the page's users do.
            let changed = unsafe { nix::sys::mman::mprotect(start, RULING, both) };
            assert_eq!(changed, Err(nix::Error::EACCES));
        }
    }
    true
}

#[test]
fn an_engine_that_writes_what_the_guardian_says_faults() {
    use std::os::unix::process::ExitStatusExt;
    for (how, end) in [
        ("role", Some(libc::SIGSEGV)),
        ("lease", Some(libc::SIGSEGV)),
        ("word", Some(libc::SIGSEGV)),
        ("protection", None),
    ] {
        let (page, fd) = SharedPage::create(2).unwrap();
        let _held = page.hold(Seat::Guardian).unwrap();
        let status = child(fd, how).wait().unwrap();
        assert_eq!(status.signal(), end, "{how}");
        assert!(end.is_some() || status.success(), "{how}: {status}");
        assert_eq!((page.role(), page.lease()), (Role::BOOT, 0), "{how}");
    }
}

fn child(page_fd: OwnedFd, how: &str) -> std::process::Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "control::shared::tests::child_process", "--nocapture"])
        .env(CHILD, how)
        .stdin(Stdio::from(page_fd))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while line != "ready\n" {
        line.clear();
        assert_ne!(ready.read_line(&mut line).unwrap(), 0, "child ended early");
    }
    child
}

#[test]
fn a_killed_process_is_seen_dead_at_once() {
    let (page, fd) = SharedPage::create(2).unwrap();
    let mut child = child(fd, "wait");
    assert_eq!(page.sum(Counter::CacheGets), 20);
    let seats: Vec<Seat> = page.engine_seats().collect();
    let asleep = page.watch(&seats, 0, until(Duration::from_millis(5))).unwrap();
    assert_eq!(asleep, Woken::Timeout);
    let watcher = std::thread::spawn(move || {
        let woken = page.watch(&seats, 0, until(Duration::from_secs(10))).unwrap();
        (woken, Instant::now())
    });
    let killed = Instant::now();
    child.kill().unwrap();
    let (woken, when) = watcher.join().unwrap();
    assert!(matches!(woken, Woken::Seat(_, Liveness::Died)), "{woken:?}");
    let late = when.duration_since(killed);
    assert!(late < Duration::from_secs(1), "woken after {late:?}");
    let limit = Instant::now() + Duration::from_secs(10);
    while !page.engine_is_gone() {
        assert!(Instant::now() < limit, "a seat still says alive");
        std::thread::yield_now();
    }
    child.wait().unwrap();
    page.reset_engine();
    assert_eq!(page.liveness(Seat::Worker(0)), Liveness::Empty);
}

#[test]
fn an_abort_marks_the_seat() {
    let (page, fd) = SharedPage::create(2).unwrap();
    let mut child = child(fd, "abort");
    let woken = page.watch(&[Seat::Engine], 0, until(Duration::from_secs(10))).unwrap();
    assert_eq!(woken, Woken::Seat(Seat::Engine, Liveness::Died));
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGABRT));
}

#[test]
fn a_planned_leave_wakes_too() {
    let (page, fd) = SharedPage::create(2).unwrap();
    let mut child = child(fd, "wait");
    page.set_role(State::Master, 2);
    let woken = page.watch(&[Seat::Worker(0)], 0, until(Duration::from_secs(10))).unwrap();
    assert_eq!(woken, Woken::Seat(Seat::Worker(0), Liveness::Left));
    child.kill().unwrap();
    child.wait().unwrap();
}
