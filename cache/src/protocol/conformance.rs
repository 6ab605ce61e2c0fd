//! The text protocol as a table of bytes: what is sent, what must come back.
//!
//! The table is run on [`crate::Session`] by this crate's tests, and on a running server, ours or
//! memcached itself, by whoever enables the feature `conformance`. Each row starts on a fresh
//! connection to an empty store. Marks in angle brackets stand for bytes that cannot be written:
//! `<k*251>` = 251 times `k`; `<U>` in an answer = a version, and in what is sent = the last
//! version seen in the row; `<V>` = the rest of a line.

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What it shows.
    pub what: &'static str,
    /// Sent and answered, in turn.
    pub steps: &'static [(&'static str, &'static str)],
    /// The connection is closed after the last answer.
    pub closes: bool,
    /// Where memcached 1.6.18 answers otherwise, why we do not.
    pub differs: Option<&'static str>,
}

const fn row(what: &'static str, steps: &'static [(&'static str, &'static str)]) -> Row {
    Row { what, steps, closes: false, differs: None }
}

const fn closes(what: &'static str, steps: &'static [(&'static str, &'static str)]) -> Row {
    Row { what, steps, closes: true, differs: None }
}

const fn differs(
    what: &'static str,
    why: &'static str,
    steps: &'static [(&'static str, &'static str)],
) -> Row {
    Row { what, steps, closes: false, differs: Some(why) }
}

/// All rows, by family.
pub const FAMILIES: [(&str, &[Row]); 9] = [
    ("read", READ),
    ("store", STORE),
    ("refused values", REFUSED),
    ("cas", CAS),
    ("arithmetic", ARITHMETIC),
    ("delete and touch", DELETE_TOUCH),
    ("expiry and flush", EXPIRY),
    ("other", OTHER),
    ("noreply", NOREPLY),
];

