//! One request, asked of a proxy of this machine, and what came back.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use mesh_migrate::shadow::{
    compare::{Digest, Observation, Observed},
    heads::{Body, Head},
    log::Logged,
};
use mesh_runtime::clock;
use tokio::time::timeout;

use super::{
    super::sockets,
    backends::{self, Backends},
};

/// For a whole answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Headers that are of one connection (RFC 9110, 7.6.1).
const OF_A_CONNECTION: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A request that can be asked more than once.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// As it is sent.
    pub(super) method: Method,
    /// As it is sent.
    pub(super) target: Uri,
    /// `Host`, for people.
    pub(super) host: Option<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
}

impl Question {
    /// Of what a client has said; `None` if it cannot be said again.
    pub(super) fn of_head(head: &Head) -> Option<Self> {
        let body = match &head.body {
            Body::Empty => Bytes::new(),
            Body::Whole(bytes) => Bytes::copy_from_slice(bytes),
            Body::NotKept => return None,
        };
        let is_of_one = |name: &str| OF_A_CONNECTION.contains(&name);
        let mut headers = Vec::with_capacity(head.headers.len());
        for (name, value) in &head.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            if name == http::header::UPGRADE || name == http::header::EXPECT {
                return None;
            }
            if !is_of_one(name.as_str()) && name != http::header::CONTENT_LENGTH {
                headers.push((name, HeaderValue::from_bytes(value).ok()?));
            }
        }
        let host = head.host().map(str::to_owned);
        Self::new(&head.method, &head.target, host, headers, body)
    }

    /// Of what a proxy has logged.
    pub(super) fn of_log(logged: &Logged, default_host: &str) -> Option<Self> {
        let host = logged.host.clone().unwrap_or_else(|| default_host.to_owned());
        let value = HeaderValue::try_from(&host).ok()?;
        let headers = vec![(http::header::HOST, value)];
        Self::new(&logged.method, &logged.target, Some(host), headers, Bytes::new())
    }

    fn new(
        method: &str,
        target: &str,
        host: Option<String>,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Option<Self> {
        let method = method.parse().ok().filter(|method| *method != Method::CONNECT)?;
        Some(Self { method, target: target.parse().ok()?, host, headers, body })
    }

    fn request(&self, id: &str) -> Option<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(self.method.clone()).uri(self.target.clone());
        let headers = request.headers_mut()?;
        for (name, value) in &self.headers {
            headers.append(name.clone(), value.clone());
        }
        headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        headers.insert(backends::HEADER, HeaderValue::try_from(id).ok()?);
        request.body(Full::new(self.body.clone())).ok()
    }
}

/// Addresses of this process's own questions: what is seen of them on the wire is no
/// client's.
#[derive(Debug, Clone, Default)]
pub(super) struct Own(Arc<Mutex<HashSet<SocketAddr>>>);

impl Own {
    /// Whether it is one of them.
    pub(super) fn has(&self, client: &SocketAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(client)
    }

    fn add(&self, client: SocketAddr) -> Asking<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(client);
        Asking(self, client)
    }
}

/// As long as it lasts.
struct Asking<'o>(&'o Own, SocketAddr);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// What came back, and from which backend, where that was seen.
pub(super) type Asked = (Observation, Option<SocketAddr>);

/// Asks whoever is at `to`, by the way of connections with that mark.
pub(super) async fn ask(
    question: &Question,
    to: SocketAddr,
    mark: Option<u32>,
    (own, backends): (&Own, &Backends),
) -> Asked {
    let sent = backends.send();
    let asked = timeout(PATIENCE, answer(question, to, mark, (own, &sent.id))).await;
    match asked {
        // What was said itself may be seen only now.
        Ok(Ok((observed, _asking))) => (Observation::Answer(observed), sent.whom().await),
        Ok(Err(why)) => (Observation::NoAnswer(why.to_owned()), None),
        Err(_) => (Observation::NoAnswer("timeout".to_owned()), None),
    }
}

async fn answer<'o>(
    question: &Question,
    to: SocketAddr,
    mark: Option<u32>,
    (own, id): (&'o Own, &str),
) -> Result<(Observed, Asking<'o>), &'static str> {
    let began = clock::monotonic();
    let stream = sockets::connect(to, mark).await.map_err(|_| "refused")?;
    let local = stream.local_addr().map_err(|_| "refused")?;
    let asking = own.add(local);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|_| "closed")?;
    let driving = tokio::spawn(connection);
    let request = question.request(id).ok_or("cannot be said")?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|error| told(&error))?;
        let (head, mut body) = answer.into_parts();
        let mut digest = Digest::default();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.map_err(|_| "broken off")?.data_ref() {
                digest.add(data);
            }
        }
        let headers = head.headers.iter();
        Ok(Observed {
            status: head.status.as_u16(),
            headers: headers
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect(),
            body: digest,
            took: began.elapsed(),
        })
    };
    let answered = answered.await;
    driving.abort();
    answered.map(|observed| (observed, asking))
}

fn told(error: &hyper::Error) -> &'static str {
    if error.is_parse() { "no HTTP" } else { "closed" }
}
