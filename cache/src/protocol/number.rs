//! Numbers as memcached reads them: an optional plus, digits, nothing else.

/// Unsigned 64-bit number of a command line.
#[must_use]
pub fn unsigned(word: &[u8]) -> Option<u64> {
    digits(word.strip_prefix(b"+").unwrap_or(word))
}

/// Signed 64-bit number of a command line.
#[must_use]
pub fn signed(word: &[u8]) -> Option<i64> {
    match word.strip_prefix(b"-") {
        Some(rest) => 0i64.checked_sub_unsigned(digits(rest)?),
        None => i64::try_from(unsigned(word)?).ok(),
    }
}

/// A stored value as a number: blanks before it, then digits, then the end or a blank and anything
/// (protocol.txt, "Increment/Decrement": "the decimal representation of a 64-bit unsigned integer";
/// memcached reads it by `strtoull`, and pads shrunken numbers with blanks).
#[must_use]
pub fn stored(value: &[u8]) -> Option<u64> {
    let start = value.iter().position(|b| !is_blank(*b))?;
    let rest = &value[start..];
    let end = rest.iter().position(|b| is_blank(*b)).unwrap_or(rest.len());
    unsigned(&rest[..end])
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || (b'\t'..=b'\r').contains(&byte)
}

fn digits(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (word, expected) in [
            (&b"0"[..], Some(0)),
            (b"+5", Some(5)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"18446744073709551616", None),
            (b"000000000000000000000000000012", Some(12)),
            (b"", None),
            (b"+", None),
            (b"-1", None),
            (b"1x", None),
            (b" 1", None),
        ] {
            assert_eq!(unsigned(word), expected, "{}", word.escape_ascii());
        }
        assert_eq!(signed(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed(b"-9223372036854775809"), None);
        assert_eq!(signed(b"9223372036854775808"), None);
        assert_eq!(signed(b"--1"), None);
        assert_eq!(signed(b"-+1"), None);
    }

    #[test]
    fn stored_values() {
        for (value, expected) in [
            (&b"12"[..], Some(12)),
            (b" 12", Some(12)),
            (b"12 ab", Some(12)),
            (b"1\t", Some(1)),
            (b"5 \r\n6", Some(5)),
            (b"+12", Some(12)),
            (b"-12", None),
            (b"", None),
            (b" ", None),
            (b"+ 1", None),
            (b"abc", None),
        ] {
            assert_eq!(stored(value), expected, "{}", value.escape_ascii());
        }
    }
}
