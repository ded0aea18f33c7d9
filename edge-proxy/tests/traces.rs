//! Spans of two proxies, at collectors of the three kinds.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use edge_proxy::config::{Config, Tracing, tracing::TracingProtocol};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;
use support::{
    Pair, Targets, any,
    apps::{AnyBody, App, empty, http1},
    refusing,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// Answers with the headers of traces that it was sent.
async fn echo(request: Request<Incoming>) -> Response<AnyBody> {
    let status = request.uri().path().strip_prefix("/status/").map_or("200", |status| status);
    let mut builder = Response::builder().status(status);
    for (name, value) in request.headers() {
        if matches!(name.as_str(), "traceparent" | "tracestate" | "b3")
            || name.as_str().starts_with("x-b3")
        {
            builder = builder.header(format!("saw-{name}"), value);
        }
    }
    builder.body(empty()).unwrap()
}

fn tracing(protocol: TracingProtocol, to: std::net::SocketAddr) -> impl Fn(&mut Config) + Copy {
    move |config: &mut Config| {
        config.tracing = Some(Tracing {
            endpoint: format!("http://{to}").parse().unwrap(),
            protocol,
            sample: 0.0,
            service_name: None,
        });
    }
}

async fn ask(pair: &Pair, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
    let mut request = Request::get(format!("http://orders.shop{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(empty()).unwrap();
    http1(pair.source.http()).await.send_request(request).await.unwrap()
}

fn saw(response: &Response<Incoming>, name: &str) -> String {
    response.headers()[format!("saw-{name}")].to_str().unwrap().to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).await.unwrap();
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Reads exports until there are `count` spans; each with its `service.name`.
async fn spans(
    exports: &mut mpsc::Receiver<ExportTraceServiceRequest>,
    count: usize,
) -> Vec<(String, Span)> {
    let mut spans = Vec::new();
    while spans.len() < count {
        let export = support::caller::wait(exports.recv()).await.unwrap();
        for of_resource in export.resource_spans {
            let attributes = of_resource.resource.unwrap().attributes;
            let service = text(&attributes, "service.name").unwrap();
            let scopes = of_resource.scope_spans.into_iter();
            spans.extend(scopes.flat_map(|scope| scope.spans).map(|span| (service.clone(), span)));
        }
    }
    spans
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    }
}

/// One tree: whoever asked, the source's proxy, the destination's proxy, the
/// application.
fn check_tree(spans: &[(String, Span)], application_saw: &str) {
    let of = |service: &str| &spans.iter().find(|(name, _)| name == service).unwrap().1;
    let (near, far) = (of("checkout"), of("orders"));
    for span in [near, far] {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    }
    assert_eq!(hex(&near.parent_span_id), SPAN);
    assert_eq!(far.parent_span_id, near.span_id);
    assert!(near.start_time_unix_nano <= far.start_time_unix_nano);
    assert_eq!(application_saw, hex(&far.span_id));
    assert_eq!((near.kind, far.kind), (3, 2), "client, server");
}

#[tokio::test]
async fn one_tree_over_both_proxies_arrives_over_otlp_and_grpc() {
    let (give, mut exports) = mpsc::channel(8);
    let listener = TcpListener::bind(any()).await.unwrap();
    let change = tracing(TracingProtocol::OtlpGrpc, listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().serve_with_incoming_shutdown(
        TraceServiceServer::new(Collector(give)),
        TcpListenerStream::new(listener),
        std::future::pending(),
    );
    tokio::spawn(server);
    let app = App::start(echo).await;
    let pair = Pair::start_both(Targets::all(app.addr), change, change).await;
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let headers = [("traceparent", &*parent), ("tracestate", "a=b")];
    let response = ask(&pair, "/status/503?secret=1", &headers).await;
    let parent = saw(&response, "traceparent");
    assert_eq!(saw(&response, "tracestate"), "a=b");
    let spans = spans(&mut exports, 2).await;
    check_tree(&spans, &parent[36..52]);
    for (_, span) in &spans {
        let attribute = |key| text(&span.attributes, key);
        assert_eq!(span.name, "GET");
        assert_eq!(attribute("http.response.status_code").as_deref(), Some("503"));
        assert_eq!(attribute("url.path").as_deref(), Some("/status/503"), "queries may be secret");
        assert_eq!(attribute("isthmus.service").as_deref(), Some("orders.shop"));
        assert_eq!(span.status.as_ref().unwrap().code, 2);
    }
    let connection = |at: usize| text(&spans[at].1.attributes, "isthmus.connection").unwrap();
    assert_eq!(connection(0), connection(1));
    let exported = "isthmus_proxy_spans_exported_total 1\n";
    support::caller::wait(async {
        while !pair.source.metrics().contains(exported) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// A collector over HTTP: path, kind and body of what it is sent.
async fn http_collector() -> (App, mpsc::Receiver<(String, String, Bytes)>) {
    let (give, posts) = mpsc::channel(8);
    let give = Arc::new(give);
    let app = App::start(move |request: Request<Incoming>| {
        let give = give.clone();
        async move {
            let path = request.uri().path().to_owned();
            let kind = request.headers()["content-type"].to_str().unwrap().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            give.send((path, kind, body)).await.unwrap();
            Response::builder().status(202).body(empty()).unwrap()
        }
    })
    .await;
    (app, posts)
}

#[tokio::test]
async fn protobuf_over_http_is_the_same() {
    let (collector, mut posts) = http_collector().await;
    let change = tracing(TracingProtocol::OtlpHttp, collector.addr);
    let app = App::start(echo).await;
    let pair = Pair::start_both(Targets::all(app.addr), change, change).await;
    let single = format!("{TRACE}-{SPAN}-1");
    let response = ask(&pair, "/", &[("b3", &*single)]).await;
    let (give, mut exports) = mpsc::channel(8);
    for _ in 0..2 {
        let (path, kind, body) = support::caller::wait(posts.recv()).await.unwrap();
        assert_eq!((&*path, &*kind), ("/v1/traces", "application/x-protobuf"));
        give.send(ExportTraceServiceRequest::decode(body).unwrap()).await.unwrap();
    }
    check_tree(&spans(&mut exports, 2).await, &saw(&response, "b3")[33..49]);
}

#[tokio::test]
async fn zipkin_gets_its_json() {
    let (collector, mut posts) = http_collector().await;
    let change = tracing(TracingProtocol::Zipkin, collector.addr);
    let app = App::start(echo).await;
    let pair = Pair::start_both(Targets::all(app.addr), change, change).await;
    let headers = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")];
    let response = ask(&pair, "/status/404", &headers).await;
    let mut spans = Vec::new();
    for _ in 0..2 {
        let (path, kind, body) = support::caller::wait(posts.recv()).await.unwrap();
        assert_eq!((&*path, &*kind), ("/api/v2/spans", "application/json"));
        let mut posted: Vec<serde_json::Value> = serde_json::from_slice(&body).unwrap();
        spans.append(&mut posted);
    }
    let of = |kind: &str| spans.iter().find(|span| span["kind"] == kind).unwrap();
    let (near, far) = (of("CLIENT"), of("SERVER"));
    assert_eq!((&near["traceId"], &far["traceId"]), (&TRACE.into(), &TRACE.into()));
    assert_eq!(near["parentId"], SPAN);
    assert_eq!(far["parentId"], near["id"]);
    assert_eq!(far["id"], saw(&response, "x-b3-spanid"));
    assert_eq!(near["id"], saw(&response, "x-b3-parentspanid"));
    assert_eq!(near["localEndpoint"]["serviceName"], "checkout");
    assert_eq!(near["remoteEndpoint"]["serviceName"], "orders.shop");
    assert_eq!(near["remoteEndpoint"]["port"], pair.destination.inbound().port());
    assert_eq!(far["tags"]["http.response.status_code"], "404");
    assert!(far["tags"].get("error").is_none(), "a client can mend it");
    assert!(near["timestamp"].as_u64().unwrap() > 1_600_000_000_000_000);
    assert!(near["duration"].as_u64().unwrap() >= 1);
}

#[tokio::test]
async fn what_is_not_sampled_and_what_is_off_pass_as_they_are() {
    let (collector, mut posts) = http_collector().await;
    let change = tracing(TracingProtocol::Zipkin, collector.addr);
    let app = App::start(echo).await;
    let traced = Pair::start_both(Targets::all(app.addr), change, change).await;
    let off = Pair::start(Targets::all(app.addr)).await;
    let (sampled, unsampled) = (format!("00-{TRACE}-{SPAN}-01"), format!("00-{TRACE}-{SPAN}-00"));
    for (pair, sent) in [(&traced, &unsampled), (&off, &unsampled), (&off, &sampled)] {
        let response = ask(pair, "/", &[("traceparent", &**sent)]).await;
        assert_eq!(saw(&response, "traceparent"), **sent);
    }
    ask(&traced, "/", &[]).await;
    let late = tokio::time::timeout(Duration::from_millis(1500), posts.recv()).await;
    assert!(late.is_err(), "{late:?}");
}

#[tokio::test]
async fn traces_begin_here_where_that_is_asked_for() {
    let (collector, mut posts) = http_collector().await;
    let change = tracing(TracingProtocol::Zipkin, collector.addr);
    let app = App::start(echo).await;
    let begin = |config: &mut Config| {
        change(config);
        config.tracing.as_mut().unwrap().sample = 1.0;
    };
    let pair = Pair::start_both(Targets::all(app.addr), begin, |_| ()).await;
    let response = ask(&pair, "/", &[]).await;
    let (_, _, body) = support::caller::wait(posts.recv()).await.unwrap();
    let spans: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert!(spans[0].get("parentId").is_none());
    let wanted = format!(
        "00-{}-{}-03",
        spans[0]["traceId"].as_str().unwrap(),
        spans[0]["id"].as_str().unwrap()
    );
    assert_eq!(saw(&response, "traceparent"), wanted);
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let (_kept, gone) = refusing();
    let app = App::start(echo).await;
    let change = tracing(TracingProtocol::OtlpHttp, gone);
    let pair = Pair::start_both(Targets::all(app.addr), change, |_| ()).await;
    let parent = format!("00-{TRACE}-{SPAN}-01");
    for _ in 0..10 {
        let headers = [("traceparent", &*parent)];
        let asked = ask(&pair, "/", &headers);
        let answered = tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap();
        assert_eq!(answered.status(), 200);
    }
    support::caller::wait(async {
        while !pair.source.metrics().contains("isthmus_proxy_spans_dropped_total 10\n") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}
