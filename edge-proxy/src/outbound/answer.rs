//! What came back for a request, and what it holds until it has ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use mesh_core::{message::Fields, rule};
use mesh_tunnel::Stream;

use super::{
    body::ReplayBody,
    loads::Attempt,
    opaque::{Opened, Relayed},
    pool::Place,
    protect::{Connection, InFlight},
};
use crate::{
    apps,
    http1::ConnError,
    http2,
    inbound::limits,
    inner::{
        mux::{ResetCode, StreamError},
        request::{self, Part, RecvBody, Upload},
    },
    record::Record,
    worker::Worker,
};

/// How a gRPC call has ended.
pub const GRPC_STATUS: &str = "grpc-status";

/// An answer whose head was taken already.
#[derive(Debug)]
pub struct Answer {
    /// What follows the head, and what is left of the request.
    pub body: AnswerBody,
    /// Held while the body runs.
    pub used: Used,
}

/// What an answer occupies until its body has ended.
#[derive(Debug)]
pub struct Used {
    /// The endpoint's load.
    pub attempt: Attempt,
    /// A place on a session, if the endpoint has a proxy.
    pub place: Option<Place>,
    /// A connection of its own, where they are counted.
    pub connection: Connection,
    /// A request of the service.
    pub in_flight: Option<InFlight>,
    /// A place at an own application.
    pub running: limits::Place,
}

impl Used {
    /// What follows the body may say that the service has failed.
    pub fn read_trailers(&mut self, grpc_status: Option<u32>, record: &mut Record) {
        record.entry.grpc_status = grpc_status.or(record.entry.grpc_status);
        if grpc_status.is_some_and(rule::is_grpc_failure) {
            self.attempt.blame();
            record.classified(true);
        }
    }
}

/// gRPC over HTTP/2, "Status": in trailers, or in a head that is all there is.
pub fn grpc_status(fields: &Fields) -> Option<u32> {
    grpc_code(fields.get(GRPC_STATUS)?)
}

/// The same of what may have been said.
pub fn grpc_code(value: &[u8]) -> Option<u32> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The body of an answer, and what is left of its request, which must be
/// driven on.
#[derive(Debug)]
pub enum AnswerBody {
    /// From the endpoint's proxy.
    Mesh {
        /// What follows the head.
        body: RecvBody,
        /// The request, unless it goes on by itself.
        upload: Option<Upload<ReplayBody>>,
    },
    /// From an application without a proxy, over HTTP/1; `None` after its end.
    App(Option<Box<apps::Answer<ReplayBody>>>),
    /// From an application without a proxy, over HTTP/2.
    Http2(Box<Http2>),
    /// An application without a proxy has switched protocols.
    Switched(Stream),
}

/// An answer over HTTP/2.
#[derive(Debug)]
pub struct Http2 {
    /// What follows the head.
    pub body: http2::RecvBody,
    /// The request.
    pub upload: http2::Upload<ReplayBody>,
    /// Counts the stream.
    pub _lease: http2::Lease,
}

