//! Asking one endpoint once.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use mesh_core::{
    Endpoint, Protocol, Reason,
    message::{RequestHead, ResponseHead, codec},
    rule::health::{HealthCheck, HttpCheck},
};
use mesh_runtime::clock;
use tokio::time::{Instant, timeout_at};

use super::super::{
    attempts::reason_of,
    opaque,
    pool::{self, Place},
};
use crate::{
    apps::{AnswerBody, Exchange},
    headers,
    inner::{
        Blame,
        mux::Spoken,
        request::{ExchangeError, exchange},
    },
    worker::Worker,
};

/// What is read of an answer's body, so that its connection can be used again.
const MAX_BODY: usize = 16 << 10;

/// What an endpoint's answer says of it.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is well.
    Good,
    /// It is not, and why.
    Bad(String),
    /// Nothing: it was not asked, or not allowed to answer.
    Nothing,
}

impl Answer {
    /// As it is counted.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Bad(_) => "failed",
            Self::Nothing => "skipped",
        }
    }

    fn of_status(http: &HttpCheck, status: StatusCode) -> Self {
        if http.is_good(status) { Self::Good } else { Self::Bad(format!("HTTP {status}")) }
    }

    /// The endpoint's proxy has answered instead of the application.
    fn of_refusal(reason: Reason) -> Self {
        match reason {
            Reason::AppUnreachable | Reason::Timeout | Reason::UpstreamReset => {
                Self::Bad(reason.to_string())
            }
            _ => Self::Nothing,
        }
    }

    fn late() -> Self {
        Self::Bad("no answer in time".into())
    }
}

/// Asks through the mesh, or in plaintext an application that has no proxy.
pub(super) async fn ask(
    worker: &Arc<Worker>,
    endpoint: &Arc<Endpoint>,
    protocol: Protocol,
    check: &HealthCheck,
) -> Answer {
    let until = clock::monotonic() + check.timeout;
    let http = check.http.as_ref().filter(|_| speaks_http(protocol));
    if endpoint.identity.is_none() {
        // Of HTTP/2 alone it is not known what it would say to HTTP/1.
        let http = http.filter(|_| protocol != Protocol::Grpc);
        let asking = plain(worker, endpoint, http);
        return timeout_at(until, asking).await.unwrap_or_else(|_| Answer::late());
    }
    let place = match place(worker, endpoint, until).await {
        Ok(place) => place,
        Err(answer) => return answer,
    };
    let asking = async {
        match http {
            None => connect(&place).await,
            Some(http) => over_http(&place, endpoint, protocol, http).await,
        }
    };
    timeout_at(until, asking).await.unwrap_or_else(|_| Answer::late())
}

fn speaks_http(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Http | Protocol::Grpc | Protocol::Detect => true,
        Protocol::Tcp | Protocol::Tls => false,
    }
}

/// The health of ways is known apart, and blames no endpoint behind them.
async fn place(
    worker: &Arc<Worker>,
    endpoint: &Arc<Endpoint>,
    until: Instant,
) -> Result<Place, Answer> {
    let Some(snapshot) = worker.shared.snapshot.load() else { return Err(Answer::Nothing) };
    match timeout_at(until, pool::place(worker, &snapshot, endpoint)).await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(failure)) => Err(match failure.blames(&snapshot.site, endpoint) {
            Blame::Endpoint => Answer::Bad(failure.to_string()),
            Blame::Path | Blame::Nobody => Answer::Nothing,
        }),
        Err(_) if endpoint.site == snapshot.site => Err(Answer::late()),
        Err(_) => Err(Answer::Nothing),
    }
}

async fn connect(place: &Place) -> Answer {
    match opaque::try_connect(place).await {
        Ok(()) => Answer::Good,
        Err(Some(reason)) => Answer::of_refusal(reason),
        Err(None) => Answer::Bad("the connection broke".into()),
    }
}

fn request(endpoint: &Endpoint, http: &HttpCheck) -> RequestHead {
    let mut head = RequestHead::new();
    head.target.push_str(&http.path);
    head.authority.push_str(endpoint.service.as_str());
    head.fields.push("user-agent", b"isthmus-probe");
    head
}

async fn over_http(
    place: &Place,
    endpoint: &Endpoint,
    protocol: Protocol,
    http: &HttpCheck,
) -> Answer {
    let speaks = if protocol == Protocol::Grpc { Spoken::Http2 } else { Spoken::Http1 };
    let mut coded = Vec::new();
    codec::put_request(&request(endpoint, http), &mut coded);
    let (target, body) = (place.target(speaks), Empty::<Bytes>::new());
    let sent = exchange(&place.mux, target, &coded, body, None, |_, _| ()).await;
    let (coded, body) = match sent {
        Ok((coded, body, _nothing_left)) => (coded, body),
        Err((ExchangeError::NotProcessed(_) | ExchangeError::Retired, _)) => {
            return Answer::Nothing;
        }
        Err((error, _)) => return Answer::Bad(error.to_string()),
    };
    let mut head = ResponseHead::new();
    if let Err(error) = codec::get_response(&coded, &mut head) {
        return Answer::Bad(error.to_string());
    }
    if let Some(code) = head.fields.get(headers::ERROR.as_str()) {
        return Answer::of_refusal(reason_of(code, head.status));
    }
    discard(body).await;
    Answer::of_status(http, head.status)
}

async fn plain(worker: &Arc<Worker>, endpoint: &Endpoint, http: Option<&HttpCheck>) -> Answer {
    let Some(http) = http else {
        let connected = worker.apps.connect(endpoint.target, Spoken::Tcp).await;
        return connected.map_or_else(|error| Answer::Bad(error.to_string()), |_| Answer::Good);
    };
    let (head, mut answer) = (request(endpoint, http), ResponseHead::new());
    let body = Empty::<Bytes>::new();
    let mut exchange = Exchange::new(&worker.apps, endpoint.target, &head, body);
    if let Err(error) = exchange.final_head(&mut answer).await {
        return Answer::Bad(error.to_string());
    }
    if let Some(body) = exchange.into_answer() {
        discard(AnswerBody::new(body)).await;
    }
    Answer::of_status(http, answer.status)
}

async fn discard(body: impl Body<Data = Bytes>) {
    let mut body = std::pin::pin!(body);
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > MAX_BODY {
            return;
        }
    }
}
