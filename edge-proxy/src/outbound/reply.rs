//! Answers that a rule gives itself: what is written in it, and redirects.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use mesh_core::{
    message::{RequestHead, Scheme},
    rule::{HeaderChanges, Redirect, Reply, Target},
};

use super::{answer::GRPC_STATUS, decision::Decision, request::bad_rewrite};
use crate::refusal::{self, Refusal};

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The answer of a rule that gives one to a client; `None` where the request goes on.
pub fn answer(
    decision: &Decision,
    head: &RequestHead,
    client: Option<IpAddr>,
) -> Result<Option<Response<Bytes>>, Refusal> {
    let Some(route) = decision.route() else { return Ok(None) };
    if let Some(reply) = decision.extension().and_then(|more| more.reply.as_ref()) {
        let reply = reply.to(head, client).map_err(bad_rewrite)?;
        return Ok(Some(match head.is_grpc() {
            true => grpc(&reply),
            false => plain(&reply, &head.method),
        }));
    }
    match &route.filters.redirect {
        Some(redirect) => redirected(redirect, decision, head),
        None => Ok(None),
    }
}

fn redirected(
    redirect: &Redirect,
    decision: &Decision,
    head: &RequestHead,
) -> Result<Option<Response<Bytes>>, Refusal> {
    let port = decision.service.port(decision.port.as_str()).map_or(80, |port| port.number);
    let scheme = if head.scheme == Scheme::Https { "https" } else { "http" };
    let called = Target { scheme, port };
    let answer = redirect.answer(head, decision.matched(), called, decision.extension());
    let (status, location) = answer.map_err(bad_rewrite)?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    let Ok(location) = HeaderValue::from_str(&location) else { return Ok(None) };
    response.headers_mut().insert(header::LOCATION, location);
    let rule = decision.route().map(|route| &route.filters.response);
    let more = decision.extension().map(|more| &more.response_headers);
    for changes in [rule, more].into_iter().flatten() {
        change(response.headers_mut(), changes);
    }
    Ok(Some(response))
}

fn change(headers: &mut HeaderMap, changes: &HeaderChanges) {
    for (name, value) in &changes.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &changes.add {
        headers.append(name, value.clone());
    }
    for name in &changes.remove {
        headers.remove(name);
    }
}

/// With what says how long it is: HTTP/2 may leave that out, but who asks by
/// HEAD wants to know.
fn plain(reply: &Reply, method: &Method) -> Response<Bytes> {
    let never = matches!(reply.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = if never { "" } else { &*reply.body };
    let sent = if *method == Method::HEAD { "" } else { body };
    let mut response = Response::new(Bytes::copy_from_slice(sent.as_bytes()));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    for (name, value) in &reply.headers {
        headers.append(name, value.clone());
    }
    if !body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
        headers.insert(header::CONTENT_TYPE, PLAIN);
    }
    if !never {
        headers.insert(header::CONTENT_LENGTH, body.len().into());
    }
    response
}

/// Trailers-only, with the status that clients would make of the rule's (gRPC,
/// "HTTP to gRPC Status Code Mapping"), unless a header says another.
fn grpc(reply: &Reply) -> Response<Bytes> {
    let code = match reply.status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    };
    let mut response = refusal::trailers_only(code, &reply.body);
    let headers = response.headers_mut();
    for (name, value) in reply.headers.iter().filter(|(name, _)| *name != header::CONTENT_TYPE) {
        match name.as_str() {
            GRPC_STATUS | "grpc-message" => drop(headers.insert(name, value.clone())),
            _ => drop(headers.append(name, value.clone())),
        }
    }
    response
}

/// What an answer says to a gRPC client, if it is for one.
pub fn grpc_status(response: &Response<Bytes>) -> Option<u32> {
    response.headers().get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, headers: &[(&str, &str)]) -> Reply {
        let header = |(name, value): &(&str, &str)| {
            (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.iter().map(header).collect(),
            body: "closed: 5%".into(),
            made: None,
        }
    }

    #[test]
    fn lengths_and_bodies_are_those_of_the_method_and_status() {
        let cases = [
            (200, Method::GET, "closed: 5%", Some("10")),
            (503, Method::POST, "closed: 5%", Some("10")),
            (200, Method::HEAD, "", Some("10")),
            (204, Method::GET, "", None),
            (304, Method::GET, "", None),
            (304, Method::HEAD, "", None),
        ];
        for (status, method, body, length) in cases {
            let response = plain(&reply(status, &[]), &method);
            assert_eq!(
                (response.status().as_u16(), &response.body()[..]),
                (status, body.as_bytes())
            );
            let told =
                response.headers().get("content-length").map(|value| value.to_str().unwrap());
            assert_eq!(told, length, "{status} {method}");
            let typed = response.headers().contains_key("content-type");
            assert_eq!(typed, length.is_some(), "{status} {method}");
        }
        let typed = plain(&reply(200, &[("content-type", "a/b"), ("x-a", "1")]), &Method::GET);
        assert_eq!(
            (&typed.headers()["content-type"], &typed.headers()["x-a"]),
            (&HeaderValue::from_static("a/b"), &HeaderValue::from_static("1"),)
        );
    }

    #[test]
    fn headers_of_a_redirect_are_changed_as_the_rule_says() {
        let value = HeaderValue::from_static;
        let changes = HeaderChanges {
            set: vec![("x-a".parse().unwrap(), value("1"))],
            add: vec![("x-a".parse().unwrap(), value("2"))],
            remove: vec!["x-b".parse().unwrap()],
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-a", value("0"));
        headers.insert("x-b", value("0"));
        change(&mut headers, &changes);
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(!headers.contains_key("x-b"));
    }

    #[test]
    fn grpc_is_told_its_own_status() {
        let cases = [(400, "13"), (401, "16"), (403, "7"), (404, "12"), (503, "14"), (200, "2")];
        for (status, code) in cases {
            let response = grpc(&reply(status, &[("x-a", "1"), ("content-type", "a/b")]));
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["grpc-status"], code, "{status}");
            assert_eq!(response.headers()["grpc-message"], "closed: 5%25");
            assert_eq!(response.headers()["content-type"], "application/grpc");
            assert_eq!(response.headers()["x-a"], "1");
            assert!(response.body().is_empty());
        }
        let own = grpc(&reply(200, &[("grpc-status", "0"), ("grpc-message", "well")]));
        assert_eq!(own.headers().get_all("grpc-status").iter().collect::<Vec<_>>(), ["0"]);
        assert_eq!(own.headers()["grpc-message"], "well");
    }
}
