//! The order in which a dying process lets its descriptors go: from the highest number down. Some
//! take the kernel long (packet sockets and programs of a guardian: some 35 ms), so those by which
//! others learn of a death are given high numbers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::resource::{Resource, getrlimit};

use super::shared::lift;

/// Above every other descriptor of a guardian, where the limit allows it.
const HIGH: u64 = 1024;

/// Which ones go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// Before all: the keeper ends the answers.
    Keeper = 2,
    /// Next: the peer learns that nobody listens any more.
    Listener = 18,
}

/// The same file under a number of this rank; under its own where the limit does not allow that.
///
/// # Errors
/// What the kernel says.
pub fn rank(file: OwnedFd, rank: Rank) -> io::Result<OwnedFd> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let least = limit.min(HIGH).saturating_sub(rank as u64);
    let spare = file.as_fd().try_clone_to_owned()?;
    Ok(lift(file, i32::try_from(least).unwrap_or(0)).unwrap_or(spare))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_keeper_comes_above_a_listener_and_both_above_the_rest() {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let least = i32::try_from(limit.min(HIGH)).unwrap();
        let keeper = rank(file(), Rank::Keeper).unwrap();
        let listeners = [(); 8].map(|()| rank(file(), Rank::Listener).unwrap());
        assert!(keeper.as_raw_fd() >= least - 2);
        for listener in &listeners {
            let number = listener.as_raw_fd();
            assert!(number < keeper.as_raw_fd() && number >= least - 18, "{number}");
        }
        assert!(file().as_raw_fd() < least - 18);
    }
}
