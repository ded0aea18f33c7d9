//! The listening sockets of this process, and those that its predecessor left.

use std::{
    fmt,
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use rustix::fd::{AsFd, OwnedFd};

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Listens for connections.
    Tcp,
}

/// A socket by what was asked for: the port may have been 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// What it is for.
    pub kind: Kind,
    /// As configured, or as found by the first worker.
    pub addr: SocketAddr,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Tcp => write!(f, "tcp {}", self.addr),
        }
    }
}

impl FromStr for Wanted {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, addr) = text.split_once(' ').ok_or(())?;
        let kind = match kind {
            "tcp" => Kind::Tcp,
            _ => return Err(()),
        };
        Ok(Self { kind, addr: addr.parse().map_err(|_| ())? })
    }
}

/// A socket that can be given away.
pub(super) type HeldSocket = (Wanted, Arc<dyn AsFd + Send + Sync>);

/// Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Sockets(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    inherited: Vec<(Wanted, OwnedFd)>,
    /// In the order in which they were made; those that are closed are not
    /// kept open.
    held: Vec<(Wanted, Weak<dyn AsFd + Send + Sync>)>,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        let held = state.held.iter().map(|(wanted, _)| wanted).collect::<Vec<_>>();
        f.debug_struct("Sockets").field("held", &held).finish_non_exhaustive()
    }
}

impl Sockets {
    /// A predecessor has left one.
    pub fn inherit(&self, wanted: Wanted, socket: OwnedFd) {
        self.state().inherited.push((wanted, socket));
    }

    /// The first of those left that is for this, once.
    pub fn take(&self, wanted: Wanted) -> Option<OwnedFd> {
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
    pub fn hold<S: AsFd + Send + Sync + 'static>(&self, wanted: Wanted, socket: &Arc<S>) {
        let socket: Weak<S> = Arc::downgrade(socket);
        self.state().held.push((wanted, socket));
    }

    /// What a successor gets.
    pub(super) fn held(&self) -> Vec<HeldSocket> {
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
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn each_is_left_once_in_order_and_closed_ones_never() {
        let any = Wanted { kind: Kind::Tcp, addr: "127.0.0.1:0".parse().unwrap() };
        assert_eq!(any.to_string().parse(), Ok(any));
        let before = Sockets::default();
        let made: Vec<_> = (0..3).map(|_| Arc::new(TcpListener::bind(any.addr).unwrap())).collect();
        made.iter().for_each(|listener| before.hold(any, listener));
        let ports: Vec<_> = made.iter().map(|made| made.local_addr().unwrap()).collect();
        let mut made = made.into_iter();
        drop(made.next());
        let after = Sockets::default();
        for (wanted, socket) in before.held() {
            after.inherit(wanted, socket.as_fd().try_clone_to_owned().unwrap());
        }
        let taken = || Some(TcpListener::from(after.take(any)?).local_addr().unwrap());
        assert_eq!([taken(), taken(), taken()], [Some(ports[1]), Some(ports[2]), None]);
    }
}
