//! Paths in one form, whichever way a client writes them.

/// What is undone before rules see a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// Nothing.
    #[default]
    Sent,
    /// RFC 3986 section 6.2.2: escapes of unreserved characters, and dot
    /// segments. `\` is `/`.
    Rfc3986,
    /// All escapes, and dot segments. What cannot stand in a path otherwise is
    /// encoded again, `%3F` for `?` for example; `%2F` becomes `/`.
    Decoded,
}

/// A path that has no such form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the path leads above the root, or has an escape that stands for nothing")]
pub struct BadPath;

/// A target in another form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Made {
    /// `None` if it has it already.
    pub target: Option<String>,
    /// Its path without any escapes, if it has some and [`Form::Decoded`].
    pub decoded: Option<Vec<u8>>,
}

/// The target in that form, with `//` as `/` where `merges`. The query stays as
/// it is, and so does what is no path.
///
/// # Errors
///
/// With [`Form::Decoded`]: see [`BadPath`].
pub fn target(sent: &str, form: Form, merges: bool) -> Result<Made, BadPath> {
    let (path, query) = sent.split_at(sent.find('?').unwrap_or(sent.len()));
    if !path.starts_with('/') || !is_suspect(path, form, merges) {
        return Ok(Made::default());
    }
    let mut without = None;
    let mut made = match form {
        Form::Sent => merged(path.as_bytes()),
        Form::Rfc3986 => {
            let made = resolved(&unreserved(path.as_bytes()));
            if merges { merged(&made) } else { made }
        }
        Form::Decoded => {
            let plain = climbing(&decoded(path.as_bytes())?, merges)?;
            if path.contains('%') {
                let escaped = escaped(&plain);
                without = Some(plain).filter(|plain| *plain != escaped);
                escaped
            } else {
                plain
            }
        }
    };
    made.extend_from_slice(query.as_bytes());
    let made = String::from_utf8(made).map_err(|_| BadPath)?;
    Ok(Made { target: (made != sent).then_some(made), decoded: without })
}

/// Whether it holds anything that may be changed; most paths do not.
fn is_suspect(path: &str, form: Form, merges: bool) -> bool {
    let path = path.as_bytes();
    let mut before = 0;
    let mut found = false;
    for &byte in path {
        let slash = before == b'/';
        found |= slash && byte == b'/' && merges;
        found |= form != Form::Sent && (byte == b'%' || slash && byte == b'.' || byte == b'\\');
        before = byte;
    }
    found
}

fn merged(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    for &byte in path {
        if byte != b'/' || out.last() != Some(&b'/') {
            out.push(byte);
        }
    }
    out
}

/// The byte that an escape at the beginning stands for.
fn escape(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

fn unreserved(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
        match escape(&path[at..]).filter(plain) {
            Some(plain) => {
                out.push(plain);
                at += 3;
            }
            None => {
                out.push(if byte == b'\\' { b'/' } else { byte });
                at += 1;
            }
        }
    }
    out
}

/// RFC 3986 section 5.2.4; what would lead above the root stays there.
fn resolved(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut parts = path.split(|&byte| byte == b'/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last: &[&[u8]] = if parts.peek().is_none() { &[b""] } else { &[] };
        match part {
            b"." => segments.extend(last),
            b".." => {
                segments.pop();
                segments.extend(last);
            }
            part => segments.push(part),
        }
    }
    let mut out = vec![b'/'];
    out.extend(segments.join(&b'/'));
    out
}

fn decoded(path: &[u8]) -> Result<Vec<u8>, BadPath> {
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        if byte == b'%' {
            out.push(escape(&path[at..]).filter(|byte| *byte != 0).ok_or(BadPath)?);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    Ok(out)
}

/// Dot segments resolved, slashes merged; an error where they lead above the root.
fn climbing(path: &[u8], merges: bool) -> Result<Vec<u8>, BadPath> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segment = 0;
    for (at, &byte) in path.iter().enumerate() {
        if byte != b'/' {
            out.push(byte);
            if at + 1 < path.len() {
                continue;
            }
        }
        match &out[segment..] {
            b"." if segment > 0 => out.truncate(segment),
            b".." if segment > 0 => {
                out.truncate(segment - 1);
                segment = out.iter().rposition(|&byte| byte == b'/').ok_or(BadPath)? + 1;
                out.truncate(segment);
            }
            b"" if merges && segment > 0 => {}
            _ if byte == b'/' => {
                out.push(b'/');
                segment = out.len();
            }
            _ => {}
        }
    }
    Ok(out)
}

