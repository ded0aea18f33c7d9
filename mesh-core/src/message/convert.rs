//! From and to the types of the `http` crate, which HTTP/2 uses.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, request, response,
    uri::{Authority, PathAndQuery},
};

use super::{Fields, Known, KnownSet, RequestHead, ResponseHead, Scheme, fields::byte_table};

/// What a head lacks to be one of a request. The client is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// RFC 9110 sections 4.2.1, 4.2.4.
    #[error("the authority is not host and port")]
    Authority,
    /// RFC 9113 section 8.3.1.
    #[error("Host and :authority differ, or there are several")]
    HostDiffers,
    /// RFC 3986 sections 3.3, 3.4.
    #[error("the request target has characters that no URI has")]
    Target,
    /// RFC 9110 section 4.2.
    #[error("the scheme is neither http nor https")]
    Scheme,
}

impl RequestHead {
    /// Reads a request of HTTP/2 into this one. A request without authority
    /// keeps an empty one.
    pub fn read_parts(&mut self, parts: &request::Parts) -> Result<(), BadHead> {
        self.clear();
        self.method.clone_from(&parts.method);
        self.scheme = match parts.uri.scheme_str() {
            None | Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            Some(_) => return Err(BadHead::Scheme),
        };
        self.fields.read_map(&parts.headers);
        self.read_authority(&parts.uri)?;
        match parts.uri.path_and_query() {
            Some(target) if is_target(target.as_str().as_bytes()) => {
                self.target.push_str(target.as_str());
            }
            Some(_) => return Err(BadHead::Target),
            None if self.method == Method::CONNECT => {}
            // `:path` of OPTIONS may be the asterisk alone; nothing else is empty.
            None => self.target.push('/'),
        }
        Ok(())
    }

    fn read_authority(&mut self, uri: &Uri) -> Result<(), BadHead> {
        let mut hosts = self.fields.all_known(Known::Host);
        let host = hosts.next();
        let several = hosts.next().is_some();
        drop(hosts);
        if several {
            return Err(BadHead::HostDiffers);
        }
        let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
        let same = |(a, b): (&[u8], &[u8])| a.eq_ignore_ascii_case(b);
        if !authority.zip(host).is_none_or(same) {
            return Err(BadHead::HostDiffers);
        }
        if let Some(authority) = authority.or(host) {
            let text = std::str::from_utf8(authority).map_err(|_| BadHead::Authority)?;
            if !is_authority(authority) {
                return Err(BadHead::Authority);
            }
            self.authority.push_str(text);
        }
        self.fields.remove_known(Known::Host);
        Ok(())
    }

    /// The same request for HTTP/2, with the fields of `HeaderMap`; framing
    /// and connection fields are left out (RFC 9113 section 8.2.2).
    ///
    /// # Errors
    ///
    /// `Authority` where there is none or it is not one for HTTP/2.
    pub fn to_request(&self) -> Result<Request<()>, BadHead> {
        let authority = Authority::try_from(self.authority.as_str());
        let mut uri = Uri::builder().authority(authority.map_err(|_| BadHead::Authority)?);
        if !self.target.is_empty() {
            uri = uri.scheme(self.scheme.as_str()).path_and_query(self.path_and_query()?);
        }
        let mut request = Request::new(());
        request.method_mut().clone_from(&self.method);
        *request.uri_mut() = uri.build().map_err(|_| BadHead::Target)?;
        *request.version_mut() = http::Version::HTTP_2;
        self.fields.write_map(request.headers_mut());
        Ok(request)
    }

    /// `http` refuses three characters in paths that many programs send: they
    /// travel as what they stand for.
    fn path_and_query(&self) -> Result<PathAndQuery, BadHead> {
        let mut target = Cow::Borrowed(self.target.as_str());
        if target.contains(['<', '>', '`']) {
            let encoded = target.replace('<', "%3C").replace('>', "%3E").replace('`', "%60");
            target = Cow::Owned(encoded);
        }
        PathAndQuery::try_from(&*target).map_err(|_| BadHead::Target)
    }
}

impl ResponseHead {
    /// Reads a response of HTTP/2 into this one.
    pub fn read_parts(&mut self, parts: &response::Parts) {
        self.clear();
        self.status = parts.status;
        self.fields.read_map(&parts.headers);
    }

