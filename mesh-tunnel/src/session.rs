//! One tunnel: an authenticated connection with many streams.

mod answer;
mod carrier;
mod control;
pub mod mux;
mod stream;
mod traced;
mod wire;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use mesh_api::v1;
use mesh_core::{
    PeerIdentity,
    path::{Connect, RefusedReason, Traced},
};
use tokio::{
    io::AsyncWriteExt,
    sync::{broadcast, mpsc, watch},
    time::timeout,
};

use crate::net::BoxFuture;
pub use answer::refusal;
use answer::{Answer, Awaited, NoAnswer};
pub(crate) use carrier::Carrier;
use carrier::Raw;
pub(crate) use control::{Establishing, establish};
use stream::Counted;
pub use stream::{IncomingStream, TunnelStream};

/// What carries a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// QUIC (RFC 9000).
    Quic,
    /// TLS 1.3 over TCP with our own stream multiplexing.
    Tls,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Quic => "quic",
            Transport::Tls => "tls",
        })
    }
}

/// Streams that each side may have open at once, unless its peer's `Hello`
/// says less.
pub const MAX_STREAMS: u32 = 1024;
/// Bytes that may be written ahead of the answer to a `Connect`.
pub const MAX_EARLY: usize = 16 * 1024;
/// How long a `Connect` waits for its answer, at most.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the peer may take to send a whole `Connect`.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest `Connect`; the names that it may hold fit several times.
const MAX_CONNECT: usize = 4096;
/// `StreamDrain` that a slow listener may be behind.
const NOTICES: usize = 64;

/// A tunnel; cheap to clone, usable from any thread. It ends when every clone
/// and every stream is dropped, when either side closes it, at the end of the
/// last leaf that the peer has shown, or when the peer is silent for 30 s.
#[derive(Clone)]
pub struct Session {
    handle: Arc<Handle>,
}

/// Its drop is how the session learns that nobody wants it any more.
struct Handle {
    shared: Arc<Shared>,
}

/// What the handles and the session's own task have in common.
struct Shared {
    carrier: Carrier,
    peer: PeerIdentity,
    hello: v1::Hello,
    because: OnceLock<String>,
    phase: watch::Sender<Phase>,
    /// Messages to stream 0.
    control: mpsc::Sender<v1::control::Message>,
    /// Finished streams whose last bytes are on their way.
    lingering: mpsc::Sender<(carrier::Delivery, Counted)>,
    abandoned: watch::Sender<bool>,
    headers: tokio::sync::Mutex<Headers>,
    opened: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    /// Streams we accept at once.
    limit: usize,
    /// Microseconds; 0 is unknown.
    rtt: AtomicU64,
    /// The endpoints that the peer has last announced.
    reachable: watch::Sender<Arc<[String]>>,
    stream_drains: broadcast::Sender<Arc<[String]>>,
    /// Set by who wants to know of traced requests.
    traced: OnceLock<mpsc::Sender<Traced>>,
    /// Why this side closed it.
    why: Mutex<Option<String>>,
}

/// How far a session's life has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Open,
    /// Opens nothing new if it can be elsewhere.
    Leaving,
    /// Opens nothing new.
    Ending,
    Closed(String),
}

/// Streams of the peer whose `Connect` is still being read.
type Headers = FuturesUnordered<BoxFuture<'static, Header>>;

/// A stream and its `Connect`, or what is wrong with it.
type Header = (Raw, Result<Connect, RefusedHeader>);

/// A stream of the peer that was refused before anybody was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedHeader {
    /// Its code.
    pub reason: RefusedReason,
    /// For people.
    pub detail: String,
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// A hop answered no. Always safe to retry elsewhere.
    #[error("{hop} refused: {reason} {detail}")]
    Refused {
        /// Why.
        reason: RefusedReason,
        /// Who: `<site>/<gateway>`.
        hop: String,
        /// For people.
        detail: String,
    },
    /// The tunnel is gone or going.
    #[error("tunnel closed")]
    Closed,
    /// No answer within the deadline.
    #[error("no answer from the gateway within {0:?}")]
    Timeout(Duration),
}

