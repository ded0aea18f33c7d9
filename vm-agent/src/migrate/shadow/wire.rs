//! What clients say to the legacy proxy, seen from beside: a copy of each segment that
//! the kernel shows (packet(7)). Nobody's traffic goes through this process.

use std::{
    io::{self, ErrorKind, Read},
    net::SocketAddr,
    time::Duration,
};

use mesh_migrate::shadow::{
    frame::{self, Linktype},
    heads::{Flows, Head, Limits},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use super::{
    super::record::Listener,
    backends::{self, Backends},
    question::Own,
};

/// Segments of 64 KiB come where the network card puts them together.
const BUFFER: usize = 4 << 20;
const MAX_PACKET: usize = 128 << 10;
/// All protocols (`linux/if_ether.h`).
const ETH_P_ALL: u16 = 3;
/// Requests on their way; more are left out.
const QUEUE: usize = 256;
/// From one look whether anybody listens to the next.
const LOOK: Duration = Duration::from_millis(200);

/// A request, who has asked, and where.
pub(super) type Seen = (SocketAddr, Listener, Head);

/// Begins to look at requests to `listeners`, until nobody receives them, and at where
/// this process's own questions go to; bodies of up to `body` bytes are kept.
///
/// # Errors
///
/// Most likely that this process lacks `CAP_NET_RAW`.
pub(super) fn tap(
    listeners: &[Listener],
    body: usize,
    own: Own,
    backends: Backends,
) -> io::Result<mpsc::Receiver<Seen>> {
    // In the order of the network.
    let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    // Without the header of the link, whatever that is.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(LOOK))?;
    // The kernel gives what it may.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let (seen, receiver) = mpsc::channel(QUEUE);
    let flows = Flows::new(Limits { body, ..Limits::default() });
    let listeners = listeners.to_vec();
    std::thread::Builder::new()
        .name("wire".to_owned())
        .spawn(move || look(&socket, flows, &listeners, &seen, (&own, &backends)))?;
    Ok(receiver)
}

fn look(
    socket: &Socket,
    mut flows: Flows,
    listeners: &[Listener],
    seen: &mpsc::Sender<Seen>,
    (own, backends): (&Own, &Backends),
) {
    let mut packet = vec![0; MAX_PACKET];
    while !seen.is_closed() {
        let length = match (&*socket).read(&mut packet) {
            Ok(length) => length,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                continue;
            }
            Err(error) => {
                log::warn!(error:% = error; "clients' requests are not seen any more");
                return;
            }
        };
        let Some(segment) = packet.get(..length).and_then(|p| frame::segment(Linktype::Raw, p))
        else {
            continue;
        };
        let server = segment.flow.server;
        if let Some(id) = backends::id_in(segment.payload)
            && !own.has(&segment.flow.client)
        {
            backends.saw(id, server);
        }
        let listener = listeners.iter().find(|listener| {
            let at = listener.address;
            at.port() == server.port() && (at.ip().is_unspecified() || at.ip() == server.ip())
        });
        let Some(listener) = listener else { continue };
        for head in flows.take(&segment) {
            // Of more than can be asked some are enough.
            let _ = seen.try_send((segment.flow.client, listener.clone(), head));
        }
    }
}
