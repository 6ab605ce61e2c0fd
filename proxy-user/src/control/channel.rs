//! One end of the socket pair: whole messages in and out, never blocking unless asked to. Works the
//! same in the guardian, in the engine's main thread and in tests.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, setsockopt, socketpair, sockopt,
};
use serde::{Serialize, de::DeserializeOwned};

use super::message::{MessageError, SIZE_MAX, ToEngine, ToGuardian, decode, encode};
use super::shared::adopt;

/// Most descriptors one message carries (the kernel's limit is 253).
pub const DESCRIPTORS_MAX: usize = 250;

/// The guardian's end.
pub type GuardianEnd = Channel<ToEngine, ToGuardian>;
/// The engine's end.
pub type EngineEnd = Channel<ToGuardian, ToEngine>;

/// Why nothing could be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other process has closed its end or is gone.
    #[error("the other end is closed")]
    Closed,
    /// The other end does not read: its queue is full.
    #[error("the other end does not keep up")]
    Full,
    /// A packet that is no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// More descriptors than a packet can carry.
    #[error("more than {DESCRIPTORS_MAX} descriptors")]
    Descriptors,
    /// What the kernel says.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connected SOCK_SEQPACKET that sends `S` and receives `R`.
#[derive(Debug)]
pub struct Channel<S, R> {
    socket: OwnedFd,
    kinds: PhantomData<fn(S) -> R>,
}

/// A new pair: the guardian keeps the first and passes the second's descriptor to the engine.
///
/// # Errors
/// What the kernel says.
pub fn pair() -> io::Result<(GuardianEnd, OwnedFd)> {
    let (ours, theirs) = pair_of()?;
    Ok((Channel::new(ours), theirs))
}

/// The sockets of a new pair.
pub(super) fn pair_of() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for end in [&ours, &theirs] {
        setsockopt(end, sockopt::SndBuf, &(2 * SIZE_MAX))?;
    }
    Ok((ours, theirs))
}

impl<S: Serialize, R: DeserializeOwned> Channel<S, R> {
    /// Takes one end of a pair.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, kinds: PhantomData }
    }

    /// Sends at once or not at all.
    ///
    /// # Errors
    /// [`ChannelError`]; `Full` means that the other end is stuck.
    pub fn send(&self, message: &S) -> Result<(), ChannelError> {
        self.send_with(message, &[])
    }

    /// Sends with descriptors; the receiver gets duplicates.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_with(&self, message: &S, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        if fds.len() > DESCRIPTORS_MAX {
            return Err(ChannelError::Descriptors);
        }
        let packet = encode(message)?;
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let slices = [IoSlice::new(&packet)];
        loop {
            return match sendmsg::<()>(self.socket.as_raw_fd(), &slices, control, flags, None) {
                Ok(_whole) => Ok(()),
                Err(Errno::EINTR) => continue,
                Err(Errno::EPIPE | Errno::ECONNRESET) => Err(ChannelError::Closed),
                Err(Errno::EAGAIN) => Err(ChannelError::Full),
                Err(error) => Err(ChannelError::Io(error.into())),
            };
        }
    }

    /// The next message if one is there.
    ///
    /// # Errors
    /// [`ChannelError`]; after `Closed` nothing comes any more.
    pub fn try_recv(&self) -> Result<Option<(R, Vec<OwnedFd>)>, ChannelError> {
        let mut packet = vec![0_u8; 64 * 1024];
        loop {
            match self.recv_packet(&mut packet)? {
                Received::Nothing => return Ok(None),
                Received::Larger(size) if size <= SIZE_MAX => packet.resize(size, 0),
                Received::Larger(_) => return Err(MessageError::TooLong.into()),
                Received::Packet(length, fds) => {
                    let message = decode(packet.get(..length).unwrap_or_default())?;
                    return Ok(Some((message, fds)));
                }
            }
        }
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// As [`Self::try_recv`]; `Io` of kind `TimedOut` when nothing came in time.
    pub fn recv(&self, limit: Duration) -> Result<(R, Vec<OwnedFd>), ChannelError> {
        let until = super::shared::monotonic_ns()
            .saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        loop {
            if let Some(received) = self.try_recv()? {
                return Ok(received);
            }
            let left = until.saturating_sub(super::shared::monotonic_ns());
            if left == 0 {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            let wait = u16::try_from(left / 1_000_000).unwrap_or(u16::MAX).saturating_add(1);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(wait)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(ChannelError::Io(error.into())),
            }
        }
    }

    /// One packet into `buffer`; if it is larger, it stays queued and its size is told.
    fn recv_packet(&self, buffer: &mut [u8]) -> Result<Received, ChannelError> {
        let fd = self.socket.as_raw_fd();
        let peek = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        let size = loop {
            match nix::sys::socket::recv(fd, buffer, peek) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(size) if size > buffer.len() => return Ok(Received::Larger(size)),
                Ok(size) => break size,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Received::Nothing),
                Err(Errno::ECONNRESET) => return Err(ChannelError::Closed),
                Err(error) => return Err(ChannelError::Io(error.into())),
            }
        };
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; DESCRIPTORS_MAX]);
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(fd, &mut slices, Some(&mut control), flags)
            .map_err(|error| ChannelError::Io(error.into()))?;
        let mut fds = Vec::new();
        for message in received.cmsgs().map_err(|error| ChannelError::Io(error.into()))? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                fds.extend(adopt(raw));
            }
        }
        Ok(Received::Packet(size, fds))
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

