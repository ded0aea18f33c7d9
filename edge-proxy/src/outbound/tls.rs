//! TLS that passes through: the name that a client asks for decides where its
//! connection goes. Nothing is decrypted, and no byte is changed.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use mesh_core::{
    Protocol, Reason, ServicePort,
    client_hello::{self, Alert, ClientHello, NotHello},
    route::Destination,
};
use mesh_tunnel::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{dispatch::no_snapshot, opaque, target};
use crate::{
    metrics::Direction, prefixed::Prefixed, record::Record, refusal::Refusal, worker::Worker,
};

/// How long a client may take for its ClientHello.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// How long a refused client may take to read why. What it has sent meanwhile
/// is read: otherwise the system resets it, and it would not learn.
const LINGER: Duration = Duration::from_secs(1);
/// What is read of it, at most.
const MAX_LINGER: u64 = 64 << 10;

/// One connection to a port with rules about names.
pub async fn carry(
    worker: &Arc<Worker>,
    destination: &Destination,
    stream: Stream,
    mut record: Record,
) {
    record.entry.service = Some(destination.service.clone());
    record.entry.port = Some(destination.port.clone());
    match hello(stream).await {
        Ok((hello, stream)) => go_on(worker, destination, &hello, stream, record).await,
        Err(NoHello::Other(NotHello::NotTls, stream)) if takes_any(worker, destination) => {
            opaque::carry(worker, destination, stream, record).await;
        }
        Err(no_hello) => no_hello.refuse(destination.service.as_str(), record).await,
    }
}

/// Whether a rule takes connections that are none of TLS.
fn takes_any(worker: &Worker, destination: &Destination) -> bool {
    let svid = worker.shared.credentials.svid();
    let from = svid.as_ref().and_then(|svid| svid.id.namespace());
    let snapshot = worker.shared.snapshot.load();
    let service = snapshot.as_ref().and_then(|s| s.services.get(&destination.service));
    service.is_some_and(|service| {
        let found = service.connection_routes.find(&destination.port, from, None);
        matches!(found, Ok(Some(_)))
    })
}

/// One connection that begins like TLS, to a port of which it was not known.
pub async fn carry_detected(
    worker: &Arc<Worker>,
    destination: &Destination,
    stream: Stream,
    record: Record,
) {
    let wanted = {
        let svid = worker.shared.credentials.svid();
        let from = svid.as_ref().and_then(|svid| svid.id.namespace());
        let snapshot = worker.shared.snapshot.load();
        let service = snapshot.as_ref().and_then(|s| s.services.get(&destination.service));
        service.is_some_and(|service| service.connection_routes.want_hello(&destination.port, from))
    };
    match wanted {
        true => carry(worker, destination, stream, record).await,
        false => opaque::carry(worker, destination, stream, record).await,
    }
}

/// One connection whose client names the service; `port` is the number of the
/// one that it means.
pub async fn carry_named(worker: &Arc<Worker>, port: Option<u16>, client: IpAddr, stream: Stream) {
    let mut record = Record::new(worker, Direction::Outbound, "tcp");
    record.entry.client = Some(client);
    let (hello, stream) = match hello(stream).await {
        Ok(read) => read,
        Err(no_hello) => return no_hello.refuse("the listener by name", record).await,
    };
    match named(worker, &hello, port).await {
        Ok(destination) => go_on(worker, &destination, &hello, stream, record).await,
        Err(refusal) => refuse(stream, &refusal, record).await,
    }
}

async fn named(
    worker: &Worker,
    hello: &ClientHello,
    port: Option<u16>,
) -> Result<Destination, Refusal> {
    let Some(name) = hello.server_name.as_deref() else {
        let text = "the client names no service: it must send SNI, <name>.<namespace>";
        return Err(Refusal::new(Reason::NoSuchService, text));
    };
    let snapshot = worker.shared.snapshot.load().ok_or_else(no_snapshot)?;
    let (service, port) = target::by_server_name(name, port, &snapshot)?;
    if !may_speak_tls(port) {
        let text = format!("service {}: port {} speaks HTTP, not TLS", service.name, port.name);
        return Err(Refusal::new(Reason::BadRequest, text));
    }
    Ok(Destination { service: service.name.clone(), port: port.name.clone() })
}

fn may_speak_tls(port: &ServicePort) -> bool {
    match port.protocol {
        Protocol::Tls | Protocol::Tcp | Protocol::Detect => true,
        Protocol::Http | Protocol::Grpc => false,
    }
}

async fn go_on(
    worker: &Arc<Worker>,
    destination: &Destination,
    hello: &ClientHello,
    stream: Stream,
    mut record: Record,
) {
    match opaque::open_for(worker, destination, Some(hello), &mut record).await {
        Ok(opened) => opaque::run(worker, stream, opened, record).await,
        Err(refusal) => refuse(stream, &refusal, record).await,
    }
}

/// Reads a ClientHello, or what else there is, and puts it back.
async fn hello(mut stream: Stream) -> Result<(ClientHello, Stream), NoHello> {
    let mut read = BytesMut::with_capacity(2048);
    let found = tokio::time::timeout(HELLO_PATIENCE, async {
        loop {
            let ended = stream.read_buf(&mut read).await? == 0;
            match client_hello::read(&read) {
                Ok(Some(hello)) => return Ok(Ok(hello)),
                Ok(None) if ended => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(None) => {}
                Err(why) => return Ok(Err(why)),
            }
        }
    });
    match found.await {
        Ok(Ok(Ok(hello))) => Ok((hello, Box::new(Prefixed::new(read.freeze(), stream)))),
        Ok(Ok(Err(why))) => {
            Err(NoHello::Other(why, Box::new(Prefixed::new(read.freeze(), stream))))
        }
        Ok(Err(error)) => Err(NoHello::Ended(error, stream)),
        Err(_) => Err(NoHello::Ended(io::ErrorKind::TimedOut.into(), stream)),
    }
}

/// A connection that does not begin with a ClientHello.
enum NoHello {
    /// Its client said something else.
    Other(NotHello, Stream),
    /// It said too little.
    Ended(io::Error, Stream),
}

impl NoHello {
    async fn refuse(self, what: &str, mut record: Record) {
        match self {
            Self::Other(why, mut stream) => {
                log::debug!("{what}: {why}");
                record.failed(Reason::BadRequest);
                match why {
                    NotHello::Malformed(_) => tell(stream, Alert::DecodeError).await,
                    NotHello::NotTls => stream.abort_on_close(),
                }
            }
            Self::Ended(error, mut stream) => {
                log::debug!("{what}: no ClientHello: {error}");
                record.failed(Reason::BadRequest);
                stream.abort_on_close();
            }
        }
    }
}

/// A client that asks for whom nobody knows is told so; who cannot be served
/// otherwise is reset.
async fn refuse(mut stream: Stream, refusal: &Refusal, mut record: Record) {
    log::debug!(reason = refusal.reason.code(); "{}", refusal.text);
    record.failed(refusal.reason);
    match refusal.reason {
        Reason::NoRoute
        | Reason::NoSuchService
        | Reason::NoSuchPort
        | Reason::ForbiddenTarget
        | Reason::BadRequest => tell(stream, Alert::UnrecognizedName).await,
        _ => stream.abort_on_close(),
    }
}

async fn tell(mut stream: Stream, alert: Alert) {
    let telling = async {
        stream.write_all(&alert.record()).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(MAX_LINGER), &mut tokio::io::sink()).await
    };
    let _told_or_gone = tokio::time::timeout(LINGER, telling).await;
}
