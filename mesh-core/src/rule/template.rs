//! Header values that are made of the request.

use std::{io::Write as _, net::IpAddr, sync::Arc};

use http::{HeaderName, HeaderValue};

use super::{PathPattern, rewrite::BadRewrite};
use crate::message::RequestHead;

/// Bytes of a value that comes out.
const MAX_VALUE: usize = 8 << 10;
/// Bytes of a value that is compared and goes nowhere: more than a head has.
const MAX_COMPARED: usize = 1 << 20;
/// Changes of one part.
const MAX_CHANGES: usize = 8;

/// A text that makes no header value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    /// There is no such part of a request.
    #[error(
        "%{{{0}}} is not known: client_ip, forwarded_for, host, hostname, path, query, target, scheme, method, \
         header:NAME, headers:NAME, cookie:NAME and query:NAME are; %% is a percent sign"
    )]
    Unknown(Box<str>),
    /// There is no such change of a part.
    #[error(
        "{0:?} is no change of a part: |lower, |s~PATTERN~SUBSTITUTION~ and |s~…~…~g are, at \
         most 8 of one part"
    )]
    Change(Box<str>),
    /// RFC 9110 section 5.5.
    #[error("has characters that no header value may have")]
    Text,
}

/// Text with `%{…}` for parts of the request; `%%` is a percent sign, and so
/// is one before anything else. A part may be changed: `%{host|lower}`,
/// `%{path|s~^/v(\d+)/.*~$1~}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Arc<str>,
    parts: Vec<(Part, Vec<Change>)>,
}

/// What becomes of a part, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// In lower case.
    Lower,
    /// What matches is replaced; all of it stays where nothing does.
    Replace(PathPattern),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// Address of the client.
    ClientIp,
    /// All values of `X-Forwarded-For`, and then the client's address.
    ForwardedFor,
    /// `Host` as it was sent, with its port.
    Host,
    /// The same without port, in lower case.
    Hostname,
    /// Without the query.
    Path,
    /// Without the `?`.
    Query,
    /// Path and query, as they are sent.
    Target,
    Scheme,
    Method,
    /// Its first value.
    Header(HeaderName),
    /// All its values (RFC 9110 section 5.2, of cookies RFC 9113 section 8.2.3).
    Headers(HeaderName),
    /// The first of its name (RFC 6265 section 4.2.1).
    Cookie(Box<str>),
    /// The first of its name, as it was sent.
    Parameter(Box<str>),
}

impl Template {
    /// Reads the value of a header.
    ///
    /// # Errors
    ///
    /// It names what no request has, or has characters that no value may have.
    pub fn new(text: &str) -> Result<Self, BadTemplate> {
        HeaderValue::from_bytes(text.as_bytes()).map_err(|_| BadTemplate::Text)?;
        Self::of_text(text)
    }

