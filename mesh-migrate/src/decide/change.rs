//! Paths as rules change them.

use super::compiled;
use crate::program::PathChange;

/// The changed path, if it is one that is changed; what is kept of it is `written`.
pub(super) fn changed(
    path: &[u8],
    change: &PathChange,
    written: impl Fn(&[u8]) -> Vec<u8>,
) -> Option<String> {
    let made = match change {
        PathChange::Whole(whole) => return Some(whole.clone()),
        PathChange::Prefix { from, to } => {
            let rest = path.strip_prefix(from.as_bytes())?;
            [to.as_bytes(), &written(rest)].concat()
        }
        PathChange::Pattern { pattern, substitution, all } => {
            let pattern = compiled(pattern)?;
            let mut made = Vec::new();
            let mut upto = 0;
            for captures in pattern.captures_iter(path).take(if *all { usize::MAX } else { 1 }) {
                let whole = captures.get(0)?;
                made.extend(written(&path[upto..whole.start()]));
                expanded(&captures, substitution, &written, &mut made);
                upto = whole.end();
            }
            if !pattern.is_match(path) {
                return None;
            }
            made.extend(written(&path[upto..]));
            made
        }
    };
    Some(String::from_utf8_lossy(&made).into_owned())
}

/// What a substitution becomes: `$1`, `${name}`, `$$`.
fn expanded(
    captures: &regex::bytes::Captures<'_>,
    substitution: &str,
    written: impl Fn(&[u8]) -> Vec<u8>,
    made: &mut Vec<u8>,
) {
    let mut rest = substitution;
    while let Some((before, after)) = rest.split_once('$') {
        made.extend_from_slice(before.as_bytes());
        if let Some(after) = after.strip_prefix('$') {
            made.push(b'$');
            rest = after;
            continue;
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let braced = after.strip_prefix('{').and_then(|name| name.split_once('}'));
        let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
        let (name, after) = braced.unwrap_or_else(|| after.split_at(end));
        let group = match name.parse() {
            Ok(number) => captures.get(number),
            Err(_) => captures.name(name),
        };
        made.extend(group.map(|group| written(group.as_bytes())).unwrap_or_default());
        rest = after;
    }
    made.extend_from_slice(rest.as_bytes());
}
