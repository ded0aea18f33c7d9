//! The client's end of a connection.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong, Reason, RecvStream, SendStream,
    client::{Connection, ResponseFuture, SendRequest},
};
use http::{Request, Response};
use http_body::Body;
use mesh_runtime::drain::Drain;
use mesh_tunnel::Stream;
use tokio::{sync::Notify, time::Instant};

use super::{
    CONNECTION_WINDOW, MAX_HEADER_LIST, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW, Upload, UploadEnd,
};

/// How a connection finds out that its peer has fallen silent.
#[derive(Debug, Clone, Copy)]
pub struct Probing {
    /// Between two PINGs while streams are open.
    pub interval: Duration,
    /// How long a PING may stay unanswered.
    pub timeout: Duration,
}

impl Probing {
    /// A source towards a destination: a machine that dies says nothing, and
    /// requests without an answer wait to be tried elsewhere.
    pub const SOURCE: Probing =
        Probing { interval: Duration::from_secs(1), timeout: Duration::from_secs(2) };
    /// A destination towards its sources: only to give memory back.
    pub const DESTINATION: Probing =
        Probing { interval: Duration::from_secs(10), timeout: Duration::from_secs(20) };
}

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
    retired: AtomicBool,
    cut: Notify,
    idle: Notify,
    ended: Notify,
    last_used: std::sync::Mutex<Instant>,
}

/// The end of a connection, in the hands of somebody who does not keep it
/// open. There is one per connection.
#[derive(Debug)]
pub struct Guardian(Arc<Life>);

impl Guardian {
    /// Waits for the end.
    pub async fn ended(&self) {
        if !self.0.gone.load(Ordering::Relaxed) {
            self.0.ended.notified().await;
        }
    }

    /// Opens nothing new on it; open streams go on.
    pub fn retire(&self) {
        self.0.retired.store(true, Ordering::Relaxed);
    }

    /// Ends it now; open streams fail.
    pub fn cut(&self) {
        self.0.retired.store(true, Ordering::Relaxed);
        self.0.cut.notify_one();
    }
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
    pub async fn begin(
        io: Stream,
        probing: Option<Probing>,
        drain: &Drain,
    ) -> Result<(Self, Guardian), h2::Error> {
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
            retired: AtomicBool::new(false),
            cut: Notify::new(),
            idle: Notify::new(),
            ended: Notify::new(),
            last_used: std::sync::Mutex::new(Instant::now()),
        });
        drain.spawn(drive(connection, probing, life.clone(), drain.clone()));
        let guardian = Guardian(life.clone());
        Ok((Self { send, life }, guardian))
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.life.streams.load(Ordering::Relaxed)
    }

    /// Whether new streams may be opened.
    pub fn is_usable(&self) -> bool {
        !self.life.gone.load(Ordering::Relaxed) && !self.life.retired.load(Ordering::Relaxed)
    }

    /// Opens nothing new on it; open streams go on.
    pub fn retire(&self) {
        self.life.retired.store(true, Ordering::Relaxed);
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
    /// body meanwhile, up to `until`. An upload that is not done by then must be driven on;
    /// on an error the body comes back.
    pub async fn exchange<B>(
        &self,
        request: Request<()>,
        body: B,
        until: Option<Instant>,
    ) -> Result<(Response<RecvStream>, Upload<B>), (ExchangeError, B)>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (response, stream) = match self.open(request, body.is_end_stream()).await {
            Ok(opened) => opened,
            Err(error) => return Err((error, body)),
        };
        let mut upload = Upload::new(body, stream);
        let head = until_head(response, &mut upload);
        let answered = match until {
            None => head.await,
            Some(until) => {
                tokio::time::timeout_at(until, head).await.unwrap_or(Err(ExchangeError::TimedOut))
            }
        };
        match answered {
            Ok(response) => Ok((response, upload)),
            Err(error) => Err((error, upload.into_body())),
        }
    }

    /// Opens a stream that stays open both ways, for CONNECT.
    pub async fn connect(
        &self,
        request: Request<()>,
    ) -> Result<(Response<RecvStream>, SendStream<Bytes>), ExchangeError> {
        let (response, stream) = self.open(request, false).await?;
        let response = response.await.map_err(ExchangeError::of)?;
        Ok((response, stream))
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

/// Drives the upload until the head of the response is there.
async fn until_head<B>(
    mut response: ResponseFuture,
    upload: &mut Upload<B>,
) -> Result<Response<RecvStream>, ExchangeError>
where
    B: Body<Data = Bytes> + Unpin,
{
    poll_fn(|cx| {
        if upload.poll(cx) == Poll::Ready(UploadEnd::BodyFailed) {
            return Poll::Ready(Err(ExchangeError::BodyFailed));
        }
        Pin::new(&mut response).poll(cx).map_err(ExchangeError::of)
    })
    .await
}

/// Drives a connection until it ends, is cut, its peer falls silent, or this
/// process drains and nothing is left on it.
async fn drive(
    mut connection: Connection<Stream, Bytes>,
    probing: Option<Probing>,
    life: Arc<Life>,
    drain: Drain,
) {
    let ping = probing.zip(connection.ping_pong());
    let drained = async {
        drain.draining().await;
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
        () = probe(ping, || life.streams.load(Ordering::Relaxed) > 0) => log::debug!("HTTP/2 peer does not answer PING"),
        () = life.cut.notified() => {}
        () = drained => {}
        () = drain.stopping() => {}
    }
    life.gone.store(true, Ordering::Relaxed);
    life.ended.notify_one();
}

/// Returns when the peer leaves a PING unanswered; probes only while `busy`.
pub async fn probe(ping: Option<(Probing, PingPong)>, busy: impl Fn() -> bool) {
    let Some((probing, mut ping)) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(probing.interval).await;
        if !busy() {
            continue;
        }
        let pong = tokio::time::timeout(probing.timeout, ping.ping(Ping::opaque())).await;
        if !matches!(pong, Ok(Ok(_))) {
            return;
        }
    }
}
