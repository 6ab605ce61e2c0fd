//! A command that is not trusted to end: it gets a time and a log file, and with its time over it
//! and all that it started are killed.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With status 0, after so many tests passed.
    Well { passed: usize },
    /// With another status.
    Badly,
    /// Not in its time: killed.
    Late,
}

/// Runs it; `log` gets what it prints.
///
/// # Errors
/// It cannot be started, or the log not be written.
pub(super) fn run(command: &mut Command, log: &Path, limit: Duration) -> Result<Ended> {
    let sink = File::create(log).with_context(|| format!("write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(sink.try_clone()?).stderr(sink).process_group(0);
    let mut child = command
        .spawn()
        .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                return Ok(Ended::Badly);
            }
            let text = std::fs::read_to_string(log).context("read the log")?;
            return Ok(Ended::Well { passed: passed(&text) });
        }
        if Instant::now() >= until {
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-KILL", "--", &group]).status().context("run kill")?;
            child.wait()?;
            return Ok(Ended::Late);
        }
        std::thread::sleep(LOOK);
    }
}

/// Sum over the `test result:` lines.
fn passed(text: &str) -> usize {
    let results = text.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    results.filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(script: &str, limit: Duration) -> Ended {
        let log = std::env::temp_dir().join(format!("xtask-bounded-{}", std::process::id()));
        let log = log.with_extension(script.len().to_string());
        let ended = run(Command::new("sh").args(["-c", script]), &log, limit).unwrap();
        std::fs::remove_file(log).unwrap();
        ended
    }

    #[test]
    fn well_badly_late() {
        let long = Duration::from_secs(20);
        let two = "echo 'test result: ok. 2 passed; 0 failed'";
        assert_eq!(ended(two, long), Ended::Well { passed: 2 });
        assert_eq!(ended("exit 3", long), Ended::Badly);
        // A grandchild that holds the log does not hold us.
        let begun = Instant::now();
        assert_eq!(ended("sleep 30 & wait", Duration::from_millis(100)), Ended::Late);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
