//! One step of a verb: a command that is run with its progress shown live, its time printed, its
//! whole output kept in a log file and its last lines shown when it fails.
//!
//! On a terminal the running step is one line, rewritten: seconds and the command's latest line.
//! Elsewhere (CI, a pipe) a line is printed every ten seconds, so that a log shows life too.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
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
        let title = self.title(title);
        self.run_part(&title, command)
    }

    /// The numbered title of the next step, for [`Steps::watch`].
    pub(crate) fn title(&mut self, title: &str) -> String {
        format!("{} {title}", self.head())
    }

    /// Runs `command` as a part of a step: the same without a number.
    ///
    /// # Errors
    /// As [`Steps::run`].
    pub(crate) fn run_part(&self, title: &str, command: &mut Command) -> Result<()> {
        let mut tail = VecDeque::new();
        let start = Instant::now();
        let (status, log) = self.watch(title, command, |line| {
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line.to_owned());
        })?;
        let seconds = start.elapsed().as_secs_f32();
        if status.success() {
            eprintln!("{title}: done in {seconds:.1} s");
            return Ok(());
        }
        eprintln!("{title}: FAILED after {seconds:.1} s");
        for line in tail {
            eprintln!("    {line}");
        }
        bail!("{}: {status}; the whole output is in {}", title.trim(), log.display())
    }

    /// Runs `command` with its progress shown, and hands each line of its output to `each`: its
    /// status, and the file that has its whole output.
    ///
    /// # Errors
    /// The command could not be started, or the log not be written.
    pub(crate) fn watch(
        &self,
        title: &str,
        command: &mut Command,
        mut each: impl FnMut(&str),
    ) -> Result<(ExitStatus, PathBuf)> {
        let log = self.log_file(title)?;
        let mut sink = File::create(&log).with_context(|| format!("write {}", log.display()))?;
        writeln!(sink, "{command:?}")?;
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        command.stdout(writer.try_clone()?).stderr(writer).stdin(Stdio::null());
        let spawned = command.spawn();
        // The command holds its own ends of the pipe: drop ours, or the reader never sees its end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
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
        let mut progress = Progress::new(title, self.live);
        // Until the command has ended, not until the pipe has: a process that outlives its parent
        // may hold the pipe open.
        let status = loop {
            match received.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => {
                    writeln!(sink, "{line}")?;
                    each(&line);
                    progress.line = line;
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(status) = child.try_wait()? {
                        break status;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break child.wait()?,
            }
            progress.show();
        };
        progress.clear();
        Ok((status, log))
    }

    fn log_file(&self, title: &str) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.logs)
            .with_context(|| format!("make {}", self.logs.display()))?;
        let name = title.rsplit(']').next().unwrap_or(title).to_lowercase();
        let words =
            name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let mut name = words.collect::<Vec<_>>().join("-");
        name.truncate(60);
        Ok(self.logs.join(format!("{name}.log")))
    }
}

/// The running step, on the terminal.
struct Progress<'a> {
    title: &'a str,
    line: String,
    live: bool,
    start: Instant,
    shown: Instant,
}

impl<'a> Progress<'a> {
    fn new(title: &'a str, live: bool) -> Self {
        let start = Instant::now();
        Self { title, line: String::new(), live, start, shown: start }
    }

    fn show(&mut self) {
        let every = if self.live { Duration::from_millis(200) } else { Duration::from_secs(10) };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let (seconds, line) = (self.start.elapsed().as_secs(), self.line.trim());
        let text = format!("{}: {seconds} s  {line}", self.title);
        let text: String = text.chars().filter(|c| !c.is_control()).take(LINE_COLUMNS).collect();
        if self.live {
            eprint!("\r\x1b[K{text}");
        } else {
            eprintln!("{text}");
        }
    }

    fn clear(&self) {
        if self.live {
            eprint!("\r\x1b[K");
        }
    }
}
