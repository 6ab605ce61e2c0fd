//! The third voter: one register, asked over a network of its own that can be cut, slow, doubled
//! and late; it restarts, and may come back without its state.

use proxy_user::node::{Answer, BootId, Question};
use proxy_user::witness::Register;

use crate::host::{Answered, side_of};
use crate::world::{Ev, MS, Nanos, US, World};

/// Time after which a question without an answer is one to a witness that is not there.
const TIMEOUT: Nanos = 60 * MS;

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Witness {
    /// The product's; the default knows nothing (yet, or any more).
    register: Register,
    /// Not reached by that host until then.
    pub(crate) cut_until: [Nanos; 2],
    pub(crate) down_until: Nanos,
}

impl Witness {
    fn answer(&mut self, host: usize, life: u64, question: Question) -> Answer {
        self.register.claim(side_of(host), BootId(life), question)
    }

    pub(crate) fn restart(&mut self, now: Nanos, length: Nanos, forgets: bool) {
        self.down_until = now + length;
        if forgets {
            self.register = Register::default();
        }
    }
}

impl World {
    /// A guardian asks. Its shell sends each question twice.
    pub(crate) fn ask_witness(&mut self, host: usize, life: u64, question: Question) {
        for send in 0..2 {
            let delay = self.rng.range(100 * US, 3 * MS) + send * 8 * MS;
            self.after(delay, Ev::Asked { host, life, question });
        }
        let number = question.number;
        let unreachable = Answered::Witness(Answer::Unreachable { number });
        self.after(TIMEOUT, Ev::Answered { host, life, answer: unreachable });
    }

    /// The question is at the witness.
    pub(crate) fn witness_asked(&mut self, host: usize, life: u64, question: Question) {
        let cut = self.witness.cut_until[host] > self.now || self.witness.down_until > self.now;
        if cut || self.rng.chance(30) {
            return;
        }
        let answer = self.witness.answer(host, life, question);
        if matches!(answer, Answer::Unreachable { .. }) {
            return; // it does not know: as good as silent
        }
        self.note(Some(host), &format!("witness: {question:?} -> {answer:?}"));
        let copies = 1 + self.rng.range(0, 2);
        for _ in 0..copies {
            let late = if self.rng.chance(50) { 30 * MS } else { 0 };
            let delay = self.rng.range(100 * US, 3 * MS) + late;
            let answer = Answered::Witness(answer);
            self.after(delay, Ev::Answered { host, life, answer });
        }
    }
}
