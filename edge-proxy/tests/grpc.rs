//! HTTP/2 between two proxies: trailers, streams both ways, refusals that gRPC
//! clients understand.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Incoming;
use support::{
    Pair, Targets,
    apps::{AnyBody, App, full, http1, http2},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

type Frames = mpsc::Sender<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>;

/// A body that is sent frame by frame.
fn frames() -> (Frames, AnyBody) {
    let (send, receive) = mpsc::channel(1);
    (send, BodyExt::boxed(StreamBody::new(ReceiverStream::new(receive))))
}

/// Echoes every frame as it comes, then a trailer.
async fn echo(request: Request<Incoming>) -> Response<AnyBody> {
    let version = format!("{:?}", request.version());
    let te = request.headers().get("te").cloned();
    let (send, body) = frames();
    tokio::spawn(async move {
        let mut frames = BodyStream::new(request.into_body());
        while let Some(Ok(frame)) = frames.next().await {
            if frame.is_data() && send.send(Ok(frame)).await.is_err() {
                return;
            }
        }
        let trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]);
        let _gone = send.send(Ok(Frame::trailers(trailers))).await;
    });
    let mut response = Response::new(body);
    response.headers_mut().insert("x-version", version.parse().unwrap());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert("x-te", te.unwrap_or(HeaderValue::from_static("none")));
    response
}

fn call(uri: &str, body: AnyBody) -> Request<AnyBody> {
    Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

#[tokio::test]
async fn messages_pass_both_ways_as_they_come_and_trailers_last() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut client = http2(pair.port("grpc")).await;
    let (send, body) = frames();
    let request = call("http://orders.shop:81/orders.Orders/Watch", body);
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.headers()["x-version"], "HTTP/2.0");
    assert_eq!(response.headers()["x-te"], "trailers");
    let mut answer = response.into_body();
    for message in ["one", "two", "three"] {
        // The next message is sent only after the last was answered.
        send.send(Ok(Frame::data(message.into()))).await.unwrap();
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    drop(send);
    let trailers = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(answer.frame().await.is_none());
}

#[tokio::test]
async fn many_calls_share_one_connection_on_every_hop() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let client = http2(pair.source.http()).await;
    let calls = (0..50).map(|n| {
        let mut client = client.clone();
        async move {
            let body = full(format!("message {n}"));
            let response =
                client.send_request(call("http://orders.shop:81/x", body)).await.unwrap();
            let collected = response.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
            assert_eq!(collected.to_bytes(), format!("message {n}"));
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(app.connections.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(pair.source.app.shared.metrics.clients_open.get(), 1);
}

#[tokio::test]
async fn http1_clients_get_trailers_only_where_they_can() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let request = call("http://orders.shop:80/x", full("hello"));
    let response = http1(pair.source.http()).await.send_request(request).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_11);
    assert_eq!(response.headers()["x-version"], "HTTP/1.1");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
}

#[tokio::test]
async fn refusals_are_grpc_statuses() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut client = http2(pair.source.http()).await;
    for (uri, status, code) in [
        ("http://10.0.0.1/x", "7", "forbidden_target"),
        ("http://nobody.shop/x", "12", "no_such_service"),
    ] {
        let response = client.send_request(call(uri, full("x"))).await.unwrap();
        assert_eq!(response.status(), 200, "{uri}");
        assert_eq!(response.headers()["grpc-status"], status, "{uri}");
        assert_eq!(response.headers()["isthmus-error"], code, "{uri}");
        assert!(response.headers().contains_key("grpc-message"), "{uri}");
    }
}

#[tokio::test]
async fn a_reset_by_the_client_reaches_the_application() {
    let (seen, mut ended) = mpsc::channel(1);
    let app = App::start(move |request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (send, body) = frames();
            tokio::spawn(async move {
                let mut body = request.into_body();
                let failed = loop {
                    match body.frame().await {
                        Some(Ok(_)) => {}
                        Some(Err(_)) => break true,
                        None => break false,
                    }
                };
                drop(send);
                seen.send(failed).await.unwrap();
            });
            Response::new(body)
        }
    })
    .await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut client = http2(pair.port("grpc")).await;
    let (send, body) = frames();
    let response = client.send_request(call("http://orders.shop:81/x", body)).await.unwrap();
    send.send(Ok(Frame::data("begun".into()))).await.unwrap();
    send.send(Err("given up".into())).await.unwrap();
    drop(response);
    assert_eq!(ended.recv().await, Some(true));
}

#[tokio::test]
async fn an_answer_that_the_application_cancels_is_told_as_cancelled() {
    let app = App::start(|_: Request<Incoming>| async {
        let (send, body) = frames();
        tokio::spawn(async move {
            send.send(Ok(Frame::data("begun".into()))).await.unwrap();
            let _gone = send.send(Err(h2::Error::from(h2::Reason::CANCEL).into())).await;
        });
        Response::new(body)
    })
    .await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut client = http2(pair.port("grpc")).await;
    let response = client.send_request(call("http://orders.shop:81/x", full("y"))).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    let error = std::error::Error::source(&error).and_then(|error| error.downcast_ref());
    assert_eq!(error.and_then(h2::Error::reason), Some(h2::Reason::CANCEL));
}
