//! Packets of the other node's connections, which come here since the address is here, go back to
//! it while it finishes what it has. They are told from this node's own by their beginning: a
//! connection whose SYN came here is ours, any other is the other node's. What is wrongly sent on
//! is dropped there in silence (see [`crate::guardian::start::Sinks`]).

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, poll};
use vrrp::arp::Mac;
use vrrp::io::{HEADER, IoError, SegmentTap};

/// Connections remembered as ours. What is beyond is sent on in vain.
const OURS_MAX: usize = 65_536;
/// Between two looks at whether it is over, milliseconds.
const LOOK_MS: u16 = 50;
/// The largest frame, one that the kernel has put together from several included.
const FRAME_MAX: usize = (64 << 10) + 256;

const ETHERNET: usize = 14;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Whose connection a frame belongs to.
#[derive(Debug, Default)]
struct Flows {
    ours: HashSet<(Ipv4Addr, Ipv4Addr, [u8; 4])>,
}

impl Flows {
    /// Whether this frame is for the other node. Fragments and whatever is no TCP are not.
    fn is_foreign(&mut self, frame: &[u8]) -> bool {
        self.look(frame).unwrap_or(false)
    }

    fn look(&mut self, frame: &[u8]) -> Option<bool> {
        let ip = frame.get(ETHERNET..)?;
        let head = usize::from(ip.first()? & 15) * 4;
        let fragment = u16::from_be_bytes(ip.get(6..8)?.try_into().ok()?) & 0x3fff;
        if ip.first()? >> 4 != 4 || *ip.get(9)? != 6 || head < 20 || fragment != 0 {
            return None;
        }
        let address = |at: usize| <[u8; 4]>::try_from(ip.get(at..at + 4)?).ok().map(Ipv4Addr::from);
        let ports = ip.get(head..head + 4)?.try_into().ok()?;
        let flow = (address(12)?, address(16)?, ports);
        let flags = *ip.get(head + 13)?;
        if flags & (SYN | ACK) == SYN {
            if self.ours.len() < OURS_MAX {
                self.ours.insert(flow);
            }
            return Some(false);
        }
        Some(!self.ours.contains(&flow))
    }
}

/// A thread that does this; dropped, it ends soon.
#[derive(Debug)]
pub(super) struct Relay {
    over: Arc<AtomicBool>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Relay {
    /// From here on: every frame that comes after this is seen.
    pub(super) fn start(tap: SegmentTap, own: Mac, peer: Mac) -> std::io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&over);
        let thread = std::thread::Builder::new().name("relay".to_owned());
        thread.stack_size(192 * 1024).spawn(move || run(&tap, own, peer, &flag))?;
        Ok(Self { over })
    }
}

fn run(tap: &SegmentTap, own: Mac, peer: Mac, over: &AtomicBool) {
    let (mut relayed, mut failed) = (0u64, 0u64);
    let mut flows = Flows::default();
    let mut buffer = vec![0; FRAME_MAX];
    while !over.load(Ordering::Relaxed) {
        match tap.receive(&mut buffer) {
            Ok(Some(length)) => {
                let Some(frame) = buffer.get_mut(..length) else { continue };
                match pass(tap, &mut flows, frame, own, peer) {
                    Some(Ok(())) => relayed += 1,
                    Some(Err(error)) => {
                        tracing::debug!(%error, "relay");
                        failed += 1;
                    }
                    None => {}
                }
            }
            Ok(None) => {
                let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, LOOK_MS).ok();
            }
            Err(error) => {
                tracing::warn!(%error, "requests under way at the other node may break");
                break;
            }
        }
    }
    tracing::info!(relayed, failed, connections = flows.ours.len(), "the other node has finished");
}

/// Sends a frame on if it is the other node's.
fn pass(
    tap: &SegmentTap,
    flows: &mut Flows,
    frame: &mut [u8],
    own: Mac,
    peer: Mac,
) -> Option<Result<(), IoError>> {
    let (_, ethernet) = frame.split_at_mut_checked(HEADER)?;
    if !flows.is_foreign(ethernet) {
        return None;
    }
    ethernet.get_mut(..6)?.copy_from_slice(&peer);
    ethernet.get_mut(6..12)?.copy_from_slice(&own);
    Some(tap.send(frame))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(client: u8, port: u16, flags: u8, options: usize) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + 20 + options + 20];
        let ip = &mut frame[ETHERNET..];
        ip[0] = 0x45 + (options / 4) as u8;
        ip[9] = 6;
        ip[12..16].copy_from_slice(&[10, 0, 0, client]);
        ip[16..20].copy_from_slice(&[10, 0, 0, 100]);
        ip[20 + options..22 + options].copy_from_slice(&port.to_be_bytes());
        ip[22 + options..24 + options].copy_from_slice(&80u16.to_be_bytes());
        ip[20 + options + 13] = flags;
        frame
    }

    #[test]
    fn a_connection_is_ours_by_its_beginning() {
        let mut flows = Flows::default();
        for options in [0, 12] {
            let (mine, other) = (40_000 + options as u16, 50_000 + options as u16);
            assert!(!flows.is_foreign(&frame(9, mine, SYN, options)));
            for flags in [ACK, ACK | 1, ACK | 8, 4] {
                assert!(!flows.is_foreign(&frame(9, mine, flags, options)), "{flags:#x}");
                assert!(flows.is_foreign(&frame(8, mine, flags, options)), "another client's");
                assert!(flows.is_foreign(&frame(9, other, flags, options)), "another port");
            }
            assert!(flows.is_foreign(&frame(9, other, SYN | ACK, options)), "begins nothing");
        }
    }

    #[test]
    fn what_is_no_tcp_stays() {
        let mut flows = Flows::default();
        let good = frame(9, 1, ACK, 0);
        assert!(flows.is_foreign(&good));
        for (at, value) in [(0, 0x65), (0, 0x44), (9, 17), (6, 0x20), (7, 1)] {
            let mut bad = good.clone();
            bad[ETHERNET + at] = value;
            assert!(!flows.is_foreign(&bad), "{at}: {value:#x}");
        }
        for length in 0..good.len() - 6 {
            assert!(!flows.is_foreign(&good[..length]), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            Flows::default().is_foreign(&bytes);
        }
    }
}
