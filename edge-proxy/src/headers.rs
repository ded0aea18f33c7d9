//! Headers that belong to one hop, and headers of the mesh itself.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};

/// `<name>.<namespace>`, on every stream of an inner session.
pub const SERVICE: HeaderName = HeaderName::from_static("isthmus-service");
/// Port name, on every stream of an inner session.
pub const PORT: HeaderName = HeaderName::from_static("isthmus-port");
/// `http1`, `http2` or `tcp`, on every stream of an inner session.
pub const PROTOCOL: HeaderName = HeaderName::from_static("isthmus-protocol");
/// The endpoint that the source chose, a hint among the destination's own.
pub const ENDPOINT: HeaderName = HeaderName::from_static("isthmus-endpoint");
/// The stable code of a refusal.
pub const ERROR: HeaderName = HeaderName::from_static("isthmus-error");
/// The verified caller, towards the application.
pub const CLIENT_ID: HeaderName = HeaderName::from_static("x-isthmus-client-id");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const PROXY_AUTHENTICATE: HeaderName = HeaderName::from_static("proxy-authenticate");
/// What an earlier mesh told applications about their callers; they may still
/// believe it.
const LEGACY_CLIENT_ID: HeaderName = HeaderName::from_static("l5d-client-id");

/// More names than this in `connection` are an attack on our time.
const MAX_CONNECTION_NAMES: usize = 32;

/// Removes what concerns only the connection it came on (RFC 9110 section
/// 7.6.1). `te: trailers` stays: gRPC insists on it.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        remove_connection_names(headers);
    }
    let trailers = headers.get(TE).is_some_and(mentions_trailers);
    for name in [
        &CONNECTION,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &PROXY_AUTHORIZATION,
        &PROXY_AUTHENTICATE,
        &TE,
        &TRANSFER_ENCODING,
        &UPGRADE,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn remove_connection_names(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // These carry the message itself; no connection may take them away.
        .filter(|name| ![HOST, TE, TRAILER, http::header::CONTENT_LENGTH].contains(name))
        .take(MAX_CONNECTION_NAMES)
        .collect();
    for name in named {
        headers.remove(name);
    }
}

fn mentions_trailers(te: &HeaderValue) -> bool {
    te.to_str().is_ok_and(|te| {
        te.split(',').any(|coding| {
            let coding = coding.split(';').next().unwrap_or_default();
            coding.trim().eq_ignore_ascii_case("trailers")
        })
    })
}

/// Removes what only the mesh may say to an application.
pub fn remove_mesh(headers: &mut HeaderMap) {
    for name in [&SERVICE, &PORT, &PROTOCOL, &ENDPOINT, &ERROR, &CLIENT_ID, &LEGACY_CLIENT_ID] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn hop_by_hop_headers_go_and_the_rest_stays() {
        type Pairs = &'static [(&'static str, &'static str)];
        let cases: &[(Pairs, Pairs)] = &[
            (&[("accept", "*/*")], &[("accept", "*/*")]),
            (&[("connection", "close"), ("x-a", "1")], &[("x-a", "1")]),
            (&[("connection", "X-Hop, keep-alive"), ("x-hop", "1"), ("keep-alive", "5")], &[]),
            (&[("transfer-encoding", "chunked"), ("upgrade", "h2c")], &[]),
            (&[("te", "gzip, trailers;q=1")], &[("te", "trailers")]),
            (&[("te", "gzip")], &[]),
            (&[("connection", "te"), ("te", "trailers")], &[("te", "trailers")]),
            (&[("connection", "host, content-length"), ("host", "a")], &[("host", "a")]),
            (&[("proxy-authorization", "x"), ("proxy-connection", "close")], &[]),
        ];
        for (given, wanted) in cases {
            let mut headers = map(given);
            remove_hop_by_hop(&mut headers);
            assert_eq!(headers, map(wanted), "{given:?}");
        }
    }

    #[test]
    fn nobody_else_speaks_for_the_mesh() {
        let mut headers = map(&[
            ("x-isthmus-client-id", "spiffe://a/ns/b/sa/c"),
            ("l5d-client-id", "forged"),
            ("isthmus-service", "a.b"),
            ("x-mine", "1"),
        ]);
        remove_mesh(&mut headers);
        assert_eq!(headers, map(&[("x-mine", "1")]));
    }
}
