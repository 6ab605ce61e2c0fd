//! The thread that learns of an engine's death from its robust futexes, and tells the role thread
//! and the main thread. It does nothing else, so nothing delays it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use crate::control::shared::{Liveness, Seat, SharedPage, Woken, run_realtime};

/// What the watcher saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// One thread of this engine is gone: the engine counts as dead and must be killed whole.
    Lost {
        /// Which engine.
        generation: u32,
        /// Whose seat.
        seat: Seat,
        /// What it says.
        liveness: Liveness,
    },
    /// No thread of this engine runs any more: the next may attach.
    Gone {
        /// Which engine.
        generation: u32,
    },
    /// The kernel does not let us watch.
    Broken,
}

/// Handle of the thread.
#[derive(Debug)]
pub(super) struct Watcher {
    page: SharedPage,
    orders: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

/// SCHED_FIFO priority: it sleeps until an engine dies.
const PRIORITY: i32 = 40;
/// Order to end; generations count from 1.
const END: u32 = u32::MAX;

impl Watcher {
    /// Starts the thread; it watches nothing until [`Self::arm`].
    pub(super) fn start(
        page: SharedPage,
        tell: impl Fn(Seen) + Send + 'static,
    ) -> io::Result<Self> {
        let orders = Arc::new(AtomicU32::new(0));
        let taken = Arc::clone(&orders);
        let thread = std::thread::Builder::new().name("watch".to_owned());
        let thread = thread.stack_size(64 * 1024).spawn(move || run(page, &taken, &tell))?;
        Ok(Self { page, orders, thread: Some(thread) })
    }

    /// This engine has said hello: every one of its threads holds its seat. From now on.
    pub(super) fn arm(&self, generation: u32) {
        self.orders.store(generation, Ordering::Release);
        self.page.poke();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.orders.store(END, Ordering::Release);
        self.page.poke();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run(page: SharedPage, orders: &AtomicU32, tell: &impl Fn(Seen)) {
    // Without the right it learns of a death a little later; the role thread says so.
    run_realtime(PRIORITY).ok();
    let seats: Vec<Seat> = page.engine_seats().collect();
    let mut done = 0;
    loop {
        let poked = page.poked();
        let generation = orders.load(Ordering::Acquire);
        if generation == END {
            return;
        }
        let watched: &[Seat] = if generation == done { &[] } else { &seats };
        match page.watch(watched, poked, None) {
            Ok(Woken::Poked(_) | Woken::Timeout) => {}
            Ok(Woken::Seat(seat, liveness)) => {
                tell(Seen::Lost { generation, seat, liveness });
                if gone(&page, orders) {
                    tell(Seen::Gone { generation });
                }
                done = generation;
            }
            Err(error) => {
                tracing::error!(%error, "cannot watch the engine's threads");
                tell(Seen::Broken);
                return;
            }
        }
    }
}

/// Waits until no seat is held; false if the thread must end instead.
fn gone(page: &SharedPage, orders: &AtomicU32) -> bool {
    loop {
        let poked = page.poked();
        if orders.load(Ordering::Acquire) == END {
            return false;
        }
        let alive: Vec<Seat> = page.living_engine_seats().collect();
        if alive.is_empty() {
            return true;
        }
        if page.watch(&alive, poked, None).is_err() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Threads stand for an engine's; each ends without giving its seat back when told.
    #[test]
    fn first_loss_then_gone() {
        let (page, _fd) = SharedPage::create(2).unwrap();
        let (seen, news) = mpsc::channel();
        let watcher = Watcher::start(page, move |seen_now| seen.send(seen_now).unwrap()).unwrap();
        let (ready, readies) = mpsc::channel();
        let mut threads = Vec::new();
        for seat in page.engine_seats() {
            let (kill, killed) = mpsc::channel::<()>();
            let ready = ready.clone();
            let thread = std::thread::spawn(move || {
                let held = page.hold(seat).unwrap();
                ready.send(()).unwrap();
                killed.recv().ok();
                std::mem::forget(held);
            });
            readies.recv().unwrap();
            threads.push((kill, thread));
        }
        watcher.arm(1);
        let limit = Duration::from_secs(10);
        let (kill, thread) = threads.pop().unwrap();
        drop(kill);
        thread.join().unwrap();
        let (seat, liveness) = (Seat::Engine, Liveness::Died);
        let lost = Seen::Lost { generation: 1, seat, liveness };
        assert_eq!(news.recv_timeout(limit), Ok(lost));
        assert!(news.try_recv().is_err(), "others are alive");
        for (kill, thread) in threads {
            drop(kill);
            thread.join().unwrap();
        }
        assert_eq!(news.recv_timeout(limit), Ok(Seen::Gone { generation: 1 }));
        drop(watcher);
    }
}