enum Received {
    Nothing,
    Larger(usize),
    Packet(usize, Vec<OwnedFd>),
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::control::message::Secret;

    #[test]
    fn messages_and_descriptors() {
        let (guardian, theirs) = pair().unwrap();
        let engine = EngineEnd::new(theirs);
        assert!(engine.try_recv().unwrap().is_none());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"shared").unwrap();
        file.rewind().unwrap();
        guardian.send_with(&ToEngine::Prepare { epoch: 3 }, &[file.as_fd()]).unwrap();
        guardian.send(&ToEngine::PredecessorReaped).unwrap();
        let (message, mut fds) = engine.recv(Duration::from_secs(5)).unwrap();
        assert_eq!(message, ToEngine::Prepare { epoch: 3 });
        let mut text = String::new();
        std::fs::File::from(fds.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "shared");
        let (message, fds) = engine.try_recv().unwrap().unwrap();
        assert_eq!((message, fds.len()), (ToEngine::PredecessorReaped, 0));
        drop(engine);
        assert!(matches!(guardian.try_recv(), Err(ChannelError::Closed)));
        assert!(matches!(guardian.send(&ToEngine::PredecessorReaped), Err(ChannelError::Closed)));
    }

    #[test]
    fn large_and_foreign_packets() {
        let (guardian, theirs) = pair().unwrap();
        let engine = EngineEnd::new(theirs);
        let states = vec![vec![crate::control::message::ServerState::Up; 256]; 800];
        guardian.send(&ToEngine::Backends(states.clone())).unwrap();
        let (message, _) = engine.recv(Duration::from_secs(5)).unwrap();
        assert_eq!(message, ToEngine::Backends(states));
        nix::unistd::write(&guardian.socket, &[0xff; 9]).unwrap();
        let refused = engine.try_recv();
        let malformed = matches!(refused, Err(ChannelError::Message(MessageError::Malformed)));
        assert!(malformed, "{refused:?}");
        assert_eq!(format!("{:?}", Secret([1_u8; 2])), "Secret(..)");
    }

    #[test]
    fn a_stuck_reader_is_told_apart() {
        let (guardian, _theirs) = pair().unwrap();
        let message = ToEngine::Backends(vec![vec![]; 100_000]);
        let full = (0..1000).find_map(|_| guardian.send(&message).err()).unwrap();
        assert!(matches!(full, ChannelError::Full), "{full:?}");
    }
}
