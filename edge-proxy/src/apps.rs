//! Connections of one worker to applications.
//!
//! It knows nothing of services, policy or permission: who may be called is
//! decided before. In reading order:
//! - this page: connecting, and what is kept for the next request.
//! - [`exchange`]: one request over HTTP/1, up to the head of its answer.
//! - [`upload`]: its body on the way there.
//! - [`answer`]: what follows the head.

mod answer;
mod exchange;
mod upload;

#[cfg(test)]
mod tests;

pub use answer::{Answer, AnswerBody};
pub use exchange::{Exchange, ExchangeError, is_final, is_idempotent};
pub use upload::UploadEnd;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::message::{Fields, Known, hop};
use mesh_runtime::{clock, drain::Drain};
use mesh_tunnel::{Net, Stream};
use rustc_hash::FxHashMap;
use tokio::time::{Instant, timeout};

use crate::{
    http1::{Buffers, ClientConn, Limits},
    http2::Client,
    inner::mux::Spoken,
    transition::Transition,
};

/// How long an application may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Idle HTTP/1 connections kept per application: as many as are used at once
/// while this proxy has more to do than it can, or they would be opened anew
/// all the time.
const MAX_IDLE: usize = 1024;
/// How long a connection is kept idle, unless the application says less.
const IDLE: Duration = Duration::from_secs(60);
/// A connection is given up so much before the application does.
const IDLE_MARGIN: Duration = Duration::from_secs(1);
/// HTTP/2 connections per application.
pub const MAX_HTTP2: usize = 4;
/// Streams on the least used HTTP/2 connection from which another is opened.
const SPREAD_AT: usize = 100;

/// HTTP/1 connections by application, and until when they may be used; the one
/// used last is last.
type Idle = FxHashMap<SocketAddr, Vec<(Instant, ClientConn<Stream>)>>;

/// HTTP/2 connections to one application; opening is one at a time.
type Clients = Arc<tokio::sync::Mutex<Vec<Client>>>;

/// See the module.
#[derive(Debug)]
pub struct Apps {
    net: Arc<dyn Net>,
    drain: Drain,
    buffers: Arc<Buffers>,
    idle: Mutex<Idle>,
    http2: Mutex<FxHashMap<SocketAddr, Clients>>,
    transition: Transition,
}

impl Apps {
    /// Nothing is connected yet. Whom `transition` knows is spoken to in TLS.
    pub fn new(
        net: Arc<dyn Net>,
        drain: Drain,
        buffers: Arc<Buffers>,
        transition: Transition,
    ) -> Arc<Self> {
        let (idle, http2) = (Mutex::default(), Mutex::default());
        Arc::new(Self { net, drain, buffers, idle, http2, transition })
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for what is spoken in it.
    pub async fn connect(&self, target: SocketAddr, spoken: Spoken) -> io::Result<Stream> {
        let origin = self.transition.origin(target);
        if let Some(origin) = &origin {
            origin.check()?;
        }
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
        let stream = timeout(DIAL_TIMEOUT, self.net.dial(target)).await.map_err(late)??;
        match origin {
            None => Ok(stream),
            Some(origin) => Box::pin(origin.connect(target, spoken, stream)).await,
        }
    }

    fn http1(&self, stream: Stream) -> ClientConn<Stream> {
        ClientConn::new(stream, Limits::default(), self.buffers.clone())
    }

    /// The connection used last, which is the least likely to have been closed.
    fn take(&self, target: SocketAddr) -> Option<ClientConn<Stream>> {
        let now = clock::monotonic();
        let mut idle = self.idle();
        let connections = idle.get_mut(&target)?;
        while let Some((until, mut conn)) = connections.pop() {
            if now < until && !conn.is_stale() {
                return Some(conn);
            }
        }
        None
    }

    /// Keeps a connection for as long as it may be idle.
    fn give(&self, target: SocketAddr, conn: ClientConn<Stream>, idle_for: Duration) {
        if idle_for.is_zero() {
            return;
        }
        let mut idle = self.idle();
        let connections = idle.entry(target).or_default();
        if connections.len() < MAX_IDLE {
            connections.push((clock::monotonic() + idle_for, conn));
        }
    }

    /// An HTTP/2 connection with room, one of `most` at most.
    pub async fn http2(&self, target: SocketAddr, most: usize) -> io::Result<Client> {
        let shared = {
            let mut http2 = self.http2.lock().unwrap_or_else(PoisonError::into_inner);
            http2.entry(target).or_default().clone()
        };
        let mut clients = shared.lock().await;
        clients.retain(Client::is_usable);
        let least = clients.iter().min_by_key(|client| client.streams()).cloned();
        let crowded = |client: &Client| client.streams() >= SPREAD_AT && clients.len() < most;
        if let Some(client) = least.filter(|client| !crowded(client)) {
            return Ok(client);
        }
        let stream = self.connect(target, Spoken::Http2).await?;
        let begun = timeout(DIAL_TIMEOUT, Client::begin(stream, &self.drain));
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not speak HTTP/2");
        let client = begun.await.map_err(late)?.map_err(io::Error::other)?;
        clients.push(client.clone());
        Ok(client)
    }

    /// Closes what has been idle for long, what the application has closed, and
    /// what is not opened any more.
    pub fn sweep(&self) {
        let now = clock::monotonic();
        let is_over = |target: &SocketAddr| {
            self.transition.origin(*target).is_some_and(|origin| origin.is_over())
        };
        self.idle().retain(|target, connections| {
            let is_over = is_over(target);
            connections.retain_mut(|(until, conn)| !is_over && now < *until && !conn.is_stale());
            !connections.is_empty()
        });
        let mut http2 = self.http2.lock().unwrap_or_else(PoisonError::into_inner);
        http2.retain(|target, shared| {
            let Ok(mut clients) = shared.try_lock() else { return true };
            if is_over(target) {
                clients.clear();
            }
            clients.retain(|client| client.is_usable() && client.idle_for() < IDLE);
            !clients.is_empty()
        });
    }
}

/// How long a connection may be idle after this answer. Many applications close
/// theirs after a few seconds and say so (`Keep-Alive: timeout=5`): a request
/// that met that could not always be repeated.
fn idle_for(answer: &Fields) -> Duration {
    let timeout = |parameter: &[u8]| {
        let (name, value) = std::str::from_utf8(parameter).ok()?.split_once('=')?;
        let seconds = value.trim_matches('"').parse().ok()?;
        name.eq_ignore_ascii_case("timeout").then(|| Duration::from_secs(seconds))
    };
    let said = answer.all_known(Known::KeepAlive).flat_map(hop::elements).find_map(timeout);
    said.map_or(IDLE, |said| (said - IDLE_MARGIN.min(said / 2)).min(IDLE))
}
