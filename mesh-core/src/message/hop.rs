//! Fields that belong to one connection, and fields of the mesh itself.

use http::StatusCode;

use super::{
    fields::Fields,
    known::{Known, KnownSet},
};

/// What concerns only the connection it came on (RFC 9110 section 7.6.1), and
/// the body's framing on it.
const HOP: KnownSet = KnownSet::of(&[
    Known::Connection,
    Known::KeepAlive,
    Known::ProxyConnection,
    Known::ProxyAuthorization,
    Known::ProxyAuthenticate,
    Known::Te,
    Known::TransferEncoding,
    Known::Upgrade,
    Known::Http2Settings,
]);

/// What carries the message itself; no `Connection` may take it away.
const END_TO_END: KnownSet =
    KnownSet::of(&[Known::Host, Known::Te, Known::Trailer, Known::ContentLength]);

/// What only the mesh may say to an application, and to its own proxies.
const MESH: KnownSet = KnownSet::of(&[
    Known::Mesh,
    Known::IsthmusClientId,
    Known::IsthmusError,
    Known::LegacyClientId,
]);

/// More names than this in `Connection` are an attack on our time: a parser
/// refuses such a message, and [`remove`] reads no further.
pub const MAX_CONNECTION_NAMES: usize = 32;

/// Whether an `Upgrade` is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// It ends here, as an offer may (RFC 9110 section 7.8).
    Drop,
    /// It stays; whoever writes the message says `Connection: upgrade`.
    Keep,
}

impl Upgrade {
    /// In an answer it is what was switched to (RFC 9110 section 7.8), or what
    /// is required (section 15.5.22).
    pub fn in_answer(status: StatusCode) -> Self {
        match status {
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED => Self::Keep,
            _ => Self::Drop,
        }
    }
}

/// Removes what concerns only the connection it came on, the fields that
/// `Connection` names included (RFC 9110 section 7.6.1). `TE: trailers`
/// stays: gRPC insists on it.
pub fn remove(fields: &mut Fields, upgrade: Upgrade) {
    if !fields.known_names().has_any(HOP) {
        return;
    }
    let trailers = fields.all_known(Known::Te).any(|te| lists(te, "trailers"));
    if fields.has(Known::Connection) {
        remove_listed(fields);
    }
    let mut names = HOP;
    if upgrade == Upgrade::Keep {
        names = names.without(KnownSet::of(&[Known::Upgrade]));
    }
    fields.remove_set(names);
    if trailers {
        fields.push_known(Known::Te, b"trailers");
    }
}

fn remove_listed(fields: &mut Fields) {
    let only_usual = |value| {
        elements(value).all(|name| {
            ["close", "keep-alive", "upgrade", "te"].iter().any(|usual| is(name, usual))
        })
    };
    if fields.all_known(Known::Connection).all(only_usual) {
        return;
    }
    let listed: Vec<Vec<u8>> = fields
        .all_known(Known::Connection)
        .flat_map(elements)
        .filter(|name| !Known::of(name).is_some_and(|known| END_TO_END.with(HOP).has(known)))
        .take(MAX_CONNECTION_NAMES)
        .map(<[u8]>::to_vec)
        .collect();
    let is_listed = |name: &str| listed.iter().any(|listed| is(listed, name));
    fields.retain(|name, _| !is_listed(name));
}

/// Whether an `Upgrade` offers what a tunnel may carry. HTTP itself (`h2c`)
/// and TLS are not: inside would be requests that nobody has looked at.
pub fn offers_tunnel(fields: &Fields) -> bool {
    let is_tunnelled = |protocol: &[u8]| {
        let name = protocol.split(|&byte| byte == b'/').next().unwrap_or_default();
        !["h2c", "h2", "http", "tls"].iter().any(|never| is(name, never))
    };
    let mut offers = fields.all_known(Known::Upgrade).flat_map(elements).peekable();
    offers.peek().is_some() && offers.all(is_tunnelled)
}

/// Removes what only the mesh may say. For messages from clients and from
/// applications.
pub fn remove_mesh(fields: &mut Fields) {
    fields.remove_set(MESH);
}

/// What no trailer section may say (RFC 9110 section 6.5.1): framing, routing,
/// controls and conditions, authentication, the form of content. Whoever
/// merges trailers into the head would be deceived by them.
const NOT_IN_TRAILERS: KnownSet = KnownSet::of(&[
    Known::Authorization,
    Known::ContentLength,
    Known::ContentType,
    Known::Cookie,
    Known::Date,
    Known::Expect,
    Known::Forwarded,
    Known::Host,
    Known::Location,
    Known::RetryAfter,
    Known::SetCookie,
    Known::Trailer,
    Known::XForwardedClientCert,
    Known::XForwardedFor,
    Known::XForwardedHost,
    Known::XForwardedPort,
    Known::XForwardedProto,
    Known::XRealIp,
]);

/// The rest of [`NOT_IN_TRAILERS`], in lower case.
const NAMES_NOT_IN_TRAILERS: &[&str] = &[
    "age",
    "cache-control",
    "content-encoding",
    "content-range",
    "expires",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "max-forwards",
    "pragma",
    "range",
    "vary",
    "warning",
    "www-authenticate",
];

/// Removes from trailers what they may not say.
pub fn remove_from_trailers(fields: &mut Fields) {
    fields.remove_set(NOT_IN_TRAILERS.with(HOP).with(MESH));
    let is_forbidden = |name: &str| {
        NAMES_NOT_IN_TRAILERS.iter().any(|forbidden| forbidden.eq_ignore_ascii_case(name))
    };
    if fields.iter().any(|(name, _)| is_forbidden(name)) {
        fields.retain(|name, _| !is_forbidden(name));
    }
}