const READ: &[Row] = &[
    row(
        "get: hit, miss, several",
        &[
            ("get a\r\n", "END\r\n"),
            ("set a 7 0 1\r\n1\r\nset b 0 0 0\r\n\r\n", "STORED\r\nSTORED\r\n"),
            ("get a\r\n", "VALUE a 7 1\r\n1\r\nEND\r\n"),
            ("get a x b\r\n", "VALUE a 7 1\r\n1\r\nVALUE b 0 0\r\n\r\nEND\r\n"),
            ("get a a\r\n", "VALUE a 7 1\r\n1\r\nVALUE a 7 1\r\n1\r\nEND\r\n"),
            ("  get   a  \r\n", "VALUE a 7 1\r\n1\r\nEND\r\n"),
            ("get a\n", "VALUE a 7 1\r\n1\r\nEND\r\n"),
        ],
    ),
    row(
        "get: no key",
        &[("get\r\n", "ERROR\r\n"), ("get \r\n", "ERROR\r\n"), ("gets\r\n", "ERROR\r\n")],
    ),
    row("get: case matters", &[("GET a\r\n", "ERROR\r\n")]),
    row("get: a tab is no blank", &[("get\ta\r\n", "ERROR\r\n")]),
    row(
        "get: keys to 250 bytes",
        &[
            ("get <k*250>\r\n", "END\r\n"),
            ("get <k*251>\r\n", "CLIENT_ERROR bad command line format\r\n"),
            ("version\r\n", "VERSION <V>\r\n"),
        ],
    ),
    row(
        "get: a bad key takes the values before it along",
        &[
            ("set a 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("get a <k*251> a\r\n", "CLIENT_ERROR bad command line format\r\n"),
            ("get a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
        ],
    ),
    row("get: any number of keys", &[("get <k *9000>\r\n", "END\r\n")]),
    row("get: noreply is a key", &[("get noreply\r\n", "END\r\n")]),
    row(
        "keys are bytes",
        &[(
            "set \u{1}\u{e9} 0 0 1\r\n1\r\nget \u{1}\u{e9}\r\n",
            "STORED\r\nVALUE \u{1}\u{e9} 0 1\r\n1\r\nEND\r\n",
        )],
    ),
    row(
        "gets",
        &[("set a 0 0 1\r\n1\r\ngets a b\r\n", "STORED\r\nVALUE a 0 1 <U>\r\n1\r\nEND\r\n")],
    ),
    row(
        "gat, gats",
        &[
            ("gat\r\n", "ERROR\r\n"),
            ("gat 0\r\n", "END\r\n"),
            ("gat x a\r\n", "CLIENT_ERROR invalid exptime argument\r\n"),
            ("gat 0 a\r\n", "END\r\n"),
            ("set a 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("gat 100 a b\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
            ("gats  0  a\r\n", "VALUE a 0 1 <U>\r\n1\r\nEND\r\n"),
            ("gat 0 <k*251>\r\n", "CLIENT_ERROR bad command line format\r\n"),
            ("gat -1 a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
            ("get a\r\n", "END\r\n"),
        ],
    ),
];

const STORE: &[Row] = &[
    row(
        "set, add, replace",
        &[
            ("set a 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("add a 0 0 1\r\n2\r\n", "NOT_STORED\r\n"),
            ("add b 0 0 1\r\n2\r\n", "STORED\r\n"),
            ("replace a 5 0 2\r\n33\r\n", "STORED\r\n"),
            ("replace c 0 0 1\r\n4\r\n", "NOT_STORED\r\n"),
            ("get a b c\r\n", "VALUE a 5 2\r\n33\r\nVALUE b 0 1\r\n2\r\nEND\r\n"),
        ],
    ),
    row(
        "append, prepend keep flags",
        &[
            ("append a 0 0 1\r\n1\r\nprepend a 0 0 1\r\n1\r\n", "NOT_STORED\r\nNOT_STORED\r\n"),
            ("set a 5 0 1\r\n1\r\n", "STORED\r\n"),
            ("append a 9 -1 2\r\n23\r\nprepend a 9 0 1\r\n0\r\n", "STORED\r\nSTORED\r\n"),
            ("append a 0 0 0\r\n\r\nget a\r\n", "STORED\r\nVALUE a 5 4\r\n0123\r\nEND\r\n"),
        ],
    ),
    row(
        "flags have 32 bits",
        &[(
            "set a 4294967295 0 1\r\n1\r\nget a\r\n",
            "STORED\r\nVALUE a 4294967295 1\r\n1\r\nEND\r\n",
        )],
    ),
    row(
        "numbers may have a plus, lines blanks",
        &[("  set  a +5 +5 +1 \r\n1\r\nget a\r\n", "STORED\r\nVALUE a 5 1\r\n1\r\nEND\r\n")],
    ),
    row("a sixth word is not looked at", &[("set a 0 0 1 2\r\n1\r\n", "STORED\r\n")]),
    row(
        "the value may hold line ends",
        &[("set a 0 0 4\r\n\r\n\r\n\r\nget a\r\n", "STORED\r\nVALUE a 0 4\r\n\r\n\r\n\r\nEND\r\n")],
    ),
    row(
        "a line may end in a newline alone, a value may not",
        &[
            ("set a 0 0 1\n1\r\n", "STORED\r\n"),
            ("set a 0 0 1\r\n1\nx", "CLIENT_ERROR bad data chunk\r\n"),
        ],
    ),
];

const REFUSED: &[Row] = &[
    row(
        "value too long",
        &[
            ("set a 0 0 3\r\nabcdef\r\n", "CLIENT_ERROR bad data chunk\r\nERROR\r\n"),
            ("version\r\n", "VERSION <V>\r\n"),
        ],
    ),
    row(
        "value too short",
        &[("set a 0 0 3\r\nab\r\nget a\r\n", "CLIENT_ERROR bad data chunk\r\nERROR\r\n")],
    ),
    row(
        "refused lines do not take a value along",
        &[
            ("set a 0 0 -1\r\nabc\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n"),
            ("set a x 0 1\r\n1\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n"),
            ("set a -1 0 1\r\n1\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n"),
            ("set a 0x1 0 1\r\n1\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n"),
            ("set a 0 x 1\r\n1\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n"),
            ("set a 0 0 1x\r\n1\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n"),
            ("set <k*251> 0 0 1\r\n1\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n"),
            ("set a 0 0 2147483647\r\n1\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n"),
            ("set a 0 0\r\n", "ERROR\r\n"),
            ("set a 0 0 1 2 3\r\n1\r\n", "ERROR\r\nERROR\r\n"),
        ],
    ),
    row(
        "too large: the value is swallowed, a set takes the old item along",
        &[
            ("set a 0 0 1\r\n1\r\nset b 0 0 1\r\n1\r\n", "STORED\r\nSTORED\r\n"),
            ("set a 0 0 1048600\r\n<x*1048600>\r\n", "SERVER_ERROR object too large for cache\r\n"),
            ("add a 0 0 1048600\r\n<x*1048600>\r\n", "SERVER_ERROR object too large for cache\r\n"),
            (
                "append b 0 0 1048600\r\n<x*1048600>\r\n",
                "SERVER_ERROR object too large for cache\r\n",
            ),
            ("get a b\r\n", "VALUE b 0 1\r\n1\r\nEND\r\n"),
        ],
    ),
    row(
        "too large by append: nothing changes",
        &[
            ("set a 0 0 1048000\r\n<x*1048000>\r\n", "STORED\r\n"),
            ("append a 0 0 3000\r\n<y*3000>\r\n", "NOT_STORED\r\n"),
            ("delete a\r\n", "DELETED\r\n"),
        ],
    ),
    differs(
        "flags above 32 bits",
        "1.6.18 cuts them off, later versions refuse them as we do",
        &[("set a 4294967296 0 1\r\n1\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n")],
    ),
    differs(
        "length above 31 bits",
        "1.6.18 takes its low 32 bits and waits for them",
        &[("set a 0 0 99999999999\r\n", "CLIENT_ERROR bad command line format\r\n")],
    ),
];

const CAS: &[Row] = &[
    row(
        "cas: stored once",
        &[
            ("cas a 0 0 1 5\r\n1\r\n", "NOT_FOUND\r\n"),
            ("set a 0 0 1\r\n1\r\ngets a\r\n", "STORED\r\nVALUE a 0 1 <U>\r\n1\r\nEND\r\n"),
            ("cas a 3 0 2 <U>\r\n22\r\n", "STORED\r\n"),
            ("cas a 0 0 1 <U>\r\n3\r\n", "EXISTS\r\n"),
            ("get a\r\n", "VALUE a 3 2\r\n22\r\nEND\r\n"),
        ],
    ),
    row(
        "cas: touch keeps the version, all else changes it",
        &[
            ("set a 0 0 1\r\n1\r\ngets a\r\n", "STORED\r\nVALUE a 0 1 <U>\r\n1\r\nEND\r\n"),
            ("touch a 100\r\ngat 0 a\r\n", "TOUCHED\r\nVALUE a 0 1\r\n1\r\nEND\r\n"),
            ("cas a 0 0 1 <U>\r\n2\r\ngets a\r\n", "STORED\r\nVALUE a 0 1 <U>\r\n2\r\nEND\r\n"),
            ("incr a 1\r\ncas a 0 0 1 <U>\r\n9\r\n", "3\r\nEXISTS\r\n"),
            ("gets a\r\nappend a 0 0 1\r\n0\r\n", "VALUE a 0 1 <U>\r\n3\r\nEND\r\nSTORED\r\n"),
            ("cas a 0 0 1 <U>\r\n9\r\n", "EXISTS\r\n"),
        ],
    ),
    row(
        "cas: forms",
        &[
            ("cas a 0 0 1\r\n1\r\n", "ERROR\r\nERROR\r\n"),
            ("cas a 0 0 1 x\r\n1\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n"),
            ("cas a 0 0 1 -1\r\n1\r\n", "CLIENT_ERROR bad command line format\r\nERROR\r\n"),
            (
                "cas a 0 0 1 18446744073709551616\r\n1\r\n",
                "CLIENT_ERROR bad command line format\r\nERROR\r\n",
            ),
        ],
    ),
];

const ARITHMETIC: &[Row] = &[
    row(
        "incr, decr: forms",
        &[
            ("incr\r\nincr a\r\nincr a \r\n", "ERROR\r\nERROR\r\nERROR\r\n"),
            ("incr a x\r\n", "CLIENT_ERROR invalid numeric delta argument\r\n"),
            ("incr a -1\r\n", "CLIENT_ERROR invalid numeric delta argument\r\n"),
            ("incr a 18446744073709551616\r\n", "CLIENT_ERROR invalid numeric delta argument\r\n"),
            ("incr <k*251> 1\r\n", "CLIENT_ERROR bad command line format\r\n"),
            ("incr a 1\r\ndecr a 1\r\n", "NOT_FOUND\r\nNOT_FOUND\r\n"),
            ("incr a 1 2 3\r\n", "ERROR\r\n"),
        ],
    ),
    row(
        "a longer number",
        &[(
            "set n 7 0 2\r\n99\r\nincr n 1\r\nget n\r\n",
            "STORED\r\n100\r\nVALUE n 7 3\r\n100\r\nEND\r\n",
        )],
    ),
    row(
        "a shorter number is padded",
        &[
            (
                "set n 0 0 2\r\n10\r\ndecr n 1\r\nget n\r\n",
                "STORED\r\n9\r\nVALUE n 0 2\r\n9 \r\nEND\r\n",
            ),
            ("incr n 1\r\n", "10\r\n"),
        ],
    ),
    row(
        "incr wraps, decr stops",
        &[
            ("set n 0 0 20\r\n18446744073709551615\r\nincr n 1\r\n", "STORED\r\n0\r\n"),
            ("get n\r\n", "VALUE n 0 20\r\n0                   \r\nEND\r\n"),
            (
                "incr n 5\r\ndecr n 9\r\nincr n 18446744073709551615\r\n",
                "5\r\n0\r\n18446744073709551615\r\n",
            ),
        ],
    ),
    row(
        "what is a number",
        &[
            ("set n 0 0 3\r\n 12\r\nincr n 1\r\n", "STORED\r\n13\r\n"),
            (
                "set n 0 0 5\r\n12 ab\r\nincr n 1\r\nget n\r\n",
                "STORED\r\n13\r\nVALUE n 0 5\r\n13   \r\nEND\r\n",
            ),
            ("set n 0 0 3\r\n+12\r\nincr n 1\r\n", "STORED\r\n13\r\n"),
            ("set n 0 0 30\r\n<0*28>12\r\nincr n 1\r\n", "STORED\r\n13\r\n"),
        ],
    ),
    row(
        "what is none",
        &[
            (
                "set n 0 0 0\r\n\r\nincr n 1\r\n",
                "STORED\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
            ),
            (
                "set n 0 0 3\r\nabc\r\ndecr n 1\r\n",
                "STORED\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
            ),
            (
                "set n 0 0 3\r\n-12\r\nincr n 1\r\n",
                "STORED\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
            ),
            (
                "set n 0 0 20\r\n18446744073709551616\r\nincr n 1\r\n",
                "STORED\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
            ),
            ("get n\r\n", "VALUE n 0 20\r\n18446744073709551616\r\nEND\r\n"),
        ],
    ),
];

const DELETE_TOUCH: &[Row] = &[
    row(
        "delete",
        &[
            ("delete\r\n", "ERROR\r\n"),
            ("delete a\r\n", "NOT_FOUND\r\n"),
            (
                "set a 0 0 1\r\n1\r\ndelete a\r\nget a\r\ndelete a\r\n",
                "STORED\r\nDELETED\r\nEND\r\nNOT_FOUND\r\n",
            ),
            ("set a 0 0 1\r\n1\r\ndelete a 0\r\n", "STORED\r\nDELETED\r\n"),
            (
                "delete a 1\r\n",
                "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n",
            ),
            (
                "delete a 0 x\r\n",
                "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n",
            ),
            ("delete a b c d\r\n", "ERROR\r\n"),
            ("delete <k*251>\r\n", "CLIENT_ERROR bad command line format\r\n"),
            ("delete noreply\r\n", "NOT_FOUND\r\n"),
        ],
    ),
    row(
        "touch",
        &[
            ("touch\r\ntouch a\r\n", "ERROR\r\nERROR\r\n"),
            ("touch a 0\r\n", "NOT_FOUND\r\n"),
            ("touch a x\r\n", "CLIENT_ERROR invalid exptime argument\r\n"),
            ("touch <k*251> 0\r\n", "CLIENT_ERROR bad command line format\r\n"),
            ("touch a 0 1 2\r\n", "ERROR\r\n"),
            (
                "set a 0 0 1\r\n1\r\ntouch a 100\r\nget a\r\n",
                "STORED\r\nTOUCHED\r\nVALUE a 0 1\r\n1\r\nEND\r\n",
            ),
            ("touch a -1\r\nget a\r\ntouch a 0\r\n", "TOUCHED\r\nEND\r\nNOT_FOUND\r\n"),
        ],
    ),
];

const EXPIRY: &[Row] = &[
    row(
        "negative is gone",
        &[
            ("set a 0 -1 1\r\n1\r\nget a\r\n", "STORED\r\nEND\r\n"),
            ("add a 0 -1 1\r\n1\r\nget a\r\n", "STORED\r\nEND\r\n"),
            (
                "set a 0 0 1\r\n1\r\nreplace a 0 -1 1\r\n2\r\nget a\r\n",
                "STORED\r\nSTORED\r\nEND\r\n",
            ),
            ("set a 0 -99999999999 1\r\n1\r\nget a\r\n", "STORED\r\nEND\r\n"),
        ],
    ),
    row(
        "30 days are relative, more is absolute",
        &[
            ("set a 0 2592000 1\r\n1\r\nget a\r\n", "STORED\r\nVALUE a 0 1\r\n1\r\nEND\r\n"),
            ("set a 0 2592001 1\r\n1\r\nget a\r\n", "STORED\r\nEND\r\n"),
            ("set a 0 4000000000 1\r\n1\r\n", "STORED\r\n"),
            (
                "set a 0 9223372036854775808 1\r\n1\r\n",
                "CLIENT_ERROR bad command line format\r\nERROR\r\n",
            ),
        ],
    ),
    row(
        "flush_all",
        &[
            ("set a 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("flush_all x\r\n", "CLIENT_ERROR invalid exptime argument\r\n"),
            ("flush_all 1 2 3\r\n", "ERROR\r\n"),
            ("flush_all 1000\r\nget a\r\n", "OK\r\nVALUE a 0 1\r\n1\r\nEND\r\n"),
            ("flush_all\r\n", "OK\r\n"),
            ("flush_all 0\r\nflush_all -1\r\nflush_all 0 x\r\n", "OK\r\nOK\r\nOK\r\n"),
            ("get a\r\n", "END\r\n"),
        ],
    ),
];

const OTHER: &[Row] = &[
    row(
        "version, verbosity",
        &[
            ("version\r\nversion x\r\n", "VERSION <V>\r\nVERSION <V>\r\n"),
            ("verbosity\r\n", "ERROR\r\n"),
            ("verbosity 1\r\nverbosity 1 2\r\n", "OK\r\nOK\r\n"),
            (
                "verbosity x\r\nverbosity -1\r\n",
                "CLIENT_ERROR bad command line format\r\nCLIENT_ERROR bad command line format\r\n",
            ),
            ("verbosity 1 2 3\r\n", "ERROR\r\n"),
        ],
    ),
    row(
        "no command",
        &[("\r\n \r\nfoo\r\nfoo bar baz\r\n", "ERROR\r\nERROR\r\nERROR\r\nERROR\r\n")],
    ),
    row(
        "stats: topics",
        &[
            ("stats foo\r\nstats noreply\r\n", "ERROR\r\nERROR\r\n"),
            ("stats reset\r\nstats reset x\r\n", "RESET\r\nRESET\r\n"),
            ("stats sizes\r\n", "STAT sizes_status disabled\r\nEND\r\n"),
        ],
    ),
    closes("quit answers what came before", &[("get a\r\nquit\r\nget a\r\n", "END\r\n")]),
    closes("quit with words", &[("quit x\r\n", "")]),
    closes("a line without end", &[("<x*3000>", "")]),
    closes("a storage line without end", &[("set <x*3000>", "")]),
];

const NOREPLY: &[Row] = &[
    row(
        "noreply",
        &[
            ("set a 0 0 1 noreply\r\n1\r\nget a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
            (
                "add a 0 0 1 noreply\r\n2\r\nreplace a 0 0 1 noreply \r\n3\r\nget a\r\n",
                "VALUE a 0 1\r\n3\r\nEND\r\n",
            ),
            (
                "append a 0 0 1 noreply\r\n4\r\nprepend a 0 0 1 noreply\r\n2\r\nget a\r\n",
                "VALUE a 0 3\r\n234\r\nEND\r\n",
            ),
            (
                "incr a 1 noreply\r\ndecr a 2 noreply\r\ntouch a 0 noreply\r\ngets a\r\n",
                "VALUE a 0 3 <U>\r\n233\r\nEND\r\n",
            ),
            ("cas a 0 0 1 <U> noreply\r\n5\r\nget a\r\n", "VALUE a 0 1\r\n5\r\nEND\r\n"),
            ("delete a noreply\r\nget a\r\n", "END\r\n"),
            ("set a 0 0 1\r\n1\r\ndelete a 0 noreply\r\nget a\r\n", "STORED\r\nEND\r\n"),
            ("set a 0 0 1\r\n1\r\nflush_all noreply\r\nget a\r\n", "STORED\r\nEND\r\n"),
            (
                "flush_all 0 noreply\r\nverbosity noreply\r\nverbosity 1 noreply\r\nversion\r\n",
                "VERSION <V>\r\n",
            ),
        ],
    ),
    row(
        "noreply: refusals are silent too",
        &[
            ("set a 0 0 1 noreply\r\n12345\r\nversion\r\n", "ERROR\r\nVERSION <V>\r\n"),
            ("set a 0 0 1048600 noreply\r\n<x*1048600>\r\nversion\r\n", "VERSION <V>\r\n"),
            ("set a x 0 1 noreply\r\nset <k*251> 0 0 1 noreply\r\nversion\r\n", "VERSION <V>\r\n"),
            ("cas a 0 0 1 x noreply\r\ncas a 0 0 1 noreply\r\nversion\r\n", "VERSION <V>\r\n"),
            (
                "set a 0 0 noreply\r\nincr a x noreply\r\nincr a noreply\r\nversion\r\n",
                "VERSION <V>\r\n",
            ),
            (
                "touch a x noreply\r\ntouch a noreply\r\ndelete a 1 noreply\r\nversion\r\n",
                "VERSION <V>\r\n",
            ),
            ("flush_all x noreply\r\nverbosity x noreply\r\nversion\r\n", "VERSION <V>\r\n"),
            ("set a 0 0 1\r\nx\r\nincr a 1 noreply\r\nversion\r\n", "STORED\r\nVERSION <V>\r\n"),
        ],
    ),
    row(
        "noreply: what is no command is answered",
        &[
            ("set a 0 0 1 2 noreply\r\n1\r\n", "ERROR\r\nERROR\r\n"),
            ("set a 0 0 1 noreply x\r\n1\r\n", "ERROR\r\nERROR\r\n"),
            ("flush_all 0 0 noreply\r\n", "ERROR\r\n"),
        ],
    ),
];

/// The bytes to send for a step. `unique` is the last version seen in the row.
#[must_use]
pub fn expand(sent: &str, unique: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = sent;
    while let Some((before, after)) = rest.split_once('<') {
        out.extend_from_slice(before.as_bytes());
        let Some((mark, after)) = after.split_once('>') else { break };
        match mark.rsplit_once('*').map(|(text, n)| (text, n.parse::<usize>())) {
            Some((text, Ok(times))) => out.extend_from_slice(text.repeat(times).as_bytes()),
            _ => out.extend_from_slice(unique.as_bytes()),
        }
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// Whether `got` is the `expected` answer: `None` if not, else the last version in it, if any.
#[must_use]
pub fn matches(expected: &str, got: &[u8]) -> Option<Option<String>> {
    let mut unique = None;
    let (mut expected, mut got) = (expected.as_bytes(), got);
    while !expected.is_empty() {
        if let Some(rest) = expected.strip_prefix(b"<U>") {
            let digits = got.iter().take_while(|b| b.is_ascii_digit()).count();
            let (number, after) = got.split_at(digits);
            unique = Some(String::from_utf8_lossy(number).into_owned());
            (expected, got) = (rest, after);
            if digits == 0 {
                return None;
            }
        } else if let Some(rest) = expected.strip_prefix(b"<V>") {
            let line = got.iter().take_while(|b| **b != b'\r').count();
            (expected, got) = (rest, &got[line..]);
        } else {
            let (first, after) = got.split_first()?;
            if *first != expected[0] {
                return None;
            }
            (expected, got) = (&expected[1..], after);
        }
    }
    got.is_empty().then_some(unique)
}
