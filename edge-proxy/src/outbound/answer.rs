//! What came back for a request, and what it holds until it has ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{
    body::ReplayBody,
    loads::Attempt,
    opaque::{Opened, Relayed},
    pool::Place,
    protect::InFlight,
};
use crate::inner::{
    mux::StreamError,
    request::{self, Part, RecvBody, Upload},
};

/// An answer whose head was taken already.
#[derive(Debug)]
pub struct Answer {
    /// What follows the head.
    pub body: AnswerBody,
    /// What is left of the request; must be driven on.
    pub upload: Upload<ReplayBody>,
    /// Held while the body runs.
    pub used: Used,
}

/// What an answer occupies until its body has ended.
#[derive(Debug)]
pub struct Used {
    /// The endpoint's load.
    pub attempt: Attempt,
    /// A place on a session.
    pub place: Place,
    /// A request of the service.
    pub in_flight: Option<InFlight>,
}

/// The body of an answer.
#[derive(Debug)]
pub enum AnswerBody {
    /// From the far proxy.
    Mesh(RecvBody),
}

/// An answer that ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The request's deadline has passed.
    #[error("the request's deadline has passed")]
    Late,
    /// It is not as long as its head has said.
    #[error("the answer is not as long as its head has said")]
    Length,
    /// The stream to the far proxy broke.
    #[error(transparent)]
    Mesh(#[from] StreamError),
}

impl AnswerBody {
    /// What comes next; `None` at the end.
    pub fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, AnswerError>>> {
        match self {
            Self::Mesh(body) => body.poll_part(cx).map_err(AnswerError::Mesh),
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
        Poll::Ready(ready!(self.poll_part(cx)).map(|part| part.map(request::frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Mesh(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Mesh(body) => body.size_hint(),
        }
    }
}

impl Answer {
    /// The bytes of the protocol that was switched to. `None` if the stream is
    /// still held by somebody else, which is a defect.
    pub fn into_opened(self) -> Option<Opened> {
        let Self { body, upload, used } = self;
        drop(upload);
        let AnswerBody::Mesh(body) = body;
        let pipe = body.into_exchange()?.into_pipe();
        Some(Opened::new(Relayed::Mesh(pipe), used))
    }
}
