//! RE2's regular expressions in the syntax of the `regex` crate.

use regex::bytes::{Regex, RegexBuilder};

use super::tree::Tree;

/// What a compiled pattern may take, in bytes.
const MAX_PATTERN: usize = 4 << 20;
/// The longest pattern, in bytes.
const MAX_LENGTH: usize = 64 << 10;

/// What a `RegexMatcher` says, for the `regex` crate.
pub(super) fn pattern(matcher: Option<&Tree>) -> String {
    matcher.and_then(|matcher| matcher.text("regex")).map(translate).unwrap_or_default()
}

/// Compiles what [`translate`] has made; `whole` must match from end to end.
pub(super) fn compile(pattern: &str, whole: bool) -> Result<Regex, String> {
    if pattern.len() > MAX_LENGTH {
        return Err(format!("is longer than {MAX_LENGTH} bytes"));
    }
    let text = if whole { format!(r"\A(?:{pattern})\z") } else { pattern.to_owned() };
    let build =
        |is_unicode| RegexBuilder::new(&text).unicode(is_unicode).size_limit(MAX_PATTERN).build();
    // With Unicode only where a pattern asks for its classes.
    let built = build(false).or_else(|error| build(true).map_err(|_| error));
    built.map_err(|error| {
        let all = error.to_string();
        let last = all.lines().last().unwrap_or_default();
        format!("is no regular expression of RE2: {}", last.trim_start_matches("error: "))
    })
}

/// Whether a matcher asks for classes of Unicode, which programs do not know.
pub(super) fn asks_for_unicode(matcher: &Tree) -> bool {
    let pattern = pattern(Some(matcher));
    RegexBuilder::new(&pattern).unicode(false).size_limit(MAX_PATTERN).build().is_err()
}

/// Text that is taken as it is.
pub(super) fn literal(text: &str) -> String {
    regex::escape(text)
}

/// From RE2. Both agree but on classes within classes, `\Q…\E`, `\C`, and braces
/// that are no repetition.
pub(super) fn translate(re2: &str) -> String {
    let chars: Vec<char> = re2.chars().collect();
    let mut out = String::with_capacity(re2.len() + 8);
    let mut i = 0;
    while let Some(&c) = chars.get(i) {
        i += 1;
        match c {
            '\\' => i = escape(&chars, i, &mut out),
            '[' => i = class(&chars, i, &mut out),
            '{' if !is_repetition(&chars[i..]) => out.push_str(r"\{"),
            _ => out.push(c),
        }
    }
    out
}

fn escape(chars: &[char], at: usize, out: &mut String) -> usize {
    match chars.get(at) {
        Some('Q') => {
            let mut i = at + 1;
            while i < chars.len() && !(chars[i] == '\\' && chars.get(i + 1) == Some(&'E')) {
                out.push_str(&regex::escape(chars[i].encode_utf8(&mut [0; 4])));
                i += 1;
            }
            (i + 2).min(chars.len())
        }
        Some('C') => {
            out.push_str("(?s:.)");
            at + 1
        }
        Some(c) => {
            out.push('\\');
            out.push(*c);
            at + 1
        }
        None => {
            out.push('\\');
            at
        }
    }
}

/// Copies a class up to its `]`, with what only the `regex` crate understands escaped.
fn class(chars: &[char], mut i: usize, out: &mut String) -> usize {
    out.push('[');
    if chars.get(i) == Some(&'^') {
        out.push('^');
        i += 1;
    }
    let mut first = true;
    while let Some(&c) = chars.get(i) {
        i += 1;
        match c {
            ']' if !first => {
                out.push(']');
                return i;
            }
            ']' => out.push_str(r"\]"),
            '\\' => {
                out.push('\\');
                out.extend(chars.get(i));
                i += 1;
            }
            '[' if chars.get(i) == Some(&':') => {
                let end = (i..chars.len()).find(|&k| chars[k] == ']');
                let end = end.map_or(chars.len(), |end| end + 1);
                out.push('[');
                out.extend(&chars[i..end]);
                i = end;
            }
            '[' | '&' | '~' => {
                out.push('\\');
                out.push(c);
            }
            '-' if chars.get(i) == Some(&'-') => out.push_str(r"\-"),
            _ => out.push(c),
        }
        first = false;
    }
    i
}

fn is_repetition(rest: &[char]) -> bool {
    let Some(end) = rest.iter().take(12).position(|c| *c == '}') else { return false };
    let inner: String = rest[..end].iter().collect();
    let (from, to) = inner.split_once(',').unwrap_or((&inner, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    !from.is_empty() && digits(from) && digits(to)
}

/// A substitution of RE2 (`\1`, `\\`) in the syntax of the `regex` crate.
pub(super) fn substitution(re2: &str) -> String {
    let mut out = String::new();
    let mut chars = re2.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => out.push_str(&format!("${{{digit}}}")),
                Some(other) => out.push(other),
                None => {}
            },
            '$' => out.push_str("$$"),
            _ => out.push(c),
        }
    }
    out
}

/// Replaces every match, as `RE2::GlobalReplace` does.
pub(super) fn replace(rewrite: &Tree, text: &str) -> String {
    let to = substitution(rewrite.text("substitution").unwrap_or_default());
    match compile(&pattern(rewrite.msg("pattern")), false) {
        Ok(regex) => {
            let bytes = regex.replace_all(text.as_bytes(), to.as_bytes());
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Err(_) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_of_them_understands_is_translated() {
        for (re2, text, matches) in [
            ("/a[[]b", "/a[b", true),
            (r"[a&&b]+", "&a", true),
            ("a{,2}", "a{,2}", true),
            ("a{2}", "aa", true),
            (r"\Qa.b\E+", "a.b", true),
            (r"\Qa.b\E", "axb", false),
            ("[[:digit:]]+", "12", true),
            ("[]a]", "]", true),
            ("/files/[0-9]+", "/files/42/x", false),
            ("(?i)/A", "/a", true),
        ] {
            let regex = compile(&translate(re2), true).unwrap();
            assert_eq!(regex.is_match(text.as_bytes()), matches, "{re2} {text}");
        }
        assert!(compile(&translate(r"\pL+"), true).unwrap().is_match("é".as_bytes()));
        assert_eq!(substitution(r"/f/\1$\\"), r"/f/${1}$$\");
        assert!(compile("(", true).unwrap_err().contains("unclosed group"));
    }
}
