//! The gateway's door: one UDP and one TCP address.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mesh_api::v1::Hello;
use mesh_core::{Allowed, identity::Side};
use rustls::{
    pki_types::CertificateDer,
    server::{Acceptor, ClientHello},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
    time::{Instant, Sleep, timeout},
};
use tokio_rustls::LazyConfigAcceptor;

use crate::{
    admission::{Admission, Full, Place, Strangers, Tally},
    ahead::ReadAhead,
    budget::Budget,
    filter::Shunning,
    net::{Io, Listener, Net, Stream},
    quic,
    session::{Carrier, Establishing, Session, establish},
    sparing::Sparing,
    tls::{self, Before, Binding, Credentials, ServerStream, verify_error},
};

/// Where and as whom to listen.
#[derive(Debug, Clone)]
pub struct Doors {
    /// Real or simulated.
    pub net: Arc<dyn Net>,
    /// Presented and believed.
    pub credentials: Arc<Credentials>,
    /// Who may have a tunnel.
    pub allowed: Allowed,
    /// What this side says first; versions, role, limits and time are filled
    /// in where they are empty.
    pub hello: Hello,
    /// UDP, if QUIC is offered.
    pub quic: Option<SocketAddr>,
    /// TCP.
    pub tls: SocketAddr,
    /// How often something was turned away, by stable code: those of
    /// `VerifyError` and [`Full`](crate::admission::Full), `handshake_failed`,
    /// `handshake_timeout`, `join_limit`, `quic_retry` for clients that
    /// first had to prove their address, and `door_busy` for datagrams of
    /// handshakes that there was no time for.
    pub turned_away: Tally,
}

/// A peer that has not proved who it is and said `Hello` by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a QUIC handshake costs the worker outside of the task that waits for
/// it: the library verifies the client and signs for us in one of its own.
const QUIC_HANDSHAKE: Duration = Duration::from_micros(300);
/// Pause after a failed accept: a listener must not give up, nor spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Arrivals that wait for [`Door::accept`].
const ARRIVALS: usize = 64;
/// Bytes that one join stream may carry in each direction: a certificate
/// request and a bundle fit a hundred times.
const JOIN_BYTES: u64 = 1 << 20;
/// How long one join stream may last.
const JOIN_TIME: Duration = Duration::from_secs(60);
/// Why: more than one source, or all of them, may have.
const JOIN_LIMIT: &str = "join_limit";

/// Listens; one per worker, sharing the addresses. Its tasks end with it;
/// tunnels go on.
#[derive(Debug)]
pub struct Door {
    arrivals: Mutex<mpsc::Receiver<Arrival>>,
    closing: watch::Sender<bool>,
    addrs: (Option<SocketAddr>, SocketAddr),
    turned_away: Tally,
}

/// What came in.
#[derive(Debug)]
pub enum Arrival {
    /// A verified neighbour whose `Hello` has been read.
    Tunnel(Session),
    /// Somebody without a certificate who wants to talk to federation: the
    /// bytes inside the outer TLS, to be copied there and never read. Limited
    /// in bytes and time.
    Join(Stream, SocketAddr),
}

impl Door {
    /// Binds both listeners.
    pub async fn open(doors: Doors) -> io::Result<Self> {
        let listener = doors.net.bind(doors.tls, true).await?;
        let (door, turned_away) = (Budget::of_door(&*doors.net), doors.turned_away.clone());
        let (admission, handshakes) = (Arc::default(), Budget::of_handshakes(&*doors.net));
        let strangers = Strangers::new(Arc::clone(&admission), handshakes.clone());
        let quic = match doors.quic {
            Some(addr) => {
                let (credentials, allowed) = (&doors.credentials, doors.allowed.clone());
                let socket = doors.net.udp(addr, true).await?;
                let door = (door.clone(), strangers.clone(), turned_away.clone());
                let socket = Arc::new(Sparing::new(socket, door, doors.net.generation()));
                Some(quic::Acceptor::new(&*doors.net, socket, credentials, allowed)?)
            }
            None => None,
        };
        let udp = quic.as_ref().map(|quic| quic.endpoint.local_addr()).transpose()?;
        let addrs = (udp, listener.local_addr()?);
        let (arrived, arrivals) = mpsc::channel(ARRIVALS);
        let closing = watch::Sender::new(false);
        let hall = Arc::new(Hall { doors, arrived, admission, strangers, door, handshakes });
        if let Some(quic) = quic {
            tokio::spawn(hall.clone().quic(quic, closing.subscribe()));
        }
        let accepting = hall.clone().tcp(listener, closing.subscribe());
        tokio::spawn(hall.door.spend_on(accepting));
        Ok(Self { arrivals: Mutex::new(arrivals), closing, addrs, turned_away })
    }

