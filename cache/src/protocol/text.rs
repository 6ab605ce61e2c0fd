//! The text protocol's lines: one line in, one [`Request`] or [`Refusal`] out.
//!
//! Reading commands (`get` and its kin) have any number of keys; they are not parsed as lines but
//! recognised by [`read_prefix`] and cut into words by [`next_word`] as the bytes come.
//! Driven by `session`, which finds the lines. Sections named are protocol.txt's.

use crate::command::{KEY_MAX, ReadVerb, Request, StatsTopic, Store, StoreVerb};
use crate::error::Refusal;
use crate::protocol::number;

/// A refused line, and whether the client wants to hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// The line ended in `noreply`.
    pub noreply: bool,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, noreply: false }
    }
}

/// Words of a line that are looked at; a line with more is as one with this many.
const WORDS: usize = 8;

/// Recognises the start of a reading command. Returns the verb and the bytes up to its blank.
#[must_use]
pub fn read_prefix(bytes: &[u8]) -> Option<(ReadVerb, usize)> {
    let blanks = bytes.iter().take_while(|b| **b == b' ').count();
    let rest = &bytes[blanks..];
    let (verb, length) = match rest {
        [b'g', b'e', b't', b' ', ..] => (ReadVerb::Get, 4),
        [b'g', b'e', b't', b's', b' ', ..] => (ReadVerb::Gets, 5),
        [b'g', b'a', b't', b' ', ..] => (ReadVerb::Gat, 4),
        [b'g', b'a', b't', b's', b' ', ..] => (ReadVerb::Gats, 5),
        _ => return None,
    };
    Some((verb, blanks + length))
}

/// What stands next in the words of a reading command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word<'a> {
    /// A word, its end seen; `used` bytes are done with.
    Word {
        /// The word.
        word: &'a [u8],
        /// Bytes up to its end; the end itself stays, it may be the line's.
        used: usize,
    },
    /// The line has ended; `used` bytes are done with.
    End {
        /// Bytes with the line end.
        used: usize,
    },
    /// More bytes are needed; the first `used` were blanks and are done with.
    Incomplete {
        /// Bytes that need not be shown again.
        used: usize,
    },
}

/// Cuts the next word off the rest of a line.
#[must_use]
pub fn next_word(bytes: &[u8]) -> Word<'_> {
    let blanks = bytes.iter().take_while(|b| **b == b' ').count();
    let rest = &bytes[blanks..];
    let Some(end) = memchr::memchr2(b' ', b'\n', rest) else {
        return Word::Incomplete { used: blanks };
    };
    let mut word = &rest[..end];
    if rest[end] == b'\n' {
        word = word.strip_suffix(b"\r").unwrap_or(word);
        if word.is_empty() {
            return Word::End { used: blanks + end + 1 };
        }
    }
    Word::Word { word, used: blanks + word.len() }
}

/// Parses one line, without its end. Reading commands without a word after them come here too
/// and are [`Refusal::Unknown`].
///
/// # Errors
/// What the client is to be told instead.
pub fn parse_line(line: &[u8]) -> Result<Request<'_>, Refused> {
    let mut words = [&[][..]; WORDS];
    let mut count = 0;
    for word in line.split(|b| *b == b' ').filter(|w| !w.is_empty()).take(WORDS) {
        words[count] = word;
        count += 1;
    }
    let noreply = count > 1 && words[count - 1] == b"noreply";
    let arguments = &words[1..count.max(1)];
    let parsed = match words[0] {
        b"set" => store(StoreVerb::Set, arguments),
        b"add" => store(StoreVerb::Add, arguments),
        b"replace" => store(StoreVerb::Replace, arguments),
        b"append" => store(StoreVerb::Append, arguments),
        b"prepend" => store(StoreVerb::Prepend, arguments),
        b"cas" => cas(arguments),
        b"incr" => arithmetic(true, arguments),
        b"decr" => arithmetic(false, arguments),
        b"delete" => delete(arguments),
        b"touch" => touch(arguments),
        b"flush_all" => flush_all(arguments),
        b"verbosity" => verbosity(arguments),
        b"stats" => stats(arguments),
        b"version" => Ok(Request::Version),
        b"quit" => Ok(Request::Quit),
        _ => Err(Refusal::Unknown),
    };
    // A line that is no command at all is answered whatever it ends in, as memcached does.
    parsed.map_err(|refusal| Refused { refusal, noreply: noreply && refusal != Refusal::Unknown })
}

fn key(word: &[u8]) -> Result<&[u8], Refusal> {
    if word.is_empty() || word.len() > KEY_MAX { Err(Refusal::Format) } else { Ok(word) }
}

fn noreply(arguments: &[&[u8]], from: usize) -> bool {
    arguments.len() > from && arguments.last() == Some(&&b"noreply"[..])
}

/// "Storage commands": `<command> <key> <flags> <exptime> <bytes> [noreply]`.
fn store<'a>(verb: StoreVerb, arguments: &[&'a [u8]]) -> Result<Request<'a>, Refusal> {
    let (&[name, flags, exptime, length], rest) =
        arguments.split_first_chunk().ok_or(Refusal::Unknown)?;
    if rest.len() > 1 {
        return Err(Refusal::Unknown);
    }
    store_words(verb, [name, flags, exptime, length], noreply(arguments, 4))
}

