//! Header values that are made of the request.

use std::{io::Write as _, net::IpAddr, sync::Arc};

use http::{HeaderName, HeaderValue};

use super::rewrite::BadRewrite;
use crate::message::RequestHead;

/// Bytes of a value that comes out.
const MAX_VALUE: usize = 8 << 10;

/// A text that makes no header value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    /// There is no such part of a request.
    #[error(
        "%{{{0}}} is not known: client_ip, forwarded_for, host, hostname, path, query, target, scheme, method \
         and header:NAME are; %% is a percent sign"
    )]
    Unknown(Box<str>),
    /// RFC 9110 section 5.5.
    #[error("has characters that no header value may have")]
    Text,
}

/// Text with `%{…}` for parts of the request; `%%` is a percent sign, and so
/// is one before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Arc<str>,
    parts: Vec<Part>,
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
}

impl Template {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// It names what no request has, or has characters that no value may have.
    pub fn new(text: &str) -> Result<Self, BadTemplate> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
            } else if let Some((name, after)) =
                after.strip_prefix('{').and_then(|a| a.split_once('}'))
            {
                push_text(&mut parts, &mut literal);
                parts.push(part(name).ok_or_else(|| BadTemplate::Unknown(name.into()))?);
                rest = after;
            } else {
                literal.push('%');
                rest = after;
            }
        }
        literal.push_str(rest);
        push_text(&mut parts, &mut literal);
        HeaderValue::from_str(text).map_err(|_| BadTemplate::Text)?;
        Ok(Self { text: text.into(), parts })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
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
        let mut value = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => value.extend_from_slice(text.as_bytes()),
                Part::ClientIp => {
                    if let Some(client) = client {
                        let _infallible = write!(value, "{}", client.to_canonical());
                    }
                }
                Part::ForwardedFor => {
                    let client = client.map(|client| client.to_canonical().to_string());
                    let client = client.as_ref().map(String::as_bytes);
                    let before = head.fields.all("x-forwarded-for").filter(|one| !one.is_empty());
                    let all: Vec<&[u8]> = before.chain(client).collect();
                    value.extend_from_slice(&all.join(&b", "[..]));
                }
                Part::Host => value.extend_from_slice(head.authority.as_bytes()),
                Part::Hostname => {
                    value.extend(head.host().bytes().map(|byte| byte.to_ascii_lowercase()));
                }
                Part::Path => value.extend_from_slice(head.path().as_bytes()),
                Part::Query => value.extend_from_slice(head.query().unwrap_or_default().as_bytes()),
                Part::Target => value.extend_from_slice(head.sent_target().as_bytes()),
                Part::Scheme => value.extend_from_slice(head.scheme.as_str().as_bytes()),
                Part::Method => value.extend_from_slice(head.method.as_str().as_bytes()),
                Part::Header(name) if *name == http::header::HOST => {
                    value.extend_from_slice(head.authority.as_bytes());
                }
                Part::Header(name) => {
                    value.extend_from_slice(head.fields.get(name.as_str()).unwrap_or_default());
                }
            }
            if value.len() > MAX_VALUE {
                return Err(BadRewrite::TooLong);
            }
        }
        // RFC 9110 section 5.5: no value begins or ends with space.
        Ok(value.trim_ascii().to_vec())
    }
}

fn push_text(parts: &mut Vec<Part>, literal: &mut String) {
    if !literal.is_empty() {
        parts.push(Part::Text(std::mem::take(literal).into()));
    }
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
        other => Part::Header(other.strip_prefix("header:")?.parse().ok()?),
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
    fn what_is_no_value_is_refused() {
        for name in ["", "path ", "Path", "header:", "header:a b", "cookie:a"] {
            let error = Template::new(&format!("a%{{{name}}}")).unwrap_err();
            assert_eq!(error, BadTemplate::Unknown(name.into()));
        }
        assert_eq!(Template::new("a\nb"), Err(BadTemplate::Text));
        let template = Template::new(&"%{header:x-user}".repeat(3000)).unwrap();
        assert_eq!(template.render(&head(), None), Err(BadRewrite::TooLong));
    }
}
