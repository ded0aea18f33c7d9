//! A traced request over four hops and two sites.

use edge_proxy::config::{Tracing, tracing::TracingProtocol};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{proxies::Mesh, *};

const PARENT: &str = "00f067aa0ba902b7";

/// Takes spans as Zipkin does.
async fn collector() -> (SocketAddr, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (give, spans) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let give = give.clone();
            let take = service_fn(move |request: Request<Incoming>| {
                let give = give.clone();
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    for span in serde_json::from_slice::<Vec<Value>>(&body).unwrap() {
                        give.send(span).await.unwrap();
                    }
                    Ok::<_, hyper::Error>(Response::new(Empty::<bytes::Bytes>::new()))
                }
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), take));
        }
    });
    (addr, spans)
}

/// A request of its own trace, and its spans.
async fn traced(mesh: &Mesh, spans: &mut mpsc::Receiver<Value>, count: usize) -> Vec<Value> {
    let trace = format!("{:032x}", rand::random::<u128>() | 1);
    let line = format!("traceparent: 00-{trace}-{PARENT}-01\r\n");
    assert_eq!(mesh.source.get_with(&line).await.0, 200);
    let mut got = Vec::new();
    while got.len() < count {
        let span = timeout(STEP, spans.recv()).await.expect("a span in time").unwrap();
        assert_eq!(span["traceId"], trace);
        got.push(span);
    }
    got
}

fn of<'a>(spans: &'a [Value], service: &str, site: &str) -> &'a Value {
    let is = |span: &&Value| {
        span["localEndpoint"]["serviceName"] == service && span["tags"]["site"] == site
    };
    spans.iter().find(is).unwrap_or_else(|| panic!("{service} in {site}: {spans:?}"))
}

#[tokio::test]
async fn each_gateway_has_a_span_of_each_request_that_passes() {
    for (transport, reverse) in [(LinkTransport::Quic, false), (LinkTransport::Tls, true)] {
        let (collector, mut spans) = collector().await;
        let change = |config: &mut Config| {
            config.tracing = Some(Tracing {
                endpoint: format!("http://{collector}").parse().unwrap(),
                protocol: TracingProtocol::Zipkin,
                sample: 0.0,
                service_name: None,
            });
        };
        let mesh = Mesh::made(transport, reverse, change).await;
        if reverse {
            let holds = |told: &v1::NodeSessions| told.nodes == [node().to_string()];
            mesh.pair.east_gateway.told(holds).await;
        }
        // The second goes by the session that the first has opened.
        for _ in 0..2 {
            let spans = traced(&mesh, &mut spans, 4).await;
            let source = of(&spans, "checkout", "west");
            let (near, far) = (of(&spans, "gateway", "west"), of(&spans, "gateway", "east"));
            let destination = of(&spans, "web", "east");
            assert_eq!(source["parentId"], PARENT);
            for (span, parent) in [(near, source), (far, near), (destination, source)] {
                assert_eq!(span["parentId"], parent["id"], "{spans:?}");
                assert!(span["timestamp"].as_u64() >= source["timestamp"].as_u64(), "{spans:?}");
                let connection = |span: &Value| span["tags"]["isthmus.connection"].clone();
                assert_eq!(connection(span), connection(source));
            }
            let next = if reverse { "session" } else { "endpoint" };
            assert_eq!(
                (&near["tags"]["isthmus.next"], &far["tags"]["isthmus.next"]),
                (&"link".into(), &next.into())
            );
            assert_eq!(far["tags"]["isthmus.service"], "orders.shop");
        }
        // What is not traced leaves nothing.
        assert_eq!(mesh.source.get_with("").await.0, 200);
        let more = timeout(Duration::from_millis(1500), spans.recv()).await;
        assert!(more.is_err(), "{more:?}");
        mesh.stop().await;
    }
}

/// A gateway that wants no spans hands the word on.
#[tokio::test]
async fn a_gateway_without_spans_breaks_no_tree() {
    let (collector, mut spans) = collector().await;
    let change = |config: &mut Config| {
        let is_west = config.gateway_id.as_ref().is_some_and(|id| id.as_str() == "gw-w");
        config.tracing = (!is_west).then(|| Tracing {
            endpoint: format!("http://{collector}").parse().unwrap(),
            protocol: TracingProtocol::Zipkin,
            sample: 0.0,
            service_name: None,
        });
    };
    let mesh = Mesh::made(LinkTransport::Quic, false, change).await;
    let spans = traced(&mesh, &mut spans, 3).await;
    let (source, far) = (of(&spans, "checkout", "west"), of(&spans, "gateway", "east"));
    assert_eq!(far["parentId"], source["id"]);
    mesh.stop().await;
}
