//! HTTP messages as the mesh sees them, whichever version carried them.
//!
//! A head is parsed once into a [`RequestHead`] or [`ResponseHead`] that is
//! reused for the next message, so a warm request path allocates nothing.
//! `Host` and `:authority` are one thing here: [`RequestHead::authority`].
//! The framing of a body (`Content-Length`, `Transfer-Encoding`) is the
//! business of whoever writes the message; a `Content-Length` stays among the
//! fields as information.
//!
//! - [`known`]: the field names that the proxy itself looks at.
//! - [`fields`]: header fields in order, in one block of memory.
//! - [`hop`]: fields that belong to one connection, and those of the mesh.
//! - [`forwarded`]: what the next hop is told of the client.
//! - [`normal`]: paths in one form.
//! - [`convert`]: from and to the types of the `http` crate (HTTP/2).
//! - [`codec`]: from and to bytes between two proxies.

pub mod codec;
pub mod convert;
pub mod fields;
pub mod forwarded;
pub mod hop;
pub mod known;
pub mod normal;

pub use convert::BadHead;
pub use fields::{Fields, InvalidField};
pub use known::{Known, KnownSet};

use http::{Method, StatusCode};

/// The scheme of the target URI (RFC 9110 section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    /// `http`
    #[default]
    Http,
    /// `https`
    Https,
}

impl Scheme {
    /// As it is written in a URI.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// Request method.
    pub method: Method,
    /// Scheme of the target URI.
    pub scheme: Scheme,
    /// `Host` or `:authority`; empty only where a client of HTTP/1.0 names
    /// none. For CONNECT where to.
    pub authority: String,
    /// Path and query in origin-form, `*` (OPTIONS), or empty (CONNECT).
    pub target: String,
    /// The target as the client has sent it, where [`RequestHead::target`] is
    /// another form of it and applications shall get this one; else empty.
    pub sent: String,
    /// The path of [`RequestHead::target`] without escapes, where rules compare
    /// it so and it has some; else empty.
    pub decoded: Vec<u8>,
    /// All fields but `Host`.
    pub fields: Fields,
}

impl Default for RequestHead {
    fn default() -> Self {
        Self {
            method: Method::GET,
            scheme: Scheme::Http,
            authority: String::new(),
            target: String::new(),
            sent: String::new(),
            decoded: Vec::new(),
            fields: Fields::new(),
        }
    }
}

impl RequestHead {
    /// `GET` of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Back to [`RequestHead::new`], keeping the memory.
    pub fn clear(&mut self) {
        self.method = Method::GET;
        self.scheme = Scheme::Http;
        self.authority.clear();
        self.target.clear();
        self.sent.clear();
        self.decoded.clear();
        self.fields.clear();
    }

    /// The target in the form that applications get, unless a rule changes it.
    pub fn sent_target(&self) -> &str {
        if self.sent.is_empty() { &self.target } else { &self.sent }
    }

    /// The path as rules compare it.
    pub fn compared_path(&self) -> &[u8] {
        if self.decoded.is_empty() { self.path().as_bytes() } else { &self.decoded }
    }

    /// The target without its query; `*` and the empty target of CONNECT are
    /// returned as they are.
    pub fn path(&self) -> &str {
        self.split_target().0
    }

    /// What follows the first `?`.
    pub fn query(&self) -> Option<&str> {
        self.split_target().1
    }

    fn split_target(&self) -> (&str, Option<&str>) {
        match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (&self.target, None),
        }
    }

    /// The authority without its port: `[::1]` keeps its brackets.
    pub fn host(&self) -> &str {
        self.split_authority().0
    }

    /// The port of the authority, as it is written; it may be empty.
    pub fn port(&self) -> Option<&str> {
        self.split_authority().1
    }

    fn split_authority(&self) -> (&str, Option<&str>) {
        match self.authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (&self.authority, None),
        }
    }

    /// Whether the client speaks gRPC.
    pub fn is_grpc(&self) -> bool {
        let value = self.fields.known(Known::ContentType);
        value.is_some_and(is_grpc)
    }
}

/// Whether a content type is gRPC's (gRPC over HTTP/2, "Content-Type"); gRPC-Web's is not.
pub fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| rest.first().is_none_or(|next| b"+; ".contains(next)))
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseHead {
    /// Status code.
    pub status: StatusCode,
    /// All fields.
    pub fields: Fields,
}

impl ResponseHead {
    /// `200` without fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Back to [`ResponseHead::new`], keeping the memory.
    pub fn clear(&mut self) {
        self.status = StatusCode::OK;
        self.fields.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_a_path_and_perhaps_a_query() {
        let cases = [
            ("/a/b?c=d?e", "/a/b", Some("c=d?e")),
            ("/", "/", None),
            ("/?", "/", Some("")),
            ("*", "*", None),
            ("", "", None),
        ];
        for (target, path, query) in cases {
            let head = RequestHead { target: target.into(), ..RequestHead::new() };
            assert_eq!((head.path(), head.query()), (path, query), "{target}");
        }
    }

    #[test]
    fn an_authority_has_a_host() {
        let cases = [
            ("orders.shop:80", "orders.shop", Some("80")),
            ("orders.shop:", "orders.shop", Some("")),
            ("orders.shop", "orders.shop", None),
            ("[::1]:80", "[::1]", Some("80")),
            ("[::1]", "[::1]", None),
            ("", "", None),
        ];
        for (authority, host, port) in cases {
            let head = RequestHead { authority: authority.into(), ..RequestHead::new() };
            assert_eq!((head.host(), head.port()), (host, port), "{authority}");
        }
    }

    #[test]
    fn grpc_is_what_its_content_says() {
        let cases = [
            (Some("application/grpc"), true),
            (Some("application/grpc+proto"), true),
            (Some("application/grpc;proto"), true),
            (Some("application/grpc-web+proto"), false),
            (Some("application/json"), false),
            (None, false),
        ];
        for (content, is_grpc) in cases {
            let mut head = RequestHead::new();
            if let Some(content) = content {
                head.fields.push("Content-Type", content.as_bytes());
            }
            assert_eq!(head.is_grpc(), is_grpc, "{content:?}");
        }
    }

    #[test]
    fn a_cleared_head_is_new() {
        let mut head = RequestHead {
            method: Method::PUT,
            scheme: Scheme::Https,
            authority: "a".into(),
            target: "/".into(),
            fields: Fields::new(),
            sent: "/./".into(),
            decoded: b"/".to_vec(),
        };
        head.fields.push("content-type", b"application/grpc+proto");
        assert!(head.is_grpc());
        head.clear();
        assert_eq!(head, RequestHead::new());
        let mut head = ResponseHead { status: StatusCode::NOT_FOUND, fields: Fields::new() };
        head.fields.push("a", b"b");
        head.clear();
        assert_eq!(head, ResponseHead::new());
    }
}
