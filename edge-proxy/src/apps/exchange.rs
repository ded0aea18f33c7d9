//! One request over HTTP/1, up to the head of its answer.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::Body;
use mesh_core::message::{RequestHead, ResponseHead};
use mesh_tunnel::Stream;

use super::{
    Answer, Apps, idle_for,
    upload::{Upload, UploadEnd},
};
use crate::{
    http1::{self, ClientConn, ConnError, Response},
    inner::mux::Spoken,
    prefixed::Prefixed,
};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// There is no connection: safe to repeat whatever it is.
    #[error("{0}")]
    NotConnected(io::Error),
    /// Nothing of the request has left: safe to repeat whatever it is.
    #[error("not sent: {0}")]
    NotProcessed(ConnError),
    /// It may have been processed.
    #[error("{0}")]
    Broken(ConnError),
    /// The request's own body failed, or is not what its head has announced.
    #[error("the request's body ended early")]
    BodyFailed,
    /// Nobody waits for an answer any more.
    #[error("the caller has gone")]
    Gone,
}

/// One request to one application. Dropped before its answer it closes its
/// connection.
#[derive(Debug)]
pub struct Exchange<'a, B> {
    apps: &'a Arc<Apps>,
    target: SocketAddr,
    head: &'a RequestHead,
    framing: http1::Body,
    upload: Upload<B>,
    conn: Option<ClientConn<Stream>>,
    /// How long it may be idle after the answer.
    idle_for: Duration,
    /// The connection has been idle.
    reused: bool,
    /// One that had been idle was closed: no other one of that age is tried.
    fresh: bool,
}

