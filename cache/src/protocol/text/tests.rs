use super::*;
use proptest::prelude::*;

fn set(
    verb: StoreVerb,
    flags: u32,
    exptime: i64,
    length: usize,
    noreply: bool,
) -> Request<'static> {
    Request::Store(Store { verb, key: b"k", flags, exptime, length, noreply })
}

fn refused(refusal: Refusal, noreply: bool) -> Result<Request<'static>, Refused> {
    Err(Refused { refusal, noreply })
}

#[test]
fn storage_lines() {
    let table: [(&[u8], Result<Request<'_>, Refused>); 24] = [
        (b"set k 1 2 3", Ok(set(StoreVerb::Set, 1, 2, 3, false))),
        (b"  set  k 1 2 3 ", Ok(set(StoreVerb::Set, 1, 2, 3, false))),
        (b"set k 1 2 3 noreply", Ok(set(StoreVerb::Set, 1, 2, 3, true))),
        (b"set k 1 2 3 other", Ok(set(StoreVerb::Set, 1, 2, 3, false))),
        (b"set k +1 +2 +3", Ok(set(StoreVerb::Set, 1, 2, 3, false))),
        (b"set k 4294967295 -1 0", Ok(set(StoreVerb::Set, u32::MAX, -1, 0, false))),
        (b"add k 1 2 3", Ok(set(StoreVerb::Add, 1, 2, 3, false))),
        (b"replace k 1 2 3", Ok(set(StoreVerb::Replace, 1, 2, 3, false))),
        (b"append k 1 2 3", Ok(set(StoreVerb::Append, 1, 2, 3, false))),
        (b"prepend k 1 2 3", Ok(set(StoreVerb::Prepend, 1, 2, 3, false))),
        (b"cas k 1 2 3 4", Ok(set(StoreVerb::Cas(4), 1, 2, 3, false))),
        (b"cas k 1 2 3 4 noreply", Ok(set(StoreVerb::Cas(4), 1, 2, 3, true))),
        (b"set", refused(Refusal::Unknown, false)),
        (b"set k 1 2", refused(Refusal::Unknown, false)),
        (b"set k 1 2 3 4 noreply", refused(Refusal::Unknown, false)),
        (b"cas k 1 2 3", refused(Refusal::Unknown, false)),
        (b"set k x 2 3", refused(Refusal::Format, false)),
        (b"set k -1 2 3", refused(Refusal::Format, false)),
        (b"set k 4294967296 2 3", refused(Refusal::Format, false)),
        (b"set k 1 x 3", refused(Refusal::Format, false)),
        (b"set k 1 2 -3", refused(Refusal::Format, false)),
        (b"set k 1 2 2147483646", refused(Refusal::Format, false)),
        (b"set k 1 2 3x noreply", refused(Refusal::Format, true)),
        (b"cas k 1 2 3 x noreply", refused(Refusal::Format, true)),
    ];
    for (line, expected) in table {
        assert_eq!(parse_line(line), expected, "{}", line.escape_ascii());
    }
}

#[test]
fn other_lines() {
    let arithmetic = |delta, up, noreply| Ok(Request::Arithmetic { key: b"k", delta, up, noreply });
    let delete = |noreply| Ok(Request::Delete { key: b"k", noreply });
    let touch = |exptime, noreply| Ok(Request::Touch { key: b"k", exptime, noreply });
    let flush = |delay, noreply| Ok(Request::FlushAll { delay, noreply });
    let table: [(&[u8], Result<Request<'_>, Refused>); 36] = [
        (b"", refused(Refusal::Unknown, false)),
        (b"   ", refused(Refusal::Unknown, false)),
        (b"get", refused(Refusal::Unknown, false)),
        (b"GET a", refused(Refusal::Unknown, false)),
        (b"nonsense noreply", refused(Refusal::Unknown, false)),
        (b"incr k 5", arithmetic(5, true, false)),
        (b"decr k 5 noreply", arithmetic(5, false, true)),
        (b"incr k 5 6", arithmetic(5, true, false)),
        (b"incr k", refused(Refusal::Unknown, false)),
        (b"incr k x", refused(Refusal::Delta, false)),
        (b"incr k noreply", refused(Refusal::Delta, true)),
        (b"incr k 1 2 3", refused(Refusal::Unknown, false)),
        (b"delete k", delete(false)),
        (b"delete k 0", delete(false)),
        (b"delete k noreply", delete(true)),
        (b"delete k 0 noreply", delete(true)),
        (b"delete k 1", refused(Refusal::DeleteUsage, false)),
        (b"delete k 1 noreply", refused(Refusal::DeleteUsage, true)),
        (b"delete k 0 x y", refused(Refusal::Unknown, false)),
        (b"touch k -5", touch(-5, false)),
        (b"touch k 0 noreply", touch(0, true)),
        (b"touch k", refused(Refusal::Unknown, false)),
        (b"touch k noreply", refused(Refusal::Exptime, true)),
        (b"flush_all", flush(0, false)),
        (b"flush_all noreply", flush(0, true)),
        (b"flush_all 10 noreply", flush(10, true)),
        (b"flush_all -1", flush(-1, false)),
        (b"flush_all x", refused(Refusal::Exptime, false)),
        (b"flush_all 1 2 3", refused(Refusal::Unknown, false)),
        (b"verbosity", refused(Refusal::Unknown, false)),
        (b"verbosity x", refused(Refusal::Format, false)),
        (b"verbosity 1 noreply", Ok(Request::Verbosity { noreply: true })),
        (b"stats", Ok(Request::Stats(StatsTopic::General))),
        (b"stats replication", Ok(Request::Stats(StatsTopic::Replication))),
        (b"stats noreply", refused(Refusal::Unknown, false)),
        (b"version x", Ok(Request::Version)),
    ];
    for (line, expected) in table {
        assert_eq!(parse_line(line), expected, "{}", line.escape_ascii());
    }
}

#[test]
fn keys_have_250_bytes_at_most() {
    for (length, fits) in [(250, true), (251, false)] {
        let line = [b"delete ", &vec![b'k'; length][..]].concat();
        assert_eq!(parse_line(&line).is_ok(), fits);
    }
}

#[test]
fn words_of_reading_commands() {
    assert_eq!(read_prefix(b"get a"), Some((ReadVerb::Get, 4)));
    assert_eq!(read_prefix(b"  gats "), Some((ReadVerb::Gats, 7)));
    assert_eq!(read_prefix(b"getsa "), None);
    assert_eq!(read_prefix(b"get\r\n"), None);
    assert_eq!(next_word(b"  ab c"), Word::Word { word: b"ab", used: 4 });
    assert_eq!(next_word(b"ab\r\n"), Word::Word { word: b"ab", used: 2 });
    assert_eq!(next_word(b"a\rb\n"), Word::Word { word: b"a\rb", used: 3 });
    assert_eq!(next_word(b" \r\nx"), Word::End { used: 3 });
    assert_eq!(next_word(b"\nx"), Word::End { used: 1 });
    assert_eq!(next_word(b"  ab"), Word::Incomplete { used: 2 });
    assert_eq!(next_word(b" \r"), Word::Incomplete { used: 1 });
}

/// What every accepted line promises, whatever came in.
fn check(line: &[u8]) {
    let key = match parse_line(line) {
        Ok(Request::Store(store)) => {
            assert!(store.length < i32::MAX as usize);
            store.key
        }
        Ok(
            Request::Arithmetic { key, .. }
            | Request::Delete { key, .. }
            | Request::Touch { key, .. },
        ) => key,
        Ok(_) | Err(_) => return,
    };
    assert!((1..=KEY_MAX).contains(&key.len()));
    assert!(!key.contains(&b' '));
}

proptest! {
    #[test]
    fn accepted_keys_are_keys(line in proptest::collection::vec(any::<u8>(), 0..300)) {
        check(&line);
    }

    #[test]
    fn accepted_keys_are_keys_behind_commands(
        verb in proptest::sample::select(vec!["set", "cas", "incr", "delete", "touch", "stats"]),
        rest in "[ a-z0-9-]{0,300}",
    ) {
        check(format!("{verb} {rest}").as_bytes());
    }
}
