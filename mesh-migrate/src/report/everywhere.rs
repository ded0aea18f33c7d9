//! What is different for requests of any configuration, and stands in none of its lines.

/// Of a format, as `--from` has it.
pub(super) fn of(format: &str) -> Vec<&'static str> {
    let (own, errors) = match format {
        "nginx" => (NGINX, BRIEF),
        "haproxy" => (HAPROXY, BRIEF),
        "envoy" => (ENVOY, BRIEF),
        "linkerd1" => (LINKERD1, FULL),
        _ => return Vec::new(),
    };
    own.iter().chain([&errors]).chain(ALL).copied().collect()
}

const ALL: &[&str] = &[
    "a connection that is refused, or is not there after 2 s where no time is written, is tried at another endpoint, whatever is said of repetitions, and where there is none the answer is 502; an answer that comes too late is 504; where no endpoint may be chosen it is 503",
    "an idempotent request on a kept connection that the application closes without an answer is sent again, however far the application had come",
    "a connection of TCP that cannot be carried on is reset",
    "a request with a limit of time tells the application of it in x-isthmus-timeout, and in grpc-timeout where a client has set that; what a client says there is obeyed",
    "CONNECT is answered 501 where it names a host and a port, and 400 otherwise; TRACE and OPTIONS * go on",
    "two lines of Host, an empty one or none in HTTP/1.1, a target of another host than Host, folded headers, headers without a colon, control characters and lines without CR are answered 400, as is a target with user information or with https where TLS is not spoken, Transfer-Encoding beside Content-Length, and a port above 65535; other versions than 1.0 and 1.1 are answered 505; heads of up to 64 KiB with somewhat more than a hundred headers are taken, and bodies of any length",
    "headers that Connection names, Keep-Alive, Proxy-Connection, Proxy-Authenticate, Proxy-Authorization, HTTP2-Settings and Expect are for one connection and do not go on, TE: trailers does; an answer has the standard phrase of its status",
    "an answer of an application that is no HTTP/1 as it is written today (Transfer-Encoding beside Content-Length, two lengths, folded lines, lines without CR or colon, another version) is 502, and one with a head of up to 64 KiB goes on",
    "lines of a header that come twice go on as they are; blanks at the end of a value do not; a request that may have a body and has none says Content-Length: 0; headers of clients that begin with isthmus- or x-isthmus- do not go on",
];

/// What clients hear of failures, where they are strangers and where they are not.
const BRIEF: &str = "an answer of the proxy itself has the phrase of its status as its text and a code of the reason in isthmus-error and l5d-proxy-error (what has failed is in the log), and none of the headers that are added to answers of applications";
const FULL: &str = "an answer of the proxy itself says in its body and in isthmus-error what has failed, endpoints and their addresses included, and has none of the headers that are added to answers of applications";

const NGINX: &[&str] = &[
    "a request with Upgrade goes on as one where no proxy_set_header says so, too; nginx leaves it out",
    "headers whose names have other characters than letters, digits, - and _ go on; nginx leaves them out (ignore_invalid_headers)",
    "targets with a # or with bytes that are not ASCII, and a Host with @ are answered 400; nginx takes them",
    "methods in lower case go on; nginx answers 400",
    "texts of return are text/plain with charset=utf-8 where no default_type is written, whatever types say of their paths; a redirect or a status without text has none of nginx's pages",
    "a redirect to a path alone names the host as the client writes it, in capitals or with a last dot",
    "Location and Refresh of applications go on as they are, also where nginx rewrites them by default (proxy_redirect), and X-Accel headers of applications go on to clients",
    "a body over client_max_body_size (1m where it is not written) goes on, and an application that says nothing for proxy_read_timeout (60s) is waited for",
    "applications are spoken to in HTTP/1.1 over kept connections, and a chunked body stays chunked",
    "Server is what the application says, and answers of the proxy itself have none; X-Pad goes on, and of two Content-Type lines both",
    "servers that have all failed are asked on; nginx answers 502 itself for fail_timeout",
    "a request that no location takes is answered 404, also where nginx has a page of its own for / (no root)",
    "a Content-Type of add_header takes the place of the one that an answer of the proxy has; nginx sends both",
    "a listener of http2 without TLS takes HTTP/1.1, too; an empty X-Forwarded-For counts nothing in $proxy_add_x_forwarded_for",
];

const HAPROXY: &[&str] = &[
    "requests are spread by load and latency, in turn only as far as servers are alike",
    "an endpoint that fails five times in a row (no answer, or 500 to 599) is left alone for a while, observe or not",
    "a header that is set to nothing is not sent; HAProxy sends it empty",
    "clients of IPv4 at a listener of IPv6 are told as 10.0.0.1, not as ::ffff:10.0.0.1",
    "a Host whose port is no number is answered 400",
    "a request without Host (HTTP/1.0) has one when it goes on, and a target with scheme and host (GET http://…) is a path alone then, for rules and for the application",
    "answers of failures (502, 503, 504) and of monitor fail have none of HAProxy's pages, and no cache-control; a connection stays open after an answer of 400",
    "an upgrade to WebSocket without a key goes on",
    "connections of clients and to applications are kept and used again, whatever option httpclose or http-server-close say",
    "an application that sets the cookie of cookie … insert itself is heard: clients get both",
    "a cookie that keeps clients at a server has SameSite=Lax and HttpOnly, and goes on to the application",
    "health checks are made by HTTP/1.1 with the service's name as Host; they begin with the first request for a backend, and until they have failed its servers take part",
    "requests at once to a server are not limited: its maxconn is only its part when requests are spread",
];

const ENVOY: &[&str] = &[
    "requests are spread by load and latency, in turn only as far as endpoints are alike",
    "an endpoint that fails five times in a row (no answer, or 500 to 599) is left alone for a while where no outlier_detection is written, and its level of priority is left when no endpoint is well, health_checks or not; where all are unwell all take part, unless healthy_panic_threshold is 0",
    "values that layered_runtime has for a fraction or a flag are not read: what stands at it counts",
    "headers x-envoy-* of clients go on; Envoy obeys, replaces or removes them",
    "a Host whose port is no number is answered 400, a method that is none 501, a version that is none 505",
    "a cookie that a hash policy makes has SameSite=Lax and a path",
    "an application that takes a request and closes without an answer is answered 502, as is one that nobody connects to; Envoy answers 503",
    "a direct answer of 201 or 300 to 399 has no Location where none is written, and a body without a length has none either",
    "a direct answer is text/plain with charset=utf-8 where nothing else is said",
];

const LINKERD1: &[&str] = &[
    "requests are spread by load and latency, in turn only as far as endpoints are alike, whatever loadBalancer says",
    "a Host whose port is no number is answered 400",
    "hosts with dots and a port, of which the table knows the port alone (hostportPfx, porthostPfx), are answered 502",
    "a host in capitals is answered 502 where the names of two namers may take it",
    "a request that comes too late is answered 504; Linkerd answers 503",
    "bodies of up to 64 KiB are kept to be repeated, chunked or not; l5d-retryable of an application counts nothing",
];