impl<'a, B> Exchange<'a, B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// A request with the body that follows `head`. An `Upgrade` in `head` is
    /// no offer here: leave it out.
    pub fn new(apps: &'a Arc<Apps>, target: SocketAddr, head: &'a RequestHead, body: B) -> Self {
        // A body that is announced and does not come is found out when it ends.
        let framing = match http1::Body::of(&head.fields, true) {
            http1::Body::Length(length @ 1..) => http1::Body::Length(length),
            _ => http1::Body::of(&head.fields, !body.is_end_stream()),
        };
        Self::with(apps, target, head, framing, Upload::new(body))
    }

    /// A request without a body that offers the `Upgrade` in `head`. `body` is
    /// what is sent if the application switches: it is not touched before.
    pub fn offer(apps: &'a Arc<Apps>, target: SocketAddr, head: &'a RequestHead, body: B) -> Self {
        Self::with(apps, target, head, http1::Body::None, Upload::held(body))
    }

    fn with(
        apps: &'a Arc<Apps>,
        target: SocketAddr,
        head: &'a RequestHead,
        framing: http1::Body,
        upload: Upload<B>,
    ) -> Self {
        Self {
            apps,
            target,
            head,
            framing,
            upload,
            conn: None,
            idle_for: Duration::ZERO,
            reused: false,
            fresh: false,
        }
    }

    /// Sends what is to be sent and waits for a head of the answer, meanwhile
    /// asking `gone` whether somebody still waits for it. A 1xx but 101 is
    /// followed by another head: call again. A 100 is not told of.
    ///
    /// Dropped early nothing is lost. After an error only
    /// [`Exchange::into_body`] makes sense.
    pub async fn head(
        &mut self,
        answer: &mut ResponseHead,
        mut gone: impl FnMut(&mut Context<'_>, &mut B) -> Poll<()>,
    ) -> Result<Response, ExchangeError> {
        loop {
            if self.conn.is_none() && !self.take_kept() {
                self.connect(&mut gone).await?;
            }
            let polled = poll_fn(|cx| self.poll_head(cx, answer, &mut gone)).await;
            let Err(error) = polled else { return polled };
            let repeat = self.may_repeat(&error);
            self.conn = None;
            if !repeat {
                return Err(error);
            }
            log::debug!(target:% = self.target; "an idle connection to an application was closed");
            self.fresh = true;
        }
    }

    /// [`Exchange::head`] of the final answer, whoever waits for it.
    pub async fn final_head(
        &mut self,
        answer: &mut ResponseHead,
    ) -> Result<Response, ExchangeError> {
        loop {
            let response = self.head(answer, |_, _| Poll::Pending).await?;
            if is_final(answer.status) {
                return Ok(response);
            }
        }
    }

    /// Takes a connection that was kept, if there is one. For those who count
    /// who waits: [`Exchange::head`] does it itself.
    pub fn take_kept(&mut self) -> bool {
        let kept = if self.fresh { None } else { self.apps.take(self.target) };
        self.reused = kept.is_some();
        kept.map(|conn| self.begin(conn)).is_some()
    }

    /// Makes a connection, meanwhile asking `gone` whether somebody still waits
    /// for it. As [`Exchange::take_kept`].
    pub async fn connect(
        &mut self,
        mut gone: impl FnMut(&mut Context<'_>, &mut B) -> Poll<()>,
    ) -> Result<(), ExchangeError> {
        let body = self.upload.body();
        let stream = tokio::select! {
            biased;
            () = poll_fn(|cx| gone(cx, body)) => return Err(ExchangeError::Gone),
            stream = self.apps.connect(self.target, Spoken::Http1) => stream,
        };
        let conn = self.apps.http1(stream.map_err(ExchangeError::NotConnected)?);
        self.begin(conn);
        Ok(())
    }

    fn begin(&mut self, mut conn: ClientConn<Stream>) {
        conn.send_request(self.head, self.framing);
        self.conn = Some(conn);
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        answer: &mut ResponseHead,
        gone: &mut impl FnMut(&mut Context<'_>, &mut B) -> Poll<()>,
    ) -> Poll<Result<Response, ExchangeError>> {
        let Some(conn) = &mut self.conn else { return Poll::Ready(Err(ExchangeError::Gone)) };
        if self.upload.poll(cx, conn) == Poll::Ready(UploadEnd::BodyFailed) {
            return Poll::Ready(Err(ExchangeError::BodyFailed));
        }
        if gone(cx, self.upload.body()).is_ready() {
            return Poll::Ready(Err(ExchangeError::Gone));
        }
        loop {
            match ready!(conn.poll_response(cx, answer)) {
                // Nobody was told to wait for it.
                Ok(_) if answer.status == StatusCode::CONTINUE => {}
                Ok(response) => {
                    self.idle_for = idle_for(&answer.fields);
                    return Poll::Ready(Ok(response));
                }
                Err(error) if conn.has_written() => {
                    return Poll::Ready(Err(ExchangeError::Broken(error)));
                }
                Err(error) => return Poll::Ready(Err(ExchangeError::NotProcessed(error))),
            }
        }
    }

    /// An application may close an idle connection just when a request is sent
    /// on it. What is idempotent is then sent again (RFC 9112 section 9.3.1),
    /// and what has not left us, whatever it is.
    fn may_repeat(&self, error: &ExchangeError) -> bool {
        let unanswered = self.conn.as_ref().is_some_and(|conn| !conn.has_answered());
        let safe = match error {
            ExchangeError::NotProcessed(_) => true,
            ExchangeError::Broken(_) => is_idempotent(&self.head.method),
            _ => false,
        };
        self.reused && safe && unanswered && self.upload.is_untouched()
    }

    /// The request's body.
    pub fn body(&mut self) -> &mut B {
        self.upload.body()
    }

    /// Gives the body back and closes the connection.
    pub fn into_body(self) -> B {
        self.upload.into_body()
    }

    /// What follows the final head; `None` before it.
    pub fn into_answer(self) -> Option<Answer<B>> {
        let conn = self.conn?;
        Some(Answer::new(self.apps.clone(), self.target, (conn, self.idle_for), self.upload))
    }

    /// The connection after a 101, and the bytes for it; `None` before it.
    pub fn into_tunnel(self) -> Option<(Stream, B)> {
        let (stream, read) = self.conn?.into_tunnel();
        let stream = match read.is_empty() {
            true => stream,
            false => Box::new(Prefixed::new(read.into(), stream)),
        };
        Some((stream, self.upload.into_body()))
    }
}

/// Whether no other head follows a head of this status.
pub fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// RFC 9110 section 9.2.2.
pub fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE]
        .contains(method)
}
