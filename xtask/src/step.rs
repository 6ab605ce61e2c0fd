//! One step of a verb: a command that is run with its progress shown live, its time printed, its
//! whole output kept in a log file and its last lines shown when it fails.
//!
//! On a terminal the running step is one line, rewritten: seconds and the command's latest line.
//! Elsewhere (CI, a pipe) a line is printed every ten seconds, so that a log shows life too.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many of a failed command's last lines are shown; the log file has all.
const TAIL_LINES: usize = 40;
/// Width of the live line.
const LINE_COLUMNS: usize = 90;

/// Numbers the steps of one verb and prints them.
pub(crate) struct Steps {
    total: usize,
    done: usize,
    live: bool,
    logs: PathBuf,
}

impl Steps {
    /// `total` steps, whose logs go to target/xtask-logs.
    pub(crate) fn new(total: usize) -> Self {
        let logs = crate::top().join("target/xtask-logs");
        Self { total, done: 0, live: std::io::stderr().is_terminal(), logs }
    }

    fn head(&mut self) -> String {
        self.done += 1;
        format!("[{}/{}]", self.done, self.total)
    }

    /// A step that needed no command: its title and what was found.
    pub(crate) fn note(&mut self, title: &str, found: &str) {
        let head = self.head();
        eprintln!("{head} {title}: {found}");
    }

    /// Runs `command` as the next step.
    ///
    /// # Errors
    /// The command could not be started, or ended with another status than 0.
    pub(crate) fn run(&mut self, title: &str, command: &mut Command) -> Result<()> {
        let head = self.head();
        self.run_part(&format!("{head} {title}"), command)
    }

    /// Runs `command` as a part of a step: the same without a number.
    ///
    /// # Errors
    /// As [`Steps::run`].
    pub(crate) fn run_part(&self, title: &str, command: &mut Command) -> Result<()> {
        let start = Instant::now();
        let log = self.log_file(title)?;
        let mut sink = File::create(&log).with_context(|| format!("write {}", log.display()))?;
        writeln!(sink, "{command:?}")?;
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        command.stdout(writer.try_clone()?).stderr(writer).stdin(std::process::Stdio::null());
        let spawned = command.spawn();
        // The command holds its own ends of the pipe: drop ours, or the reader never sees its end.
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = spawned
            .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
        let (lines, received) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        let tail = self.follow(title, start, &received, &mut sink)?;
        let status = child.wait()?;
        let seconds = start.elapsed().as_secs_f32();
        if self.live {
            eprint!("\r\x1b[K");
        }
        if status.success() {
            eprintln!("{title}: done in {seconds:.1} s");
            return Ok(());
        }
        eprintln!("{title}: FAILED after {seconds:.1} s");
        for line in tail {
            eprintln!("    {line}");
        }
        bail!("{title}: {status}; the whole output is in {}", log.display())
    }

    fn log_file(&self, title: &str) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.logs)
            .with_context(|| format!("make {}", self.logs.display()))?;
        let words: String =
            title.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        Ok(self.logs.join(format!("{}.log", words.trim_matches('-'))))
    }

    fn follow(
        &self,
        title: &str,
        start: Instant,
        lines: &Receiver<String>,
        sink: &mut File,
    ) -> Result<VecDeque<String>> {
        let (every, mut shown) = if self.live {
            (Duration::from_millis(200), Instant::now())
        } else {
            (Duration::from_secs(10), Instant::now())
        };
        let mut tail = VecDeque::new();
        loop {
            match lines.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => {
                    writeln!(sink, "{line}")?;
                    if tail.len() == TAIL_LINES {
                        tail.pop_front();
                    }
                    tail.push_back(line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(tail),
            }
            if shown.elapsed() < every {
                continue;
            }
            shown = Instant::now();
            let last = tail.back().map_or("", |line| line.trim());
            let text = format!("{title}: {} s  {last}", start.elapsed().as_secs());
            let text: String =
                text.chars().filter(|c| !c.is_control()).take(LINE_COLUMNS).collect();
            if self.live {
                eprint!("\r\x1b[K{text}");
            } else {
                eprintln!("{text}");
            }
        }
    }
}
