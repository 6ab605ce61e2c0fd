//! The third voter: one register, asked over a network of its own that can be cut, slow, doubled
//! and late; it restarts, and may come back without its state.

use proxy_user::node::{Answer, Question};

use crate::host::Answered;
use crate::world::{Ev, MS, Nanos, US, World};

/// Time after which a question without an answer is one to a witness that is not there.
const TIMEOUT: Nanos = 60 * MS;

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Witness {
    /// `None`: it knows nothing (yet, or any more).
    register: Option<Register>,
    /// Not reached by that host until then.
    pub(crate) cut_until: [Nanos; 2],
    pub(crate) down_until: Nanos,
    /// Answers to the last questions: asked again, answered again.
    memory: Vec<(usize, u64, u64, Answer)>,
}

#[derive(Debug, Clone, Copy)]
struct Register {
    generation: u64,
    holder: usize,
}

impl Witness {
    /// One compare-and-swap, as `tandem witness` does it.
    fn answer(&mut self, host: usize, life: u64, question: Question) -> Answer {
        let known = |(who, of, number, _): &&(usize, u64, u64, Answer)| {
            (*who, *of, *number) == (host, life, question.number)
        };
        if let Some((.., answer)) = self.memory.iter().find(known) {
            return *answer;
        }
        let number = question.number;
        let answer = match self.register {
            None if question.by_contact => {
                Answer::Granted { number, generation: question.expected + 1 }
            }
            None => Answer::Unreachable { number },
            Some(Register { generation, holder })
                if generation == question.expected || holder == host =>
            {
                Answer::Granted { number, generation: generation + 1 }
            }
            Some(Register { generation, holder }) => {
                Answer::Refused { number, generation, holder_is_us: holder == host }
            }
        };
        if let Answer::Granted { generation, .. } = answer {
            self.register = Some(Register { generation, holder: host });
        }
        self.memory.push((host, life, number, answer));
        answer
    }

    pub(crate) fn restart(&mut self, now: Nanos, length: Nanos, forgets: bool) {
        self.down_until = now + length;
        if forgets {
            self.register = None;
            self.memory.clear();
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
