//! What comes in at the doors of one worker.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use mesh_api::v1;
use mesh_core::Allowed;
use mesh_runtime::{admin::Condition, clock};
use mesh_tunnel::{Door, Doors, Stream, listen::Arrival};
use tokio::time::timeout;

use super::{Own, State, neighbours, relay};
use crate::{config::GatewayDoors, identity::federation, metrics::Taken, retry::Backoff};

/// A whole conversation at the join door.
const JOIN_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of a whole conversation at the join door, per direction.
const JOIN_BYTES: u64 = 1 << 20;
/// Pause before a door that could not be opened is tried again.
const REOPEN: Duration = Duration::from_secs(1);
/// The longest such pause.
const REOPEN_MAX: Duration = Duration::from_secs(10);

/// Whether the addresses can be bound at all: a port in use shall end the
/// process at its start, not when its identity has arrived.
pub(super) async fn probe(state: &State) -> io::Result<()> {
    let Some(doors) = state.shared.config.gateway else { return Err(no_doors()) };
    let named = |what: &str, addr: SocketAddr, error: io::Error| {
        let text = format!("gateway {what} door {addr}: {error}; is another process using it?");
        io::Error::new(error.kind(), text)
    };
    let tls = state.shared.net.bind(doors.tls, true).await;
    tls.map_err(|error| named("TLS", doors.tls, error))?;
    if let Some(quic) = doors.quic {
        let socket = state.shared.net.udp(quic, true).await;
        socket.map_err(|error| named("QUIC", quic, error))?;
    }
    Ok(())
}

fn no_doors() -> io::Error {
    let text = "role gateway needs `gateway` with at least a TLS address in its configuration";
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// Opens the doors once there is an identity, and takes in what arrives until
/// the drain begins.
pub(super) async fn keep(state: Arc<State>, ready: Condition) {
    let Some(doors) = state.shared.config.gateway else { return };
    let Some(own) = state.own().await else { return };
    let mut backoff = Backoff::new(REOPEN, REOPEN_MAX);
    while !state.shared.drain.is_closing() {
        match Door::open(wanted(&state, &own, doors)).await {
            Ok(door) => {
                backoff.reset();
                ready.holds();
                take_in(&state, &own, &door).await;
            }
            Err(error) => {
                ready.fails(error.to_string());
                log::error!(error:% = error, tls:% = doors.tls; "cannot open the gateway's doors, trying again");
            }
        }
        tokio::select! {
            () = backoff.pause() => {}
            () = state.shared.drain.closing() => {}
        }
    }
}

fn wanted(state: &State, own: &Own, doors: GatewayDoors) -> Doors {
    Doors {
        net: state.shared.net.clone(),
        credentials: state.shared.credentials.clone(),
        allowed: Allowed::Neighbour(own.trust_domain.clone()),
        hello: hello(state, own),
        quic: doors.quic,
        tls: doors.tls,
        turned_away: state.metrics.turned_away.clone(),
    }
}

/// What this gateway says first in every tunnel.
pub(super) fn hello(state: &State, own: &Own) -> v1::Hello {
    let streams = state.tuning.limits.per_neighbour.max(state.tuning.limits.per_link);
    v1::Hello {
        versions: mesh_api::VERSIONS.to_vec(),
        role: v1::Role::Gateway.into(),
        site: own.site.to_string(),
        gateway: own.id.to_string(),
        limits: Some(v1::TunnelLimits { streams: u32::try_from(streams).unwrap_or(u32::MAX) }),
        boot_id: crate::tunnels::boot_id().to_owned(),
        ..v1::Hello::default()
    }
}

async fn take_in(state: &Arc<State>, own: &Own, door: &Door) {
    let (quic, tls) = door.local_addrs();
    state.doors.send_replace(Some((quic, tls)));
    log::info!(gateway = own.hop().as_str(), quic:? = quic, tls:% = tls; "the gateway's doors are open");
    loop {
        let arrival = tokio::select! {
            arrival = door.accept() => arrival,
            () = state.shared.drain.closing() => break,
        };
        match arrival {
            Ok(Arrival::Tunnel(session)) if !state.shared.has_memory(Taken::Connection) => {
                session.close("this gateway holds as much memory as it may");
            }
            Ok(Arrival::Tunnel(session)) => {
                state.opened.get_or_init(clock::monotonic);
                let tunnel = neighbours::accepted(state.clone(), own.clone(), session);
                state.shared.drain.spawn_connection(tunnel);
            }
            Ok(Arrival::Join(stream, from)) => {
                state.shared.drain.spawn_connection(join(state.clone(), stream, from));
            }
            Err(error) => {
                log::error!(error:% = error; "a door has failed, opening it again");
                break;
            }
        }
    }
    door.close();
}

/// Copies the bytes of somebody who has no certificate yet to federation. They
/// are TLS that ends there; nothing is read here.
async fn join(state: Arc<State>, stream: Stream, from: SocketAddr) {
    let Some(addr) = federation(&state.shared) else {
        log::warn!(from:% = from; "join refused: federation's address is not known yet");
        return;
    };
    let mut far = match timeout(state.tuning.dial_deadline, state.shared.net.dial(addr)).await {
        Ok(Ok(far)) => far,
        Ok(Err(error)) => {
            log::warn!(from:% = from, federation:% = addr, error:% = error; "join refused: federation does not answer");
            return;
        }
        Err(_) => {
            log::warn!(from:% = from, federation:% = addr; "join refused: federation does not answer in time");
            return;
        }
    };
    let mut near = relay::Measured::new(stream, JOIN_BYTES);
    let limits = relay::Limits { idle: JOIN_DEADLINE };
    let stop = async {
        tokio::select! {
            () = tokio::time::sleep(JOIN_DEADLINE) => {}
            () = state.shared.drain.stopping() => {}
        }
    };
    let carried = relay::relay(&mut near, &mut far, limits, stop).await;
    state.metrics.joined(carried.ending);
    log::info!(
        from:% = from, sent = carried.sent, received = carried.received, end = carried.ending.code();
        "join door"
    );
}
