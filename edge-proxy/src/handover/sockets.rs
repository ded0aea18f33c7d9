//! The listening sockets of this process, and those that its predecessor left.

use std::{
    fmt, io,
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use mesh_tunnel::datagrams::{Generation, SharedDatagrams};
use rustix::fd::{AsFd, OwnedFd};
use tokio::net::TcpListener;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Listens for connections.
    Tcp,
    /// QUIC.
    Udp,
}

/// A socket by what was asked for: the port may have been 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// What it is for.
    pub kind: Kind,
    /// As configured, or as found by the first worker.
    pub addr: SocketAddr,
}

impl Wanted {
    /// How many descriptors it needs.
    pub(super) fn fds(&self) -> usize {
        match self.kind {
            Kind::Tcp => 1,
            Kind::Udp => 2,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Tcp => write!(f, "tcp {}", self.addr),
            Kind::Udp => write!(f, "udp {}", self.addr),
        }
    }
}

impl FromStr for Wanted {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, addr) = text.split_once(' ').ok_or(())?;
        let kind = match kind {
            "tcp" => Kind::Tcp,
            "udp" => Kind::Udp,
            _ => return Err(()),
        };
        Ok(Self { kind, addr: addr.parse().map_err(|_| ())? })
    }
}

/// What a successor gets of one socket: the socket, and for UDP the way to pass
/// on what is its predecessor's.
pub(super) type Given = (Wanted, Vec<OwnedFd>);

/// A socket that a successor may have.
pub trait Hold: Send + Sync {
    /// What the successor gets.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn give(&self) -> io::Result<Vec<OwnedFd>>;
    /// This process accepts from now on.
    fn open(&self) {}
    /// The successor does.
    fn leave(&self) {}
}

impl Hold for TcpListener {
    fn give(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(vec![self.as_fd().try_clone_to_owned()?])
    }
}

impl Hold for SharedDatagrams {
    fn give(&self) -> io::Result<Vec<OwnedFd>> {
        let (socket, passing) = Self::give(self)?;
        Ok(vec![socket, passing])
    }

    fn open(&self) {
        Self::open(self);
    }

    fn leave(&self) {
        Self::leave(self);
    }
}

/// Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Sockets(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    inherited: Vec<Given>,
    /// In the order in which they were made; those that are closed are not
    /// kept open.
    held: Vec<(Wanted, Weak<dyn Hold>)>,
    generation: u8,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        let held = state.held.iter().map(|(wanted, _)| wanted).collect::<Vec<_>>();
        f.debug_struct("Sockets").field("held", &held).finish_non_exhaustive()
    }
}

impl Sockets {
    /// What a predecessor of this generation has left.
    pub(super) fn inherited(generation: u8, inherited: Vec<Given>) -> Self {
        let state = State { inherited, generation: generation.wrapping_add(1), ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Which process of those that follow each other.
    pub fn generation(&self) -> Generation {
        Generation(self.state().generation)
    }

    /// The first of those left that is for this, once.
    pub fn take(&self, wanted: Wanted) -> Option<Vec<OwnedFd>> {
        let inherited = &mut self.state().inherited;
        let place = inherited.iter().position(|(what, _)| *what == wanted)?;
        Some(inherited.remove(place).1)
    }

    /// Closes what nobody wanted: the configuration has changed.
    pub fn close_rest(&self) {
        for (wanted, _) in self.state().inherited.drain(..) {
            log::info!(socket:% = wanted; "not listening any more");
        }
    }

    /// A successor may have it, as long as it is open.
    pub fn hold<S: Hold + 'static>(&self, wanted: Wanted, socket: &Arc<S>) {
        let socket: Weak<S> = Arc::downgrade(socket);
        self.state().held.push((wanted, socket));
    }

    /// What a successor gets. Call it in a runtime.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn give(&self) -> io::Result<Vec<Given>> {
        self.held().into_iter().map(|(wanted, socket)| Ok((wanted, socket.give()?))).collect()
    }

    /// This process accepts from now on.
    pub fn open(&self) {
        self.held().iter().for_each(|(_, socket)| socket.open());
    }

    /// The successor does.
    pub fn leave(&self) {
        self.held().iter().for_each(|(_, socket)| socket.leave());
    }

    fn held(&self) -> Vec<(Wanted, Arc<dyn Hold>)> {
        let state = self.state();
        let open = |(wanted, socket): &(Wanted, Weak<_>)| Some((*wanted, socket.upgrade()?));
        state.held.iter().filter_map(open).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_is_left_once_in_order_and_closed_ones_never() {
        let any = Wanted { kind: Kind::Tcp, addr: "127.0.0.1:0".parse().unwrap() };
        assert_eq!(any.to_string().parse(), Ok(any));
        let before = Sockets::default();
        let mut made = Vec::new();
        for _ in 0..3 {
            let listener = Arc::new(TcpListener::bind(any.addr).await.unwrap());
            before.hold(any, &listener);
            made.push(listener);
        }
        let ports: Vec<_> = made.iter().map(|made| made.local_addr().unwrap()).collect();
        drop(made.remove(0));
        let after = Sockets::inherited(before.generation().0, before.give().unwrap());
        assert_ne!(after.generation(), before.generation());
        let taken = || {
            let listener = std::net::TcpListener::from(after.take(any)?.remove(0));
            Some(listener.local_addr().unwrap())
        };
        assert_eq!([taken(), taken(), taken()], [Some(ports[1]), Some(ports[2]), None]);
    }
}
