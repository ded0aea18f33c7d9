//! What is different for requests of any configuration, and stands in none of its lines.

/// Of a format, as `--from` has it.
pub(super) fn of(format: &str) -> &'static [&'static str] {
    match format {
        "nginx" => NGINX,
        "haproxy" => HAPROXY,
        "envoy" => ENVOY,
        "linkerd1" => LINKERD1,
        _ => &[],
    }
}

const NGINX: &[&str] = &[
    "a request with Upgrade goes on as one where no proxy_set_header says so, too; nginx leaves it out",
    "headers whose names have other characters than letters, digits, - and _ go on; nginx leaves them out (ignore_invalid_headers)",
    "targets with a # or with bytes that are not ASCII, targets of another host than Host, and a Host with @ are answered 400; nginx takes them",
    "OPTIONS * and methods in lower case go on; nginx answers 400",
    "texts of return are text/plain with charset=utf-8 where no default_type is written, whatever types say of their paths",
    "a redirect to a path alone names the host as the client writes it, in capitals or with a last dot",
];

const HAPROXY: &[&str] = &[
    "requests are spread by load and latency, in turn only as far as servers are alike",
    "an endpoint that fails five times in a row (no answer, or 500 to 599) is left alone for a while, observe or not",
    "a header that is set to nothing is not sent; HAProxy sends it empty",
    "clients of IPv4 at a listener of IPv6 are told as 10.0.0.1, not as ::ffff:10.0.0.1",
    "a Host whose port is no number is answered 400",
    "a request without Host (HTTP/1.0) has one when it goes on",
    "answers of the proxy itself have none of HAProxy's pages, and no cache-control",
    "a cookie that keeps clients at a server has SameSite=Lax, and goes on to the application",
];

const ENVOY: &[&str] = &[
    "requests are spread by load and latency, in turn only as far as endpoints are alike",
    "an endpoint that fails five times in a row (no answer, or 500 to 599) is left alone for a while where no outlier_detection is written",
    "values that layered_runtime has for a fraction or a flag are not read: what stands at it counts",
];

const LINKERD1: &[&str] = &[
    "a Host whose port is no number is answered 400",
    "hosts with dots and a port, of which the table knows the port alone (hostportPfx, porthostPfx), are answered 502",
    "a host in capitals is answered 502 where the names of two namers may take it",
];
