//! Engines that hang: alive by their seats, and standing still.

use std::time::{Duration, Instant};

use crate::control::shared::{Liveness, Seat, SharedPage};

/// Beyond the longest sleep of an idle worker, which is half a second.
const SLEEP_MAX: Duration = Duration::from_millis(1500);

/// Finds workers whose loop stands still: for the configured time outside their driver, and inside
/// it for longer than a worker ever sleeps (a stopped process, a stuck kernel). Time in which a
/// worker wanted to run and got no CPU does not count: on a starved host a killed engine would not
/// start sooner either.
#[derive(Debug)]
pub(super) struct Stalls {
    page: SharedPage,
    limit: Duration,
    seen: Vec<Standing>,
    looked: Option<Instant>,
}

/// A worker's turn, since when it is the same, and what its thread had got of the CPUs then.
#[derive(Debug, Clone, Copy)]
struct Standing {
    turn: u64,
    since: Instant,
    then: Option<Scheduled>,
}

impl Stalls {
    /// Workers of this page; longer than `limit` outside of the driver is a hang.
    pub(super) fn new(page: SharedPage, limit: Duration) -> Self {
        Self { page, limit, seen: Vec::new(), looked: None }
    }

    /// Another engine serves.
    pub(super) fn reset(&mut self) {
        self.seen.clear();
    }

    /// The first worker that has worked on one turn for longer than the limit.
    pub(super) fn look(&mut self, now: Instant) -> Option<(u16, Duration)> {
        // A guardian that did not run for that long cannot say that a worker did not.
        let last = self.looked.replace(now);
        if last.is_some_and(|last| now.saturating_duration_since(last) > self.limit) {
            self.seen.clear();
        }
        let mut hung = None;
        for worker in 0..u16::try_from(self.page.workers()).unwrap_or(u16::MAX) {
            let turn = self.page.worker(worker).map_or(1, |page| page.turn());
            let new = Standing { turn, since: now, then: None };
            let scheduled = || Scheduled::of(self.page, worker);
            match self.seen.get_mut(usize::from(worker)) {
                Some(old) if old.turn == turn => {
                    let limit =
                        if turn.is_multiple_of(2) { self.limit } else { self.limit.max(SLEEP_MAX) };
                    let Some(then) = old.then else {
                        old.then = Some(scheduled());
                        continue;
                    };
                    let time = now.saturating_duration_since(old.since);
                    if time > limit && scheduled().own(then, time) > limit {
                        hung = hung.or(Some((worker, time)));
                    }
                }
                Some(old) => *old = new,
                None => self.seen.push(new),
            }
        }
        hung
    }
}

/// What a thread has ever got of the CPUs, by /proc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Scheduled {
    /// Time on a CPU.
    ran: Duration,
    /// Time for which it could have run and did not; a wait that goes on is not in it yet.
    waited: Duration,
    /// It runs or waits for a CPU just now.
    runnable: bool,
}

impl Scheduled {
    /// Of a worker; nothing when it holds no seat.
    fn of(page: SharedPage, worker: u16) -> Self {
        let Liveness::Alive(tid) = page.liveness(Seat::Worker(worker)) else {
            return Self::default();
        };
        let read =
            |name: &str| std::fs::read_to_string(format!("/proc/{tid}/{name}")).unwrap_or_default();
        Self::parse(&read("stat"), &read("schedstat"))
    }

    fn parse(stat: &str, schedstat: &str) -> Self {
        let mut fields = schedstat.split(' ').map(|field| field.parse().unwrap_or(0));
        let mut next = || Duration::from_nanos(fields.next().unwrap_or(0));
        let (ran, waited) = (next(), next());
        // The name before it may have anything in it.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        Self { ran, waited, runnable: state == Some('R') }
    }

    /// How much of the `time` since `then` is the thread's own.
    fn own(self, then: Self, time: Duration) -> Duration {
        if self.runnable {
            return time.min(self.ran.saturating_sub(then.ran));
        }
        time.saturating_sub(self.waited.saturating_sub(then.waited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hang_is_told_from_sleep() {
        let (page, _fd) = SharedPage::create(2).unwrap();
        let limit = Duration::from_millis(100);
        let mut stalls = Stalls::new(page, limit);
        let (busy, idle) = (page.worker(0).unwrap(), page.worker(1).unwrap());
        idle.enter_poll();
        busy.leave_poll();
        let ms = Duration::from_millis(1);
        let start = Instant::now();
        assert_eq!(stalls.look(start), None);
        assert_eq!(stalls.look(start + limit), None);
        let late = start + limit + ms;
        assert_eq!(stalls.look(late), Some((0, late - start)));
        busy.leave_poll();
        assert_eq!(stalls.look(late), None);
        assert_eq!(stalls.look(late + limit), None);
        let later = late + limit + ms;
        assert_eq!(stalls.look(later), Some((0, later - late)));
        let after_pause = later + 10 * limit;
        assert_eq!(stalls.look(after_pause), None, "the guardian itself did not run");
        let mut tick = after_pause;
        let stopped = loop {
            tick += limit / 2;
            busy.leave_poll();
            if let Some(hung) = stalls.look(tick) {
                break hung;
            }
        };
        assert_eq!(stopped.0, 1, "the idle one never wakes");
        assert!(tick - after_pause > SLEEP_MAX, "{stopped:?}");
    }

    #[test]
    fn waiting_for_a_cpu_is_no_hang() {
        let ms = Duration::from_millis;
        let at = |ran, waited, runnable| Scheduled { ran: ms(ran), waited: ms(waited), runnable };
        let then = at(500, 700, true);
        for (now, own) in [
            // asleep, or stuck in the kernel: all of it but what it had waited
            (at(500, 700, false), 1500),
            (at(510, 1900, false), 300),
            // queued all the while: the kernel's figure grows when the wait is over
            (at(500, 700, true), 0),
            (at(520, 900, true), 20),
            // a loop
            (at(2100, 700, true), 1500),
        ] {
            assert_eq!(now.own(then, ms(1500)), ms(own), "{now:?}");
        }
    }

    #[test]
    fn the_scheduler_is_read() {
        let stat = "77 (work) R) R 1 77 77 0 -1 4194304";
        let read = Scheduled::parse(stat, "5000000 7000000 3\n");
        let (ran, waited) = (Duration::from_millis(5), Duration::from_millis(7));
        assert_eq!(read, Scheduled { ran, waited, runnable: true });
        assert!(!Scheduled::parse("77 (R) S 1", "").runnable);
        assert_eq!(Scheduled::parse("", ""), Scheduled::default());
    }
}