    /// The same response for HTTP/2; framing and connection fields are left
    /// out (RFC 9113 section 8.2.2).
    pub fn to_response(&self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = self.status;
        *response.version_mut() = http::Version::HTTP_2;
        self.fields.write_map(response.headers_mut());
        response
    }
}

impl Fields {
    /// Appends the fields of `map`; several `cookie`s become one, as HTTP/1
    /// wants it (RFC 9113 section 8.2.3).
    pub fn read_map(&mut self, map: &HeaderMap) {
        for (name, value) in map {
            if *name != http::header::COOKIE {
                self.push(name.as_str(), value.as_bytes().trim_ascii());
            }
        }
        let mut cookies = map.get_all(http::header::COOKIE).iter();
        let Some(first) = cookies.next() else { return };
        let mut cookie = Cow::Borrowed(first.as_bytes().trim_ascii());
        for crumb in cookies {
            let joined = cookie.to_mut();
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(crumb.as_bytes().trim_ascii());
        }
        self.push_known(Known::Cookie, &cookie);
    }

    /// Appends all fields to `map` but those of one connection.
    pub fn write_map(&self, map: &mut HeaderMap) {
        const NOT_IN_HTTP2: KnownSet = KnownSet::of(&[
            Known::Connection,
            Known::Host,
            Known::Http2Settings,
            Known::KeepAlive,
            Known::ProxyConnection,
            Known::TransferEncoding,
            Known::Upgrade,
        ]);
        map.reserve(self.len());
        for (known, name, value) in self.iter_known() {
            if known.is_some_and(|known| NOT_IN_HTTP2.has(known)) {
                continue;
            }
            let name = HeaderName::from_bytes(name.as_bytes());
            // What is a field here is one there; a defect loses the field.
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
                map.append(name, value);
            }
        }
    }
}

/// The bytes of origin-form or `*`: printable ASCII without `#`. Stricter
/// than what is often sent (all above ASCII must be percent-encoded, RFC 3986
/// section 2.1), laxer than the grammar (`"<>\^`{|}` pass).
pub fn is_target(target: &[u8]) -> bool {
    // Without an early end, so that the compiler takes many bytes at once.
    let is_text = |byte: u8| (byte > b' ') & (byte < 0x7f) & (byte != b'#');
    let all = target.iter().fold(true, |all, &byte| all & is_text(byte));
    target == b"*" || (target.first() == Some(&b'/') && all)
}

/// `host[:port]` with a host (RFC 9110 section 4.2.1), without user
/// information (section 4.2.4), and without percent-encoding, of which two
/// readers make two hosts.
pub fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = match authority.iter().rposition(|&byte| byte == b':' || byte == b']') {
        Some(at) if authority[at] == b':' => (&authority[..at], &authority[at + 1..]),
        _ => (authority, &authority[..0]),
    };
    is_host(host) && is_port(port)
}

fn is_host(host: &[u8]) -> bool {
    if let Some(inner) = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")) {
        let text = std::str::from_utf8(inner).unwrap_or_default();
        return text.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !host.is_empty() && host.iter().fold(true, |all, &byte| all & REG_NAME[usize::from(byte)])
}

/// Unreserved and sub-delims of RFC 3986 section 3.2.2.
static REG_NAME: [bool; 256] = byte_table(b"-._~!$&'()*+,;=");