    /// Reads any text.
    ///
    /// # Errors
    ///
    /// It names what no request has.
    pub fn of_text(text: &str) -> Result<Self, BadTemplate> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
            } else if let Some((one, after)) =
                after.strip_prefix('{').map(changed).transpose()?.flatten()
            {
                push_text(&mut parts, &mut literal);
                parts.push(one);
                rest = after;
            } else {
                literal.push('%');
                rest = after;
            }
        }
        literal.push_str(rest);
        push_text(&mut parts, &mut literal);
        Ok(Self { text: text.into(), parts })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is made of the client's address, among others.
    pub fn tells_client(&self) -> bool {
        self.parts.iter().any(|(part, _)| matches!(part, Part::ClientIp | Part::ForwardedFor))
    }

    /// The value as rules compare it, without the client's address. It may be
    /// longer than a header: nobody gets past a rule by a long request.
    ///
    /// # Errors
    ///
    /// It is too long even so: changes have made much of it.
    pub fn compared(&self, head: &RequestHead) -> Result<Vec<u8>, BadRewrite> {
        self.made(head, None, MAX_COMPARED).map(|value| value.trim_ascii().to_vec())
    }

    /// The value for a request of `client`; what a request does not have is
    /// empty.
    ///
    /// # Errors
    ///
    /// It is too long.
    pub fn render(
        &self,
        head: &RequestHead,
        client: Option<IpAddr>,
    ) -> Result<Vec<u8>, BadRewrite> {
        // RFC 9110 section 5.5: no value begins or ends with space.
        self.text(head, client).map(|value| value.trim_ascii().to_vec())
    }

    /// The text, with spaces around it.
    ///
    /// # Errors
    ///
    /// It is too long.
    pub fn text(&self, head: &RequestHead, client: Option<IpAddr>) -> Result<Vec<u8>, BadRewrite> {
        self.made(head, client, MAX_VALUE)
    }

    fn made(
        &self,
        head: &RequestHead,
        client: Option<IpAddr>,
        longest: usize,
    ) -> Result<Vec<u8>, BadRewrite> {
        let mut value = Vec::new();
        for (part, changes) in &self.parts {
            if changes.is_empty() {
                part.write(head, client, &mut value);
            } else {
                let mut own = Vec::new();
                part.write(head, client, &mut own);
                for change in changes {
                    own = change.apply(own, longest)?;
                }
                value.extend(own);
            }
            if value.len() > longest {
                return Err(BadRewrite::TooLong);
            }
        }
        Ok(value)
    }
}

impl Part {
    fn write(&self, head: &RequestHead, client: Option<IpAddr>, value: &mut Vec<u8>) {
        match self {
            Self::Text(text) => value.extend_from_slice(text.as_bytes()),
            Self::ClientIp => {
                if let Some(client) = client {
                    let _infallible = write!(value, "{}", client.to_canonical());
                }
            }
            Self::ForwardedFor => {
                let client = client.map(|client| client.to_canonical().to_string());
                let client = client.as_ref().map(String::as_bytes);
                let before = head.fields.all("x-forwarded-for").filter(|one| !one.is_empty());
                let all: Vec<&[u8]> = before.chain(client).collect();
                value.extend_from_slice(&all.join(&b", "[..]));
            }
            Self::Host => value.extend_from_slice(head.authority.as_bytes()),
            Self::Hostname => {
                value.extend(head.host().bytes().map(|byte| byte.to_ascii_lowercase()));
            }
            Self::Path => value.extend_from_slice(head.path().as_bytes()),
            Self::Query => value.extend_from_slice(head.query().unwrap_or_default().as_bytes()),
            Self::Target => value.extend_from_slice(head.sent_target().as_bytes()),
            Self::Scheme => value.extend_from_slice(head.scheme.as_str().as_bytes()),
            Self::Method => value.extend_from_slice(head.method.as_str().as_bytes()),
            Self::Header(name) if *name == http::header::HOST => {
                value.extend_from_slice(head.authority.as_bytes());
            }
            Self::Header(name) => {
                value.extend_from_slice(head.fields.get(name.as_str()).unwrap_or_default());
            }
            Self::Headers(name) => {
                let all: Vec<&[u8]> = head.fields.all(name.as_str()).collect();
                let between = if *name == http::header::COOKIE { "; " } else { ", " };
                value.extend_from_slice(&all.join(between.as_bytes()));
            }
            Self::Cookie(name) => {
                value.extend_from_slice(cookie(head, name.as_bytes()).unwrap_or_default());
            }
            Self::Parameter(name) => {
                let pairs = head.query().unwrap_or_default().split('&');
                let mut values = pairs.filter_map(|pair| {
                    let (known, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (known == &**name).then_some(value)
                });
                value.extend_from_slice(values.next().unwrap_or_default().as_bytes());
            }
        }
    }
}

impl Change {
    fn apply(&self, mut value: Vec<u8>, longest: usize) -> Result<Vec<u8>, BadRewrite> {
        match self {
            Self::Lower => {
                value.make_ascii_lowercase();
                Ok(value)
            }
            Self::Replace(pattern) => {
                Ok(pattern.replace(&value, |kept| kept.into(), longest)?.unwrap_or(value))
            }
        }
    }
}

fn cookie<'h>(head: &'h RequestHead, name: &[u8]) -> Option<&'h [u8]> {
    let pairs = head.fields.all("cookie").flat_map(|line| line.split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..at].trim_ascii() == name).then(|| pair[at + 1..].trim_ascii())
    });
    values.next()
}

