//! One registry that is asked over plain HTTP.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use mesh_migrate::{linkerd1::world::endpoint, request::Endpoint, yaml::Node};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::super::http::{self as plain, Bounds, Lost};

/// For one answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// For all answers of one registry.
const PATIENCE_FOR_ALL: Duration = Duration::from_secs(60);
/// Of one answer, in bytes.
const LONGEST: usize = 64 << 20;
/// Questions at once: an agent of a host is not to be troubled.
pub(super) const AT_ONCE: usize = 8;
/// Longer is no host name.
const MAX_HOST: usize = 255;

/// Why something is not known.
#[derive(Debug)]
pub(super) struct Wrong {
    text: String,
    /// The status that was answered instead.
    pub status: Option<StatusCode>,
}

impl Wrong {
    pub(super) fn new(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), status: None }
    }

    /// Whether it makes no sense to ask on.
    pub(super) fn is_gone(&self) -> bool {
        self.status.is_none()
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One registry.
#[derive(Debug)]
pub(super) struct Asker {
    authority: String,
    headers: Vec<(&'static str, String)>,
    until: Instant,
}

impl Asker {
    /// Where `host` and `port` of a node say.
    pub(super) fn of(node: &Node, host: &str, port: u16) -> Result<Self, Wrong> {
        let off = |tls: &Node| tls.at("enabled").is_some_and(|on| on.bool().is_ok_and(|on| !on));
        if node.at("tls").is_some_and(|tls| !off(tls)) {
            return Err(Wrong::new("it is asked with TLS, which is not done here"));
        }
        let host = text(node, "host")?.unwrap_or_else(|| host.to_owned());
        let port = match node.at("port") {
            Some(port) => port.number().map_err(Wrong::new)?,
            None => port,
        };
        Ok(Self::at(&host, port))
    }

    pub(super) fn at(host: &str, port: u16) -> Self {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let until = Instant::now() + PATIENCE_FOR_ALL;
        Self { authority: format!("{host}:{port}"), headers: Vec::new(), until }
    }

    pub(super) fn with(mut self, header: &'static str, value: Option<String>) -> Self {
        self.headers.extend(value.map(|value| (header, value)));
        self
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.authority)
    }

    pub(super) async fn bytes(&self, path: &str) -> Result<Bytes, Wrong> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let patience = PATIENCE_FOR_ALL.as_secs();
            let why = format!("{}: not asked: {patience} s had passed", self.url(path));
            return Err(Wrong::new(why));
        }
        let headers: Vec<_> = self.headers.iter().map(|(name, it)| (*name, it.as_str())).collect();
        let bounds = Bounds { patience: PATIENCE, length: LONGEST };
        let answer = plain::get(&self.authority, path, &headers, bounds).await;
        answer.map_err(|lost| {
            let text = format!("{}: {lost}", self.url(path));
            let status = if let Lost::Refused(status) = lost { Some(status) } else { None };
            Wrong { text, status }
        })
    }

    pub(super) async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Wrong> {
        let bytes = self.bytes(path).await?;
        let wrong = |error| Wrong::new(format!("{}: says something else: {error}", self.url(path)));
        serde_json::from_slice(&bytes).map_err(wrong)
    }
}

/// A text of a node.
pub(super) fn text(node: &Node, key: &str) -> Result<Option<String>, Wrong> {
    node.at(key).map(Node::text).transpose().map_err(Wrong::new)
}

/// `true` or `false` of a node.
pub(super) fn flag(node: &Node, key: &str, default: bool) -> Result<bool, Wrong> {
    node.at(key).map_or(Ok(default), Node::bool).map_err(Wrong::new)
}

/// An endpoint, if these can be one. What a registry says goes into files.
pub(super) fn place(host: &str, port: u64) -> Option<Endpoint> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    let host = host.trim_end_matches('.');
    let good = !host.is_empty() && host.len() <= MAX_HOST && host.bytes().all(is_good);
    let port = u16::try_from(port).ok().filter(|port| *port > 0)?;
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    (good && (is_address || !host.contains(':'))).then(|| endpoint(host, port))
}

/// A part of a path or a value of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_an_endpoint() {
        let said = |host: &str, port: u64| match place(host, port) {
            Some(Endpoint::Address(address)) => address.to_string(),
            Some(Endpoint::Name(name)) => name,
            None => "none".into(),
        };
        for (host, port, expected) in [
            ("10.0.0.1", 80, "10.0.0.1:80"),
            ("::1", 80, "[::1]:80"),
            ("web.corp.", 80, "web.corp:80"),
            ("web", 0, "none"),
            ("web", 65_536, "none"),
            ("", 80, "none"),
            ("a b", 80, "none"),
            ("web:81", 80, "none"),
            ("web*2", 80, "none"),
        ] {
            assert_eq!(said(host, port), expected, "{host:?} {port}");
        }
        assert_eq!(encoded("/svc/a b"), "%2Fsvc%2Fa%20b");
    }
}
