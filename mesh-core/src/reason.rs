//! The stable codes of everything that a client can see refused: the same in
//! the response (`isthmus-error`), the access log, the metric and
//! `meshctl why`.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal;)*) => {
        /// Why a request or connection was refused or failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// The stable code.
            pub fn code(self) -> &'static str {
                match self { $(Reason::$name => $code,)* }
            }

            /// The HTTP status that a client sees.
            pub fn http_status(self) -> u16 {
                match self { $(Reason::$name => $status,)* }
            }
        }
    };
}

reasons! {
    /// The request does not name a service of the mesh.
    NoSuchService = "no_such_service", 404;
    /// The service has no such port.
    NoSuchPort = "no_such_port", 404;
    /// No route of the service matches.
    NoRoute = "no_route", 404;
    /// The rule has no backend, or all weights are zero.
    NoBackend = "no_backend", 500;
    /// The backend that was chosen does not exist (Gateway API).
    InvalidBackend = "invalid_backend", 500;
    /// What a rule makes of the request is none: a path that does not begin
    /// with '/', or what is too long.
    BadRewrite = "bad_rewrite", 500;
    /// Injected on purpose; the rule says with which status.
    FaultInjected = "fault_injected", 503;
    /// A rate limit of the service.
    RateLimited = "rate_limited", 429;
    /// The caller has as much at this service as its policy allows.
    CircuitOpen = "circuit_open", 503;
    /// No endpoint may be used.
    NoEndpoint = "no_endpoint", 503;
    /// This proxy has no certificate to show.
    NoIdentity = "no_identity", 503;
    /// No gateway or session leads there.
    NoPath = "no_path", 503;
    /// The endpoint's proxy could not be reached.
    EndpointUnreachable = "endpoint_unreachable", 503;
    /// A hop refused the stream; its own code is in the detail.
    PathRefused = "path_refused", 503;
    /// The peer's certificate is not the endpoint's.
    PeerIdentity = "peer_identity", 503;
    /// The connection broke before an answer.
    UpstreamReset = "upstream_reset", 502;
    /// The application behind the far proxy refused or failed.
    AppUnreachable = "app_unreachable", 502;
    /// A deadline passed.
    Timeout = "timeout", 504;
    /// The service is not exported to the caller's site.
    DeniedNotExported = "denied_not_exported", 403;
    /// No rule allows the caller.
    DeniedNoRule = "denied_no_rule", 403;
    /// A rule allows the caller, but not from its address.
    DeniedNetwork = "denied_network", 403;
    /// The client has no identity, and no rule allows such.
    DeniedUnauthenticated = "denied_unauthenticated", 403;
    /// Identities of nodes, gateways and federations call no services.
    DeniedNotAWorkload = "denied_not_a_workload", 403;
    /// The target is an address, or one of our own ports.
    ForbiddenTarget = "forbidden_target", 403;
    /// The client's message breaks the protocol.
    BadRequest = "bad_request", 400;
    /// A limit of this proxy.
    Overloaded = "overloaded", 503;
    /// This proxy is going away.
    Draining = "draining", 503;
    /// Reserved for later versions.
    Unsupported = "unsupported", 501;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Reason;

    #[test]
    fn codes_are_unique_and_made_for_labels() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            let code = reason.code();
            assert!(code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{code}");
            assert_eq!(reason.to_string(), code);
            assert!((400..600).contains(&reason.http_status()), "{code}");
        }
    }

    /// Clients act on these.
    #[test]
    fn statuses() {
        for (reason, status) in [
            (Reason::NoSuchService, 404),
            (Reason::NoEndpoint, 503),
            (Reason::UpstreamReset, 502),
            (Reason::Timeout, 504),
            (Reason::DeniedNoRule, 403),
            (Reason::BadRequest, 400),
            (Reason::Unsupported, 501),
        ] {
            assert_eq!(reason.http_status(), status, "{reason}");
        }
    }
}
