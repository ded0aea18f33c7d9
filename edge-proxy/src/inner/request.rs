//! One request on a stream of an inner session: its body on the way there, and
//! what comes back. Both directions may be driven by different tasks.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use mesh_core::message::{Fields, codec};
use tokio::time::Instant;

use super::mux::{Exchange, OpenError, Received, ResetCode, Session, StreamError, Target};

/// One stream in the hands of both directions.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<Exchange>>);

impl Shared {
    /// Takes a stream into use.
    pub fn new(exchange: Exchange) -> Self {
        Self(Arc::new(Mutex::new(exchange)))
    }

    /// The stream alone; `None` while somebody else holds it, too.
    pub fn into_inner(self) -> Option<Exchange> {
        let exchange = Arc::into_inner(self.0)?;
        Some(exchange.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// The stream; never held across a wait.
    pub fn lock(&self) -> MutexGuard<'_, Exchange> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The peer has not processed it: safe to repeat whatever it is.
    #[error("not processed: {0}")]
    NotProcessed(String),
    /// The session took nothing new when the stream was to be opened.
    #[error("not processed: {}", OpenError::Retired)]
    Retired,
    /// It may have been processed.
    #[error("{text}")]
    Broken {
        /// For people.
        text: String,
        /// The whole session is gone.
        lost: bool,
    },
    /// No answer in the time that one attempt may take.
    #[error("no answer in time")]
    TimedOut,
    /// The request's own body failed.
    #[error("the client's body ended early")]
    BodyFailed,
}

impl ExchangeError {
    /// Whether the whole session broke, not one stream of it.
    pub fn is_connection_lost(&self) -> bool {
        matches!(self, Self::Broken { lost: true, .. })
    }
}

impl From<StreamError> for ExchangeError {
    fn from(error: StreamError) -> Self {
        let (text, lost) = (error.to_string(), error.is_connection_lost());
        if error.is_not_processed() {
            return Self::NotProcessed(text);
        }
        Self::Broken { text, lost }
    }
}

impl From<OpenError> for ExchangeError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Retired => Self::Retired,
            OpenError::Full | OpenError::Busy | OpenError::TooLong => {
                Self::NotProcessed(error.to_string())
            }
        }
    }
}

