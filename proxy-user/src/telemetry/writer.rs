//! Takes lines from any thread without waiting, and writes them to stderr on a thread of its own.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Most bytes that wait; lines beyond are counted instead.
const BUFFER_MAX: usize = 256 << 10;
/// Memory kept between two bursts.
const BUFFER_KEPT: usize = 8 << 10;
/// Longest time that [`Writer::flush`] waits.
const FLUSH_MAX: Duration = Duration::from_secs(1);
const STACK: usize = 64 << 10;

/// One per process; clones share the buffer. A `write` takes a whole line.
#[derive(Debug, Clone, Default)]
pub(super) struct Writer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    buffer: Mutex<Buffer>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Lines that found no room.
    lost: u64,
    /// The thread is writing what it took.
    busy: bool,
}

impl Writer {
    /// Starts the thread; it lives as long as the process.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start() -> io::Result<Self> {
        let writer = Self::default();
        let shared = Arc::clone(&writer.0);
        let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(STACK);
        drop(thread.spawn(move || {
            let mut bytes = Vec::new();
            loop {
                shared.take(&mut bytes);
                // Nobody is left to tell.
                drop(io::stderr().write_all(&bytes));
            }
        })?);
        Ok(writer)
    }

    /// Waits until everything is written, but not for long.
    pub(super) fn flush(&self) {
        let until = Instant::now() + FLUSH_MAX;
        let mut buffer = self.0.buffer.lock();
        while buffer.busy || !buffer.bytes.is_empty() || buffer.lost > 0 {
            if self.0.emptied.wait_until(&mut buffer, until).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    /// Waits for lines and swaps them into `bytes`.
    fn take(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.shrink_to(BUFFER_KEPT);
        let mut buffer = self.buffer.lock();
        buffer.busy = false;
        while buffer.bytes.is_empty() && buffer.lost == 0 {
            self.emptied.notify_all();
            self.filled.wait(&mut buffer);
        }
        std::mem::swap(bytes, &mut buffer.bytes);
        let lost = std::mem::take(&mut buffer.lost);
        buffer.busy = true;
        drop(buffer);
        if lost > 0 {
            bytes.extend_from_slice(format!("({lost} lines of log lost here)\n").as_bytes());
        }
    }
}

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.buffer.lock();
        if buffer.bytes.len() + line.len() > BUFFER_MAX {
            buffer.lost += 1;
        } else {
            buffer.bytes.extend_from_slice(line);
        }
        drop(buffer);
        self.0.filled.notify_one();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_and_losses_are_told() {
        let mut writer = Writer::default();
        let line = [b'x'; 1 << 10];
        for _ in 0..300 {
            assert_eq!(writer.write(&line).unwrap(), line.len());
        }
        let mut taken = Vec::new();
        writer.0.take(&mut taken);
        let tail = String::from_utf8_lossy(&taken[BUFFER_MAX..]).into_owned();
        assert_eq!(tail, "(44 lines of log lost here)\n");
        assert!(writer.0.buffer.lock().busy, "flush waits for what was taken");
        writer.write_all(b"next\n").unwrap();
        writer.0.take(&mut taken);
        assert_eq!(taken, b"next\n");
    }

    #[test]
    fn flush_returns_when_all_is_written() {
        let writer = Writer::default();
        writer.clone().write_all(b"a\n").unwrap();
        let shared = Arc::clone(&writer.0);
        let thread = std::thread::spawn(move || {
            let mut taken = Vec::new();
            shared.take(&mut taken);
            let first = taken.clone();
            shared.take(&mut taken);
            (first, taken)
        });
        writer.flush();
        let before = Instant::now();
        writer.clone().write_all(b"b\n").unwrap();
        assert_eq!(thread.join().unwrap(), (b"a\n".to_vec(), b"b\n".to_vec()));
        assert!(before.elapsed() < FLUSH_MAX);
    }
}
