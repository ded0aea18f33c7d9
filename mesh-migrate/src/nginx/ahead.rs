//! `(?!…)` of PCRE, where it is of plain texts and the rest of the pattern takes anything:
//! an automaton of our kind can say that, too.

use std::collections::BTreeMap;

/// Texts in one.
const MAX_TEXTS: usize = 64;
/// Characters of them together.
const MAX_LENGTH: usize = 1024;

/// What a text may not begin with.
#[derive(Default)]
struct Node {
    next: BTreeMap<char, Node>,
    /// Whatever comes after it.
    is_end: bool,
    /// If nothing comes after it.
    is_whole: bool,
}

/// The same without looking ahead; `None` where there is nothing to do, or it cannot be
/// said.
pub(super) fn plain(pcre: &str, ignores_case: bool) -> Option<String> {
    let (before, after) = pcre.split_once("(?!")?;
    if after.contains("(?!") || before.contains(['[', '|']) || before.ends_with('\\') {
        return None;
    }
    let (inner, rest) = group(after)?;
    let root = texts(inner, ignores_case)?;
    let (open, rest) = match rest.strip_prefix('(') {
        Some(rest) => ("(", rest),
        None => ("", rest),
    };
    let rest = rest.strip_suffix('$').unwrap_or(rest);
    let core = rest.trim_end_matches(')');
    let close = &rest[core.len()..];
    let may_be_empty = match core {
        "" if open.is_empty() => true,
        ".*" => true,
        "." | ".+" => false,
        _ => return None,
    };
    Some(format!("{before}{open}{}{close}$", root.others(may_be_empty)?))
}

/// A pattern that takes all that this one takes, and perhaps more: nothing is looked ahead
/// for, or behind, and all repetitions may be taken back.
pub(super) fn loose(pcre: &str) -> String {
    let mut out = String::new();
    let mut rest = pcre;
    while let Some(c) = rest.chars().next() {
        let begins = |begin: &&str| rest.starts_with(*begin);
        let looks = ["(?!", "(?=", "(?<!", "(?<="].into_iter().find(begins);
        if let Some((_, after)) = looks.and_then(|looks| group(&rest[looks.len()..])) {
            // What repeats it must not repeat what stands before it.
            (out, rest) = (out + "(?:)", after);
            continue;
        }
        let taken = match c {
            '\\' => rest.chars().take(2).map(char::len_utf8).sum(),
            '[' => class(rest),
            _ if rest.starts_with("(?>") => {
                (out, rest) = (out + "(?:", &rest[3..]);
                continue;
            }
            c => c.len_utf8(),
        };
        out += &rest[..taken];
        rest = &rest[taken..];
    }
    out
}

/// How long a class of characters is, up to its bracket.
fn class(text: &str) -> usize {
    let inner = text[1..].strip_prefix('^').unwrap_or(&text[1..]);
    let mut is_escaped = false;
    let ends = |(at, c): (usize, char)| {
        let ends = c == ']' && !is_escaped && at > 0;
        is_escaped = c == '\\' && !is_escaped;
        ends.then_some(at + 1)
    };
    let end = inner.char_indices().find_map(ends);
    text.len() - inner.len() + end.unwrap_or(inner.len())
}