/// Sends a request and waits for the head of its answer, sending the body
/// meanwhile, up to `until`. Heads before the head (1xx) are shown to `early`.
/// An upload that is not done by then must be driven on; on an error the body
/// comes back.
pub async fn exchange<B>(
    session: &Session,
    target: &Arc<Target>,
    head: &[u8],
    body: B,
    until: Option<Instant>,
    early: impl FnMut(&[u8], &mut Context<'_>),
) -> Result<(Bytes, RecvBody, Upload<B>), (ExchangeError, B)>
where
    B: Body<Data = Bytes> + Unpin,
{
    let stream = match session.open(target, head, body.is_end_stream()) {
        Ok(exchange) => Shared::new(exchange),
        Err(error) => return Err((error.into(), body)),
    };
    let mut upload = Upload::new(body, stream.clone());
    let head = until_head(&stream, &mut upload, early);
    let answered = match until {
        None => head.await,
        Some(until) => {
            tokio::time::timeout_at(until, head).await.unwrap_or(Err(ExchangeError::TimedOut))
        }
    };
    match answered {
        Ok(head) => Ok((head, RecvBody::new(stream), upload)),
        Err(error) => Err((error, upload.into_body())),
    }
}

/// Drives the upload until the head of the answer is there.
async fn until_head<B>(
    stream: &Shared,
    upload: &mut Upload<B>,
    mut early: impl FnMut(&[u8], &mut Context<'_>),
) -> Result<Bytes, ExchangeError>
where
    B: Body<Data = Bytes> + Unpin,
{
    std::future::poll_fn(|cx| {
        if upload.poll(cx) == Poll::Ready(UploadEnd::BodyFailed) {
            return Poll::Ready(Err(ExchangeError::BodyFailed));
        }
        loop {
            let received = ready!(stream.lock().poll_recv(cx)).map_err(ExchangeError::from)?;
            match received {
                Some(Received::Head(head)) => return Poll::Ready(Ok(head)),
                Some(Received::Informational(head)) => early(&head, cx),
                _ => {
                    let text = "an answer without a head".to_owned();
                    return Poll::Ready(Err(ExchangeError::Broken { text, lost: false }));
                }
            }
        }
    })
    .await
}

/// What follows a head; trailers come last.
#[derive(Debug)]
pub struct RecvBody {
    stream: Shared,
    ended: bool,
}

impl RecvBody {
    /// Reads what follows a head.
    pub fn new(stream: Shared) -> Self {
        Self { stream, ended: false }
    }

    /// What comes next; `None` at the end. Trailers come last.
    pub fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, StreamError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let part = match ready!(self.stream.lock().poll_recv(cx)) {
            Ok(Some(Received::Data(data))) => return Poll::Ready(Some(Ok(Part::Data(data)))),
            Ok(Some(Received::Trailers(block))) => Some(trailers(&block).map(Part::Trailers)),
            // The session lets no other head through.
            Ok(Some(Received::Head(_) | Received::Informational(_)) | None) => None,
            Err(error) => Some(Err(error)),
        };
        self.ended = true;
        Poll::Ready(part)
    }

    /// The stream itself; `None` while the upload holds it, too.
    pub fn into_exchange(self) -> Option<Exchange> {
        self.stream.into_inner()
    }
}

/// A piece of what follows a head.
#[derive(Debug)]
pub enum Part {
    /// Bytes; never empty.
    Data(Bytes),
    /// What follows the bytes.
    Trailers(Fields),
}

/// A block of trailers as it travels between proxies.
pub fn trailers(block: &[u8]) -> Result<Fields, StreamError> {
    let mut fields = Fields::new();
    codec::get_fields(block, &mut fields).map_err(|error| StreamError::Reset {
        code: ResetCode::Protocol,
        reason: error.to_string().into(),
    })?;
    Ok(fields)
}

/// As HTTP/2 has it.
pub fn frame(part: Part) -> Frame<Bytes> {
    match part {
        Part::Data(data) => Frame::data(data),
        Part::Trailers(fields) => {
            let mut map = HeaderMap::new();
            fields.write_map(&mut map);
            Frame::trailers(map)
        }
    }
}

impl Body for RecvBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        self.poll_part(cx).map_ok(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.stream.lock().is_recv_end()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

/// A body on its way into a stream, driven by whoever owns it. Nothing is read
/// from the body before the stream has room for what was read last.
#[derive(Debug)]
pub struct Upload<B> {
    body: B,
    stream: Shared,
    pending: Bytes,
    trailers: Option<Vec<u8>>,
    sent: u64,
    ended: Option<UploadEnd>,
}

/// How an upload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadEnd {
    /// All of it is on its way.
    Sent,
    /// The peer wants no more; its answer says why.
    Stopped,
    /// The body itself failed; the stream was reset.
    BodyFailed,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// Nothing is sent before the first poll. A body without frames was ended
    /// by the head.
    pub fn new(body: B, stream: Shared) -> Self {
        let ended = body.is_end_stream().then_some(UploadEnd::Sent);
        Self { body, stream, pending: Bytes::new(), trailers: None, sent: 0, ended }
    }

    /// Whether there is nothing left to drive.
    pub fn is_done(&self) -> bool {
        self.ended.is_some()
    }

    /// Ends it, whatever the body has.
    pub fn finish(&mut self) {
        if self.ended.is_none() {
            self.stream.lock().finish();
            self.ended = Some(UploadEnd::Sent);
        }
    }

    /// What is sent.
    pub fn body(&self) -> &B {
        &self.body
    }

    /// Gives the body back.
    pub fn into_body(self) -> B {
        self.body
    }

    /// Bytes handed to the stream.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Drives it to its end.
    pub async fn run(&mut self) -> UploadEnd {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// Moves what can be moved.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<UploadEnd> {
        if self.ended.is_none() {
            self.ended = Some(ready!(self.poll_frames(cx)));
        }
        self.ended.map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<UploadEnd> {
        loop {
            if !self.pending.is_empty() {
                let last = self.body.is_end_stream();
                let sent = ready!(self.stream.lock().poll_send(cx, &self.pending, last));
                let Ok(sent) = sent else { return Poll::Ready(UploadEnd::Stopped) };
                self.pending.advance(sent);
                self.sent += sent as u64;
                if self.pending.is_empty() && last {
                    return Poll::Ready(UploadEnd::Sent);
                }
                continue;
            }
            if let Some(block) = &self.trailers {
                let sent = ready!(self.stream.lock().poll_send_trailers(cx, block));
                let stopped = |_| UploadEnd::Stopped;
                return Poll::Ready(sent.map_or_else(stopped, |()| UploadEnd::Sent));
            }
            if self.stream.lock().is_send_end() {
                return Poll::Ready(UploadEnd::Stopped);
            }
            if let Some(end) = ready!(self.poll_body(cx)) {
                return Poll::Ready(end);
            }
        }
    }

    /// Takes the next frame of the body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<UploadEnd>> {
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None => self.stream.lock().finish(),
            Some(Err(_)) => {
                self.stream.lock().reset(ResetCode::Cancelled, "the body ended early");
                return Poll::Ready(Some(UploadEnd::BodyFailed));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.pending = data;
                    return Poll::Ready(None);
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => {
                        self.trailers = Some(encoded(&trailers));
                        return Poll::Ready(None);
                    }
                    Err(_) => return Poll::Ready(None),
                },
            },
        }
        Poll::Ready(Some(UploadEnd::Sent))
    }
}

fn encoded(trailers: &HeaderMap) -> Vec<u8> {
    let mut fields = Fields::new();
    fields.read_map(trailers);
    let mut block = Vec::new();
    codec::put_fields(&fields, &mut block);
    block
}
