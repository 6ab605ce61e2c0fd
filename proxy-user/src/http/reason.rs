//! Why a request was refused or ended: one closed list, each with a status, a code for the log and
//! metrics, and a sentence for the client.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $code:literal, $text:literal;)*) => {
        /// Why a request was refused or did not end well. `code()` is what log and metrics show.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Status code of the answer (499: the client is gone and none is sent).
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Stable name for log and metrics.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// One sentence for the person at the other end.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// RFC 9112 §3: not `method SP target SP version`.
    RequestLine = 400, "request_line", "The request line is malformed.";
    /// RFC 9112 §2.2: a line that ends in LF alone. Product requirement: refused.
    BareLf = 400, "bare_lf", "A line ends without CR.";
    /// RFC 9112 §5.2: a server must reject or replace obs-fold; we reject.
    ObsFold = 400, "obs_fold", "A field is folded over several lines.";
    /// RFC 9112 §5.1: no whitespace between name and colon.
    SpaceBeforeColon = 400, "space_before_colon", "Whitespace before the colon of a field.";
    /// RFC 9110 §5.1: a field name is a token.
    FieldName = 400, "field_name", "A field name is malformed.";
    /// RFC 9110 §5.5: CR, LF, NUL and other controls are not part of a value.
    FieldValue = 400, "field_value", "A field value has a control character.";
    /// RFC 9112 §2.3: `HTTP/` DIGIT `.` DIGIT.
    VersionSyntax = 400, "version_syntax", "The protocol version is malformed.";
    /// Product requirement: only 1.0 and 1.1 are served.
    VersionUnsupported = 505, "version_unsupported", "Only HTTP/1.0 and HTTP/1.1 are served here.";
    /// RFC 9113 §3.4: the preface of HTTP/2 with prior knowledge.
    Http2Preface = 505, "http2_preface", "HTTP/2 is not served here.";
    /// CONNECT and TRACE. Product requirement.
    MethodNotAllowed = 405, "method_not_allowed", "This method is not allowed.";
    /// RFC 9112 §3.2: a byte that no request target has, or a path above the root.
    TargetSyntax = 400, "target_syntax", "The request target is malformed.";
    /// RFC 9112 §3.2: a form of target that this method does not take.
    TargetForm = 400, "target_form", "The form of the request target does not fit the method.";
    /// RFC 9112 §3: longer than the limit.
    TargetTooLong = 414, "target_too_long", "The request target is too long.";
    /// RFC 6585 §5.
    FieldTooLong = 431, "field_too_long", "A request field is too long.";
    /// RFC 6585 §5.
    HeadTooLong = 431, "head_too_long", "The request head is too long.";
    /// RFC 6585 §5.
    TooManyFields = 431, "too_many_fields", "The request has too many fields.";
    /// RFC 9112 §3.2: HTTP/1.1 without Host.
    HostMissing = 400, "host_missing", "The request has no Host.";
    /// RFC 9112 §3.2: more than one Host.
    HostDuplicate = 400, "host_duplicate", "The request has more than one Host.";
    /// RFC 9112 §3.2: an invalid Host value.
    HostInvalid = 400, "host_invalid", "The Host is malformed.";
    /// RFC 9110 §8.6: not one or more digits, or too large.
    ContentLengthInvalid = 400, "content_length_invalid", "The Content-Length is malformed.";
    /// RFC 9110 §8.6: may be rejected, and is, also when the values agree.
    ContentLengthDuplicate = 400, "content_length_duplicate", "More than one Content-Length.";
    /// RFC 9112 §6.1: an attempt at smuggling.
    LengthAndChunked = 400, "length_and_chunked", "Content-Length with Transfer-Encoding.";
    /// RFC 9112 §6.3: chunked is not alone and last.
    TransferEncodingInvalid = 400, "transfer_encoding_invalid", "Transfer-Encoding is malformed.";
    /// RFC 9112 §6.1: a coding that is not understood.
    TransferEncodingUnknown = 501, "transfer_encoding_unknown", "This coding is not implemented.";
    /// RFC 9112 §6.1: Transfer-Encoding in HTTP/1.0 is faulty framing.
    TransferEncodingIn10 = 400, "transfer_encoding_in_10", "Transfer-Encoding in HTTP/1.0.";
    /// RFC 9110 §7.6.1: a list of tokens; at most 32. The bound is a product requirement.
    ConnectionInvalid = 400, "connection_invalid", "The Connection field is malformed.";
    /// RFC 9110 §10.1.1: an expectation other than 100-continue.
    ExpectUnknown = 417, "expect_unknown", "This expectation cannot be met.";
    /// RFC 9110 §15.5.14.
    BodyTooLarge = 413, "body_too_large", "The request body is too large.";
    /// RFC 9112 §7.1: chunked coding that is not grammar or over its limits.
    ChunkInvalid = 400, "chunk_invalid", "The chunked body is malformed.";
    /// No route for this host and path.
    NoRoute = 404, "no_route", "Nothing is served under this name and path.";
    /// The head did not arrive in time.
    HeadTimeout = 408, "head_timeout", "The request head took too long.";
    /// The body stood still for too long.
    BodyTimeout = 408, "body_timeout", "The request body took too long.";
    /// The client closed before the answer was complete. Logged, not sent.
    ClientAborted = 499, "client_aborted", "The client closed the connection.";
    /// The client took nothing of the answer for too long. Logged, not sent.
    ClientSlow = 499, "client_slow", "The client did not read the answer.";
    /// No server of the upstream is up.
    NoServer = 503, "no_server", "No server is available.";
    /// This node is stopping.
    Stopping = 503, "stopping", "This server is stopping.";
    /// No server took the connection.
    ConnectFailed = 502, "connect_failed", "The server could not be reached.";
    /// The connection to the server did not come up in time.
    ConnectTimeout = 504, "connect_timeout", "The server could not be reached in time.";
    /// The server closed before the first byte of an answer.
    UpstreamClosed = 502, "upstream_closed", "The server closed the connection without an answer.";
    /// The server's head is not HTTP/1 grammar.
    ReplyHead = 502, "reply_head", "The server's answer is malformed.";
    /// The server's head is over the limits.
    ReplyTooLarge = 502, "reply_too_large", "The head of the server's answer is too large.";
    /// RFC 9110 §15: a status outside 100 to 599.
    ReplyStatus = 502, "reply_status", "The server's answer has an invalid status.";
    /// Framing of the answer is ambiguous or unknown.
    ReplyFraming = 502, "reply_framing", "The length of the server's answer is ambiguous.";
    /// RFC 9110 §15.2.2: 101 without having been asked.
    ReplyUpgrade = 502, "reply_upgrade", "The server changed the protocol without being asked.";
    /// More than 32 interim answers. Product requirement.
    ReplyInterim = 502, "reply_interim", "The server sent too many interim answers.";
    /// The server did not begin its answer in time.
    ReplyTimeout = 504, "reply_timeout", "The server did not answer in time.";
    /// The answer ended before its length; the client's connection is cut.
    ReplyTruncated = 502, "reply_truncated", "The server's answer broke off.";
    /// The answer's chunked coding is malformed; the client's connection is cut.
    ReplyChunk = 502, "reply_chunk", "The body of the server's answer is malformed.";
    /// The answer stood still for too long; the client's connection is cut.
    ReplyStalled = 504, "reply_stalled", "The server's answer stood still.";
}

impl Reason {
    /// Position in [`Self::ALL`], for counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The standard phrase of the statuses that are made here.
#[must_use]
pub const fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        499 => "Client Closed Request",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}
