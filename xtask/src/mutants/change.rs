//! One change of a text. Pure.

use std::fmt;

/// Why a change does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misfit {
    /// The text to find is not there.
    Absent,
    /// It is there so many times.
    Several(usize),
    /// It would change nothing.
    Same,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the text to find is not in the file"),
            Self::Several(count) => write!(f, "the text to find is in the file {count} times"),
            Self::Same => f.write_str("it changes nothing"),
        }
    }
}

/// `text` with the only `find` in it replaced.
///
/// # Errors
/// See [`Misfit`].
pub(super) fn apply(text: &str, find: &str, replace: &str) -> Result<String, Misfit> {
    if find == replace || find.is_empty() {
        return Err(Misfit::Same);
    }
    match text.matches(find).count() {
        0 => Err(Misfit::Absent),
        1 => Ok(text.replacen(find, replace, 1)),
        several => Err(Misfit::Several(several)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_and_no_other() {
        assert_eq!(apply("a b c", "b", "x").as_deref(), Ok("a x c"));
        assert_eq!(apply("a\n  b\n", "a\n  b", "").as_deref(), Ok("\n"));
        assert_eq!(apply("a b c", "d", "x"), Err(Misfit::Absent));
        assert_eq!(apply("a b b", "b", "x"), Err(Misfit::Several(2)));
        assert_eq!(apply("a", "a", "a"), Err(Misfit::Same));
        assert_eq!(apply("a", "", "a"), Err(Misfit::Same));
    }
}
