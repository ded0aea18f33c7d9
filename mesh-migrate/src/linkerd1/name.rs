//! Names of Finagle (`/svc/web`) and the patterns that policies match them with.

use std::{collections::BTreeMap, fmt};

use regex::Regex;

/// A path of labels, each as it is shown: as it is, or, if one of its bytes is outside
/// `0-9A-Za-z_:.#$%-`, with all of them as `\xNN`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Name(Vec<String>);

impl Name {
    /// Of labels as they are, which may hold any byte.
    pub fn of<S: AsRef<str>>(labels: impl IntoIterator<Item = S>) -> Self {
        Self(labels.into_iter().map(|label| shown(label.as_ref().as_bytes())).collect())
    }

    /// Of labels that are shown already.
    pub(super) fn of_shown(labels: Vec<String>) -> Self {
        Self(labels)
    }

    /// What `Path.read` of Finagle reads.
    ///
    /// # Errors
    ///
    /// It does not begin with `/`, has an empty label, or a character that must be
    /// written as `\xNN`.
    pub fn read(text: &str) -> Result<Self, String> {
        let Some(rest) = without_blank(text).strip_prefix('/') else {
            return Err(format!("{text:?} is no path: it must begin with '/'"));
        };
        let (rest, after) = rest.split_at(rest.find(is_blank).unwrap_or(rest.len()));
        let after = without_blank(after);
        if !after.is_empty() {
            return Err(format!("{text:?} is no path: {after:?} follows it"));
        }
        if rest.is_empty() {
            return Ok(Self::default());
        }
        let labels = rest.split('/').map(|label| canonical(label, text));
        labels.collect::<Result<_, _>>().map(Self)
    }

    /// As they are shown.
    pub fn labels(&self) -> &[String] {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many labels.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The first `count` labels and the rest.
    pub fn split(&self, count: usize) -> (Self, Self) {
        let (first, rest) = self.0.split_at(count.min(self.0.len()));
        (Self(first.to_vec()), Self(rest.to_vec()))
    }

    /// This one, and `other` below it.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        Self(self.0.iter().chain(&other.0).cloned().collect())
    }

    /// What is below `prefix`.
    pub fn below(&self, prefix: &Self) -> Option<Self> {
        self.0.strip_prefix(prefix.0.as_slice()).map(|rest| Self(rest.to_vec()))
    }