impl Session {
    /// Opens a stream and waits for its answer. Of `early`, up to
    /// [`MAX_EARLY`] bytes travel ahead of the answer and the rest follows it.
    pub async fn open(&self, connect: &Connect, early: &[u8]) -> Result<TunnelStream, OpenError> {
        let opening = async {
            let mut stream = self.begin(connect, OPEN_TIMEOUT).await?;
            let (ahead, rest) = early.split_at(early.len().min(MAX_EARLY));
            let failed =
                |error: io::Error| refusal(&error).unwrap_or_else(|| self.no_answer(&error));
            stream.write_all(ahead).await.map_err(failed)?;
            stream.answered().await?;
            stream.write_all(rest).await.map_err(failed)?;
            Ok(stream)
        };
        timeout(OPEN_TIMEOUT, opening).await.map_err(|_| OpenError::Timeout(OPEN_TIMEOUT))?
    }

    /// Opens a stream without waiting for its answer, which has to come
    /// `within` a time of at most [`OPEN_TIMEOUT`]. Up to [`MAX_EARLY`] bytes
    /// written to the stream travel ahead of the answer; more writes, and every
    /// read, wait for it. If it is no, they fail with what [`refusal`] finds in
    /// the error.
    pub async fn begin(
        &self,
        connect: &Connect,
        within: Duration,
    ) -> Result<TunnelStream, OpenError> {
        if !self.is_usable() {
            return Err(OpenError::Closed);
        }
        let limit = self.shared().peer_limit();
        let counted = Counted::up_to(&self.shared().opened, limit).ok_or_else(|| {
            let detail = format!("{limit} streams are open in this tunnel");
            OpenError::Refused { reason: RefusedReason::Quota, hop: self.hop(), detail }
        })?;
        let within = within.min(OPEN_TIMEOUT);
        let asking = self.asking(connect, within, counted);
        timeout(within, asking).await.map_err(|_| OpenError::Timeout(within))?
    }

    async fn asking(
        &self,
        connect: &Connect,
        within: Duration,
        counted: Counted,
    ) -> Result<TunnelStream, OpenError> {
        // The time runs from here on, also while the peer allows no stream.
        let awaited = Awaited::new(within);
        let no_room = || self.no_answer(&io::Error::other("no stream to be had"));
        let raw = self.shared().carrier.open().await.ok_or_else(no_room)?;
        let mut stream = TunnelStream::new(raw, counted, self.clone());
        let asked = wire::write(&mut stream, &v1::Connect::from(connect)).await;
        stream.answer = Answer::Awaited(Box::new(awaited));
        // A peer that wants to hear nothing more has perhaps said why.
        match asked {
            Ok(()) => Ok(stream),
            Err(error) => Err(stream.answered().await.err().unwrap_or(self.no_answer(&error))),
        }
    }

    /// Why a stream has no answer, or a bad one.
    fn why(&self, no_answer: NoAnswer) -> OpenError {
        match no_answer {
            NoAnswer::Refused(refused) => from_wire(refused),
            NoAnswer::Late(within) => OpenError::Timeout(within),
            NoAnswer::Broken(error) => self.no_answer(&error),
        }
    }

    /// The stream ended where its answer should be.
    fn no_answer(&self, error: &io::Error) -> OpenError {
        if self.is_closed() {
            return OpenError::Closed;
        }
        let detail = format!("no answer: {error}");
        OpenError::Refused { reason: RefusedReason::Unreachable, hop: self.hop(), detail }
    }

    /// The next stream that the peer opens; `None` when the tunnel has ended.
    /// Streams with a header that cannot be read are refused on the way.
    pub async fn accept(&self) -> Option<IncomingStream> {
        loop {
            if let Ok(incoming) = self.accept_or_refuse().await? {
                return Some(incoming);
            }
        }
    }

    /// The same for whoever counts what was refused on the way.
    pub async fn accept_or_refuse(&self) -> Option<Result<IncomingStream, RefusedHeader>> {
        let shared = self.shared();
        let mut headers = shared.headers.lock().await;
        loop {
            let (raw, header) = tokio::select! {
                Some(header) = headers.next(), if !headers.is_empty() => header,
                raw = shared.carrier.accept(), if headers.len() < shared.limit => {
                    headers.push(Box::pin(read_header(raw?)));
                    continue;
                }
            };
            return Some(self.admit(raw, header));
        }
    }