type Parts = Vec<(Part, Vec<Change>)>;

fn push_text(parts: &mut Parts, literal: &mut String) {
    if !literal.is_empty() {
        parts.push((Part::Text(std::mem::take(literal).into()), Vec::new()));
    }
}

/// A part with its changes, of what stands behind `%{`, and what comes after it; `None`
/// where it has no end.
fn changed(text: &str) -> Result<Option<((Part, Vec<Change>), &str)>, BadTemplate> {
    let Some(at) = text.find(['|', '}']) else { return Ok(None) };
    let (name, mut rest) = text.split_at(at);
    let part = part(name).ok_or_else(|| BadTemplate::Unknown(name.into()))?;
    let mut changes = Vec::new();
    while let Some(after) = rest.strip_prefix('|') {
        let (one, after) = change(after)?;
        changes.push(one);
        rest = after;
        if changes.len() > MAX_CHANGES {
            return Err(BadTemplate::Change(name.into()));
        }
    }
    match rest.strip_prefix('}') {
        Some(rest) => Ok(Some(((part, changes), rest))),
        None => Err(BadTemplate::Change(rest.into())),
    }
}

fn change(text: &str) -> Result<(Change, &str), BadTemplate> {
    let bad = || BadTemplate::Change(text.into());
    if let Some(rest) = text.strip_prefix("lower") {
        return Ok((Change::Lower, rest));
    }
    let (pattern, rest) = text.strip_prefix("s~").and_then(until_tilde).ok_or_else(bad)?;
    let (substitution, rest) = until_tilde(rest).ok_or_else(bad)?;
    let (all, rest) = match rest.strip_prefix('g') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let pattern = PathPattern::new(pattern, substitution, all)
        .map_err(|error| BadTemplate::Change(format!("{text}: {error}").into()))?;
    Ok((Change::Replace(pattern), rest))
}

/// What comes before a `~` and after it; one behind a backslash is none.
fn until_tilde(text: &str) -> Option<(&str, &str)> {
    let mut is_escaped = false;
    let at = text.bytes().position(|byte| {
        let ends = byte == b'~' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })?;
    Some((&text[..at], &text[at + 1..]))
}

