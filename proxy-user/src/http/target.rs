//! Request targets and hosts (RFC 9112 §3.2, RFC 3986): forms, validity, and the normal form that
//! routes are matched with. What is forwarded is always the client's own path.

use std::borrow::Cow;

use super::fields::{Span, is_host_name};
use super::{Method, Reason};

/// A target's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) path: Span,
    pub(crate) authority: Option<Span>,
}

/// Sorts a target into its form: origin, absolute (http only), or asterisk (OPTIONS only).
/// Authority form belongs to CONNECT, which is not served.
pub(crate) fn parse(head: &[u8], target: Span, method: Method) -> Result<Target, Reason> {
    const SCHEME: &[u8] = b"http://";
    let bytes = target.of(head);
    if bytes.first() == Some(&b'/') {
        return Ok(Target { path: target, authority: None });
    }
    if bytes == b"*" {
        // RFC 9112 §3.2.4: "only used for a server-wide OPTIONS request".
        return if method == Method::Options {
            Ok(Target { path: target, authority: None })
        } else {
            Err(Reason::TargetForm)
        };
    }
    if bytes.len() < SCHEME.len() || !bytes[..SCHEME.len()].eq_ignore_ascii_case(SCHEME) {
        return Err(Reason::TargetForm);
    }
    let rest = &bytes[SCHEME.len()..];
    let length = rest.iter().position(|&b| b == b'/' || b == b'?').unwrap_or(rest.len());
    if !is_authority(&rest[..length]) {
        return Err(Reason::HostInvalid);
    }
    let start = target.start() + SCHEME.len();
    Ok(Target {
        path: Span::new(start + length, target.end()),
        authority: Some(Span::new(start, start + length)),
    })
}

/// `uri-host [ ":" port ]` (RFC 9110 §7.2) without userinfo, sub-delims and percent-encoding
/// (product requirement: no name has them, and they are read in two ways). Not empty.
#[must_use]
pub fn is_authority(bytes: &[u8]) -> bool {
    let (host, port) = split_port(bytes);
    let valid_host = match host {
        [b'[', inner @ .., b']'] => {
            std::str::from_utf8(inner).is_ok_and(|t| t.parse::<std::net::Ipv6Addr>().is_ok())
        }
        name => is_host_name(name),
    };
    valid_host && port.is_none_or(is_port)
}

fn is_port(digits: &[u8]) -> bool {
    // RFC 3986 §3.2.3: the port may be empty.
    digits.len() <= 5
        && digits.iter().all(u8::is_ascii_digit)
        && digits.iter().fold(0u32, |port, &digit| port * 10 + u32::from(digit - b'0')) <= 65_535
}

fn split_port(bytes: &[u8]) -> (&[u8], Option<&[u8]>) {
    let search_from = if bytes.first() == Some(&b'[') {
        bytes.iter().position(|&byte| byte == b']').unwrap_or(bytes.len())
    } else {
        0
    };
    match bytes[search_from..].iter().position(|&byte| byte == b':') {
        Some(offset) => (&bytes[..search_from + offset], Some(&bytes[search_from + offset + 1..])),
        None => (bytes, None),
    }
}

/// The name that routes are matched with: without port and trailing dot, lower case.
#[must_use]
pub fn host_name(authority: &[u8]) -> Cow<'_, [u8]> {
    let (host, _) = split_port(authority);
    let host = host.strip_suffix(b".").unwrap_or(host);
    if host.iter().any(u8::is_ascii_uppercase) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// The path that routes are matched with: without query, percent-decoded once, `//` merged, dot
/// segments resolved. `*` and the empty path give `/`.
///
/// # Errors
/// `TargetSyntax`: a malformed percent-escape, an escaped NUL, or a path above the root.
pub fn normal_path(path: &[u8]) -> Result<Cow<'_, [u8]>, Reason> {
    let path = &path[..memchr::memchr(b'?', path).unwrap_or(path.len())];
    if path.first() != Some(&b'/') {
        return Ok(Cow::Borrowed(b"/"));
    }
    let plain = memchr::memchr(b'%', path).is_none()
        && !path.windows(2).any(|pair| pair[0] == b'/' && matches!(pair[1], b'/' | b'.'));
    if plain {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = percent_decoded(path)?;
    let mut normal: Vec<u8> = Vec::with_capacity(decoded.len());
    let mut segments = decoded[1..].split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"" | b"." if last => normal.push(b'/'),
            b"" | b"." => {}
            b".." => {
                let parent = memchr::memrchr(b'/', &normal).ok_or(Reason::TargetSyntax)?;
                normal.truncate(parent);
                if last {
                    normal.push(b'/');
                }
            }
            name => {
                normal.push(b'/');
                normal.extend_from_slice(name);
            }
        }
    }
    Ok(Cow::Owned(normal))
}

fn percent_decoded(path: &[u8]) -> Result<Vec<u8>, Reason> {
    let hex = |byte: Option<&u8>| {
        byte.and_then(|&b| char::from(b).to_digit(16)).ok_or(Reason::TargetSyntax)
    };
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        if path[at] == b'%' {
            let value = hex(path.get(at + 1))? * 16 + hex(path.get(at + 2))?;
            if value == 0 {
                return Err(Reason::TargetSyntax);
            }
            decoded.push(value as u8);
            at += 3;
        } else {
            decoded.push(path[at]);
            at += 1;
        }
    }
    Ok(decoded)
}
