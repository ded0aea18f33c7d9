//! An application's answer on its way back, and the rest of its request on the
//! way there: one task drives both.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::Body;
use mesh_core::message::{Fields, codec};

use super::stream::{CallerStream, Gone};
use crate::{
    apps::{self, UploadEnd},
    http2::{self, Lease},
    inner::mux::ResetCode,
    outbound::answer::grpc_status,
};

/// Why an answer did not arrive whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// Nobody wants it any more, or the caller did not complete its request.
    #[error("the caller has gone")]
    Caller,
    /// The application broke it off.
    #[error("the application broke its answer off")]
    App,
    /// The application no longer wants to give it, which is no failure: gRPC's
    /// servers do so at a call's deadline.
    #[error("the application cancelled its answer")]
    Cancelled,
}

impl Broken {
    fn of_http2(error: &h2::Error) -> Self {
        if error.reason() == Some(h2::Reason::CANCEL) { Self::Cancelled } else { Self::App }
    }

    fn code(self) -> ResetCode {
        match self {
            Self::Cancelled => ResetCode::Cancelled,
            Self::Caller | Self::App => ResetCode::Failed,
        }
    }
}

impl From<Gone> for Broken {
    fn from(Gone: Gone) -> Self {
        Self::Caller
    }
}

/// What was carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Carried {
    /// Bytes of the request.
    pub(super) received: u64,
    /// Bytes of the answer.
    pub(super) sent: u64,
    /// Of gRPC, if it came after the body.
    pub(super) grpc_status: Option<u32>,
}

/// What follows the head of an answer over HTTP/1; nothing if it has `ended`.
pub(super) async fn carry_http1(
    mut answer: apps::Answer<CallerStream>,
    ended: bool,
    carried: &mut Carried,
) -> Result<(), Broken> {
    let (mut trailers, mut uploaded) = (None, false);
    let result = poll_fn(|cx| {
        if ended {
            return Poll::Ready(Ok(()));
        }
        if !uploaded && let Poll::Ready(end) = answer.poll_upload(cx) {
            if end == UploadEnd::BodyFailed {
                return Poll::Ready(Err(Broken::Caller));
            }
            uploaded = true;
        }
        poll_http1(cx, &mut answer, &mut trailers, carried)
    })
    .await;
    let (_, stream) = answer.parts();
    carried.received = stream.received();
    match result {
        Ok(()) => drop(answer.finish()),
        Err(broken) => stream.reset(broken.code(), &broken.to_string()),
    }
    result
}

/// Moves the answer from the connection's buffer into the stream.
fn poll_http1(
    cx: &mut Context<'_>,
    answer: &mut apps::Answer<CallerStream>,
    trailers: &mut Option<Vec<u8>>,
    carried: &mut Carried,
) -> Poll<Result<(), Broken>> {
    let (conn, stream) = answer.parts();
    while trailers.is_none() {
        match conn.poll_data(cx) {
            Poll::Ready(Ok(Some(_))) => {}
            Poll::Ready(Ok(None)) => match conn.take_trailers() {
                Some(fields) => {
                    carried.grpc_status = grpc_status(&fields);
                    *trailers = Some(coded(&fields));
                }
                None => {
                    stream.finish();
                    return Poll::Ready(Ok(()));
                }
            },
            Poll::Ready(Err(error)) => {
                log::debug!(error:% = error; "an application's answer broke off");
                return Poll::Ready(Err(Broken::App));
            }
            Poll::Pending => {
                ready!(stream.poll_gone(cx));
                return Poll::Ready(Err(Broken::Caller));
            }
        }
        let (data, last) = (conn.unread(), conn.is_last());
        if !data.is_empty() {
            let length = data.len();
            let count = ready!(stream.poll_send(cx, data, last))?;
            conn.consume(count);
            carried.sent += count as u64;
            if last && count == length {
                return Poll::Ready(Ok(()));
            }
        }
    }
    let block = trailers.as_deref().unwrap_or_default();
    stream.poll_send_trailers(cx, block).map_err(Broken::from)
}

fn coded(trailers: &Fields) -> Vec<u8> {
    let mut block = Vec::new();
    codec::put_fields(trailers, &mut block);
    block
}

/// An answer over HTTP/2.
pub(super) struct Http2Answer {
    /// What follows its head.
    pub(super) body: http2::RecvBody,
    /// What is left of the request, and the caller's stream.
    pub(super) upload: http2::Upload<CallerStream>,
    /// Its place on a connection.
    pub(super) _lease: Lease,
}

/// What follows the head of an answer over HTTP/2; nothing if it has `ended`.
pub(super) async fn carry_http2(
    mut answer: Http2Answer,
    ended: bool,
    carried: &mut Carried,
) -> Result<(), Broken> {
    let (mut pending, mut trailers) = (Bytes::new(), None);
    let result = poll_fn(|cx| {
        if ended {
            return Poll::Ready(Ok(()));
        }
        if answer.upload.poll(cx) == Poll::Ready(http2::UploadEnd::BodyFailed) {
            return Poll::Ready(Err(Broken::Caller));
        }
        poll_http2(cx, &mut answer, &mut pending, &mut trailers, carried)
    })
    .await;
    let stream = answer.upload.body();
    carried.received = stream.received();
    if let Err(broken) = result {
        stream.reset(broken.code(), &broken.to_string());
    }
    result
}

fn poll_http2(
    cx: &mut Context<'_>,
    answer: &mut Http2Answer,
    pending: &mut Bytes,
    trailers: &mut Option<Vec<u8>>,
    carried: &mut Carried,
) -> Poll<Result<(), Broken>> {
    let (body, stream) = (&mut answer.body, answer.upload.body());
    loop {
        if !pending.is_empty() {
            let last = body.is_end_stream();
            let count = ready!(stream.poll_send(cx, pending, last))?;
            pending.advance(count);
            carried.sent += count as u64;
            if last && pending.is_empty() {
                return Poll::Ready(Ok(()));
            }
            continue;
        }
        if let Some(block) = trailers {
            return stream.poll_send_trailers(cx, block).map_err(Broken::from);
        }
        let frame = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(None) => {
                stream.finish();
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Some(Err(error))) => {
                log::debug!(error:% = error; "an application's answer broke off");
                return Poll::Ready(Err(Broken::of_http2(&error)));
            }
            Poll::Pending => {
                ready!(stream.poll_gone(cx));
                return Poll::Ready(Err(Broken::Caller));
            }
        };
        match frame.into_data() {
            Ok(data) => *pending = data,
            Err(frame) => {
                let mut fields = Fields::new();
                fields.read_map(&frame.into_trailers().unwrap_or_default());
                carried.grpc_status = grpc_status(&fields);
                *trailers = Some(coded(&fields));
            }
        }
    }
}