    fn admit(
        &self,
        raw: Raw,
        header: Result<Connect, RefusedHeader>,
    ) -> Result<IncomingStream, RefusedHeader> {
        let shared = self.shared();
        let counted = Counted::up_to(&shared.accepted, shared.limit);
        let refusal = match (header, counted) {
            (Ok(connect), Some(counted)) => {
                let stream = TunnelStream::new(raw, counted, self.clone());
                return Ok(IncomingStream { connect, stream });
            }
            (Ok(_), None) => RefusedHeader {
                reason: RefusedReason::Quota,
                detail: format!("{} streams are open in this tunnel", shared.limit),
            },
            (Err(refusal), _) => refusal,
        };
        let RefusedHeader { reason, detail } = &refusal;
        log::debug!(peer = shared.peer.id.as_str(), reason:% = reason, detail = detail.as_str(); "stream refused");
        shared.refuse(raw, &refusal);
        Err(refusal)
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.shared().peer
    }

    /// The peer's `Hello`.
    pub fn hello(&self) -> &v1::Hello {
        &self.shared().hello
    }

    /// What carries it.
    pub fn transport(&self) -> Transport {
        self.shared().carrier.transport()
    }

    /// Why this transport carries it, for `status` and logs; empty on the side
    /// that was dialled.
    pub fn chosen_because(&self) -> &str {
        self.shared().because.get().map_or("", String::as_str)
    }

    pub(crate) fn because(self, why: String) -> Self {
        // Said once, by the dialler.
        let _ = self.shared().because.set(why);
        self
    }

    /// Smoothed round-trip time, from the transport or from pings.
    pub fn rtt(&self) -> Option<Duration> {
        self.shared().rtt()
    }

    /// Tells the peer to open nothing new. This side may still open streams.
    pub fn drain(&self, deadline: Duration) {
        self.tell_drain(deadline, false);
    }

    /// The same to a peer that has no other tunnel yet: until it has, it may
    /// still open streams in this one.
    pub fn leave(&self, deadline: Duration) {
        self.tell_drain(deadline, true);
    }

    fn tell_drain(&self, deadline: Duration, accepting: bool) {
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.shared().tell(v1::control::Message::Drain(v1::Drain { deadline_ms, accepting }));
    }

    /// Whether the peer has said that it goes away, or the session is about to
    /// end because the peer's certificate does.
    pub fn peer_draining(&self) -> bool {
        matches!(*self.shared().phase.borrow(), Phase::Leaving | Phase::Ending)
    }

    /// Whether new streams may be opened.
    pub fn is_open(&self) -> bool {
        *self.shared().phase.borrow() == Phase::Open
    }

    /// Whether new streams may be opened if there is no other tunnel to open
    /// them in.
    pub fn is_usable(&self) -> bool {
        matches!(*self.shared().phase.borrow(), Phase::Open | Phase::Leaving)
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        matches!(*self.shared().phase.borrow(), Phase::Closed(_))
    }

    /// Waits until no new streams may be opened: time to dial again.
    pub async fn ending(&self) {
        let mut phase = self.shared().phase.subscribe();
        // The sender lives as long as `self`.
        let _ = phase.wait_for(|phase| *phase != Phase::Open).await;
    }

    /// Ends it now; streams are reset.
    pub fn close(&self, why: &str) {
        self.shared().close(why);
    }

    /// Waits for its end and says why.
    pub async fn closed(&self) -> String {
        let mut phase = self.shared().phase.subscribe();
        match phase.wait_for(|phase| matches!(phase, Phase::Closed(_))).await.as_deref() {
            Ok(Phase::Closed(why)) => why.clone(),
            Ok(Phase::Open | Phase::Leaving | Phase::Ending) | Err(_) => "closed".into(),
        }
    }

    /// Streams open now, both directions; one counts until its last byte has
    /// been delivered.
    pub fn streams(&self) -> usize {
        let shared = self.shared();
        shared.opened.load(Ordering::Relaxed) + shared.accepted.load(Ordering::Relaxed)
    }

