//! What a header, a cookie or host and path must be, as patterns over what is sent.

use crate::program::{Condition, Said, Text};

use super::{
    super::acl::{self, Method},
    logic::{NEVER, all},
    text::{Leaf, Unsaid, pattern, text, written},
};

/// A value between commas.
pub(super) fn header(name: &str, leaf: &Leaf) -> Result<Condition, Unsaid> {
    let of =
        |pattern: String| Ok(Condition::Header(name.to_owned(), Text::Pattern(written(&pattern))));
    let cased = |p: String| if leaf.ignores_case { format!("(?i:{p})") } else { p };
    let p = cased(regex::escape(&leaf.pattern));
    let (before, after) = (r"(?s:(?:.*,)?)[ \t]*", r"[ \t]*(?s:(?:,.*)?)");
    if leaf.method != Method::Found && leaf.pattern.contains(',') {
        return Err("a pattern with a comma in it".to_owned());
    }
    // No value has blanks around it.
    let blank = [' ', '\t'];
    let begins = leaf.pattern.starts_with(blank);
    let ends = leaf.pattern.ends_with(blank);
    match leaf.method {
        Method::Found => Ok(Condition::Header(name.to_owned(), Text::Present)),
        Method::Exact if begins || ends => Ok(NEVER),
        Method::Beginning if begins => Ok(NEVER),
        Method::End if ends => Ok(NEVER),
        Method::Exact => of(format!("{before}{p}{after}")),
        Method::Beginning => of(format!("{before}{p}(?s:.*)")),
        Method::End => of(format!("(?s:.*){p}{after}")),
        Method::Part => of(format!("(?s:.*){p}(?s:.*)")),
        Method::Domain | Method::Directory => {
            of(format!("{before}(?:{}){after}", within_commas(&pattern(leaf)?)))
        }
        Method::Regex if is_plain(&leaf.pattern) => of(pattern(leaf)?),
        Method::Regex => match part(&leaf.pattern, ",") {
            Some((begins, part, ends)) => {
                let before = if begins { before } else { "(?s:.*)" };
                let after = if ends { after } else { "(?s:.*)" };
                of(cased(format!("{before}(?:{part}){after}")))
            }
            // Commas are in no cookie (RFC 6265 section 4.1.1).
            None if name == "cookie" => of(pattern(leaf)?),
            None => Err(format!("a regular expression of {name}, which is compared part by part")),
        },
        Method::Length => {
            let part = pattern(leaf)?.replace("(?s:.{", "(?:[^,]{");
            of(format!("{before}(?:{part}){after}"))
        }
        _ => Err(format!("this comparison of {name} has no counterpart")),
    }
}

fn within_commas(pattern: &str) -> String {
    pattern.replace(".*", "[^,]*")
}

/// An expression that matches the same in a line and in its parts between commas.
fn is_plain(pattern: &str) -> bool {
    !pattern.contains(['^', '$', '.', '[', ',', '\\'])
}

/// An expression over one part between delimiters, as one over a line: nothing in it may
/// go beyond one, and whether it has the beginning and the end of the part. `None` where
/// it is not known that nothing does.
fn part(pattern: &str, delimiters: &str) -> Option<(bool, String, bool)> {
    let others = ["\\W", "\\D", "\\S", "(?", "[^]"];
    let has_other = others.iter().any(|one| pattern.contains(one))
        || pattern.contains(|c| delimiters.contains(c));
    let is_anchored = pattern.starts_with('^') || pattern.ends_with('$');
    if has_other || is_anchored && has_alternatives(pattern) {
        return None;
    }
    let begins = pattern.strip_prefix('^');
    let inner = begins.unwrap_or(pattern);
    let ends = inner.strip_suffix('$').filter(|rest| !rest.ends_with('\\'));
    let mut out = String::new();
    let mut chars = ends.unwrap_or(inner).chars().peekable();
    let mut in_class = false;
    while let Some(char) = chars.next() {
        match char {
            '\\' => {
                out.push(char);
                out.extend(chars.next());
                continue;
            }
            '[' if !in_class => {
                in_class = true;
                out.push(char);
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                    out.push_str(delimiters);
                }
                continue;
            }
            ']' => in_class = false,
            // Only as a class it may stand for a delimiter.
            '.' if !in_class => {
                out.push_str(&format!("[^{delimiters}]"));
                continue;
            }
            '^' | '$' if !in_class => return None,
            _ => {}
        }
        out.push(char);
    }
    Some((begins.is_some(), out, ends.is_some()))
}

/// Whether an expression has alternatives outside groups; a `|` of a class counts, too.
fn has_alternatives(pattern: &str) -> bool {
    let mut depth = 0;
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => drop(chars.next()),
            '(' => depth += 1,
            ')' => depth -= 1,
            '|' if depth <= 0 => return true,
            _ => {}
        }
    }
    false
}

