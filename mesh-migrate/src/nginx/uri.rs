//! What nginx makes of a request's target, and of a URI that it sends on.

/// A target, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// As it is sent, from its path on.
    pub(super) raw: String,
    /// `$uri`: decoded, slashes merged, dot segments resolved.
    pub(crate) uri: Vec<u8>,
    /// `$args`, as they are sent.
    pub(super) args: Option<String>,
    /// Of an absolute target.
    pub(super) host: Option<String>,
    /// It had a `%`: what is sent on is encoded again.
    pub(crate) is_quoted: bool,
    /// It had a `+`.
    pub(super) has_plus: bool,
}

impl Target {
    /// As `ngx_http_parse_complex_uri` reads it; nothing where nginx answers 400.
    pub(crate) fn of(sent: &str, merges_slashes: bool) -> Option<Self> {
        let absolute = ["http://", "https://"].iter().find_map(|scheme| sent.strip_prefix(scheme));
        let (host, raw) = match absolute {
            Some(rest) => {
                let at = rest.find(['/', '?']).unwrap_or(rest.len());
                let path = &rest[at..];
                let raw = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                (Some(rest[..at].to_owned()), raw)
            }
            None => (None, sent.to_owned()),
        };
        if !raw.starts_with('/') || raw.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return None;
        }
        let (before, _) = raw.split_once('#').unwrap_or((&raw, ""));
        let (path, args) = match before.split_once('?') {
            Some((path, args)) => (path, Some(args.to_owned())),
            None => (before, None),
        };
        let uri = plain(&decoded(path)?, merges_slashes)?;
        let (is_quoted, has_plus) = (path.contains('%'), path.contains('+'));
        Some(Self { uri, args, host, is_quoted, has_plus, raw })
    }
}

/// Bytes; those that `%` has brought and that mean nothing are marked.
fn decoded(path: &str) -> Option<Vec<(u8, bool)>> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push((byte, false));
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        match u8::try_from(high * 16 + low).ok()? {
            0 => return None,
            byte => out.push((byte, matches!(byte, b'%' | b'#' | b'?'))),
        }
    }
    Some(out)
}

fn plain(path: &[(u8, bool)], merges_slashes: bool) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segment = 0;
    for (at, &(byte, _)) in path.iter().enumerate() {
        let is_last = at + 1 == path.len();
        if byte != b'/' {
            out.push(byte);
            if !is_last {
                continue;
            }
        }
        match &out[segment..] {
            b"." if segment > 0 => out.truncate(segment),
            b".." if segment > 0 => {
                out.truncate(segment - 1);
                segment = out.iter().rposition(|&byte| byte == b'/')? + 1;
                out.truncate(segment);
            }
            b"" if merges_slashes && segment > 0 => {}
            _ if byte == b'/' => {
                out.push(b'/');
                segment = out.len();
            }
            _ => {}
        }
    }
    Some(out)
}

/// `NGX_ESCAPE_URI`, since 1.21.1.
pub(crate) fn escaped(uri: &[u8]) -> Vec<u8> {
    escape(uri, b" #%?\"<>\\^`{|}")
}

/// `NGX_ESCAPE_ARGS`.
pub(super) fn escaped_args(value: &[u8]) -> Vec<u8> {
    escape(value, b" #%&+;?\"<>\\^`{|}")
}

fn escape(value: &[u8], set: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for &byte in value {
        if byte <= b' ' || byte >= 0x7f || set.contains(&byte) {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            out.push(byte);
        }
    }
    out
}

/// `NGX_UNESCAPE_REDIRECT`: what need not be encoded is decoded, until a `?`.
pub(super) fn unescaped_redirect(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut at = 0;
    while let Some(&byte) = value.get(at) {
        let digit = |at: usize| value.get(at).and_then(|&b| char::from(b).to_digit(16));
        if byte == b'?' {
            out.extend_from_slice(&value[at..]);
            return out;
        }
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                let byte = u8::try_from(high * 16 + low).unwrap_or_default();
                if byte == b'?' {
                    out.push(byte);
                    out.extend_from_slice(&value[at + 3..]);
                    return out;
                }
                if byte > b'%' && byte < 0x7f {
                    out.push(byte);
                } else {
                    out.extend_from_slice(&value[at..at + 3]);
                }
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for (sent, uri, args) in [
            ("/a/b?x=/../y", "/a/b", Some("x=/../y")),
            ("//a///b/", "/a/b/", None),
            ("/a/./b/.", "/a/b/", None),
            ("/a/b/..", "/a/", None),
            ("/a/../../b", "", None),
            ("/..", "", None),
            ("/a%2Fb%2f..%2fc", "/a/c", None),
            ("/a%20b%3Fc%23%25", "/a b?c#%", None),
            ("/a%2", "", None),
            ("/a%00", "", None),
            ("/a#b?c", "/a", None),
            ("/.a/..b/...", "/.a/..b/...", None),
            ("/%2e%2E/a", "", None),
            ("/a/%2e%2E/b", "/b", None),
            ("a", "", None),
            ("http://x.y?z", "/", Some("z")),
        ] {
            let target = Target::of(sent, true);
            let read = target.as_ref().map_or("", |t| std::str::from_utf8(&t.uri).unwrap());
            assert_eq!(read, uri, "{sent}");
            assert_eq!(target.and_then(|t| t.args).as_deref(), args, "{sent}");
        }
        assert_eq!(Target::of("//a//b", false).unwrap().uri, b"//a//b");
        assert_eq!(escaped("/a b?ä".as_bytes()), b"/a%20b%3F%C3%A4");
    }
}
