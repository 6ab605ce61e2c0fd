//! What a guardian and its keeper say to each other, and the guardian's end of it.
//!
//! The keeper holds descriptors by name and never looks into them; the guardian gives them when it
//! has made them, and the next guardian gets them back. Both are one binary, so that nothing here
//! has a version; what lies behind a descriptor has.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::channel::{Channel, ChannelError, DESCRIPTORS_MAX};

/// The name of the shared page among what is kept: the keeper reads when the guardian came round.
pub const PAGE: &str = "page";
/// The name of the program's map of one [`proxy_common::abi::Control`]: the keeper ends a dead
/// guardian's lease there.
pub const LEASE: &str = "lease";
/// What the names of sockets begin with on which clients wait to be accepted.
pub const LISTENER: &str = "listener ";
/// What a name begins with whose descriptor is worth more than one `tandem run`.
pub const LASTING: &str = "lasting-";

/// Descriptors in one message.
const BATCH: usize = 200;
const _: () = assert!(BATCH <= DESCRIPTORS_MAX, "one message carries a batch");
/// The keeper speaks at once.
const TIME: Duration = Duration::from_secs(10);

/// From a guardian to its keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// Hold these for the next guardian: one descriptor for each name. A name that is held already
    /// is replaced.
    Keep {
        /// What they are called.
        names: Vec<String>,
    },
    /// Only these names count from now on; let the others go.
    Only {
        /// What is kept.
        names: Vec<String>,
    },
    /// The kernel answers for these addresses while they stand on this host: take them off when the
    /// guardian is dead, or does not come round any more.
    Addresses(Vec<IpAddr>),
    /// The node serves: a guardian that dies from here on is followed by another.
    Ready,
}

/// From the keeper to a guardian, in its first moments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// Kept from an earlier guardian: one descriptor for each name.
    Kept {
        /// What they are called.
        names: Vec<String>,
    },
    /// That was all.
    Begin(Lives),
}

/// The guardians before this one, since `tandem run`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lives {
    /// How many.
    pub before: u32,
    /// How the last one ended, in words.
    pub ended: Option<String>,
}

/// What is kept from earlier guardians.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The guardians before.
    pub lives: Lives,
    descriptors: BTreeMap<String, OwnedFd>,
}

impl Inherited {
    /// What was kept under this name; it is the caller's now.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.descriptors.remove(name)
    }
}

/// The guardian's end of the channel.
pub type KeeperEnd = Channel<ToKeeper, FromKeeper>;
/// The keeper's end.
pub type GuardianSide = Channel<FromKeeper, ToKeeper>;

/// What the keeper has, as the first thing that it says.
///
/// # Errors
/// It is gone, or is no keeper.
pub fn inherit(keeper: &KeeperEnd) -> Result<Inherited, ChannelError> {
    let mut inherited = Inherited::default();
    loop {
        match keeper.recv(TIME)? {
            (FromKeeper::Kept { names }, descriptors) => {
                inherited.descriptors.extend(names.into_iter().zip(descriptors));
            }
            (FromKeeper::Begin(lives), _) => {
                inherited.lives = lives;
                return Ok(inherited);
            }
        }
    }
}

/// Gives descriptors to the keeper, and makes it let all others go.
///
/// # Errors
/// It is gone or stuck.
pub fn keep(keeper: &KeeperEnd, all: &[(String, BorrowedFd<'_>)]) -> Result<(), ChannelError> {
    in_batches(keeper, all, |names| ToKeeper::Keep { names })?;
    keeper.send(&ToKeeper::Only { names: all.iter().map(|(name, _)| name.clone()).collect() })
}

/// Hands everything over to a new guardian.
///
/// # Errors
/// It is gone.
pub fn hand_over(
    guardian: &GuardianSide,
    all: &BTreeMap<String, OwnedFd>,
    lives: Lives,
) -> Result<(), ChannelError> {
    let all: Vec<_> = all.iter().map(|(name, held)| (name.clone(), held.as_fd())).collect();
    in_batches(guardian, &all, |names| FromKeeper::Kept { names })?;
    guardian.send(&FromKeeper::Begin(lives))
}

/// As many messages as it takes, each with the names of its descriptors.
fn in_batches<S: Serialize, R: DeserializeOwned>(
    to: &Channel<S, R>,
    all: &[(String, BorrowedFd<'_>)],
    message: impl Fn(Vec<String>) -> S,
) -> Result<(), ChannelError> {
    for batch in all.chunks(BATCH) {
        let (names, descriptors): (Vec<_>, Vec<_>) = batch.iter().cloned().unzip();
        to.send_with(&message(names), &descriptors)?;
    }
    Ok(())
}

/// A new channel: the keeper's end, and the descriptor of the guardian's.
///
/// # Errors
/// What the kernel says.
pub fn pair() -> io::Result<(GuardianSide, OwnedFd)> {
    let (ours, theirs) = super::channel::pair_of()?;
    Ok((Channel::new(ours), theirs))
}

/// Takes over descriptors that the service manager passed to this process at its start.
#[must_use]
pub fn adopt_passed(descriptors: Vec<RawFd>) -> Vec<OwnedFd> {
    super::shared::adopt(descriptors)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_is_kept_comes_back_by_name_and_no_more() {
        let (keeper, theirs) = pair().unwrap();
        let guardian = KeeperEnd::new(theirs);
        let (mut reader, mut writer) = io::pipe().unwrap();
        // more than one batch
        let all: Vec<_> =
            (0..BATCH + 3).map(|number| (format!("n{number}"), writer.as_fd())).collect();
        keep(&guardian, &all).unwrap();
        let mut shelf = BTreeMap::new();
        let only = loop {
            match keeper.recv(TIME).unwrap() {
                (ToKeeper::Keep { names }, descriptors) => {
                    shelf.extend(names.into_iter().zip(descriptors));
                }
                (ToKeeper::Only { names }, _) => break names,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((shelf.len(), only.len()), (BATCH + 3, BATCH + 3));
        let lives = Lives { before: 2, ended: Some("signal 9".into()) };
        hand_over(&keeper, &shelf, lives.clone()).unwrap();
        let mut inherited = inherit(&guardian).unwrap();
        assert_eq!(inherited.lives, lives);
        File::from(inherited.take("n201").unwrap()).write_all(b"x").unwrap();
        assert!(inherited.take("n201").is_none() && inherited.take("other").is_none());
        writer.flush().unwrap();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        drop(keeper);
        assert!(matches!(inherit(&guardian), Err(ChannelError::Closed)));
    }
}
