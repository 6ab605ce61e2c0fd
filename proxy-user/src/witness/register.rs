//! The register: who went on last, and its one operation, a compare-and-swap.
//!
//! A node goes on by silence only with a grant. Both nodes know the generation they agreed on while
//! they heard each other; the first to swap it is granted, the other's expectation is stale then
//! and it is refused. Whoever holds the register may swap it again. A register without content (a
//! new witness, or one whose state was lost) cannot tell who went on, so it grants only what is
//! asked in contact with the peer, or with proof of its death: then nobody else goes on. A holder
//! that asks again in contact, to see that its register is still there, keeps its generation: the
//! other node's expectation stays good.

use serde::{Deserialize, Serialize};

use crate::config::Side;
use crate::node::{Answer, BootId, Question};

/// See the module. The default knows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    held: Option<Held>,
    /// Per side: the newest question of its boot, and the answer. Repeated questions get it again.
    last: [Option<Last>; 2],
}

/// Who went on last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Counts grants; both nodes agree on it while they hear each other.
    pub generation: u64,
    /// The side that was granted it.
    pub holder: Side,
    /// The holder's boot.
    pub boot: u64,
    /// Of the reign that was asked for.
    pub epoch: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    boot: u64,
    number: u64,
    said: Said,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Granted(u64),
    Refused(u64),
    Unknown,
}

impl Said {
    fn to(self, number: u64) -> Answer {
        match self {
            Self::Granted(generation) => Answer::Granted { number, generation },
            // whoever holds it is granted, so a refusal is never the holder's
            Self::Refused(generation) => {
                Answer::Refused { number, generation, holder_is_us: false }
            }
            Self::Unknown => Answer::Unreachable { number },
        }
    }
}

/// A text that no register wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a register: {0}")]
pub struct RegisterError(String);

impl Register {
    /// Longest text of [`Self::encode`], bytes.
    pub const TEXT_MAX: usize = 400;

    /// What it holds; `None`: it does not know who went on.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// The compare-and-swap. [`Answer::Unreachable`]: it does not know, which is as good as silent.
    ///
    /// The same question again (side, boot and number) gets the same answer; an older one of the
    /// same boot gets none, for nobody waits for it.
    pub fn claim(&mut self, side: Side, boot: BootId, question: Question) -> Answer {
        let number = question.number;
        let seat = usize::from(side.bit());
        if let Some(last) = self.last[seat].filter(|last| last.boot == boot.0) {
            if number == last.number {
                return last.said.to(number);
            }
            if number < last.number {
                return Answer::Unreachable { number };
            }
        }
        let said = self.judge(side, question);
        if let Said::Granted(generation) = said {
            let epoch = question.epoch;
            self.held = Some(Held { generation, holder: side, boot: boot.0, epoch });
        }
        self.last[seat] = Some(Last { boot: boot.0, number, said });
        said.to(number)
    }

    fn judge(&self, side: Side, question: Question) -> Said {
        let generation = match self.held {
            None if question.by_contact => question.expected,
            None => return Said::Unknown,
            Some(Held { generation, holder, .. })
                if question.by_contact && holder == side && generation == question.expected =>
            {
                return Said::Granted(generation);
            }
            Some(held) if held.generation == question.expected || held.holder == side => {
                held.generation
            }
            Some(held) => return Said::Refused(held.generation),
        };
        // the last generation of all is never given: nothing could follow it
        generation.checked_add(1).map_or(Said::Unknown, Said::Granted)
    }

