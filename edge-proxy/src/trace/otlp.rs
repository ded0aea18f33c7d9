//! Spans as OpenTelemetry has them: what we send of
//! `opentelemetry/proto/collector/trace/v1/trace_service.proto` and what that
//! is made of.

use http::uri::PathAndQuery;
use prost::Message;
use tonic::{Request, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use super::{Span, Tag, export::Teller};

const METHOD: PathAndQuery =
    PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");

#[derive(Clone, PartialEq, Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

/// What was not taken does not become better by being sent again.
#[derive(Clone, PartialEq, Message)]
struct ExportResponse {}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<SpanMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct SpanMessage {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(enumeration = "Kind", tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<SpanStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Unspecified = 0,
    Server = 2,
    Client = 3,
}

#[derive(Clone, PartialEq, Message)]
struct SpanStatus {
    #[prost(string, tag = "2")]
    message: String,
    /// 2 is an error.
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

/// Sends a batch over gRPC.
pub(super) async fn export(
    channel: Channel,
    teller: &Teller,
    batch: &[Span],
) -> Result<(), Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<ExportRequest, ExportResponse>::default();
    client.unary(Request::new(request(teller, batch)), METHOD, codec).await.map(drop)
}

/// A batch as the body of an HTTP request.
pub(super) fn encoded(teller: &Teller, batch: &[Span]) -> Vec<u8> {
    request(teller, batch).encode_to_vec()
}

fn request(teller: &Teller, batch: &[Span]) -> ExportRequest {
    let known = [
        ("service.name", &teller.service),
        ("service.namespace", &teller.namespace),
        ("host.name", &teller.host),
        ("isthmus.site", &teller.site),
    ];
    let known = known.into_iter().filter(|(_, value)| !value.is_empty());
    let attributes = known.map(|(key, value)| pair(key, Value::Text(value.clone()))).collect();
    let scope = Scope { name: "isthmus".into(), version: env!("CARGO_PKG_VERSION").into() };
    let spans = batch.iter().map(message).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let resource = Some(Resource { attributes });
    ExportRequest { resource_spans: vec![ResourceSpans { resource, scope_spans }] }
}

fn message(span: &Span) -> SpanMessage {
    let told = span.told();
    let value = |tag: &Tag<'_>| match tag {
        Tag::Text(text) => Value::Text((*text).to_owned()),
        Tag::Number(number) => Value::Number(*number),
    };
    SpanMessage {
        trace_id: span.ids.trace.to_vec(),
        span_id: span.ids.span.to_vec(),
        parent_span_id: span.ids.parent.map(|id| id.to_vec()).unwrap_or_default(),
        kind: if told.server { Kind::Server } else { Kind::Client }.into(),
        start_time_unix_nano: span.began_ns(),
        end_time_unix_nano: span.ended_ns(),
        attributes: told.tags.iter().map(|(key, tag)| pair(key, value(tag))).collect(),
        status: told.error.map(|error| SpanStatus { message: error.to_owned(), code: 2 }),
        name: told.name,
    }
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}
