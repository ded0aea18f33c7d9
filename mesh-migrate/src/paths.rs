//! Paths in the form in which they are compared.

use crate::{
    nginx::uri,
    program::{PathForm, Paths},
    request::Http,
};

/// A target `http://host/path` goes before `Host` (RFC 9112
/// section 3.2.2).
pub(crate) fn absolute(http: &Http) -> Option<Http> {
    let rest =
        http.target.strip_prefix("http://").or_else(|| http.target.strip_prefix("https://"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, target) = rest.split_at(end);
    let slash = if target.starts_with('/') { "" } else { "/" };
    Some(Http { host: Some(host.into()), target: format!("{slash}{target}"), ..http.clone() })
}

/// A target as rules see it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) target: String,
    /// Its path without escapes, where it is compared so and has some.
    pub(crate) decoded: Option<Vec<u8>>,
}

/// Nothing if the target has no such form.
pub(crate) fn seen(paths: Paths, target: &str) -> Option<Seen> {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    if !path.starts_with('/') {
        return Some(Seen { target: target.to_owned(), decoded: None });
    }
    let mut path = match paths.form {
        PathForm::Sent => path.to_owned(),
        // A path with a fragment, or with what is not ASCII, is none.
        PathForm::Rfc3986 if target.contains('#') || !target.is_ascii() => return None,
        PathForm::Rfc3986 => normalized(path),
        PathForm::Decoded => {
            let read = uri::Target::of(target, paths.merge_slashes)?;
            let path = if read.is_quoted { uri::escaped(&read.uri) } else { read.uri.clone() };
            let target = format!("{}{query}", String::from_utf8(path).ok()?);
            return Some(Seen { target, decoded: Some(read.uri).filter(|_| read.is_quoted) });
        }
    };
    if paths.merge_slashes {
        path = merged(path);
    }
    Some(Seen { target: format!("{path}{query}"), decoded: None })
}

pub(crate) fn merged(mut path: String) -> String {
    while path.contains("//") {
        path = path.replace("//", "/");
    }
    path
}

/// RFC 3986, section 6.2.2: dots are resolved, escapes in upper case, and those of unreserved
/// characters undone; `\` is `/`.
pub(crate) fn normalized(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                let is_plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
                match is_plain {
                    true => bytes.push(byte),
                    false => bytes.extend([b"%", &after[..2]].concat()),
                }
                rest = &after[2..];
            }
            None => {
                bytes.push(if *first == b'\\' { b'/' } else { *first });
                rest = after;
            }
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut out: Vec<&str> = Vec::new();
    let parts: Vec<&str> = text.split('/').skip(1).collect();
    for (at, part) in parts.iter().enumerate() {
        let is_last = at + 1 == parts.len();
        match *part {
            "." => out.extend(is_last.then_some("")),
            ".." => {
                out.pop();
                out.extend(is_last.then_some(""));
            }
            part => out.push(part),
        }
    }
    format!("/{}", out.join("/"))
}
