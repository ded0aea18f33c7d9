//! A request to ask about, and what a proxy would do with it.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::source::Place;

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Which listener it comes in at, as the configuration writes it
    /// (`10.20.0.1:8000`), or the label of a Linkerd router; the only one where
    /// absent.
    pub listener: Option<String>,
    /// Of the client.
    pub source: IpAddr,
    /// What it is.
    pub kind: Kind,
}

/// What there is to see of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A connection.
    Connection {
        /// What TLS asks for.
        server_name: Option<String>,
    },
    /// A request of HTTP.
    Http(Http),
}

/// A request of HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// As it is sent.
    pub method: String,
    /// `Host` or `:authority`, as it is sent, with its port; `None` where absent.
    pub host: Option<String>,
    /// Path and query, as they are sent.
    pub target: String,
    /// All others; names in any case.
    pub headers: Vec<(String, String)>,
    /// HTTP/1.0.
    pub is_http10: bool,
}

impl Http {
    /// Without the query.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    /// The query, without its `?`.
    pub fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }

    /// The first value of a header; `host`, too.
    pub fn header(&self, name: &str) -> Option<&str> {
        if name.eq_ignore_ascii_case("host") {
            return self.host.as_deref();
        }
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// All values of one, with this between them.
    pub fn joined(&self, name: &str, between: &str) -> Option<String> {
        let named = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let all: Vec<&str> = named.map(|(_, value)| value.as_str()).collect();
        (!all.is_empty()).then(|| all.join(between))
    }
}

/// What is done with it, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// What is done.
    pub outcome: Outcome,
    /// Each step that led there, in order.
    pub why: Vec<Step>,
}

/// What is done with a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It goes on.
    Forwarded(Forwarded),
    /// The proxy itself answers.
    Answered {
        /// Status of HTTP.
        status: u16,
        /// Those of the answer that say something: `location`, `content-type`.
        headers: Vec<(String, String)>,
        /// What it says.
        body: Option<String>,
    },
    /// The connection ends.
    Closed,
}

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forwarded {
    /// Backends of the source that may take it (a backend, an upstream, a cluster, a
    /// bound name), with their shares, which make 1 together.
    pub pools: Vec<(String, f64)>,
    /// Endpoints that take it while all are well, with their shares.
    pub endpoints: Vec<(Endpoint, f64)>,
    /// The same request goes to the same endpoint.
    pub is_sticky: bool,
    /// Path and query as the application gets them.
    pub target: Option<String>,
    /// Headers that the proxy has set, or (`None`) removed, names in lower case;
    /// `host` only where it is another.
    pub headers: Vec<(String, Option<String>)>,
}

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(untagged)]
pub enum Endpoint {
    /// An address.
    Address(SocketAddr),
    /// `<name>:<port>`, to be resolved.
    Name(String),
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// The line that says so.
    #[serde(serialize_with = "place")]
    pub place: Option<Place>,
    /// What it does with this request.
    pub what: String,
}

fn place<S: serde::Serializer>(place: &Option<Place>, serializer: S) -> Result<S::Ok, S::Error> {
    match place {
        Some(place) => serializer.collect_str(place),
        None => serializer.serialize_none(),
    }
}

/// Shares of the same together; who has none is left out, unless nobody has one.
pub(crate) fn summed<T: PartialEq>(shares: impl IntoIterator<Item = (T, f64)>) -> Vec<(T, f64)> {
    let mut all: Vec<(T, f64)> = Vec::new();
    for (one, share) in shares {
        match all.iter_mut().find(|(known, _)| *known == one) {
            Some((_, known)) => *known += share,
            None => all.push((one, share)),
        }
    }
    if all.iter().any(|(_, share)| *share > 0.0) {
        all.retain(|(_, share)| *share > 0.0);
    }
    all
}
