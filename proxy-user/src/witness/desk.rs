//! Who may ask: replays of recorded requests move nothing.
//!
//! Each side has one living boot at a time. A boot that the desk does not know must show the token
//! that the desk drew for the side's next boot, and then takes the side's place; the token is
//! spent. So a request recorded from an earlier boot, or before the witness started, gets a new
//! token and nothing else. Within a boot the register knows the newest number.

use super::message::{Reply, Request};
use super::register::Register;
use crate::config::Side;
use crate::node::BootId;

/// The register, and who may ask it.
#[derive(Debug, Clone)]
pub struct Desk {
    register: Register,
    places: [Place; 2],
}

#[derive(Debug, Clone, Copy)]
struct Place {
    boot: Option<BootId>,
    /// For the next boot.
    token: u64,
}

impl Desk {
    /// `tokens`: random, one a side.
    #[must_use]
    pub fn new(register: Register, tokens: [u64; 2]) -> Self {
        Self { register, places: tokens.map(|token| Place { boot: None, token }) }
    }

    /// What the register holds.
    #[must_use]
    pub fn register(&self) -> &Register {
        &self.register
    }

    /// One request; `None`: no reply, it does not know. `token`: random, for the boot after this.
    /// When [`Register::held`] has changed, it must be on disk before the reply leaves.
    pub fn handle(&mut self, request: &Request, token: u64) -> Option<Reply> {
        let Request { side, boot, .. } = *request;
        let question = request.question();
        let place = &mut self.places[usize::from(side.bit())];
        if place.boot != Some(boot) {
            if request.token != place.token {
                let (number, token) = (question.number, place.token);
                return Some(Reply::Present { boot, number, token });
            }
            *place = Place { boot: Some(boot), token };
        }
        Reply::of(boot, self.register.claim(side, boot, question))
    }

    /// Whose questions it takes without a token.
    #[must_use]
    pub fn boot(&self, side: Side) -> Option<BootId> {
        self.places[usize::from(side.bit())].boot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Answer, Question};

    fn request(side: Side, boot: u64, token: u64, number: u64, expected: u64) -> Request {
        let by_contact = expected == 4;
        let question = Question { number, epoch: 2, expected, by_contact };
        Request::new(side, BootId(boot), token, question)
    }

    fn granted(reply: Option<Reply>) -> Option<u64> {
        match reply?.answer()? {
            Answer::Granted { generation, .. } => Some(generation),
            _ => None,
        }
    }

    #[test]
    fn a_boot_presents_itself_once() {
        let mut desk = Desk::new(Register::default(), [100, 200]);
        let first = request(Side::A, 1, 0, 1, 4);
        let told = desk.handle(&first, 101);
        assert_eq!(told, Some(Reply::Present { boot: BootId(1), number: 1, token: 100 }));
        assert_eq!(desk.register().held(), None);
        assert_eq!(granted(desk.handle(&request(Side::A, 1, 100, 1, 4), 101)), Some(5));
        assert_eq!(desk.boot(Side::A), Some(BootId(1)));
        // its retransmissions and its next questions need no token
        assert_eq!(granted(desk.handle(&first, 102)), Some(5));
        assert_eq!(granted(desk.handle(&request(Side::A, 1, 0, 2, 5), 103)), Some(6));
        // nor does its boot stand for the other side's
        let other = desk.handle(&request(Side::B, 1, 100, 1, 6), 201);
        assert!(matches!(other, Some(Reply::Present { token: 200, .. })));
    }

    /// Everything recorded from a dead boot, sent again: the register stays, and so does the living
    /// boot's place.
    #[test]
    fn replays_move_nothing() {
        let mut desk = Desk::new(Register::default(), [100, 200]);
        let old = [request(Side::A, 1, 100, 1, 4), request(Side::A, 1, 100, 2, 5)];
        for one in &old {
            assert!(granted(desk.handle(one, 101)).is_some());
        }
        assert_eq!(granted(desk.handle(&request(Side::A, 9, 101, 1, 6), 102)), Some(7));
        let living = request(Side::A, 9, 101, 2, 7);
        assert_eq!(granted(desk.handle(&living, 103)), Some(8));
        let before = desk.register().clone();
        for one in &old {
            let reply = desk.handle(one, 104);
            assert!(matches!(reply, Some(Reply::Present { .. })), "{reply:?}");
        }
        // of the living boot: an older question is not answered, the newest again
        assert_eq!(desk.handle(&request(Side::A, 9, 101, 1, 6), 105), None);
        assert_eq!(granted(desk.handle(&living, 106)), Some(8));
        assert_eq!(desk.register(), &before);
        assert_eq!(desk.boot(Side::A), Some(BootId(9)));
    }

    /// A witness that lost its state draws new tokens: no recorded claim in contact fills it.
    #[test]
    fn a_restart_takes_no_recorded_request() {
        let mut desk = Desk::new(Register::default(), [300, 400]);
        let recorded = request(Side::A, 1, 100, 1, 4);
        assert!(matches!(desk.handle(&recorded, 301), Some(Reply::Present { .. })));
        assert_eq!(desk.register().held(), None);
    }
}
