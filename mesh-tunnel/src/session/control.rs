//! Stream 0 and the life of a session: `Hello`, pings, drains, and its end.

use std::{
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use mesh_api::v1::{self, control::Message};
use mesh_core::{PeerIdentity, SpiffeId, name::Subject};
use tokio::{
    io::{ReadHalf, WriteHalf},
    sync::{broadcast, mpsc, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    Carrier, Handle, MAX_STREAMS, NOTICES, Phase, Raw, Session, Shared, Transport,
    carrier::Delivery, stream::Counted, wire,
};
use crate::tls::{Credentials, Standing};

/// Both sides must have said `Hello` by then.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a TLS/TCP tunnel is pinged. QUIC has its own keep-alive.
const PING_EVERY: Duration = Duration::from_secs(10);
/// How often a machine with our streams on it is looked after.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// A machine that owes answers and is silent for this long, pinged meanwhile,
/// is dead: nothing but QUIC's idle timeout would tell otherwise, and whoever
/// waits for the answers could have had them elsewhere.
const DEAD_AFTER: Duration = Duration::from_millis(2500);
/// Messages to stream 0 that wait for a slow peer.
const CONTROL_QUEUE: usize = 64;
/// Finished streams that wait for their last acknowledgement: as many as both
/// sides may have open.
const LINGER_QUEUE: usize = 2 * MAX_STREAMS as usize;
/// How long an abandoned session waits for finished streams to be delivered.
const LINGER: Duration = Duration::from_secs(5);
/// How long before the peer's leaf ends its session is drained, at most.
const EXPIRY_LEAD: Duration = Duration::from_secs(30);
/// A larger difference of clocks is worth a warning.
const SKEW: Duration = Duration::from_secs(60);

/// A connection whose peer is verified and has not yet said anything.
pub(crate) struct Establishing {
    pub(crate) carrier: Carrier,
    pub(crate) peer: PeerIdentity,
    /// As the peer has proved itself so far.
    pub(crate) standing: Standing,
    pub(crate) credentials: Arc<Credentials>,
    /// What this side says; empty parts are filled in.
    pub(crate) hello: v1::Hello,
    /// Whether this side dialled, and opens stream 0.
    pub(crate) dialled: bool,
}

/// Exchanges `Hello` and starts the session's task.
pub(crate) async fn establish(new: Establishing) -> io::Result<Session> {
    let carrier = new.carrier.clone();
    let greeted = match timeout(HELLO_TIMEOUT, greet(&new)).await {
        Ok(greeted) => greeted,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the peer did not say Hello")),
    };
    match greeted {
        Ok((stream, hello)) => Ok(start(new, stream, hello)),
        Err(error) => {
            carrier.close(&error.to_string());
            Err(error)
        }
    }
}

async fn greet(new: &Establishing) -> io::Result<(Raw, v1::Hello)> {
    let ended = || async { io::Error::other(new.carrier.closed().await) };
    let stream = if new.dialled { new.carrier.open().await } else { new.carrier.accept().await };
    let Some(mut stream) = stream else { return Err(ended().await) };
    let ours = Message::Hello(complete(new));
    let exchange = async {
        wire::write(&mut stream, &v1::Control { message: Some(ours) }).await?;
        wire::read::<v1::Control, _>(&mut stream, mesh_api::MAX_MESSAGE).await
    };
    let first = match exchange.await {
        Ok(first) => first,
        // The reason that the peer gave for its end says more.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ended().await),
        Err(error) => return Err(error),
    };
    let Some(Message::Hello(hello)) = first.message else {
        return Err(protocol("the first message is not a Hello".into()));
    };
    check(&hello, &new.peer)?;
    Ok((stream, hello))
}

/// Our `Hello` with what the caller left open.
fn complete(new: &Establishing) -> v1::Hello {
    let mut hello = new.hello.clone();
    if hello.versions.is_empty() {
        hello.versions = mesh_api::VERSIONS.to_vec();
    }
    if hello.role == 0
        && let Some(svid) = new.credentials.svid()
    {
        hello.set_role(role_of(&svid.id));
    }
    hello.limits.get_or_insert(v1::TunnelLimits { streams: MAX_STREAMS });
    let millis = mesh_runtime::clock::now_unix().as_millis();
    hello.time_unix_ms = u64::try_from(millis).unwrap_or(u64::MAX);
    hello
}

/// The role that an identity has in a tunnel.
fn role_of(id: &SpiffeId) -> v1::Role {
    match id.subject() {
        Subject::Workload { .. } if id.is_gateway() => v1::Role::Gateway,
        Subject::Workload { .. } => v1::Role::Workload,
        Subject::Node(_) => v1::Role::Node,
    }
}

fn check(hello: &v1::Hello, peer: &PeerIdentity) -> io::Result<()> {
    if !hello.versions.iter().any(|version| mesh_api::VERSIONS.contains(version)) {
        let theirs = &hello.versions[..hello.versions.len().min(8)];
        let ours = mesh_api::VERSIONS;
        return Err(protocol(format!(
            "no common version: the peer speaks {theirs:?}, we speak {ours:?}; upgrade the older"
        )));
    }
    if hello.role() != role_of(&peer.id) {
        let claimed = hello.role().as_str_name();
        return Err(protocol(format!("{} may not be {claimed} in a tunnel", peer.id)));
    }
    let theirs = Duration::from_millis(hello.time_unix_ms);
    let skew = mesh_runtime::clock::now_unix().abs_diff(theirs);
    if skew > SKEW {
        log::warn!(peer = peer.id.as_str(), skew_s = skew.as_secs(); "clocks differ; certificates may be refused");
    }
    Ok(())
}

fn protocol(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn start(new: Establishing, stream: Raw, hello: v1::Hello) -> Session {
    let (control, outgoing) = mpsc::channel(CONTROL_QUEUE);
    let (lingering, finished) = mpsc::channel(LINGER_QUEUE);
    let limit = new.hello.limits.as_ref().map_or(0, |limits| limits.streams);
    let limit = if limit == 0 { MAX_STREAMS } else { limit.min(MAX_STREAMS) };
    let shared = Arc::new(Shared {
        carrier: new.carrier,
        peer: new.peer,
        hello,
        because: OnceLock::new(),
        phase: watch::Sender::new(Phase::Open),
        control,
        lingering,
        abandoned: watch::Sender::new(false),
        headers: tokio::sync::Mutex::default(),
        opened: Arc::default(),
        accepted: Arc::default(),
        limit: usize::try_from(limit).unwrap_or(usize::MAX),
        rtt: AtomicU64::new(0),
        reachable: watch::Sender::new(Arc::new([])),
        stream_drains: broadcast::Sender::new(NOTICES),
        traced: OnceLock::new(),
        why: Mutex::default(),
    });
    let life = Life { shared: shared.clone(), standing: new.standing, pings: Mutex::default() };
    tokio::spawn(life.run(stream, outgoing, finished));
    Session { handle: Arc::new(Handle { shared }) }
}

/// The session's own task. It holds no [`Handle`], so it does not keep the
/// session alive.
struct Life {
    shared: Arc<Shared>,
    standing: Standing,
    /// The ping that is under way.
    pings: Mutex<Option<(u64, Instant)>>,
}

impl Life {
    async fn run(
        self,
        stream: Raw,
        outgoing: mpsc::Receiver<Message>,
        finished: mpsc::Receiver<(Delivery, Counted)>,
    ) {
        let (from, to) = tokio::io::split(stream);
        let shared = &self.shared;
        let ended = tokio::select! {
            why = shared.carrier.closed() => why,
            why = self.read(from) => why,
            why = self.write(to, outgoing) => why,
            why = self.ping() => why,
            why = self.cut() => why,
            why = self.expire() => why,
            never = self.standing.keep_proving(|proof| shared.tell(Message::Proof(proof))) => never,
            why = self.abandon(finished) => why,
        };
        shared.carrier.close(&ended);
        let own = shared.why.lock().unwrap_or_else(PoisonError::into_inner).take();
        let why = own.unwrap_or(ended);
        log::debug!(peer = shared.peer.id.as_str(), why = why.as_str(); "tunnel ended");
        shared.phase.send_replace(Phase::Closed(why));
    }

    /// Acts on the peer's messages until stream 0 ends, which ends the session.
    async fn read(&self, mut from: ReadHalf<Raw>) -> String {
        loop {
            match wire::read::<v1::Control, _>(&mut from, mesh_api::MAX_MESSAGE).await {
                Ok(v1::Control { message: Some(message) }) => {
                    if let Err(why) = self.receive(message) {
                        return why;
                    }
                }
                // A message of a later version.
                Ok(v1::Control { message: None }) => {}
                // The carrier knows better why.
                Err(error) if error.kind() != io::ErrorKind::InvalidData => {
                    return self.shared.carrier.closed_soon(&error).await;
                }
                Err(error) => return format!("stream 0: {error}"),
            }
        }
    }

    fn receive(&self, message: Message) -> Result<(), String> {
        let shared = &self.shared;
        match message {
            Message::Hello(_) => return Err("stream 0: a second Hello".into()),
            Message::Drain(drain) => {
                log::info!(peer = shared.peer.id.as_str(), deadline_ms = drain.deadline_ms; "peer drains");
                self.end_soon(if drain.accepting { Phase::Leaving } else { Phase::Ending });
            }
            Message::StreamDrain(drain) => {
                // Nobody may be listening.
                let _ = shared.stream_drains.send(drain.connection_ids.into());
            }
            Message::Sessions(sessions) => {
                shared.reachable.send_replace(sessions.endpoints.into());
            }
            Message::Ping(ping) => shared.tell(Message::Pong(v1::Pong { token: ping.token })),
            Message::Pong(pong) => self.pong(pong.token),
            // Who does not listen, or not fast enough, has no span of it.
            Message::Traced(traced) => {
                if let (Some(listener), Ok(traced)) = (shared.traced.get(), traced.try_into()) {
                    let _ = listener.try_send(traced);
                }
            }
            Message::Proof(proof) => self.standing.receive(proof),
        }
        Ok(())
    }

    async fn write(&self, mut to: WriteHalf<Raw>, mut outgoing: mpsc::Receiver<Message>) -> String {
        while let Some(message) = outgoing.recv().await {
            let control = v1::Control { message: Some(message) };
            if let Err(error) = wire::write(&mut to, &control).await {
                if error.kind() == io::ErrorKind::InvalidInput {
                    log::error!(peer = self.shared.peer.id.as_str(), error:% = error; "control message not sent");
                    continue;
                }
                return self.shared.carrier.closed_soon(&error).await;
            }
        }
        "closed".into()
    }

    /// Measures the round trip where the transport does not; a transport that
    /// is silent for too long ends by itself.
    async fn ping(&self) -> String {
        if self.shared.carrier.transport() == Transport::Quic {
            return self.watch().await;
        }
        let mut token = 0;
        loop {
            token += 1;
            let ping = Some((token, Instant::now()));
            *self.pings.lock().unwrap_or_else(PoisonError::into_inner) = ping;
            self.shared.tell(Message::Ping(v1::Ping { token }));
            sleep(PING_EVERY).await;
        }
    }

    /// Returns when a machine that we have streams to has died without a word.
    /// A gateway may be behind a network that fails for a while: with those
    /// QUIC has all its patience.
    async fn watch(&self) -> String {
        let shared = &self.shared;
        if shared.hello.role() == v1::Role::Gateway {
            return std::future::pending().await;
        }
        let (mut heard, mut silent) = (None, Duration::ZERO);
        loop {
            sleep(WATCH_EVERY).await;
            let now = shared.carrier.signs_of_life();
            if shared.opened.load(Ordering::Relaxed) == 0 || now != heard || now.is_none() {
                (heard, silent) = (now, Duration::ZERO);
                continue;
            }
            silent += WATCH_EVERY;
            if silent >= DEAD_AFTER {
                return "the machine is silent".into();
            }
            // Whoever lives acknowledges it.
            shared.tell(Message::Ping(v1::Ping { token: 0 }));
        }
    }

    fn pong(&self, token: u64) {
        let mut pings = self.pings.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, sent)) = pings.take_if(|(expected, _)| *expected == token) else { return };
        let sample = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        // RFC 6298 section 2.3: a new sample weighs an eighth.
        let smoothed = match self.shared.rtt.load(Ordering::Relaxed) {
            0 => sample,
            old => old - old / 8 + sample / 8,
        };
        self.shared.rtt.store(smoothed, Ordering::Relaxed);
    }

    /// Waits until a change of trust makes the peer's chain worthless.
    async fn cut(&self) -> String {
        let error = self.standing.disbelieved().await;
        let peer = self.shared.peer.id.as_str();
        log::warn!(peer = peer, code = error.code(); "connection cut: {error}");
        format!("{}: {error}", error.code())
    }

    /// Leaves the session a little before the peer's leaf ends, if it has not
    /// shown a new one by then, and waits for that end. Whoever has no other
    /// tunnel yet may use it meanwhile.
    async fn expire(&self) -> String {
        let lead = (self.standing.left() / 4).min(EXPIRY_LEAD);
        self.standing.expires(lead).await;
        let deadline_ms = u64::try_from(lead.as_millis()).unwrap_or(u64::MAX);
        self.shared.tell(Message::Drain(v1::Drain { deadline_ms, accepting: true }));
        self.end_soon(Phase::Leaving);
        self.standing.expires(Duration::ZERO).await;
        "the peer's certificate has ended".into()
    }

    fn end_soon(&self, to: Phase) {
        self.shared.phase.send_if_modified(|phase| {
            let later = match phase {
                Phase::Open => true,
                Phase::Leaving => to == Phase::Ending,
                Phase::Ending | Phase::Closed(_) => false,
            };
            if later {
                *phase = to;
            }
            later
        });
    }

    /// Sees finished streams delivered; once nobody holds the session any
    /// more, ends it when all are.
    async fn abandon(&self, mut finished: mpsc::Receiver<(Delivery, Counted)>) -> String {
        let mut abandoned = self.shared.abandoned.subscribe();
        let mut lingering = FuturesUnordered::new();
        let delivered = |(delivery, counted): (Delivery, Counted)| async move {
            delivery.await;
            drop(counted);
        };
        loop {
            tokio::select! {
                Some(stream) = finished.recv() => lingering.push(delivered(stream)),
                Some(()) = lingering.next(), if !lingering.is_empty() => {}
                _ = abandoned.wait_for(|abandoned| *abandoned) => break,
            }
        }
        while let Ok(stream) = finished.try_recv() {
            lingering.push(delivered(stream));
        }
        let all = async { while lingering.next().await.is_some() {} };
        // What is not delivered by then is lost with the session.
        let _ = timeout(LINGER, all).await;
        "no longer needed".into()
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{Allowed, service::LinkTransport};

    use super::*;
    use crate::{
        listen::Arrival,
        session::tests::{dialer, door_of},
        testing::{Authority, credentials},
    };

    /// Far below QUIC's idle timeout of 30 s, far above [`DEAD_AFTER`].
    const SOON: Duration = Duration::from_secs(15);

    #[tokio::test]
    async fn a_machine_that_dies_without_a_word_is_missed_soon() {
        let east = Authority::new("east.example");
        let gateway = credentials(&east, &east.gateway(), &[&east]);
        let machine = credentials(&east, &east.workload("orders"), &[&east]);
        let (door, to) = door_of(&gateway, Allowed::Neighbour(east.domain.clone())).await;
        let allowed = Allowed::Exactly(east.gateway());
        let (die, dying) = tokio::sync::oneshot::channel::<()>();
        // A runtime of its own: with it ends everything that could say goodbye.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async {
                let dialer = dialer(&machine);
                let dialled = dialer.dial(&to, allowed, LinkTransport::Quic, SOON).await;
                let session = dialled.expect("dialled");
                let stream = session.accept().await.expect("a stream").accept().await;
                dying.await.expect("told to die");
                std::mem::forget((stream, session));
            });
        });
        let Ok(Arrival::Tunnel(session)) = door.accept().await else { panic!("no tunnel") };
        let connect = crate::session::tests::connect("s");
        let stream = session.open(&connect, b"").await.expect("opened");
        sleep(2 * DEAD_AFTER).await;
        assert!(session.is_open(), "who lives and has nothing to say is not dead");
        die.send(()).expect("it waits");
        thread.join().expect("it ended");
        let why = timeout(SOON, session.closed()).await.expect("missed");
        assert_eq!(why, "the machine is silent");
        drop(stream);
    }
}