    /// The next arrival; handshakes run beside it, bounded in number and time.
    /// Fails only when the door is closed.
    pub async fn accept(&self) -> io::Result<Arrival> {
        let arrival = self.arrivals.lock().await.recv().await;
        arrival.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the door is closed"))
    }

    /// Where it listens: (UDP, TCP).
    pub fn local_addrs(&self) -> (Option<SocketAddr>, SocketAddr) {
        self.addrs
    }

    /// How often something was turned away: [`Doors::turned_away`].
    pub fn turned_away(&self) -> Vec<(&'static str, u64)> {
        self.turned_away.get()
    }

    /// Accepts nothing new; tunnels go on.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }
}

/// What the tasks of one door share.
struct Hall {
    doors: Doors,
    arrived: mpsc::Sender<Arrival>,
    admission: Arc<Admission>,
    strangers: Arc<Strangers>,
    door: Budget,
    handshakes: Budget,
}

impl Hall {
    async fn quic(self: Arc<Self>, quic: quic::Acceptor, mut closing: watch::Receiver<bool>) {
        let mut handshakes = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                incoming = quic.endpoint.accept() => incoming,
                _ = closing.wait_for(|closing| *closing) => None,
                Some(_) = handshakes.join_next(), if !handshakes.is_empty() => continue,
            };
            let Some(incoming) = incoming else { break };
            let from = incoming.remote_address();
            if !incoming.remote_address_validated() && self.strangers.must_prove_address() {
                // Only a client that receives our packets will come back, and
                // nothing is kept, or said again, for who does not. Most were
                // told by the socket; it has been busy only since this came.
                // Fails only if a retry is not possible, and drops it then.
                let _ = incoming.retry();
                self.doors.turned_away.count("quic_retry");
                continue;
            }
            let Ok(admitted) = self.enter(from) else {
                incoming.ignore();
                continue;
            };
            let begun = self.strangers.begin(from);
            let (hall, quic) = (self.clone(), quic.clone());
            handshakes.spawn(async move {
                let tunnel = async {
                    let before = Before::handshake(&hall.doors.credentials);
                    let connection = quic.accept(incoming).await?;
                    let binding = Binding::of_quic(&connection, false)?;
                    let chain = quic::chain_of(&connection);
                    hall.tunnel(Carrier::Quic(connection), before, binding, chain).await
                };
                hall.arrive(from, QUIC_HANDSHAKE, tunnel).await;
                drop((admitted, begun));
            });
        }
        // Connections that are established live on without the endpoint.
        self.strangers.close();
        quic.endpoint.set_server_config(None);
    }

    async fn tcp(self: Arc<Self>, listener: Box<dyn Listener>, mut closing: watch::Receiver<bool>) {
        let mut handshakes = JoinSet::new();
        let listener: Arc<dyn Listener> = listener.into();
        let shunning = Arc::new(Shunning::new(listener.clone()));
        loop {
            let accepted = tokio::select! {
                accepted = self.next(&*listener) => accepted,
                _ = closing.wait_for(|closing| *closing) => break,
                Some(_) = handshakes.join_next(), if !handshakes.is_empty() => continue,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    log::error!(addr:% = self.doors.tls, error:% = error; "gateway cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let admitted = match self.enter(from) {
                Ok(admitted) => admitted,
                Err(full) => {
                    abort(stream);
                    if full == Full::Source {
                        shunning.refused(from.ip());
                    }
                    continue;
                }
            };
            let (hall, shunning) = (self.clone(), shunning.clone());
            handshakes.spawn(async move {
                let refused = hall.arrive(from, Duration::ZERO, hall.tls(stream, from)).await;
                if refused == Some(JOIN_LIMIT) {
                    shunning.refused(from.ip());
                }
                drop(admitted);
            });
        }
    }

    /// The next connection, once there is time for it.
    async fn next(&self, listener: &dyn Listener) -> io::Result<(Stream, SocketAddr)> {
        self.door.turn().await;
        listener.accept().await
    }

    /// A place for a handshake; none is counted.
    fn enter(&self, from: SocketAddr) -> Result<Place, Full> {
        let place = self.admission.enter(from.ip(), !self.handshakes.has_left());
        place.inspect_err(|full| self.doors.turned_away.count(full.code()))
    }

    /// Which of the two protocols a TCP connection wants decides whether it
    /// must have a certificate.
    async fn tls(&self, stream: Stream, from: SocketAddr) -> io::Result<Arrival> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), ReadAhead::new(stream)).await?;
        let hello = start.client_hello();
        let tunnel = offers(&hello, mesh_api::ALPN_TUNNEL);
        let join = offers(&hello, mesh_api::ALPN_JOIN);
        let Doors { credentials, allowed, .. } = &self.doors;
        if tunnel {
            let before = Before::handshake(credentials);
            let config = credentials.server(&[mesh_api::ALPN_TUNNEL], allowed.clone());
            let stream = start.into_stream(config).await.map_err(tls::readable)?;
            let binding = Binding::of_tls(stream.get_ref().1, false)?;
            let chain = tls::chain_of(stream.get_ref().1);
            return self.tunnel(Carrier::tls(stream, false), before, binding, chain).await;
        }
        if join {
            let joining = self.admission.join(from.ip(), Instant::now()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::QuotaExceeded, "too many are joining at once")
            })?;
            let stream = start.into_stream(credentials.join_server()).await?;
            return Ok(Arrival::Join(Box::new(JoinStream::new(stream, joining)), from));
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the client speaks none of our protocols"))
    }

    async fn tunnel(
        &self,
        carrier: Carrier,
        before: Before,
        binding: Binding,
        chain: Vec<CertificateDer<'static>>,
    ) -> io::Result<Arrival> {
        let Doors { credentials, allowed, hello, .. } = &self.doors;
        let peer = credentials
            .verify(&chain, Side::Client, allowed)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let (credentials, hello) = (credentials.clone(), hello.clone());
        let standing = before.proved(binding, peer.clone(), chain);
        let new = Establishing { carrier, peer, standing, credentials, hello, dialled: false };
        Ok(Arrival::Tunnel(establish(new).await?))
    }

    /// Runs one handshake to its end, in its turn, and hands over what came of
    /// it; `elsewhere` it costs so much. Returns why they were turned away.
    async fn arrive(
        &self,
        from: SocketAddr,
        elsewhere: Duration,
        handshake: impl Future<Output = io::Result<Arrival>>,
    ) -> Option<&'static str> {
        let in_turn = async {
            self.handshakes.turn().await;
            self.handshakes.spend(elsewhere);
            let (arrived, spent) = self.handshakes.spend_on(handshake).await;
            if matches!(arrived, Ok(Arrival::Tunnel(_))) {
                self.handshakes.refund(elsewhere + spent);
            }
            arrived
        };
        let code = match timeout(HANDSHAKE_TIMEOUT, Box::pin(in_turn)).await {
            Ok(Ok(arrival)) => {
                // Nobody waits any more if the door has been dropped.
                let _ = self.arrived.send(arrival).await;
                return None;
            }
            Ok(Err(error)) => match verify_error(&error) {
                Some(refused) => {
                    log::warn!(from:% = from, code = refused.code(); "peer turned away: {refused}");
                    refused.code()
                }
                None if error.kind() == io::ErrorKind::QuotaExceeded => JOIN_LIMIT,
                None => {
                    log::debug!(from:% = from, error:% = error; "handshake failed");
                    "handshake_failed"
                }
            },
            Err(_) => "handshake_timeout",
        };
        self.doors.turned_away.count(code);
        Some(code)
    }
}

/// Closes a connection as cheaply as can be.
pub fn abort(mut stream: Stream) {
    stream.abort_on_close();
}

fn offers(hello: &ClientHello<'_>, alpn: &[u8]) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.any(|one| one == alpn))
}

/// A join stream within its limits.
struct JoinStream {
    inner: ServerStream<Stream>,
    read: u64,
    written: u64,
    end: Pin<Box<Sleep>>,
    _joining: Place,
}

impl JoinStream {
    fn new(inner: ServerStream<Stream>, joining: Place) -> Self {
        let end = Box::pin(tokio::time::sleep(JOIN_TIME));
        Self { inner, read: 0, written: 0, end, _joining: joining }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.read > JOIN_BYTES || self.written > JOIN_BYTES {
            let text = format!("a join stream carries at most {JOIN_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        if self.end.as_mut().poll(cx).is_ready() {
            let text = format!("a join stream lasts at most {JOIN_TIME:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(())
    }
}

impl Io for JoinStream {
    fn abort_on_close(&mut self) {
        self.inner.abort_on_close();
    }
}

impl AsyncRead for JoinStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.read += (buf.filled().len() - before) as u64;
        result
    }
}

impl AsyncWrite for JoinStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = result {
            self.written += n as u64;
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