/// One pair of the header.
pub(super) fn cookie(name: &str, leaf: &Leaf) -> Result<Condition, Unsaid> {
    let p = regex::escape(&leaf.pattern);
    let value = match leaf.method {
        Method::Found => "[^;]*".to_owned(),
        Method::Exact => p,
        Method::Beginning => format!("{p}[^;]*"),
        Method::End => format!("[^;]*{p}"),
        Method::Part => format!("[^;]*{p}[^;]*"),
        Method::Regex => match part(&leaf.pattern, ";,") {
            Some((begins, part, ends)) => {
                let other = |is_anchored| if is_anchored { "" } else { "[^;,]*" };
                format!("{}(?:{part}){}", other(begins), other(ends))
            }
            None => return Err("this regular expression of a cookie has no counterpart".into()),
        },
        Method::Length => pattern(leaf)?.replace("(?s:.{", "(?:[^;,]{"),
        _ => return Err("this comparison of a cookie has no counterpart".to_owned()),
    };
    let value = if leaf.ignores_case { format!("(?i:{value})") } else { value };
    let name = regex::escape(name);
    let pattern =
        format!(r"(?s:(?:.*[;,])?)[ \t]*{name}[ \t]*=[ \t]*(?:{value})[ \t]*(?s:(?:[;,].*)?)");
    Ok(Condition::Header("cookie".to_owned(), Text::Pattern(written(&pattern))))
}

/// Numbers of these ranges; what is none is 0.
pub(super) fn numbers(leaf: &Leaf) -> Result<String, Unsaid> {
    let ranges = acl::ranges(leaf.pattern.split(' '));
    let mut patterns = Vec::new();
    for (low, high) in ranges {
        if low <= 0 && high >= 0 {
            return Err("a number that may be 0".to_owned());
        }
        if high > 0 {
            let digits = super::numbers::within(low.max(1).unsigned_abs(), high.unsigned_abs());
            patterns.push(format!("{digits}{}", longer(high)));
        }
    }
    Ok(format!("0*(?:{})", patterns.join("|")))
}

/// Numbers of more digits than are counted, where there is no highest.
fn longer(high: i64) -> &'static str {
    if high == i64::MAX { "|[1-9][0-9]{18,}" } else { "" }
}

/// One value of a header is a number of these ranges. What stands behind a number is not
/// read, and what begins with none is 0; nothing at all is 0 where it is said so.
pub(super) fn numbers_of(
    name: String,
    leaf: &Leaf,
    nothing_is_0: bool,
) -> Result<Condition, Unsaid> {
    let mut patterns = Vec::new();
    for (low, high) in acl::ranges(leaf.pattern.split(' ')) {
        if high > 0 {
            let digits = super::numbers::within(low.max(1).unsigned_abs(), high.unsigned_abs());
            let sign = if nothing_is_0 { "" } else { "[+]?" };
            patterns.push(format!("{sign}0*(?:{digits}{})(?:[^0-9,][^,]*)?", longer(high)));
        }
        match (low, high) {
            (1.., _) => continue,
            (i64::MIN, 0..) => patterns.push("-[^,]*".to_owned()),
            (0, 0..) => {}
            _ => return Err("a number below 0".to_owned()),
        }
        let sign = if nothing_is_0 { "" } else { "+" };
        patterns.push(format!("0+(?:[^0-9,][^,]*)?|[^0-9,\\s{sign}-][^,]*"));
        patterns.extend(nothing_is_0.then(String::new));
    }
    if patterns.is_empty() {
        return Ok(NEVER);
    }
    let pattern = format!("(?s)(?:.*,)?[ \\t]*(?:{})[ \\t]*(?:,.*)?", patterns.join("|"));
    let present = Condition::Header(name.clone(), Text::Present);
    let values = Condition::Said(Said::Headers(name), Text::Pattern(pattern));
    Ok(all([present, values]))
}

/// An expression over host and path is one of each, where a slash parts them.
pub(super) fn base_pattern(leaf: &Leaf) -> Result<Condition, Unsaid> {
    let no_parts = || Err("an expression over host and path has no counterpart".to_owned());
    let Some((name, path)) = leaf.pattern.strip_prefix('^').and_then(|p| p.split_once('/')) else {
        return no_parts();
    };
    let is_open = |text: &str| text.matches('(').count() != text.matches(')').count();
    let mut depth = 0;
    let has_top = leaf.pattern.chars().any(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == '|' && depth == 0
    });
    if has_top || is_open(name) || name.contains(['[', '\\']) && name.ends_with(['[', '\\', '^']) {
        return no_parts();
    }
    if name.ends_with(".*") {
        return no_parts();
    }
    let of = |pattern: String| {
        text(&Leaf { method: Method::Regex, ignores_case: leaf.ignores_case, pattern })
    };
    let host = Condition::Header("host".to_owned(), of(format!("^{name}$"))?);
    Ok(all([host, Condition::Path(of(format!("^/{path}"))?)]))
}

/// Host and path in one.
pub(super) fn base(leaf: &Leaf) -> Result<Condition, Unsaid> {
    let of = |method, pattern: &str| Leaf {
        method,
        ignores_case: leaf.ignores_case,
        pattern: pattern.to_owned(),
    };
    let host = |method, pattern| {
        text(&of(method, pattern)).map(|text| Condition::Header("host".to_owned(), text))
    };
    match (leaf.method, leaf.pattern.find('/')) {
        (Method::Beginning, None) => host(Method::Beginning, &leaf.pattern),
        (Method::Exact | Method::Beginning, Some(at)) if at > 0 => {
            let (name, path) = leaf.pattern.split_at(at);
            let path = Condition::Path(text(&of(leaf.method, path))?);
            Ok(all([host(Method::Exact, name)?, path]))
        }
        _ => Err("`base` compared so has no counterpart".to_owned()),
    }
}
