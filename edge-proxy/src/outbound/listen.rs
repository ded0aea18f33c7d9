//! Accepting connections of applications.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_core::{
    Reason,
    address::{self, Place},
    route::Destination,
};
use mesh_tunnel::{Stream, listen::abort, net::Listener};
use tokio::sync::Semaphore;

use super::{
    front::{self, Toward},
    opaque::{self, Opened},
    port, tls,
};
use crate::{
    app::Shared,
    config::Manner,
    inbound::{self, door},
    metrics::{
        Direction, Taken,
        labels::Labels,
        traffic::{self, OpenTcp},
    },
    record::Record,
    transition::door::{Arrived, Door},
    worker::Worker,
};

/// Connections of applications per worker; more wait to be accepted.
const MAX_CLIENTS: usize = 16_384;
/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// 240.0.0.0/4 and above is nobody's (RFC 1112 section 4): virtual addresses
/// are of it, or stand for one of IPv4.
const RESERVED: u8 = 240;

/// What a listener is for.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// HTTP proxy: each request names its service.
    Proxy,
    /// TLS: each connection names its service; the number of its port.
    Sni(Option<u16>),
    /// One port of one service.
    Service(Destination, Manner),
    /// The same in TLS with a certificate that is not of the mesh.
    Transition(Destination, Manner, Arc<Door>),
    /// One port of an own service, for clients that are not of the mesh.
    Own(Destination),
    /// Captured traffic: the original destination names the service.
    Captured,
    /// Captured on its way to an application of this host.
    CapturedInbound,
}

/// Accepts until the process drains or leaves.
pub async fn accept(worker: Arc<Worker>, listener: Box<dyn Listener>, purpose: Purpose) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let accepted = tokio::select! {
            accepted = next(&*listener, &places) => accepted,
            () = worker.shared.drain.closing() => return,
        };
        let (stream, from, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                log::warn!(error:% = error; "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !worker.shared.has_memory(Taken::Connection) {
            abort(stream);
            continue;
        }
        let (worker, purpose) = (worker.clone(), purpose.clone());
        worker.shared.drain.clone().spawn_connection(async move {
            let _open = count(&worker.shared);
            worker.shared.metrics.clients_open.inc();
            serve(&worker, purpose, stream, from).await;
            worker.shared.metrics.clients_open.dec();
            drop(place);
        });
    }
}

/// Counts a connection of an application as Linkerd does.
fn count(shared: &Shared) -> OpenTcp {
    let mut labels = vec![
        ("direction", Direction::Outbound.as_str().to_owned()),
        ("tls", "no_identity".to_owned()),
        ("no_tls_reason", "loopback".to_owned()),
    ];
    labels.extend(traffic::workload(&shared.credentials));
    shared.metrics.traffic.opened(&Labels::new(labels), "src")
}

async fn next(
    listener: &dyn Listener,
    places: &Arc<Semaphore>,
) -> io::Result<(Stream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await;
    let place = place.map_err(|_| io::Error::other("closed"))?;
    let (stream, from) = listener.accept().await?;
    Ok((stream, from, place))
}

async fn serve(worker: &Arc<Worker>, purpose: Purpose, stream: Stream, from: SocketAddr) {
    match purpose {
        Purpose::Proxy if worker.shared.config.admits(from.ip()) => {
            front::serve(worker, Toward::Named, from.ip(), stream).await;
        }
        Purpose::Sni(port) if worker.shared.config.admits(from.ip()) => {
            tls::carry_named(worker, port, from.ip(), stream).await;
        }
        Purpose::Proxy | Purpose::Sni(_) => {
            log::warn!(from:% = from; "client is in no block of allow_from; closed");
        }
        Purpose::Service(destination, manner) => {
            front::serve_port(worker, (destination, manner), from.ip(), stream).await
        }
        Purpose::Transition(destination, manner, door) => {
            Box::pin(decrypted(worker, (destination, manner), &door, stream, from)).await;
        }
        Purpose::Own(destination) => door::serve(worker, destination, from.ip(), stream).await,
        Purpose::Captured => captured(worker, stream, from).await,
        Purpose::CapturedInbound => inbound::captured::serve(worker, stream, from).await,
    }
}

