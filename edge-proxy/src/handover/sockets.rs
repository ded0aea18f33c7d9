//! The listening sockets of this process, and those that its predecessor left:
//! itself, or with the service manager, which keeps them while a service is
//! started again.

use std::{
    fmt, io,
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use mesh_runtime::systemd;
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
    /// What the service manager keeps it as: it wants no `:`.
    fn kept_name(&self) -> String {
        self.to_string().replace(':', "_")
    }

    /// No address has a `_`.
    fn of_kept(name: &str) -> Option<Self> {
        name.replace('_', ":").parse().ok()
    }

    /// How many descriptors a successor needs of it.
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
/// on what is its predecessor's, if that lives.
pub(super) type Given = (Wanted, Vec<OwnedFd>);

/// A socket that a successor may have.
pub trait Hold: AsFd + Send + Sync {
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
    /// Names under which the service manager keeps what nobody wants.
    unwanted: Vec<String>,
    /// The service manager keeps what is held.
    keeps: bool,
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

    /// What the service manager has kept while there was no process.
    pub(super) fn kept(stored: Vec<(String, OwnedFd)>) -> Self {
        let mut state = State::default();
        for (name, fd) in stored {
            match Wanted::of_kept(&name) {
                Some(wanted) => state.inherited.push((wanted, vec![fd])),
                None => state.unwanted.push(name),
            }
        }
        Self(Arc::new(Mutex::new(state)))
    }

    /// Whether any are left that nobody has taken.
    pub fn are_left(&self) -> bool {
        !self.state().inherited.is_empty()
    }

    /// Whether there is one for this among those left.
    pub fn has(&self, wanted: Wanted) -> bool {
        self.state().inherited.iter().any(|(what, _)| *what == wanted)
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
        let mut state = self.state();
        let rest: Vec<_> = state.inherited.drain(..).map(|(wanted, _)| wanted).collect();
        for wanted in rest {
            log::info!(socket:% = wanted; "not listening any more");
            state.unwanted.push(wanted.kept_name());
        }
    }

    /// Has the service manager keep what is listened at, now and later, and
    /// nothing else, for the process after this one, should that not be a
    /// successor. May block for a moment.
    pub fn keep(&self) {
        let unwanted = {
            let mut state = self.state();
            state.keeps = true;
            std::mem::take(&mut state.unwanted)
        };
        let forgotten = unwanted.iter().map(|name| systemd::forget(name));
        // Of sockets with one name some may be wanted: kept after that.
        let forgotten: Vec<_> = forgotten.collect();
        let kept = self.held().into_iter();
        let kept = kept.map(|(wanted, held)| systemd::store(&wanted.kept_name(), held.as_fd()));
        if let Some(error) = forgotten.into_iter().chain(kept).find_map(Result::err) {
            log::warn!(error:% = error; "a restart will refuse connections for a moment");
        }
    }

    /// A successor may have it, as long as it is open.
    pub fn hold<S: Hold + 'static>(&self, wanted: Wanted, socket: &Arc<S>) {
        let socket: Weak<S> = Arc::downgrade(socket);
        let is_late = {
            let mut state = self.state();
            state.held.push((wanted, socket));
            if state.keeps {
                // One that was closed since would take connections, too.
                state.unwanted.push(wanted.kept_name());
            }
            state.keeps
        };
        if is_late {
            self.keep();
        }
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

    #[test]
    fn what_a_service_manager_keeps_has_a_name_of_its_own() {
        for text in ["tcp 127.0.0.1:4140", "udp [fd00::1]:8443"] {
            let wanted: Wanted = text.parse().unwrap();
            let name = wanted.kept_name();
            assert!(!name.contains(':'), "{name}");
            assert_eq!(Wanted::of_kept(&name), Some(wanted));
        }
        let socket = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
        let stored = ["tcp 127.0.0.1_4140", "web.socket", "tcp 127.0.0.1_4140"];
        let sockets = Sockets::kept(stored.map(|name| (name.to_owned(), socket())).into());
        let wanted = "tcp 127.0.0.1:4140".parse().unwrap();
        assert!(sockets.are_left());
        assert!(sockets.has(wanted) && sockets.take(wanted).is_some());
        sockets.close_rest();
        assert!(!sockets.has(wanted) && !sockets.are_left());
        // One is taken and one left over: it is forgotten, and then kept anew.
        assert_eq!(sockets.state().unwanted, ["web.socket", "tcp 127.0.0.1_4140"]);
    }
}
