//! Paths that applications take for others.

use std::borrow::Cow;

/// A request target as an application may understand its path: what need not
/// be encoded decoded (RFC 3986 section 6.2.2.2, and `/` and `\`, which some
/// decode, too), slashes merged, dot segments resolved (section 5.2.4) and
/// parameters of segments dropped. Borrowed if that changes nothing.
pub(super) fn plain(target: &str) -> Cow<'_, str> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if !path.starts_with('/') || !is_suspect(path) {
        return Cow::Borrowed(target);
    }
    let decoded = decode(path);
    let mut segments: Vec<&str> = Vec::new();
    let parts = decoded.split(['/', '\\']).map(|part| part.split(';').next().unwrap_or(""));
    for part in parts {
        match part {
            "" | "." => {}
            ".." => drop(segments.pop()),
            part => segments.push(part),
        }
    }
    let ends_open = matches!(decoded.rsplit(['/', '\\']).next(), Some("" | "." | ".."));
    let slash = if ends_open && !segments.is_empty() { "/" } else { "" };
    let mut plain = format!("/{}{slash}", segments.join("/"));
    if plain == path {
        return Cow::Borrowed(target);
    }
    if let Some(query) = query {
        plain = format!("{plain}?{query}");
    }
    Cow::Owned(plain)
}

/// Whether it holds anything that `plain` changes; most paths do not.
fn is_suspect(path: &str) -> bool {
    path.contains("//") || path.contains("/.") || path.contains(['%', '\\', ';'])
}

fn decode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let byte = after.get(1..3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte.map(char::from) {
            Some(found) if found.is_ascii_graphic() && !matches!(found, '%' | '?' | '#') => {
                out.push(found);
                rest = &after[3..];
            }
            _ => {
                out.push('%');
                rest = &after[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn what_an_application_may_understand() {
        let cases = [
            ("/", "/"),
            ("/a/b?c=/../d", "/a/b?c=/../d"),
            ("/a/", "/a/"),
            ("/.well-known/x", "/.well-known/x"),
            ("//admin", "/admin"),
            ("/public/../admin", "/admin"),
            ("/public/..", "/"),
            ("/../../admin?x", "/admin?x"),
            ("/a/./b/", "/a/b/"),
            ("/%61dmin", "/admin"),
            ("/%2e%2E/admin", "/admin"),
            ("/public%2f..%5Cadmin", "/admin"),
            ("/public\\..\\admin", "/admin"),
            ("/admin;v=1/x", "/admin/x"),
            ("/a%20b%", "/a%20b%"),
            ("/a%3Fb/../c", "/c"),
            ("/%zz%2", "/%zz%2"),
            ("/%2561dmin", "/%2561dmin"),
            ("*", "*"),
            ("", ""),
        ];
        for (target, wanted) in cases {
            assert_eq!(plain(target), wanted, "{target}");
            assert_eq!(plain(wanted), wanted, "{target}: it stays so");
        }
    }

    proptest::proptest! {
        /// Clients write them as they like.
        #[test]
        fn whatever_is_written(target in "/[a/.%25EeFf;?\\\\é]{0,40}") {
            let understood = plain(&target);
            let path = understood.split('?').next().unwrap();
            assert!(path.starts_with('/'));
            let climbs = path.split('/').any(|segment| segment == "..");
            assert!(!climbs && !path.contains("//"), "{understood}");
        }
    }
}
