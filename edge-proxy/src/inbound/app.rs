//! The way to an application of ours. Every one takes a [`Permit`].

use std::{net::SocketAddr, sync::Arc};

use http::{Response, header::HOST};
use mesh_core::{Endpoint, Permit, Reason, message::RequestHead};
use mesh_tunnel::Stream;
use tokio::time::Instant;

use super::{answer::Http2Answer, stream::CallerStream};
use crate::{
    apps::{self, Exchange, MAX_HTTP2},
    http2,
    inner::mux::Spoken,
    refusal::Refusal,
    worker::Worker,
};

/// A connection for opaque bytes.
pub(super) async fn dial(
    worker: &Worker,
    endpoint: &Endpoint,
    _permit: &Permit,
) -> Result<Stream, Refusal> {
    let dialled = worker.apps.connect(endpoint.target, Spoken::Tcp).await;
    dialled.map_err(|error| unreachable(endpoint, &error))
}

/// A request over HTTP/1; `offer`: with the `Upgrade` among its fields.
pub(super) fn http1<'a>(
    worker: &'a Worker,
    target: SocketAddr,
    _permit: &Permit,
    head: &'a RequestHead,
    stream: CallerStream,
    offer: bool,
) -> Exchange<'a, CallerStream> {
    if offer {
        Exchange::offer(&worker.apps, target, head, stream)
    } else {
        Exchange::new(&worker.apps, target, head, stream)
    }
}

/// Sends a request over HTTP/2 and waits for the head of its answer.
pub(super) async fn http2(
    worker: &Arc<Worker>,
    endpoint: &Endpoint,
    _permit: &Permit,
    head: &RequestHead,
    mut stream: CallerStream,
    until: Option<Instant>,
) -> Result<(Response<()>, Http2Answer), (Failed, CallerStream)> {
    let client = tokio::select! {
        biased;
        () = std::future::poll_fn(|cx| stream.poll_gone(cx)) => return Err((Failed::Gone, stream)),
        () = until_late(until) => return Err((late(endpoint).into(), stream)),
        client = worker.apps.http2(endpoint.target, MAX_HTTP2) => client,
    };
    let client = match client {
        Ok(client) => client,
        Err(error) => return Err((unreachable(endpoint, &error).into(), stream)),
    };
    let mut request = match head.to_request() {
        Ok(request) => request,
        Err(error) => {
            return Err((Refusal::new(Reason::BadRequest, error.to_string()).into(), stream));
        }
    };
    // `:authority` says the same, and says it first.
    request.headers_mut().remove(HOST);
    let lease = client.lease();
    match client.exchange(request, stream, until, |cx, stream| stream.poll_gone(cx)).await {
        Ok((response, upload)) => {
            let (head, body) = response.into_parts();
            let body = http2::RecvBody::new(body);
            Ok((Response::from_parts(head, ()), Http2Answer { body, upload, _lease: lease }))
        }
        Err((error, stream)) => Err((of_http2(endpoint, &error), stream)),
    }
}

/// Why there is no answer.
pub(super) enum Failed {
    /// The caller is to be told.
    Refused(Refusal),
    /// There is nobody to tell.
    Gone,
    /// The request cannot be completed.
    Body,
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn of_http2(endpoint: &Endpoint, error: &http2::ExchangeError) -> Failed {
    use http2::ExchangeError as Error;
    match error {
        Error::NotProcessed(error) => unreachable(endpoint, error).into(),
        Error::Broken(error) => broken(endpoint, error).into(),
        Error::TimedOut => late(endpoint).into(),
        Error::BodyFailed => Failed::Body,
        Error::Gone => Failed::Gone,
    }
}

/// What the failure of an exchange over HTTP/1 is to the caller.
pub(super) fn of_http1(endpoint: &Endpoint, error: &apps::ExchangeError) -> Failed {
    use apps::ExchangeError as Error;
    match error {
        Error::NotConnected(error) => unreachable(endpoint, error).into(),
        Error::NotProcessed(error) => unreachable(endpoint, error).into(),
        Error::Broken(error) => broken(endpoint, error).into(),
        Error::BodyFailed => Failed::Body,
        Error::Gone => Failed::Gone,
    }
}

/// Waits until the caller's deadline, forever without one.
async fn until_late(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// The application has not answered before the caller's deadline.
pub(super) fn late(endpoint: &Endpoint) -> Refusal {
    let text = format!("service {}: its application has not answered in time", endpoint.service);
    Refusal::new(Reason::Timeout, text)
}

fn unreachable(endpoint: &Endpoint, error: &dyn std::fmt::Display) -> Refusal {
    let Endpoint { service, id, target, .. } = endpoint;
    let text = format!("service {service}, endpoint {id}: the application at {target}: {error}");
    Refusal::new(Reason::AppUnreachable, text)
}

/// The application answered what is none.
pub(super) fn broken(endpoint: &Endpoint, error: &dyn std::fmt::Display) -> Refusal {
    let Endpoint { service, id, .. } = endpoint;
    let text = format!("service {service}, endpoint {id}: the application's answer broke: {error}");
    Refusal::new(Reason::UpstreamReset, text)
}