/// What is in a group, and what comes after it.
fn group(text: &str) -> Option<(&str, &str)> {
    let (mut depth, mut is_escaped) = (0_u32, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '(' => depth += 1,
            ')' if depth == 0 => return Some((&text[..at], &text[at + 1..])),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn texts(inner: &str, ignores_case: bool) -> Option<Node> {
    let whole = |begin: &str| inner.strip_prefix(begin).and_then(|rest| rest.strip_suffix(')'));
    let inner = whole("(?:").or_else(|| whole("(")).unwrap_or(inner);
    let mut root = Node::default();
    let alternatives = inner.split('|');
    if inner.len() > MAX_LENGTH || alternatives.clone().count() > MAX_TEXTS {
        return None;
    }
    for text in alternatives {
        let mut node = &mut root;
        let mut chars = text.chars().peekable();
        let mut is_whole = false;
        while let Some(c) = chars.next() {
            let c = match c {
                '\\' => chars.next().filter(|c| !c.is_ascii_alphanumeric())?,
                '$' if chars.peek().is_none() => {
                    is_whole = true;
                    break;
                }
                '.' if chars.peek() == Some(&'*') => {
                    // Anything at the end of what may not be: as if it were not there.
                    chars.next();
                    chars.peek().is_none().then_some(())?;
                    break;
                }
                '.' | '*' | '+' | '?' | '[' | ']' | '(' | ')' | '{' | '}' | '^' | '$' => {
                    return None;
                }
                c => c,
            };
            let c = if ignores_case { c.to_ascii_lowercase() } else { c };
            node = node.next.entry(c).or_default();
        }
        match is_whole {
            true => node.is_whole = true,
            false => node.is_end = true,
        }
    }
    Some(root)
}

impl Node {
    /// All that may follow; `None` for nothing at all.
    fn others(&self, may_be_empty: bool) -> Option<String> {
        if self.is_end {
            return None;
        }
        let escaped = |c: &char| regex::escape(&c.to_string());
        let class: String = self.next.keys().map(class_escaped).collect();
        let mut ways = vec![match class.is_empty() {
            true => "..*".to_owned(),
            false => format!("[^{class}].*"),
        }];
        for (c, node) in &self.next {
            ways.extend(node.others(true).map(|rest| format!("{}{rest}", escaped(c))));
        }
        let is_optional = may_be_empty && !self.is_whole;
        Some(format!("(?:{}){}", ways.join("|"), if is_optional { "?" } else { "" }))
    }
}

fn class_escaped(c: &char) -> String {
    if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\{c}") }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::Pattern;

    #[test]
    fn what_may_not_follow_does_not() {
        let cases = [
            (r"/\.(?!well-known)", "/.git", true),
            (r"/\.(?!well-known)", "/.well-known/x", false),
            (r"/\.(?!well-known)", "/.well", true),
            (r"/\.(?!well-known)", "/.", true),
            (r"/\.(?!well-known)", "/.well-known/.git", true),
            (r"/\.(?!well-known).*", "/a/.well-known", false),
            (r"^/setup/(?!pub/).", "/setup/x", true),
            (r"^/setup/(?!pub/).", "/setup/", false),
            (r"^/setup/(?!pub/).", "/setup/pub/x", false),
            (r"^/setup/(?!pub/).", "/setup/public", true),
            (r"^/(?!api|static/)(.*)$", "/", true),
            (r"^/(?!api|static/)(.*)$", "/apix", false),
            (r"^/(?!api|static/)(.*)$", "/static", true),
            (r"^/((?!api).*)$", "/web", true),
            (r"^/(?!index\.php$).*", "/index.php", false),
            (r"^/(?!index\.php$).*", "/index.php5", true),
            (r"^/(?!(?:a|ab))", "/abc", false),
        ];
        for (pattern, text, matches) in cases {
            let pattern = Pattern::of(pattern, false).unwrap();
            assert_eq!(pattern.is_match(text.as_bytes()), matches, "{} {text}", pattern.text);
        }
        let pattern = Pattern::of("^/(?!api)(.*)$", false).unwrap();
        assert_eq!(&pattern.captures(b"/web/x").unwrap()[1], b"web/x");
        assert!(!Pattern::of(r"/\.(?!Well)", true).unwrap().is_match(b"/.WELL"));
        for (pcre, loose) in [
            (r"^/(?!a|(b)).*\.html$", r"^/(?:).*\.html$"),
            (r"a(?<!b)c(?=d\))[(?!]e", "a(?:)c(?:)[(?!]e"),
            (r"\(?!x", r"\(?!x"),
            (r"[^](?!]a(?<n>b)(?>c)(?!", r"[^](?!]a(?<n>b)(?:c)(?!"),
        ] {
            assert_eq!(super::loose(pcre), loose);
        }
        for unread in [r"(?!a)b", r"a(?!b.c)", r"a(?<!b)", r"a(?!b)c(?!d)"] {
            assert!(Pattern::of(unread, false).is_err(), "{unread}");
        }
    }
}