/// One connection of a client that speaks TLS, if it finishes its handshake, or
/// need not.
async fn decrypted(
    worker: &Arc<Worker>,
    (destination, manner): (Destination, Manner),
    door: &Door,
    stream: Stream,
    from: SocketAddr,
) {
    let carriage = port::carriage(worker, &destination).await;
    let to = (destination, manner);
    match door.accept(carriage, from, stream).await {
        Some(Arrived::Decrypted(stream)) => {
            front::serve_decrypted(worker, to, from.ip(), stream).await;
        }
        Some(Arrived::Plaintext(stream)) => {
            front::serve_port(worker, to, from.ip(), stream).await;
        }
        None => {}
    }
}

/// The virtual address and port that the application dialled name the service;
/// what is captured and goes to no service goes on to where it was bound for.
async fn captured(worker: &Arc<Worker>, mut stream: Stream, from: SocketAddr) {
    let Some(dialled) = stream.original_destination() else {
        log::warn!(from:% = from; "connection has no original destination; was it captured?");
        stream.abort_on_close();
        return;
    };
    let snapshot = worker.shared.snapshot.load();
    let destination = snapshot.and_then(|s| worker.view(&s).captured(dialled));
    match destination {
        Some(destination) => {
            front::serve_port(worker, (destination, Manner::default()), from.ip(), stream).await
        }
        None => pass(worker, dialled, from, stream).await,
    }
}

/// One connection that is none of the mesh's business, as its application has
/// asked for it.
async fn pass(worker: &Arc<Worker>, dialled: SocketAddr, from: SocketAddr, mut stream: Stream) {
    if let Err(why) = may_pass(dialled, worker.shared.config.transparent) {
        log::info!(dialled:% = dialled, from:% = from, why = why.as_str(); "captured connection is refused");
        stream.abort_on_close();
        return;
    }
    let mut record = Record::new(worker, Direction::Outbound, "tcp");
    record.entry.client = Some(from.ip());
    record.entry.path_kind = "elsewhere";
    match worker.shared.net.dial(dialled).await {
        Ok(opened) => opaque::run(worker, stream, Opened::elsewhere(opened), record).await,
        Err(error) => {
            log::debug!(dialled:% = dialled, error:% = error; "captured connection fails");
            record.failed(Reason::AppUnreachable);
            stream.abort_on_close();
        }
    }
}

/// Nobody is taken to where they could not be captured from, nor back here; and
/// who dials a virtual address means a service.
fn may_pass(dialled: SocketAddr, own: Option<SocketAddr>) -> Result<(), String> {
    let place = Place { loopback: false, listens: own.as_slice(), has: &|_| true };
    address::check(dialled, place).map_err(|why| why.to_string())?;
    match dialled.ip().to_canonical() {
        IpAddr::V4(ip) if ip.octets()[0] < RESERVED => Ok(()),
        IpAddr::V6(ip) if !address::is_virtual_ipv6(ip) => Ok(()),
        IpAddr::V4(_) | IpAddr::V6(_) => Err("no service has this virtual address".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_be_captured_passes() {
        let cases = [
            ("10.0.0.5:443", "127.0.0.1:4141", true),
            ("[2001:db8::5]:443", "127.0.0.1:4141", true),
            ("10.0.0.5:4141", "127.0.0.1:4141", true),
            // Somebody has connected to the listener itself.
            ("10.0.0.5:4141", "0.0.0.0:4141", false),
            ("10.0.0.5:4141", "10.0.0.5:4141", false),
            ("127.0.0.1:4141", "127.0.0.1:4141", false),
            ("127.0.0.1:80", "127.0.0.1:4141", false),
            ("[::1]:80", "127.0.0.1:4141", false),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:4141", false),
            ("169.254.169.254:80", "127.0.0.1:4141", false),
            ("[fe80::1]:80", "127.0.0.1:4141", false),
            ("100.100.100.200:80", "127.0.0.1:4141", false),
            ("240.240.0.9:80", "127.0.0.1:4141", false),
            ("[::ffff:240.240.0.9]:80", "127.0.0.1:4141", false),
            ("[fd69:7374:686d::f0f0:9]:80", "127.0.0.1:4141", false),
            ("[fd69:7374:686e::f0f0:9]:80", "127.0.0.1:4141", true),
        ];
        for (dialled, own, wanted) in cases {
            let passes = may_pass(dialled.parse().unwrap(), own.parse().ok());
            assert_eq!(passes.is_ok(), wanted, "{dialled} by {own}: {passes:?}");
        }
    }
}