/// Empty, or up to 65535 (RFC 3986 section 3.2.3).
fn is_port(port: &[u8]) -> bool {
    port.iter().all(u8::is_ascii_digit)
        && port
            .iter()
            .fold(0_u32, |n, digit| n.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
            <= u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: request::Builder) -> request::Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_request_of_http2_and_back() {
        let request = Request::builder()
            .method("POST")
            .uri("https://orders.shop:8443/a?b=c")
            .header("x-a", "1")
            .header("cookie", "a=1")
            .header("x-a", "2")
            .header("cookie", "b=2")
            .header("host", "ORDERS.shop:8443");
        let mut head = RequestHead::new();
        head.read_parts(&parts(request)).unwrap();
        assert_eq!(head.method, Method::POST);
        assert_eq!(head.scheme, Scheme::Https);
        assert_eq!((&*head.authority, &*head.target), ("orders.shop:8443", "/a?b=c"));
        assert!(!head.fields.has(Known::Host));
        assert_eq!(head.fields.known(Known::Cookie), Some(&b"a=1; b=2"[..]));
        assert_eq!(head.fields.all("x-a").collect::<Vec<_>>(), [b"1", b"2"]);
        head.fields.push("Connection", b"close");
        head.fields.push("Upper-Case", b"x");
        let request = head.to_request().unwrap();
        assert_eq!(request.uri(), "https://orders.shop:8443/a?b=c");
        assert_eq!(request.headers().len(), 4);
        assert_eq!(request.headers()["upper-case"], "x");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let of = |uri: &str| Request::builder().uri(uri);
        let cases = [
            (of("http://a/").header("host", "b"), BadHead::HostDiffers),
            (of("/").header("host", "b").header("host", "b"), BadHead::HostDiffers),
            (of("/").header("host", "a/b"), BadHead::Authority),
            (of("/").header("host", ""), BadHead::Authority),
            (of("http://user@a/"), BadHead::Authority),
            (of("ftp://a/"), BadHead::Scheme),
            (of("http://a/\u{e9}"), BadHead::Target),
        ];
        for (request, wanted) in cases {
            let request = parts(request);
            let mut head = RequestHead::new();
            assert_eq!(head.read_parts(&request), Err(wanted), "{request:?}");
        }
    }

    #[test]
    fn forms_of_targets() {
        let mut head = RequestHead::new();
        let connect = Request::builder().method("CONNECT").uri("a.b:1");
        head.read_parts(&parts(connect)).unwrap();
        assert_eq!((&*head.authority, &*head.target), ("a.b:1", ""));
        assert_eq!(head.to_request().unwrap().uri(), "a.b:1");
        let pathless = Request::builder().method("OPTIONS").uri("a.b:1");
        head.read_parts(&parts(pathless)).unwrap();
        assert_eq!((&*head.authority, &*head.target), ("a.b:1", "/"));
        let head = RequestHead {
            method: Method::OPTIONS,
            authority: "a".into(),
            target: "*".into(),
            ..RequestHead::new()
        };
        assert_eq!(head.to_request().unwrap().uri().path(), "*");
        let head =
            RequestHead { authority: "a".into(), target: "/<`>{?<`>".into(), ..RequestHead::new() };
        let uri = head.to_request().unwrap().uri().clone();
        assert_eq!(uri.path_and_query().unwrap(), "/%3C%60%3E{?%3C%60%3E");
        assert_eq!(RequestHead::new().to_request().unwrap_err(), BadHead::Authority);
    }

    #[test]
    fn a_response_of_http2_and_back() {
        let response = Response::builder().status(404).header("a", "b").body(()).unwrap();
        let mut head = ResponseHead::new();
        head.read_parts(&response.into_parts().0);
        assert_eq!(head.status, 404);
        head.fields.push("transfer-encoding", b"chunked");
        let response = head.to_response();
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers().len(), 1);
    }

    #[test]
    fn authorities() {
        for good in ["a", "a.b_c-d~e", "a:80", "a:", "[::1]", "[::1]:65535", "1.2.3.4:0", "a,b"] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        let bad = [
            "",
            ":80",
            "a:65536",
            "a:8x",
            "a:80:80",
            "::1",
            "[::1",
            "[::1]x",
            "[::1]:80:",
            "[a]",
            "[]",
            "u@a",
            "a/b",
            "a b",
            "a%41",
            "a\u{e9}",
            "a\0",
            "a:99999999999999999999",
        ];
        for bad in bad {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn targets() {
        for good in ["/", "*", "/a?b=c|d", "//", "/\"<>\\^`{|}", "/?/?", "/%zz"] {
            assert!(is_target(good.as_bytes()), "{good}");
        }
        for bad in ["", "a", "**", "/a b", "/a#b", "/\u{e9}", "/\t", "/\x7f", "http://a/", "?a"] {
            assert!(!is_target(bad.as_bytes()), "{bad}");
        }
    }
}