/// With escapes for what cannot stand in a path.
pub fn escaped(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for &byte in path {
        if byte <= b' ' || byte >= 0x7f || b"#%?\"<>\\^`{|}".contains(&byte) {
            out.push(b'%');
            let digit = |half: u8| b"0123456789ABCDEF"[usize::from(half & 15)];
            out.extend([digit(byte >> 4), digit(byte)]);
        } else {
            out.push(byte);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn made(sent: &str, form: Form, merges: bool) -> String {
        match target(sent, form, merges) {
            Ok(made) => made.target.unwrap_or_else(|| sent.to_owned()),
            Err(BadPath) => "bad".to_owned(),
        }
    }

    #[test]
    fn decoded_as_nginx_does() {
        for (sent, wanted) in [
            ("/a/b?x=/../y//", "/a/b?x=/../y//"),
            ("//a///b/", "/a/b/"),
            ("/a/./b/.", "/a/b/"),
            ("/a/b/..?q", "/a/?q"),
            ("/a/../../b", "bad"),
            ("/..", "bad"),
            ("/%2e%2E/a", "bad"),
            ("/a/%2e%2E/b", "/b"),
            ("/a%2Fb%2f..%2fc", "/a/c"),
            ("/%61%20b%3Fc%23%25%c3%a4", "/a%20b%3Fc%23%25%C3%A4"),
            ("/a%2", "bad"),
            ("/a%zz", "bad"),
            ("/a%00", "bad"),
            ("/.a/..b/...", "/.a/..b/..."),
            ("/a\\b\"c", "/a\\b\"c"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(made(sent, Form::Decoded, true), wanted, "{sent}");
        }
        assert_eq!(made("//a/.//b", Form::Decoded, false), "//a//b");
        let of = |sent| target(sent, Form::Decoded, true).unwrap().decoded;
        assert_eq!(of("/a%20b/%C3?%20"), Some(b"/a b/\xc3".to_vec()));
        assert_eq!((of("/%61?%20"), of("/a")), (None, None));
    }

    #[test]
    fn normalized_as_envoy_does() {
        for (sent, wanted) in [
            ("/a/../b", "/b"),
            ("/../a/..", "/"),
            ("/a/./b/.", "/a/b/"),
            ("/%61%2e%2E/%2e%2e/b%2f%c3", "/b%2f%c3"),
            ("/a\\b", "/a/b"),
            ("/a%zz%4", "/a%zz%4"),
            ("//a//b?//", "//a//b?//"),
        ] {
            assert_eq!(made(sent, Form::Rfc3986, false), wanted, "{sent}");
        }
        assert_eq!(made("//a//b?//", Form::Rfc3986, true), "/a/b?//");
        assert_eq!(made("//a/..//%61", Form::Sent, true), "/a/../%61");
        assert_eq!(made("//a/..//%61", Form::Sent, false), "//a/..//%61");
    }

    proptest! {
        /// Nothing is left to undo.
        #[test]
        fn what_has_the_form_keeps_it(sent in "/[a/.%25Eef;?\\\\\"+]{0,40}", merges: bool) {
            for form in [Form::Sent, Form::Rfc3986, Form::Decoded] {
                let once = made(&sent, form, merges);
                if once == "bad" {
                    continue;
                }
                let path = once.split('?').next().unwrap();
                assert!(path.starts_with('/'), "{once}");
                if form != Form::Sent {
                    assert!(path.split('/').all(|part| part != ".." && part != "."), "{once}");
                }
                if form == Form::Rfc3986 {
                    // An escaped percent sign stays, and what follows it is no escape.
                    continue;
                }
                assert_eq!(made(&once, form, merges), once);
            }
        }
    }
}