/// An answer that ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The request's deadline has passed; a client of HTTP/2 is told as with
    /// [`AnswerError::Cancelled`].
    #[error("the request's deadline has passed")]
    Late(#[source] h2::Error),
    /// It is not as long as its head has said.
    #[error("the answer is not as long as its head has said")]
    Length,
    /// The stream to the far proxy broke.
    #[error(transparent)]
    Mesh(StreamError),
    /// The connection to the application broke.
    #[error(transparent)]
    App(#[from] ConnError),
    /// The stream to the application broke.
    #[error("the application's stream broke")]
    Http2(#[source] h2::Error),
    /// The application no longer wants to give it. As the reason of HTTP/2,
    /// which a client of HTTP/2 is told: at its deadline gRPC knows by it that
    /// nothing else has failed.
    #[error("the application cancelled its answer")]
    Cancelled(#[source] h2::Error),
}

impl AnswerError {
    /// The request's deadline has passed.
    pub fn late() -> Self {
        Self::Late(h2::Reason::CANCEL.into())
    }

    fn of_mesh(error: StreamError) -> Self {
        match error {
            StreamError::Reset { code: ResetCode::Cancelled, .. } => {
                Self::Cancelled(h2::Reason::CANCEL.into())
            }
            error => Self::Mesh(error),
        }
    }
}

impl AnswerBody {
    /// Sends on what is left of the request; how that ends matters to nobody
    /// who has an answer.
    pub fn poll_request(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Mesh { upload: Some(upload), .. } => {
                let _end = upload.poll(cx);
            }
            Self::App(Some(answer)) => {
                let _end = answer.poll_upload(cx);
            }
            Self::Http2(answer) => {
                let _end = answer.upload.poll(cx);
            }
            Self::Mesh { upload: None, .. } | Self::App(None) | Self::Switched(_) => {}
        }
    }

    /// Whether the request can be sent again.
    pub fn is_replayable(&mut self) -> bool {
        match self {
            Self::Mesh { upload: Some(upload), .. } => upload.body().is_replayable(),
            Self::App(Some(answer)) => answer.parts().1.is_replayable(),
            Self::Http2(answer) => answer.upload.body().is_replayable(),
            Self::Mesh { upload: None, .. } | Self::App(None) | Self::Switched(_) => false,
        }
    }

    /// Gives up the answer; the request's body from its beginning, if it can be
    /// sent again.
    pub fn into_request(self) -> Option<ReplayBody> {
        let mut body = match self {
            Self::Mesh { upload, .. } => upload?.into_body(),
            Self::App(answer) => answer?.into_body(),
            Self::Http2(answer) => answer.upload.into_body(),
            Self::Switched(_) => return None,
        };
        body.rewind().then_some(body)
    }

    /// What comes next; `None` at the end.
    pub fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, AnswerError>>> {
        match self {
            Self::Mesh { body, .. } => body.poll_part(cx).map_err(AnswerError::of_mesh),
            Self::App(answer) => poll_app(answer, cx),
            Self::Http2(answer) => Pin::new(&mut answer.body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(AnswerError::Http2).map(part))),
            Self::Switched(_) => Poll::Ready(None),
        }
    }
}

/// For those who need the bytes to be theirs.
fn poll_app(
    slot: &mut Option<Box<apps::Answer<ReplayBody>>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Part, AnswerError>>> {
    let Some(answer) = slot else { return Poll::Ready(None) };
    let data = ready!(answer.poll_data(cx)).map(|data| data.map(Bytes::copy_from_slice));
    Poll::Ready(match data {
        Ok(Some(data)) => {
            answer.consume(data.len());
            settle(slot);
            Some(Ok(Part::Data(data)))
        }
        Ok(None) => finish(slot).map(|trailers| Ok(Part::Trailers(trailers))),
        Err(error) => {
            *slot = None;
            Some(Err(error.into()))
        }
    })
}

/// Keeps the connection of an answer that is over: whoever knows its end does
/// not ask for what follows.
fn settle(answer: &mut Option<Box<apps::Answer<ReplayBody>>>) {
    if answer.as_ref().is_some_and(|answer| answer.is_end() && !answer.has_trailers()) {
        finish(answer);
    }
}

/// Ends an answer that has been read, and keeps its connection.
pub fn finish(answer: &mut Option<Box<apps::Answer<ReplayBody>>>) -> Option<Fields> {
    let mut answer = answer.take()?;
    let trailers = answer.take_trailers();
    answer.finish();
    trailers
}

fn part(frame: Frame<Bytes>) -> Part {
    match frame.into_data() {
        Ok(data) => Part::Data(data),
        Err(frame) => {
            let mut fields = Fields::new();
            if let Ok(map) = frame.into_trailers() {
                fields.read_map(&map);
            }
            Part::Trailers(fields)
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        self.poll_request(cx);
        Poll::Ready(ready!(self.poll_part(cx)).map(|part| part.map(request::frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Mesh { body, .. } => body.is_end_stream(),
            Self::App(Some(answer)) => answer.is_end() && !answer.has_trailers(),
            Self::Http2(answer) => answer.body.is_end_stream(),
            Self::App(None) => true,
            Self::Switched(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Mesh { body, .. } => body.size_hint(),
            Self::App(_) | Self::Http2(_) | Self::Switched(_) => SizeHint::default(),
        }
    }
}

impl Answer {
    /// The bytes of the protocol that was switched to. `None` if there is no
    /// such stream, which is a defect.
    pub fn into_opened(self) -> Option<Opened> {
        let stream = match self.body {
            AnswerBody::Mesh { body, upload } => {
                drop(upload);
                Relayed::Mesh(body.into_exchange()?.into_pipe())
            }
            AnswerBody::Switched(stream) => Relayed::App(stream),
            AnswerBody::App(_) | AnswerBody::Http2(_) => return None,
        };
        Some(Opened::new(stream, self.used))
    }

    /// For those who do not read as fast as the request is sent, or not at
    /// all: what is left of a request to another proxy goes on by itself, and
    /// the connection of an answer without a body is kept.
    pub fn drive_on(&mut self, worker: &Worker) {
        if let AnswerBody::App(answer) = &mut self.body {
            settle(answer);
        }
        if let AnswerBody::Mesh { upload, .. } = &mut self.body
            && let Some(mut upload) = upload.take_if(|upload| !upload.is_done())
        {
            worker.shared.drain.spawn(async move {
                upload.run().await;
            });
        }
    }
}