    /// Tells the peer which endpoints it reaches in reverse.
    pub fn announce(&self, endpoints: Vec<String>) {
        self.shared().tell(v1::control::Message::Sessions(v1::Sessions { endpoints }));
    }

    /// The endpoints that the peer has announced last.
    pub fn announced(&self) -> watch::Receiver<Arc<[String]>> {
        self.shared().reachable.subscribe()
    }

    /// Passes on a drain further along the path of these streams, by their
    /// connection ids.
    pub fn drain_streams(&self, connection_ids: Vec<String>) {
        let message = v1::StreamDrain { connection_ids };
        self.shared().tell(v1::control::Message::StreamDrain(message));
    }

    /// Drains further along the path, as the peer passes them on.
    pub fn drained_streams(&self) -> broadcast::Receiver<Arc<[String]>> {
        self.shared().stream_drains.subscribe()
    }

    /// `<site>/<gateway>` of the peer, or its identity.
    fn hop(&self) -> String {
        let hello = self.hello();
        match hello.gateway.as_str() {
            "" => self.peer().id.to_string(),
            gateway => format!("{}/{gateway}", hello.site),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Keeps counting a stream until its last bytes are delivered.
    fn linger(&self, delivery: carrier::Delivery, counted: Counted) {
        // Full only if the session's task has ended, and then nothing is
        // delivered any more.
        let _ = self.shared().lingering.try_send((delivery, counted));
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer().id)
            .field("transport", &self.transport())
            .field("streams", &self.streams())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.abandoned.send_replace(true);
    }
}

impl Shared {
    /// Streams that we may have open at once.
    fn peer_limit(&self) -> usize {
        let told = self.hello.limits.as_ref().map_or(0, |limits| limits.streams);
        let limit = if told == 0 { MAX_STREAMS } else { told.min(MAX_STREAMS) };
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    fn rtt(&self) -> Option<Duration> {
        let pinged = match self.rtt.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        };
        self.carrier.rtt().or(pinged)
    }

    /// Queues a message for stream 0. A peer that reads nothing there for so
    /// long that the queue is full misses it; pings find such a peer out.
    fn tell(&self, message: v1::control::Message) {
        if self.control.try_send(message).is_err() {
            log::debug!(peer = self.peer.id.as_str(); "control message dropped: the peer does not read");
        }
    }

    fn close(&self, why: &str) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.into());
        self.carrier.close(why);
    }

    /// Answers a stream that nobody will see. If the answer does not fit into
    /// the window at once, the stream is just reset.
    fn refuse(self: &Arc<Self>, mut raw: Raw, refusal: &RefusedHeader) {
        let refused = v1::Refused {
            reason: v1::RefusedReason::from(refusal.reason).into(),
            hop: String::new(),
            detail: refusal.detail.clone(),
        };
        let reply = v1::ConnectReply { reply: Some(v1::connect_reply::Reply::Refused(refused)) };
        let answered = wire::framed(&reply).is_ok_and(|bytes| raw.write_now(&bytes));
        if !answered {
            raw.reset();
        }
        raw.stop();
    }
}

async fn read_header(mut raw: Raw) -> Header {
    let read = timeout(HEADER_TIMEOUT, wire::read::<v1::Connect, _>(&mut raw, MAX_CONNECT)).await;
    let header = match read {
        Err(_) => Err((RefusedReason::Timeout, "no Connect in time".to_owned())),
        Ok(Err(error)) => Err((RefusedReason::Malformed, error.to_string())),
        Ok(Ok(message)) => {
            Connect::try_from(message).map_err(|error| (error.reason(), error.to_string()))
        }
    };
    (raw, header.map_err(|(reason, detail)| RefusedHeader { reason, detail }))
}

fn from_wire(refused: v1::Refused) -> OpenError {
    let reason = refused.reason().into();
    let short = |text: &str| wire::shortened(text, stream::MAX_DETAIL).to_owned();
    OpenError::Refused { reason, hop: short(&refused.hop), detail: short(&refused.detail) }
}
