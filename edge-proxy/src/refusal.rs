//! A refusal, and what a client sees of it.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use mesh_core::Reason;

use crate::headers;

/// Why a request or connection is not carried: a stable code, and one line for
/// people that names the resource and says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {text}")]
pub struct Refusal {
    /// The stable code.
    pub reason: Reason,
    /// One line for people.
    pub text: String,
    /// What a client of HTTP sees.
    pub status: StatusCode,
    /// What a client of gRPC sees, if not what the reason says.
    grpc_status: Option<u32>,
}

impl Refusal {
    /// A refusal with its line for people.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(reason.http_status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { reason, text: text.into(), status, grpc_status: None }
    }

    /// The same with other statuses.
    pub fn with_status(self, status: StatusCode, grpc_status: u32) -> Self {
        Self { status, grpc_status: Some(grpc_status), ..self }
    }

    /// The same for strangers: what has failed is none of their business.
    pub fn brief(&self) -> Self {
        Self { text: self.status.canonical_reason().unwrap_or_default().to_owned(), ..self.clone() }
    }

    /// What a client of gRPC sees.
    pub fn grpc_status(&self) -> u32 {
        self.grpc_status.unwrap_or_else(|| grpc_status(self.reason))
    }

    /// The response that says so: HTTP status and one line of text, or for a
    /// gRPC client a trailers-only response.
    pub fn response(&self, grpc: bool) -> Response<Bytes> {
        let mut response = if grpc { self.grpc_response() } else { self.text_response() };
        let code = HeaderValue::from_static(self.reason.code());
        let headers = response.headers_mut();
        headers.insert(headers::ERROR, code);
        // What clients of Linkerd look at.
        let text = format!("{}: {}", self.reason, self.text);
        let text: String = text.chars().map(|c| if is_plain(c) { c } else { '?' }).collect();
        if let Ok(text) = HeaderValue::from_str(&text) {
            headers.insert(headers::PROXY_ERROR, text);
        }
        if self.reason == Reason::Draining {
            headers.insert(headers::PROXY_CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn text_response(&self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from(format!("{}\n", self.text)));
        *response.status_mut() = self.status;
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        response
    }

    fn grpc_response(&self) -> Response<Bytes> {
        trailers_only(self.grpc_status(), &self.text)
    }
}

/// The answer to a gRPC request that ends it (gRPC over HTTP/2, "Responses").
pub fn trailers_only(status: u32, text: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(status));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(text)) {
        headers.insert("grpc-message", message);
    }
    response
}

/// Whether a client speaks gRPC, by its request's headers.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let of_grpc = |value: &HeaderValue| mesh_core::message::is_grpc(value.as_bytes());
    headers.get(header::CONTENT_TYPE).is_some_and(of_grpc)
}

/// `UNAVAILABLE` is retried by clients; what a retry cannot mend is not that.
fn grpc_status(reason: Reason) -> u32 {
    match reason {
        Reason::Timeout => 4,
        Reason::DeniedNotExported
        | Reason::DeniedNoRule
        | Reason::DeniedNotAWorkload
        | Reason::ForbiddenTarget => 7,
        Reason::NoSuchService | Reason::NoSuchPort | Reason::NoRoute | Reason::Unsupported => 12,
        Reason::RateLimited | Reason::CircuitOpen => 8,
        Reason::BadRequest => 13,
        _ => 14,
    }
}

fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~')
}

/// Percent-encoding of `grpc-message`: all but printable ASCII, and `%`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            let _infallible = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_gets_what_it_understands() {
        let refusal = Refusal::new(Reason::DeniedNoRule, "orders.shop: 100% no\u{e9}");
        let plain = refusal.response(false);
        assert_eq!(plain.status(), 403);
        assert_eq!(plain.headers()[headers::ERROR], "denied_no_rule");
        let told = "denied_no_rule: orders.shop: 100% no?";
        assert_eq!(plain.headers()[headers::PROXY_ERROR], told);
        assert!(!plain.headers().contains_key(headers::PROXY_CONNECTION));
        let draining = Refusal::new(Reason::Draining, "x").response(true);
        assert_eq!(draining.headers()[headers::PROXY_CONNECTION], "close");
        assert_eq!(plain.body(), "orders.shop: 100% no\u{e9}\n");
        let grpc = refusal.response(true);
        assert_eq!(grpc.status(), 200);
        assert_eq!(grpc.headers()["grpc-status"], "7");
        assert_eq!(grpc.headers()["grpc-message"], "orders.shop: 100%25 no%C3%A9");
        assert_eq!(grpc.headers()[headers::ERROR], "denied_no_rule");
        assert!(grpc.body().is_empty());
    }

    #[test]
    fn every_reason_has_a_status_of_its_kind() {
        for reason in Reason::ALL {
            let refusal = Refusal::new(*reason, "x");
            let status = refusal.response(false).status();
            assert!(status.is_client_error() || status.is_server_error(), "{reason}");
            assert!(refusal.response(true).headers().contains_key("grpc-status"), "{reason}");
        }
    }
}
