//! The session's own server, by Tomcat's jvmRoute.
//!
//! A session id is `<hex>[-<memcached node>][.<jvmRoute>]`: the route is the text after the last
//! dot. It is looked for in the JSESSIONID cookies, then in the path parameter `;jsessionid=`. The
//! id in the request is the only truth: nothing is remembered, so both nodes route alike.

/// The routes that a request names, the best first.
pub fn routes<'a>(
    cookies: impl IntoIterator<Item = &'a [u8]>,
    path: &'a [u8],
) -> impl Iterator<Item = &'a [u8]> {
    let ids = cookies.into_iter().flat_map(cookie_ids).chain(path_id(path));
    ids.filter_map(route_of)
}

/// RFC 6265 §4.2.1: `cookie-pair *( ";" SP cookie-pair )`; the name is case-sensitive.
fn cookie_ids(cookie: &[u8]) -> impl Iterator<Item = &[u8]> {
    cookie
        .split(|&byte| byte == b';')
        .filter_map(|pair| crate::http::fields::trim(pair).strip_prefix(b"JSESSIONID="))
        .map(unquoted)
}

fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        plain => plain,
    }
}

/// `;jsessionid=` in any segment, in any case of letters; ends at the next parameter, segment or
/// query.
fn path_id(path: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"jsessionid=";
    let path = &path[..memchr::memchr(b'?', path).unwrap_or(path.len())];
    path.split(|&byte| byte == b'/')
        .flat_map(|segment| segment.split(|&b| b == b';').skip(1))
        .find_map(|parameter| {
            let (name, id) = parameter.split_at_checked(NAME.len())?;
            name.eq_ignore_ascii_case(NAME).then_some(id)
        })
}

fn route_of(id: &[u8]) -> Option<&[u8]> {
    let dot = memchr::memrchr(b'.', id)?;
    Some(&id[dot + 1..]).filter(|route| !route.is_empty())
}
