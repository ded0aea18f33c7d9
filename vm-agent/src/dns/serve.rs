//! UDP and TCP (RFC 7766), each bounded.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use mesh_runtime::drain::Drain;
use mesh_tunnel::{Listener, Net};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UdpSocket,
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    answer::{self, answer},
    names::Names,
};

type Table = watch::Receiver<Arc<Names>>;

/// TCP connections at once; who comes then waits. Few ask by TCP: every answer
/// fits in a datagram.
const CONNECTIONS: usize = 64;
/// For the next question of a connection, and for taking an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions of one connection: a place is never held for ever.
const QUESTIONS: usize = 100;
/// After a failure to accept or to receive, which would else repeat at once.
const PAUSE: Duration = Duration::from_millis(50);

/// Both at one address.
pub struct Doors {
    udp: UdpSocket,
    tcp: Box<dyn Listener>,
}

impl Doors {
    /// Listens.
    ///
    /// # Errors
    ///
    /// The address is not to be had; the error names it.
    pub async fn open(net: &dyn Net, addr: SocketAddr) -> io::Result<Self> {
        let udp = bind_udp(addr)
            .map_err(|error| io::Error::new(error.kind(), format!("UDP {addr}: {error}")))?;
        // Where the port is anybody's, the same one.
        let tcp = net.bind(udp.local_addr()?, false).await?;
        Ok(Self { udp, tcp })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// The system does not say.
    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Answers until the drain begins.
    pub fn spawn(self, names: &Table, drain: &Drain) {
        drain.spawn(datagrams(self.udp, names.clone(), drain.clone()));
        drain.spawn(connections(self.tcp, names.clone(), drain.clone()));
    }
}

/// Beside who listens at every address, if they allow it, too.
fn bind_udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

async fn datagrams(socket: UdpSocket, names: Table, drain: Drain) {
    let mut question = vec![0; answer::LONGEST + 1];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut question) => received,
            () = drain.draining() => return,
        };
        let Ok((length, from)) = received else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let names = names.borrow().clone();
        let said = answer(question.get(..length).unwrap_or_default(), &names);
        if let Some(said) = said {
            // Lost, like any datagram, where there is no room.
            let _ = socket.try_send_to(&said, from);
        }
    }
}

async fn connections(listener: Box<dyn Listener>, names: Table, drain: Drain) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
            () = drain.draining() => return,
        };
        let (Ok((stream, _)), Ok(place)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (names, draining) = (names.clone(), drain.clone());
        drain.spawn(async move {
            tokio::select! {
                _ended = connection(stream, names) => {}
                () = draining.draining() => {}
            }
            drop(place);
        });
    }
}

/// Questions and answers with their length before them, one after the other.
async fn connection<S>(mut stream: S, names: Table) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for _ in 0..QUESTIONS {
        let question = timeout(PATIENCE, read(&mut stream)).await??;
        let table = names.borrow().clone();
        let Some(said) = answer(&question, &table) else { return Ok(()) };
        let length = u16::try_from(said.len()).map_err(io::Error::other)?;
        let framed = [length.to_be_bytes().as_slice(), &said].concat();
        timeout(PATIENCE, stream.write_all(&framed)).await??;
    }
    timeout(PATIENCE, stream.shutdown()).await?
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > answer::LONGEST {
        return Err(io::Error::other("no question is that long"));
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    Ok(question)
}

#[cfg(test)]
mod tests;