/// The elements of a comma-separated list without parameters (RFC 9110
/// section 5.6.1): white space and empty elements are skipped.
pub fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty())
}

/// Whether a comma-separated list has an element, parameters aside.
pub fn lists(value: &[u8], wanted: &str) -> bool {
    elements(value).any(|element| {
        let name = element.split(|&byte| byte == b';').next().unwrap_or_default();
        is(name.trim_ascii_end(), wanted)
    })
}

fn is(name: &[u8], wanted: &str) -> bool {
    name.eq_ignore_ascii_case(wanted.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = &'static [(&'static str, &'static str)];

    fn fields(pairs: Pairs) -> Fields {
        pairs.iter().map(|(name, value)| (*name, value.as_bytes())).collect()
    }

    #[test]
    fn hop_by_hop_fields_go_and_the_rest_stays() {
        let cases: &[(Pairs, Pairs)] = &[
            (&[("accept", "*/*")], &[("accept", "*/*")]),
            (&[("Connection", "close"), ("x-a", "1")], &[("x-a", "1")]),
            (&[("connection", "X-Hop, keep-alive"), ("x-hop", "1"), ("keep-alive", "5")], &[]),
            (&[("x-hop", "1"), ("connection", "close"), ("Connection", ", ,x-hop,")], &[]),
            (&[("transfer-encoding", "chunked"), ("upgrade", "h2c")], &[]),
            (&[("http2-settings", "x"), ("connection", "upgrade, http2-settings")], &[]),
            (&[("te", "gzip, trailers;q=1")], &[("te", "trailers")]),
            (&[("te", "gzip"), ("TE", "Trailers")], &[("te", "trailers")]),
            (&[("te", "gzip")], &[]),
            (&[("connection", "te"), ("te", "trailers")], &[("te", "trailers")]),
            (
                &[
                    ("connection", "host, content-length, trailer"),
                    ("content-length", "3"),
                    ("trailer", "a"),
                ],
                &[("content-length", "3"), ("trailer", "a")],
            ),
            (&[("proxy-authorization", "x"), ("proxy-connection", "close")], &[]),
            (&[("proxy-authenticate", "x")], &[]),
        ];
        for (given, wanted) in cases {
            let mut headers = fields(given);
            remove(&mut headers, Upgrade::Drop);
            assert_eq!(headers, fields(wanted), "{given:?}");
        }
    }

    #[test]
    fn an_upgrade_stays_when_asked() {
        let mut headers =
            fields(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("keep-alive", "3")]);
        remove(&mut headers, Upgrade::Keep);
        assert_eq!(headers, fields(&[("upgrade", "websocket")]));
    }

    #[test]
    fn what_is_no_http_may_be_tunnelled() {
        let cases: &[(Pairs, bool)] = &[
            (&[("upgrade", "websocket")], true),
            (&[("Upgrade", "WebSocket/13, echo")], true),
            (&[("upgrade", "h2c")], false),
            (&[("upgrade", "websocket, H2C")], false),
            (&[("upgrade", "websocket"), ("upgrade", "HTTP/2.0")], false),
            (&[("upgrade", "TLS/1.0")], false),
            (&[("upgrade", ",")], false),
            (&[("connection", "upgrade")], false),
        ];
        for (given, wanted) in cases {
            assert_eq!(offers_tunnel(&fields(given)), *wanted, "{given:?}");
        }
    }

    #[test]
    fn an_answer_names_a_protocol_where_that_is_its_meaning() {
        let cases = [(101, Upgrade::Keep), (426, Upgrade::Keep), (200, Upgrade::Drop)];
        for (status, wanted) in cases {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(Upgrade::in_answer(status), wanted, "{status}");
        }
    }

    #[test]
    fn many_connection_names_cost_little() {
        let many = (0..100_000).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(",");
        let mut headers = Fields::new();
        headers.push("connection", many.as_bytes());
        headers.push("x-31", b"listed");
        headers.push("x-32", b"too late");
        remove(&mut headers, Upgrade::Drop);
        assert_eq!(headers, fields(&[("x-32", "too late")]));
    }

    #[test]
    fn trailers_say_nothing_of_the_message() {
        let mut trailers = fields(&[
            ("Content-Length", "5"),
            ("transfer-encoding", "chunked"),
            ("connection", "close"),
            ("Cache-Control", "no-store"),
            ("isthmus-error", "no_route"),
            ("x-forwarded-for", "::1"),
            ("set-cookie", "a"),
            ("te", "trailers"),
            ("grpc-status", "0"),
            ("x-checksum", "1"),
        ]);
        remove_from_trailers(&mut trailers);
        assert_eq!(trailers, fields(&[("grpc-status", "0"), ("x-checksum", "1")]));
    }

    #[test]
    fn nobody_else_speaks_for_the_mesh() {
        let mut headers = fields(&[
            ("X-Isthmus-Client-Id", "spiffe://a/ns/b/sa/c"),
            ("x_isthmus_client_id", "spiffe://a/ns/b/sa/c"),
            ("l5d-client-id", "forged"),
            ("isthmus-service", "a.b"),
            ("isthmus-error", "no_route"),
            ("x-mine", "1"),
        ]);
        remove_mesh(&mut headers);
        assert_eq!(headers, fields(&[("x-mine", "1")]));
    }
}