fn part(name: &str) -> Option<Part> {
    Some(match name {
        "client_ip" => Part::ClientIp,
        "forwarded_for" => Part::ForwardedFor,
        "host" => Part::Host,
        "hostname" => Part::Hostname,
        "path" => Part::Path,
        "query" => Part::Query,
        "target" => Part::Target,
        "scheme" => Part::Scheme,
        "method" => Part::Method,
        other => match other.split_once(':')? {
            ("header", name) => Part::Header(name.parse().ok()?),
            ("headers", name) => Part::Headers(name.parse().ok()?),
            ("cookie", name) if !name.is_empty() => Part::Cookie(name.into()),
            ("query", name) if !name.is_empty() => Part::Parameter(name.into()),
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> RequestHead {
        let mut head = RequestHead {
            authority: "Orders.Shop:8080".into(),
            target: "/a/b?c=d".into(),
            ..RequestHead::new()
        };
        head.fields.push("X-User", b"one");
        head.fields.push("x-user", b"two");
        head.fields.push("x-forwarded-for", b"10.0.0.1, 10.0.0.2");
        head.fields.push("x-forwarded-for", b"");
        head.fields.push("cookie", b"a=b; sid=7; sid=8");
        head
    }

    #[test]
    fn parts_of_the_request_are_filled_in() {
        let cases = [
            ("plain", "plain"),
            ("", ""),
            ("%{client_ip}", "192.0.2.1"),
            ("<%{forwarded_for}>", "<10.0.0.1, 10.0.0.2, 192.0.2.1>"),
            ("%{host}|%{hostname}", "Orders.Shop:8080|orders.shop"),
            ("%{scheme}://%{host}%{path}?%{query}", "http://Orders.Shop:8080/a/b?c=d"),
            ("%{method} %{target}", "GET /a/b?c=d"),
            ("%{header:X-User}", "one"),
            ("<%{header:x-none}>", "<>"),
            (" %{header:x-none} ", ""),
            ("%{header:host}", "Orders.Shop:8080"),
            ("100%", "100%"),
            ("%%{path} %d", "%{path} %d"),
            ("%{path", "%{path"),
            ("%{headers:cookie}|%{headers:x-none}", "a=b; sid=7; sid=8|"),
            ("%{cookie:sid}|%{cookie:none}|%{query:c}|%{query:x}", "7||d|"),
            ("%{host|lower}", "orders.shop:8080"),
            (r"%{path|s~^/([^/]{1,3})/(.*)$~$2-${1}~}!", "b-a!"),
            (r"%{path|s~/~\~~g}", r"\~a\~b"),
            (r"%{path|s~^/none~x~}", "/a/b"),
            (r"%{host|s~\..*~~|lower}", "orders"),
        ];
        let client = Some("::ffff:192.0.2.1".parse().unwrap());
        for (text, wanted) in cases {
            let template = Template::new(text).unwrap();
            let value = template.render(&head(), client).unwrap();
            assert_eq!(String::from_utf8(value).unwrap(), wanted, "{text}");
            assert_eq!(template.as_str(), text);
        }
        let template = Template::new("%{client_ip}").unwrap();
        assert_eq!(template.render(&head(), None).unwrap(), b"");
        let template = Template::new("%{forwarded_for}").unwrap();
        assert_eq!(template.render(&head(), None).unwrap(), b"10.0.0.1, 10.0.0.2");
        assert_eq!(template.render(&RequestHead::new(), client).unwrap(), b"192.0.2.1");
        // Rules see another form of the path than applications.
        let form = RequestHead { sent: "/a/./b?c=d".into(), ..head() };
        let template = Template::new("%{target} %{path}").unwrap();
        assert_eq!(template.render(&form, None).unwrap(), b"/a/./b?c=d /a/b");
    }

    #[test]
    fn a_long_request_is_compared_as_a_short_one() {
        let long = RequestHead { target: format!("/{}", "a/".repeat(30_000)), ..head() };
        let template = Template::new("%{hostname}%{path|s~a~bb~g}").unwrap();
        assert_eq!(template.render(&long, None), Err(BadRewrite::TooLong));
        let compared = template.compared(&long).unwrap();
        assert_eq!(compared, format!("orders.shop/{}", "bb/".repeat(30_000)).into_bytes());
        for text in ["%{client_ip}", "%{forwarded_for}x"] {
            assert!(Template::new(text).unwrap().tells_client(), "{text}");
        }
        assert!(!template.tells_client());
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for name in ["", "path ", "Path", "header:", "header:a b", "cookie:", "form:a"] {
            let error = Template::new(&format!("a%{{{name}}}")).unwrap_err();
            assert_eq!(error, BadTemplate::Unknown(name.into()));
        }
        let many = format!("path{}", "|lower".repeat(9));
        for text in ["path|upper", "path|lowerx", "path|s~a", "path|s~(~b~", "path|s~a~$1~", &many]
        {
            let error = Template::new(&format!("%{{{text}}}")).unwrap_err();
            assert!(matches!(error, BadTemplate::Change(_)), "{text}: {error}");
        }
        assert_eq!(Template::new("a\nb"), Err(BadTemplate::Text));
        let template = Template::new(&"%{header:x-user}".repeat(3000)).unwrap();
        assert_eq!(template.render(&head(), None), Err(BadRewrite::TooLong));
    }
}
