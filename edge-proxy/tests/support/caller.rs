//! A caller that speaks to a destination in the streams of an inner session.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use edge_proxy::inner::{
    self,
    mux::{Exchange, Received, Spoken, StreamError},
};
use mesh_core::message::{Fields, RequestHead, ResponseHead, codec};

use super::Pair;

/// Longer than anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An inner session of `checkout` to the port `http` of `orders.shop`.
pub struct Caller {
    session: inner::Session,
}

impl Caller {
    pub async fn of(pair: &Pair) -> Self {
        let app = &pair.source.app;
        let site = super::SITE.parse().unwrap();
        let endpoint = pair.snapshot.endpoint("orders.shop", &site, "one-http").unwrap();
        let opened = inner::open(&app.shared, &app.tunnels.at(0), &pair.snapshot, endpoint).await;
        Self { session: opened.unwrap() }
    }

    /// Opens a stream for a request; with `end` it has no body.
    pub fn ask(&self, head: &RequestHead, end: bool) -> Exchange {
        let mut coded = Vec::new();
        codec::put_request(head, &mut coded);
        let target = Arc::clone(self.session.target(Spoken::Http1));
        self.session.mux.open(&target, &coded, end).unwrap()
    }

    /// Whether the session still takes streams.
    pub fn is_usable(&self) -> bool {
        self.session.mux.is_usable()
    }
}

/// A request with these fields.
pub fn request(method: &str, fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead {
        method: method.parse().unwrap(),
        authority: "orders.shop".into(),
        target: "/x".into(),
        ..RequestHead::new()
    };
    for (name, value) in fields {
        head.fields.push(name, value.as_bytes());
    }
    head
}

/// All that has come of an answer.
#[derive(Debug, Default)]
pub struct Answer {
    pub hints: Vec<ResponseHead>,
    pub head: ResponseHead,
    pub body: Vec<u8>,
    pub trailers: Option<Fields>,
}

pub async fn wait<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

fn head(code: &Bytes) -> ResponseHead {
    let mut head = ResponseHead::new();
    codec::get_response(code, &mut head).unwrap();
    head
}

/// Reads up to the head.
pub async fn read_head(stream: &mut Exchange) -> Result<Answer, StreamError> {
    let mut answer = Answer::default();
    loop {
        match wait(stream.recv()).await? {
            Some(Received::Informational(code)) => answer.hints.push(head(&code)),
            Some(Received::Head(code)) => {
                answer.head = head(&code);
                return Ok(answer);
            }
            other => panic!("no head: {other:?}"),
        }
    }
}

/// Reads what follows the head.
pub async fn read_rest(stream: &mut Exchange, answer: &mut Answer) -> Result<(), StreamError> {
    while let Some(received) = wait(stream.recv()).await? {
        match received {
            Received::Data(data) => answer.body.extend_from_slice(&data),
            Received::Trailers(block) => {
                let mut fields = Fields::new();
                codec::get_fields(&block, &mut fields).unwrap();
                answer.trailers = Some(fields);
            }
            head => panic!("a late head: {head:?}"),
        }
    }
    Ok(())
}

/// Reads all of an answer.
pub async fn read_answer(stream: &mut Exchange) -> Result<Answer, StreamError> {
    let mut answer = read_head(stream).await?;
    read_rest(stream, &mut answer).await?;
    Ok(answer)
}
