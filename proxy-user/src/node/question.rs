//! What a node asks the witness, and hears from it. Values only; the register's rules are rule 14
//! of docs/ARCHITECTURE.md §4.

/// One compare-and-swap: "I go on, if the register still says `expected`, or that I hold it".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question {
    /// Of this boot of the guardian, growing: an answer to an earlier one is worth nothing.
    pub number: u64,
    /// Of the reign that is asked for.
    pub epoch: u32,
    /// The generation that both nodes agreed on last; 0 = none is known.
    pub expected: u64,
    /// Asked in contact with the peer, or with proof of its death: nobody else goes on.
    pub by_contact: bool,
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// This node holds the register now.
    Granted {
        /// Of the question.
        number: u64,
        /// The new generation.
        generation: u64,
    },
    /// Somebody else went on before.
    Refused {
        /// Of the question.
        number: u64,
        /// What the register says.
        generation: u64,
        /// This node holds it, with another generation than it expected.
        holder_is_us: bool,
    },
    /// No witness answered in time, or it does not know (any more) who went on.
    Unreachable {
        /// Of the question.
        number: u64,
    },
}

impl Answer {
    /// Of which question.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Granted { number, .. }
            | Self::Refused { number, .. }
            | Self::Unreachable { number } => number,
        }
    }
}
