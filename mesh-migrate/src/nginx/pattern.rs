//! Patterns of PCRE, as far as the `regex` crate says the same.

use std::borrow::Cow;

use regex::bytes::{Captures, Regex, RegexBuilder};

/// What a compiled pattern may take, in bytes.
const MAX_SIZE: usize = 4 << 20;

/// A pattern of nginx.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    /// In the words of the `regex` crate, unanchored, without `(?i)`.
    pub(super) text: String,
    pub(super) ignores_case: bool,
    regex: Regex,
}

impl Pattern {
    /// # Errors
    ///
    /// What of it cannot be read.
    pub(super) fn of(pcre: &str, ignores_case: bool) -> Result<Self, String> {
        let plain = super::ahead::plain(pcre, ignores_case);
        let text = translated(plain.as_deref().unwrap_or(pcre))?.into_owned();
        let mut builder = RegexBuilder::new(&text);
        builder.unicode(false).case_insensitive(ignores_case).size_limit(MAX_SIZE);
        let regex = builder.build().map_err(|wrong| {
            let wrong = wrong.to_string();
            let last = wrong.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("the pattern {pcre:?} cannot be read: {last}")
        })?;
        Ok(Self { text, ignores_case, regex })
    }

    /// Whether a pattern that cannot be read surely does not match.
    pub(super) fn cannot_match(pcre: &str, ignores_case: bool, value: &[u8]) -> bool {
        Self::loose(pcre, ignores_case).is_some_and(|loose| !loose.is_match(value))
    }

    /// One that takes all that a pattern takes that cannot be read, and perhaps more.
    pub(super) fn loose(pcre: &str, ignores_case: bool) -> Option<Self> {
        Self::of(&super::ahead::loose(pcre), ignores_case).ok()
    }

    /// Groups of the first match. `$` matches before a last line feed, too.
    pub(super) fn captures<'h>(&self, value: &'h [u8]) -> Option<Captures<'h>> {
        let found = self.regex.captures(value);
        match value.split_last() {
            Some((b'\n', before)) if found.is_none() && self.text.contains('$') => {
                self.regex.captures(before)
            }
            _ => found,
        }
    }

    pub(super) fn is_match(&self, value: &[u8]) -> bool {
        self.captures(value).is_some()
    }

    /// Groups that have names, and all of them without the whole match.
    pub(super) fn names(&self) -> impl Iterator<Item = Option<&str>> {
        self.regex.capture_names().skip(1)
    }

    /// For a whole text: with what may stand before and after a match, as
    /// `program::Text::Pattern` wants it.
    pub(super) fn whole(&self) -> String {
        let Ends { alternatives, lines } = Ends::of(&self.text);
        // The rest is anything, line feeds, too.
        let any = "(?s:.*)";
        let before = if !alternatives && self.text.starts_with('^') { "" } else { any };
        let is_ended = !alternatives && lines.last().is_some_and(|at| at + 1 == self.text.len());
        let after = if is_ended { "" } else { any };
        let inner = ended(&self.text, &lines);
        let inner = if before.is_empty() { inner.trim_start_matches('^') } else { &inner };
        let inner = if is_ended { inner.trim_end_matches('$') } else { inner };
        let inner = if alternatives { format!("(?:{inner})") } else { inner.to_owned() };
        let flags = if self.ignores_case { "(?i)" } else { "" };
        format!("{flags}{before}{inner}{after}")
    }

    /// For a whole path that is to be replaced: from its beginning to its end, groups
    /// being those of the first match.
    pub(super) fn replacing(&self) -> String {
        let flags = if self.ignores_case { "(?i)" } else { "" };
        let inner = ended(&self.text, &Ends::of(&self.text).lines);
        format!("{flags}^(?s:.*?)(?:{inner})(?s:.*)$")
    }
}

/// Where a pattern may end.
#[derive(Default)]
struct Ends {
    /// It is of several, at its outermost level.
    alternatives: bool,
    /// Each `$` that is no text.
    lines: Vec<usize>,
}

impl Ends {
    fn of(text: &str) -> Self {
        let mut out = Self::default();
        let (mut depth, mut in_class, mut is_escaped) = (0_u32, 0_u32, false);
        for (at, c) in text.char_indices() {
            match c {
                _ if is_escaped => is_escaped = false,
                '\\' => is_escaped = true,
                '[' => in_class += 1,
                ']' => in_class = in_class.saturating_sub(1),
                _ if in_class > 0 => {}
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                '|' => out.alternatives |= depth == 0,
                '$' => out.lines.push(at),
                _ => {}
            }
        }
        out
    }
}

/// `$` of PCRE stands before a last line feed, too.
fn ended(text: &str, lines: &[usize]) -> String {
    let mut out = String::new();
    let mut from = 0;
    for &at in lines {
        out += &text[from..at];
        out += r"\n?$";
        from = at + 1;
    }
    out + &text[from..]
}

