//! The client's end of a connection.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{Connection, ResponseFuture, SendRequest},
};
use http::{Request, Response};
use http_body::Body;
use mesh_runtime::drain::Drain;
use mesh_tunnel::Stream;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{
    CONNECTION_WINDOW, MAX_HEADER_LIST, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW, Upload, UploadEnd,
};

/// The client's end of a connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    send: SendRequest<Bytes>,
    life: Arc<Life>,
}

/// What the connection's task and its users tell each other.
#[derive(Debug)]
struct Life {
    streams: AtomicUsize,
    gone: AtomicBool,
    idle: Notify,
    last_used: std::sync::Mutex<Instant>,
}

/// Counts one stream while it lives.
#[derive(Debug)]
pub struct Lease(Arc<Life>);

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.0.last_used.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                Instant::now();
            self.0.idle.notify_one();
        }
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The peer has not processed it: safe to repeat whatever it is.
    #[error("not processed: {0}")]
    NotProcessed(h2::Error),
    /// It may have been processed.
    #[error("{0}")]
    Broken(h2::Error),
    /// No answer in the time that one attempt may take.
    #[error("no answer in time")]
    TimedOut,
    /// The request's own body failed.
    #[error("the client's body ended early")]
    BodyFailed,
    /// Nobody waits for an answer any more.
    #[error("the caller has gone")]
    Gone,
}

impl ExchangeError {
    /// Whether the whole connection broke, not one stream of it.
    pub fn is_connection_lost(&self) -> bool {
        matches!(self, Self::Broken(error) if !error.is_reset())
    }

    fn of(error: h2::Error) -> Self {
        let refused = error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
        // Streams below a GOAWAY's last id go on; those above were never seen.
        let unseen = error.is_remote() && error.is_go_away();
        if refused || unseen { Self::NotProcessed(error) } else { Self::Broken(error) }
    }
}

impl Client {
    /// Begins a connection over `io` and spawns the task that drives it.
    /// Applications are not probed: gRPC servers end connections that PING
    /// more often than they like.
    pub async fn begin(io: Stream, drain: &Drain) -> Result<Self, h2::Error> {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            .initial_max_send_streams(MAX_STREAMS as usize)
            .max_concurrent_streams(0)
            .enable_push(false)
            .handshake(io)
            .await?;
        let life = Arc::new(Life {
            streams: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
            idle: Notify::new(),
            last_used: std::sync::Mutex::new(Instant::now()),
        });
        drain.spawn(drive(connection, life.clone(), drain.clone()));
        Ok(Self { send, life })
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.life.streams.load(Ordering::Relaxed)
    }

    /// Whether new streams may be opened.
    pub fn is_usable(&self) -> bool {
        !self.life.gone.load(Ordering::Relaxed)
    }

    /// How long it has had no stream; zero while it has one.
    pub fn idle_for(&self) -> Duration {
        if self.streams() > 0 {
            return Duration::ZERO;
        }
        self.life.last_used.lock().unwrap_or_else(std::sync::PoisonError::into_inner).elapsed()
    }

    /// Counts a stream that is about to be opened.
    pub fn lease(&self) -> Lease {
        self.life.streams.fetch_add(1, Ordering::Relaxed);
        Lease(self.life.clone())
    }

    /// Sends a request and waits for the head of its response, sending the
    /// body meanwhile, up to `until`, and as long as `gone` is not ready. An
    /// upload that is not done by then must be driven on; on an error the body
    /// comes back.
    pub async fn exchange<B>(
        &self,
        request: Request<()>,
        mut body: B,
        until: Option<Instant>,
        mut gone: impl FnMut(&mut Context<'_>, &mut B) -> Poll<()>,
    ) -> Result<(Response<RecvStream>, Upload<B>), (ExchangeError, B)>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let ended = body.is_end_stream();
        let opening = async {
            tokio::select! {
                biased;
                () = poll_fn(|cx| gone(cx, &mut body)) => Err(ExchangeError::Gone),
                opened = self.open(request, ended) => opened,
            }
        };
        let (response, stream) = match in_time(until, opening).await {
            Ok(opened) => opened,
            Err(error) => return Err((error, body)),
        };
        let mut upload = Upload::new(body, stream);
        let head = until_head(response, &mut upload, gone);
        match in_time(until, head).await {
            Ok(response) => Ok((response, upload)),
            Err(error) => Err((error, upload.into_body())),
        }
    }

    async fn open(
        &self,
        request: Request<()>,
        ended: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), ExchangeError> {
        let ready = self.send.clone().ready().await;
        let mut send = ready.map_err(ExchangeError::NotProcessed)?;
        send.send_request(request, ended).map_err(ExchangeError::NotProcessed)
    }
}

async fn in_time<T>(
    until: Option<Instant>,
    work: impl Future<Output = Result<T, ExchangeError>>,
) -> Result<T, ExchangeError> {
    match until {
        None => work.await,
        Some(until) => timeout_at(until, work).await.unwrap_or(Err(ExchangeError::TimedOut)),
    }
}

/// Drives the upload until the head of the response is there.
async fn until_head<B>(
    mut response: ResponseFuture,
    upload: &mut Upload<B>,
    mut gone: impl FnMut(&mut Context<'_>, &mut B) -> Poll<()>,
) -> Result<Response<RecvStream>, ExchangeError>
where
    B: Body<Data = Bytes> + Unpin,
{
    poll_fn(|cx| {
        if upload.poll(cx) == Poll::Ready(UploadEnd::BodyFailed) {
            return Poll::Ready(Err(ExchangeError::BodyFailed));
        }
        if gone(cx, upload.body()).is_ready() {
            return Poll::Ready(Err(ExchangeError::Gone));
        }
        Pin::new(&mut response).poll(cx).map_err(ExchangeError::of)
    })
    .await
}

/// Drives a connection until it ends, or this process takes nothing new at all
/// and nothing is left on it.
async fn drive(connection: Connection<Stream, Bytes>, life: Arc<Life>, drain: Drain) {
    let drained = async {
        drain.refusing().await;
        while life.streams.load(Ordering::Relaxed) > 0 {
            life.idle.notified().await;
        }
    };
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                log::debug!(error:% = error; "HTTP/2 connection ended");
            }
        }
        () = drained => {}
        () = drain.stopping() => {}
    }
    life.gone.store(true, Ordering::Relaxed);
}