    /// With all labels in lower case.
    #[must_use]
    pub fn lower_case(&self) -> Self {
        Self::of(self.0.iter().map(|label| raw(label).to_lowercase()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        self.0.iter().try_for_each(|label| write!(f, "/{label}"))
    }
}

/// White space of Java: without the spaces that do not break, and without U+0085, but
/// with the separators of ASCII.
fn is_blank(c: char) -> bool {
    let is_kept = matches!(c, '\u{85}' | '\u{a0}' | '\u{2007}' | '\u{202f}');
    (c.is_whitespace() && !is_kept) || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// What follows white space and comments, which Finagle passes over in paths, too.
pub(super) fn without_blank(text: &str) -> &str {
    let mut rest = text.trim_start_matches(is_blank);
    while rest.starts_with('#') {
        rest = rest.split_once('\n').map_or("", |(_, after)| after);
        rest = rest.trim_start_matches(is_blank);
    }
    rest
}

/// Whether a character stands for itself in a label.
pub(super) fn is_showable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_:.#$%-".contains(&byte)
}

/// A label as it is shown.
pub(super) fn shown(label: &[u8]) -> String {
    if label.iter().all(|byte| is_showable(*byte)) {
        return label.iter().map(|byte| char::from(*byte)).collect();
    }
    label.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

/// What a label that is shown says.
pub fn raw(label: &str) -> String {
    let mut bytes = Vec::with_capacity(label.len());
    let mut rest = label.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match (first, after) {
            (b'\\', [b'x', high, low, after @ ..]) => {
                let digit = |d: u8| char::from(d).to_digit(16).unwrap_or_default() as u8;
                bytes.push(digit(*high) << 4 | digit(*low));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn canonical(label: &str, text: &str) -> Result<String, String> {
    let bytes = label.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        at += match &bytes[at..] {
            [b'\\', b'x', a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => 4,
            [byte, ..] if is_showable(*byte) => 1,
            _ => return Err(format!("{text:?} is no path: {label:?} must be written with \\xNN")),
        };
    }
    if label.is_empty() {
        return Err(format!("{text:?} is no path: a label is empty"));
    }
    Ok(canonical_case(label))
}

/// `\xAB` and `\x61` are `\xab` and `a`.
fn canonical_case(label: &str) -> String {
    if !label.contains('\\') {
        return label.to_owned();
    }
    let mut bytes = Vec::new();
    let mut rest = label.as_bytes();
    while let [first, after @ ..] = rest {
        if let (b'\\', [b'x', high, low, after @ ..]) = (first, after) {
            let digit = |d: u8| char::from(d).to_digit(16).unwrap_or_default() as u8;
            bytes.push(digit(*high) << 4 | digit(*low));
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    shown(&bytes)
}

/// A prefix of names with `*` for any one label and `{var}` for what is in it
/// (`PathMatcher` of Linkerd).
#[derive(Debug, Clone)]
pub struct PathMatcher {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone)]
enum Segment {
    Any,
    Label(String),
    Captures(Option<Regex>, Vec<String>),
}

impl PathMatcher {
    /// Of an expression. One that is no regular expression with its `{var}`s replaced
    /// matches nothing.
    pub fn new(expression: &str) -> Self {
        let mut segments: Vec<&str> = expression.split('/').collect();
        while segments.last().is_some_and(|segment| segment.is_empty()) {
            segments.pop();
        }
        let segments = segments.into_iter().skip_while(|segment| segment.is_empty());
        Self { segments: segments.map(Segment::new).collect() }
    }

    /// The values of its variables, if it matches.
    pub fn extract(&self, name: &Name) -> Option<BTreeMap<String, String>> {
        let mut variables = BTreeMap::new();
        if self.segments.len() > name.len() {
            return None;
        }
        for (segment, label) in self.segments.iter().zip(name.labels()) {
            match segment {
                Segment::Any => {}
                Segment::Label(known) if known == label => {}
                Segment::Captures(Some(pattern), names) => {
                    let found = pattern.captures(label)?;
                    for (at, name) in names.iter().enumerate() {
                        let value = found.get(at + 1).map_or("", |group| group.as_str());
                        variables.insert(name.clone(), value.to_owned());
                    }
                }
                Segment::Label(_) | Segment::Captures(None, _) => return None,
            }
        }
        Some(variables)
    }
}

/// `pattern` with the values of variables in it.
pub(super) fn substitute(variables: &BTreeMap<String, String>, pattern: &str) -> String {
    variables.iter().rev().fold(pattern.to_owned(), |pattern, (name, value)| {
        pattern.replace(&format!("{{{name}}}"), value)
    })
}

impl Segment {
    /// Captures are greedy, and the expression is not anchored in the label: so it is
    /// in Linkerd.
    fn new(segment: &str) -> Self {
        if segment == "*" {
            return Self::Any;
        }
        let keys = keys(segment);
        if keys.is_empty() {
            return Self::Label(segment.to_owned());
        }
        let escaped = segment.replace('.', "\\.");
        let pattern = keys.iter().fold(escaped, |p, key| p.replace(&format!("{{{key}}}"), "(.*)"));
        Self::Captures(Regex::new(&pattern).ok(), keys)
    }
}

/// What is in braces; the class of characters is that of Linkerd, its slip with the
/// range `:-_` included.
fn keys(segment: &str) -> Vec<String> {
    let is_key = |c: char| c.is_ascii_alphanumeric() || c == '.' || (':'..='_').contains(&c);
    let mut keys = Vec::new();
    let mut rest = segment;
    while let Some((_, after)) = rest.split_once('{') {
        let end = after.find(|c| !is_key(c)).unwrap_or(after.len());
        if end > 0 && after[end..].starts_with('}') {
            keys.push(after[..end].to_owned());
        }
        rest = after;
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_shown_as_finagle_shows_them() {
        let name = Name::of(["svc", "a b/c"]);
        assert_eq!(name.to_string(), r"/svc/\x61\x20\x62\x2f\x63");
        assert_eq!(Name::read(&name.to_string()).unwrap(), name);
        assert_eq!(Name::read(r"/svc/a\x2F").unwrap().to_string(), r"/svc/\x61\x2f");
        assert_eq!(Name::read(r"/svc/\x61").unwrap().to_string(), "/svc/a");
        assert_eq!(raw(&name.labels()[1]), "a b/c");
        assert_eq!(Name::read("/").unwrap(), Name::default());
        assert_eq!(Name::read("# x\n /svc/#\u{1f}# y").unwrap(), Name::of(["svc", "#"]));
        for bad in ["/a\u{a0}", "/a b", "/ a", "", "svc", "/svc/", "//", "/a b", "/a\\", "/\\xg0"] {
            assert!(Name::read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_matcher_is_a_prefix_by_segments() {
        let name = |text: &str| Name::read(text).unwrap();
        let cases = [
            ("/", "/svc/web", Some("")),
            ("/svc", "/svc/web", Some("")),
            ("/svc/we", "/svc/web", None),
            ("/svc/*/x", "/svc/web", None),
            ("/*/{n}", "/svc/web", Some("n=web")),
            ("/{a}-{b}", "/x-y-z", Some("a=x-y b=z")),
            ("/v{a}", "/av1", Some("a=1")),
            ("/{a.b}", "/x", None),
            ("/{a-b}", "/x", None),
            ("/svc/", "/svc", Some("")),
        ];
        for (expression, of, expected) in cases {
            let found = PathMatcher::new(expression).extract(&name(of)).map(|variables| {
                let said: Vec<_> = variables.iter().map(|(k, v)| format!("{k}={v}")).collect();
                said.join(" ")
            });
            assert_eq!(found.as_deref(), expected, "{expression} of {of}");
        }
        let variables = PathMatcher::new("/{svc}").extract(&name("/web")).unwrap();
        assert_eq!(substitute(&variables, "{svc}.corp"), "web.corp");
    }
}