    /// One line of text, for a file or a key-value store.
    ///
    /// # Errors
    /// None in practice; the writer's signature has one.
    pub fn encode(&self) -> Result<String, RegisterError> {
        serde_json::to_string(self).map_err(|error| RegisterError(error.to_string()))
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// It is something else.
    pub fn decode(text: &str) -> Result<Self, RegisterError> {
        if text.len() > Self::TEXT_MAX {
            return Err(RegisterError("it is too long".to_owned()));
        }
        serde_json::from_str(text).map_err(|error| RegisterError(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: (Side, BootId) = (Side::A, BootId(10));
    const B: (Side, BootId) = (Side::B, BootId(20));

    fn question(number: u64, expected: u64, by_contact: bool) -> Question {
        Question { number, epoch: 6, expected, by_contact }
    }

    fn granted(number: u64, generation: u64) -> Answer {
        Answer::Granted { number, generation }
    }

    fn refused(number: u64, generation: u64) -> Answer {
        Answer::Refused { number, generation, holder_is_us: false }
    }

    fn unknown(number: u64) -> Answer {
        Answer::Unreachable { number }
    }

    #[test]
    fn table() {
        let mut register = Register::default();
        let rows = [
            ("unknown, by silence", A, question(1, 0, false), unknown(1)),
            ("unknown, an expectation", B, question(1, 7, false), unknown(1)),
            ("unknown, in contact", A, question(2, 7, true), granted(2, 8)),
            ("the other, stale", B, question(2, 7, false), refused(2, 8)),
            ("the other, in contact but stale", B, question(3, 7, true), refused(3, 8)),
            ("the other, as agreed", B, question(4, 8, false), granted(4, 9)),
            ("who was first, too late", A, question(3, 8, false), refused(3, 9)),
            ("the holder, expecting nothing", B, question(5, 0, false), granted(5, 10)),
            ("expecting too much", A, question(4, 11, false), refused(4, 10)),
            ("repeated", A, question(4, 11, false), refused(4, 10)),
            ("repeated with another text", A, question(4, 10, false), refused(4, 10)),
            ("older than the newest", A, question(2, 10, true), unknown(2)),
            ("its new boot", (Side::A, BootId(11)), question(1, 10, false), granted(1, 11)),
            (
                "the holder, still there?",
                (Side::A, BootId(11)),
                question(2, 11, true),
                granted(2, 11),
            ),
            (
                "it goes on by silence",
                (Side::A, BootId(11)),
                question(3, 11, false),
                granted(3, 12),
            ),
        ];
        for (what, (side, boot), question, answer) in rows {
            assert_eq!(register.claim(side, boot, question), answer, "{what}");
        }
        let held = Held { generation: 12, holder: Side::A, boot: 11, epoch: 6 };
        assert_eq!(register.held(), Some(held));
    }

    /// Both held generation 5, then neither heard the other: one goes on.
    #[test]
    fn of_two_that_agreed_one_goes_on() {
        for order in [[A, B], [B, A]] {
            let mut register = Register::default();
            register.claim(A.0, A.1, question(1, 4, true));
            let [first, second] = order;
            let answer = register.claim(first.0, first.1, question(7, 5, false));
            assert_eq!(answer, granted(7, 6));
            let answer = register.claim(second.0, second.1, question(7, 5, false));
            assert_eq!(answer, refused(7, 6));
        }
    }

    #[test]
    fn the_last_generation_is_not_given() {
        let mut register = Register::default();
        let answer = register.claim(A.0, A.1, question(1, u64::MAX, true));
        assert_eq!(answer, unknown(1));
        assert_eq!(register.held(), None);
    }

    #[test]
    fn longest_text_fits() {
        let last = |boot| Some(Last { boot, number: u64::MAX, said: Said::Refused(u64::MAX) });
        let register = Register {
            held: Some(Held {
                generation: u64::MAX,
                holder: Side::B,
                boot: u64::MAX,
                epoch: u32::MAX,
            }),
            last: [last(u64::MAX), last(u64::MAX)],
        };
        let text = register.encode().unwrap();
        assert!(text.len() <= Register::TEXT_MAX && text.is_ascii(), "{}: {text}", text.len());
        assert_eq!(Register::decode(&text).unwrap(), register);
    }

    #[test]
    fn what_is_no_register_is_refused() {
        let long = " ".repeat(Register::TEXT_MAX + 1);
        for text in ["", "{}", "null", "7", r#"{"held":null,"last":[null]}"#, long.as_str()] {
            assert!(Register::decode(text).is_err(), "{text:?}");
        }
        assert!(Register::decode(r#"{"held":null,"last":[null,null],"more":1}"#).is_err());
    }

    fn claims() -> impl Strategy<Value = Vec<(bool, u64, Question)>> {
        let one = (any::<bool>(), 0..3_u64, 1..6_u64, 0..6_u64, prop::bool::weighted(0.2));
        let one = one.prop_map(|(b, boot, number, expected, by_contact)| {
            (b, boot, Question { number, epoch: 2, expected, by_contact })
        });
        prop::collection::vec(one, 0..40)
    }

    proptest! {
        /// The generation grows with each new grant; who neither holds the register nor expects its
        /// generation changes nothing; a repetition changes nothing and gets the same.
        #[test]
        fn grants_are_entitled_and_count(claims in claims()) {
            let mut register = Register::default();
            for (b, boot, question) in claims {
                let side = if b { Side::B } else { Side::A };
                let before = register.clone();
                let answer = register.claim(side, BootId(boot), question);
                prop_assert_eq!(answer.number(), question.number);
                let after = register.clone();
                prop_assert_eq!(register.claim(side, BootId(boot), question), answer);
                prop_assert_eq!(&register, &after);
                if before.held == after.held {
                    continue;
                }
                let held = after.held.unwrap();
                let generation = held.generation;
                prop_assert_eq!(
                    answer,
                    Answer::Granted { number: question.number, generation }
                );
                prop_assert_eq!(held.holder, side);
                match before.held {
                    None => prop_assert!(question.by_contact),
                    Some(old) => {
                        let again = question.by_contact && old.holder == side;
                        let same = again && old.generation == question.expected;
                        prop_assert_eq!(generation, old.generation + u64::from(!same));
                        let entitled = old.holder == side || old.generation == question.expected;
                        prop_assert!(entitled);
                    }
                }
                let text = after.encode().unwrap();
                prop_assert_eq!(Register::decode(&text).unwrap(), after);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,300}") {
            drop(Register::decode(&text));
        }
    }
}
