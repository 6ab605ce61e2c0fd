//! Beats as sealed datagrams, one socket for all paths of a family.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

use super::refusals::Refused;
use super::session::{Session, session_of};
use super::{Input, PeerLink};
use crate::node::{PeerMessage, Via};

/// Datagrams taken from one socket in one turn.
const DATAGRAMS_MAX: usize = 256;

impl PeerLink {
    /// Sends a message on every path.
    pub(super) fn send_datagrams(&mut self, bytes: &[u8]) {
        for (path, to) in self.paths.clone().into_iter().enumerate() {
            let Some(session) = self.newest() else { return };
            // the receiver says on which of *our* paths it hears us
            let bytes = [bytes, &[u8::try_from(path).unwrap_or(u8::MAX)]].concat();
            let Some(datagram) = session.seal_datagram(&bytes) else { return };
            let family = |socket: &&UdpSocket| {
                socket.local_addr().is_ok_and(|own| own.is_ipv4() == to.is_ipv4())
            };
            let Some(socket) = self.sockets.udp.iter().find(family) else { continue };
            // A path without a route is a path without beats, which is what the peer then sees.
            if socket.send_to(&datagram, to).is_ok() {
                self.stats.beats_sent += 1;
            }
        }
    }

    /// The session that was opened last.
    pub(super) fn newest(&mut self) -> Option<&mut Session> {
        let links = self.links.iter_mut().filter(|link| link.serial > 0);
        let links = links.filter_map(|link| Some((link.serial, link.session.as_mut()?)));
        let kept = self.kept.iter_mut().map(|kept| (kept.serial, &mut kept.session));
        links.chain(kept).max_by_key(|(serial, _)| *serial).map(|(_, session)| session)
    }

    /// Takes what has arrived on every socket.
    pub(super) fn take_datagrams(&mut self, now: Instant, inputs: &mut Vec<Input>) {
        let mut buffer = [0; 2048];
        for index in 0..self.sockets.udp.len() {
            for _ in 0..DATAGRAMS_MAX {
                let Some(socket) = self.sockets.udp.get(index) else { break };
                match socket.recv_from(&mut buffer) {
                    Ok((length, from)) => {
                        let datagram = buffer.get(..length).unwrap_or_default();
                        self.take_datagram(now, datagram, from, inputs);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An ICMP error of an earlier send; the next datagram may be good.
                    Err(_) => {}
                }
            }
        }
    }

    fn take_datagram(
        &mut self,
        now: Instant,
        datagram: &[u8],
        from: SocketAddr,
        inputs: &mut Vec<Input>,
    ) {
        let (message, theirs, index) = match self.open_datagram(datagram) {
            Ok(opened) => opened,
            Err(refused) => return self.refuse(now, refused, from),
        };
        self.stats.beats_received += 1;
        let ours = self.paths.iter().position(|path| path.ip() == from.ip());
        inputs.extend(ours.map(Input::Heard));
        if let Some(link) = index.and_then(|index| self.links.get_mut(index))
            && link.connection.prove()
        {
            let index = index.unwrap_or_default();
            self.open(index, inputs);
        }
        inputs.push(Input::Message(message, ours.map(|ours| Via { ours, theirs })));
    }

    /// The message in it, the peer's number of the path, and the link of its session, unless that
    /// has ended.
    fn open_datagram(
        &mut self,
        datagram: &[u8],
    ) -> Result<(PeerMessage, usize, Option<usize>), Refused> {
        let id = session_of(datagram)?;
        let links = self.links.iter_mut().enumerate();
        let links = links.filter_map(|(i, link)| Some((link.session.as_mut()?, Some(i))));
        let kept = self.kept.iter_mut().map(|kept| (&mut kept.session, None));
        let mut owner = links.chain(kept).filter(|(session, _)| session.owns(id));
        let (session, index) = owner.next().ok_or(Refused::DatagramSession)?;
        let bytes = session.open_datagram(datagram)?;
        let (theirs, bytes) = bytes.split_last().ok_or(Refused::DatagramMalformed)?;
        let message = PeerMessage::decode(bytes).map_err(Refused::Message)?;
        Ok((message, usize::from(*theirs), index))
    }
}