/// Constructs that mean the same are written as Rust has them, others refused: a
/// pattern that would quietly mean something else is worse than none.
fn translated(pcre: &str) -> Result<Cow<'_, str>, String> {
    let refused = |what: &str| Err(format!("the pattern {pcre:?} has {what}, which is not read"));
    let mut out = String::with_capacity(pcre.len());
    let mut chars = pcre.chars().peekable();
    let mut in_class = false;
    let mut class_is_empty = false;
    let mut after_quantifier = false;
    while let Some(c) = chars.next() {
        let is_repeated = std::mem::take(&mut after_quantifier);
        let is_first = std::mem::take(&mut class_is_empty);
        let next = chars.peek().copied();
        match (c, next) {
            ('\\', Some(escaped)) => {
                chars.next();
                match escape(escaped, in_class) {
                    Some(meant) => out += &meant,
                    None => return refused(&format!("\\{escaped}")),
                }
            }
            (']', _) if in_class && !is_first => {
                in_class = false;
                out.push(']');
            }
            (']', _) if in_class => out.push_str("\\]"),
            ('[', Some(':')) if in_class => out.push('['),
            ('[' | '&' | '~', _) if in_class => out.extend(['\\', c]),
            ('-', Some('-')) if in_class => out.push_str("\\-"),
            (_, _) if in_class => {
                // The closing bracket of `[:alpha:]` ends no class.
                if c == ':' && next == Some(']') && out.contains("[:") && !out.ends_with("[:") {
                    chars.next();
                    out.push_str(":]");
                } else {
                    out.push(c);
                }
            }
            ('[', next) => {
                in_class = true;
                class_is_empty = true;
                out.push('[');
                if next == Some('^') {
                    chars.next();
                    out.push('^');
                }
            }
            ('+', _) if is_repeated => return refused("a possessive repetition"),
            ('*' | '+' | '?' | '}', _) => {
                // A `?` after a repetition makes it lazy, and ends it.
                after_quantifier = !(c == '?' && is_repeated);
                out.push(c);
            }
            ('(', Some('?')) => {
                let rest: String = chars.clone().skip(1).take(2).collect();
                if rest.starts_with(['=', '!']) || rest == "<=" || rest == "<!" {
                    return refused("look-around");
                }
                // Groups of PCRE's own, and recursion.
                if rest.starts_with(['>', '|', '#', '(', '&', '\'', 'R', '+', 'C'])
                    || rest.starts_with(|c: char| c.is_ascii_digit())
                {
                    return refused(&format!("(?{rest}"));
                }
                out.push('(');
            }
            ('(', Some('*')) => return refused("a verb"),
            _ => out.push(c),
        }
    }
    Ok(Cow::Owned(out))
}

/// What `\c` means, as Rust has it.
fn escape(escaped: char, in_class: bool) -> Option<String> {
    Some(match escaped {
        'h' if in_class => " \\t".into(),
        'h' => "[ \\t]".into(),
        'b' if in_class => "\\x08".into(),
        'd' | 'D' | 'w' | 'W' | 's' | 'S' | 'b' | 'B' | 'A' | 'z' | 'n' | 'r' | 't' | 'f' | 'x' => {
            format!("\\{escaped}")
        }
        // Back-references, and what only PCRE has.
        escaped if escaped.is_ascii_alphanumeric() => return None,
        '<' | '>' => escaped.into(),
        escaped if escaped.is_ascii_punctuation() => format!("\\{escaped}"),
        escaped => escaped.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_the_same_or_is_refused() {
        for (pattern, value, matches) in [
            (r"\.(png|css)$", "/a.png", true),
            (r"\.(png|css)$", "/a.png\n", true),
            (r"\.(png|css)$", "/a.pngx", false),
            (r"^/a[[/]x", "/a[x", true),
            (r"^/a[&&b]x", "/a&x", true),
            (r"^/[[:alpha:]]+$", "/abc", true),
            (r"^/[[:alpha:]-]+$", "/a-c", true),
            (r"^/[]x]$", "/]", true),
            (r"^/a\/b\-c\_d$", "/a/b-c_d", true),
            (r"^/a+?b", "/aab", true),
        ] {
            let pattern = Pattern::of(pattern, false).unwrap();
            assert_eq!(pattern.is_match(value.as_bytes()), matches, "{pattern:?} {value:?}");
        }
        for refused in
            ["(?!a)b", "(?<!a)b", r"(a)\1", "a++", "(?>a)", r"\Qa", "a{2}+", "(?R)", "(?1)"]
        {
            assert!(Pattern::of(refused, false).is_err(), "{refused}");
        }
    }

    #[test]
    fn whole_texts() {
        for (pattern, whole) in [
            (r"\.png$", r"(?s:.*)\.png\n?"),
            ("^/a$", r"/a\n?"),
            ("^/a", "/a(?s:.*)"),
            ("^a|b$", r"(?s:.*)(?:^a|b\n?$)(?s:.*)"),
            ("(png|css)$", r"(?s:.*)(png|css)\n?"),
            ("^/(a$|b)", r"/(a\n?$|b)(?s:.*)"),
            (r"^/[$|]\$", r"/[$|]\$(?s:.*)"),
        ] {
            assert_eq!(Pattern::of(pattern, false).unwrap().whole(), whole);
        }
    }
}
