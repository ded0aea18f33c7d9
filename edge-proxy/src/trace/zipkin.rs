//! Spans as Zipkin has them: version 2 of its JSON
//! (<https://zipkin.io/zipkin-api/>).

use std::{collections::BTreeMap, net::IpAddr};

use serde::Serialize;

use super::{Span, Tag, What, export::Teller, hex};
use crate::metrics::Direction;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpanV2<'a> {
    trace_id: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    name: String,
    kind: &'static str,
    /// In microseconds, as all times.
    timestamp: u64,
    duration: u64,
    local_endpoint: EndpointV2<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_endpoint: Option<EndpointV2<'a>>,
    tags: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointV2<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    service_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

/// A batch as the body of an HTTP request.
pub(super) fn encoded(teller: &Teller, batch: &[Span]) -> Vec<u8> {
    let spans: Vec<_> = batch.iter().map(|span| of(teller, span)).collect();
    serde_json::to_vec(&spans).expect("text and numbers")
}

fn of<'a>(teller: &'a Teller, span: &'a Span) -> SpanV2<'a> {
    let told = span.told();
    let value = |tag: Tag<'_>| match tag {
        Tag::Text(text) => text.to_owned(),
        Tag::Number(number) => number.to_string(),
    };
    let mut tags: BTreeMap<_, _> =
        told.tags.into_iter().map(|(key, tag)| (key, value(tag))).collect();
    if let Some(error) = told.error {
        tags.insert("error", if error.is_empty() { "true" } else { error }.to_owned());
    }
    if !teller.site.is_empty() {
        tags.insert("site", teller.site.clone());
    }
    SpanV2 {
        trace_id: hex(&span.ids.trace),
        id: hex(&span.ids.span),
        parent_id: span.ids.parent.map(|id| hex(&id)),
        name: told.name,
        kind: if told.server { "SERVER" } else { "CLIENT" },
        timestamp: span.began_ns() / 1000,
        // Of 0 it takes no notice.
        duration: ((span.ended_ns() - span.began_ns()) / 1000).max(1),
        local_endpoint: EndpointV2 {
            service_name: &teller.service,
            ipv4: None,
            ipv6: None,
            port: None,
        },
        remote_endpoint: remote(span),
        tags,
    }
}

/// Whom it called; of a caller nothing but its identity is known.
fn remote(span: &Span) -> Option<EndpointV2<'_>> {
    let What::Request(entry) = &span.what else { return None };
    let called = entry.direction == Direction::Outbound;
    let endpoint = entry.endpoint.as_ref().filter(|_| called)?;
    let addr = endpoint.address.unwrap_or(endpoint.target);
    let (ip, v4) = (addr.ip().to_canonical(), addr.ip().to_canonical().is_ipv4());
    Some(EndpointV2 {
        service_name: endpoint.service.as_str(),
        ipv4: v4.then_some(ip),
        ipv6: (!v4).then_some(ip),
        port: Some(addr.port()),
    })
}