/// "Storage commands": `cas <key> <flags> <exptime> <bytes> <cas unique> [noreply]`.
fn cas<'a>(arguments: &[&'a [u8]]) -> Result<Request<'a>, Refusal> {
    let (&[name, flags, exptime, length, unique], rest) =
        arguments.split_first_chunk().ok_or(Refusal::Unknown)?;
    if rest.len() > 1 {
        return Err(Refusal::Unknown);
    }
    let unique = number::unsigned(unique).ok_or(Refusal::Format)?;
    let words = [name, flags, exptime, length];
    store_words(StoreVerb::Cas(unique), words, noreply(arguments, 5))
}

fn store_words<'a>(
    verb: StoreVerb,
    [name, flags, exptime, length]: [&'a [u8]; 4],
    noreply: bool,
) -> Result<Request<'a>, Refusal> {
    let key = key(name)?;
    let flags = number::unsigned(flags).and_then(|n| u32::try_from(n).ok());
    let flags = flags.ok_or(Refusal::Format)?;
    let exptime = number::signed(exptime).ok_or(Refusal::Format)?;
    let length = number::unsigned(length).filter(|n| *n <= LENGTH_MAX);
    let length = length.and_then(|n| usize::try_from(n).ok()).ok_or(Refusal::Format)?;
    Ok(Request::Store(Store { verb, key, flags, exptime, length, noreply }))
}

/// Greatest length that a storage command may name: what memcached's `int` holds with a line end.
const LENGTH_MAX: u64 = i32::MAX as u64 - 2;

/// "Increment/Decrement": `incr <key> <value> [noreply]`.
fn arithmetic<'a>(up: bool, arguments: &[&'a [u8]]) -> Result<Request<'a>, Refusal> {
    let (&[name, delta], rest) = arguments.split_first_chunk().ok_or(Refusal::Unknown)?;
    if rest.len() > 1 {
        return Err(Refusal::Unknown);
    }
    let key = key(name)?;
    let delta = number::unsigned(delta).ok_or(Refusal::Delta)?;
    Ok(Request::Arithmetic { key, delta, up, noreply: noreply(arguments, 2) })
}

/// "Deletion": `delete <key> [noreply]`; a 0 before `noreply` is accepted, from older clients.
fn delete<'a>(arguments: &[&'a [u8]]) -> Result<Request<'a>, Refusal> {
    let (name, rest) = arguments.split_first().ok_or(Refusal::Unknown)?;
    let noreply = match rest {
        [] | [b"0"] => false,
        [b"noreply"] | [b"0", b"noreply"] => true,
        [_] | [_, _] => return Err(Refusal::DeleteUsage),
        _ => return Err(Refusal::Unknown),
    };
    Ok(Request::Delete { key: key(name)?, noreply })
}

/// "Touch": `touch <key> <exptime> [noreply]`.
fn touch<'a>(arguments: &[&'a [u8]]) -> Result<Request<'a>, Refusal> {
    let (&[name, exptime], rest) = arguments.split_first_chunk().ok_or(Refusal::Unknown)?;
    if rest.len() > 1 {
        return Err(Refusal::Unknown);
    }
    let key = key(name)?;
    let exptime = number::signed(exptime).ok_or(Refusal::Exptime)?;
    Ok(Request::Touch { key, exptime, noreply: noreply(arguments, 2) })
}

/// "Other commands": `flush_all [delay] [noreply]`.
fn flush_all<'a>(arguments: &[&'a [u8]]) -> Result<Request<'a>, Refusal> {
    let noreply = noreply(arguments, 0);
    match arguments {
        [] | [b"noreply"] => Ok(Request::FlushAll { delay: 0, noreply }),
        [delay] | [delay, _] => {
            let delay = number::signed(delay).ok_or(Refusal::Exptime)?;
            Ok(Request::FlushAll { delay, noreply })
        }
        _ => Err(Refusal::Unknown),
    }
}

/// "Other commands": `verbosity <level> [noreply]`.
fn verbosity<'a>(arguments: &[&'a [u8]]) -> Result<Request<'a>, Refusal> {
    let noreply = noreply(arguments, 0);
    match arguments {
        [b"noreply"] => Ok(Request::Verbosity { noreply }),
        [level] | [level, _] => {
            number::unsigned(level).ok_or(Refusal::Format)?;
            Ok(Request::Verbosity { noreply })
        }
        _ => Err(Refusal::Unknown),
    }
}

/// "Statistics": `stats [topic]`.
fn stats<'a>(arguments: &[&'a [u8]]) -> Result<Request<'a>, Refusal> {
    let topic = match arguments.first().copied() {
        None => StatsTopic::General,
        Some(b"reset") => StatsTopic::Reset,
        Some(b"settings") => StatsTopic::Settings,
        Some(b"items") => StatsTopic::Items,
        Some(b"slabs") => StatsTopic::Slabs,
        Some(b"sizes") => StatsTopic::Sizes,
        Some(b"replication") => StatsTopic::Replication,
        Some(_) => return Err(Refusal::Unknown),
    };
    Ok(Request::Stats(topic))
}

#[cfg(test)]
mod tests;
