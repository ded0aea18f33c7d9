//! The door for clients that are not of the mesh: plaintext to one port of an
//! own service, as far as its policy lets clients without an identity in.
//! What serves the clients of this host serves them; where it goes is decided
//! here.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http_body::Body;
use mesh_core::{
    Call, Client, Endpoint, Permit, Reason, Service, Snapshot,
    carriage::Carriage,
    may_connect,
    message::{Known, RequestHead},
    probe,
    route::Destination,
};
use mesh_runtime::clock;
use mesh_tunnel::Stream;

use super::{guard, guard::Running};
use crate::{
    copy::Duplex,
    metrics::Direction,
    outbound::{
        answer::Used,
        attempts::{Carried, attempts},
        body::{ClientBody, ReplayBody},
        deadline,
        dispatch::{Dispatch, no_snapshot},
        front::{self, Toward},
        opaque::{self, Opened, Relayed},
        port,
        request::{self, Forwarded, Outcome},
        sniff::Speaks,
    },
    record::Record,
    refusal::Refusal,
    scratch::Scratch,
    worker::Worker,
};

/// How long whom no rule allows may take to ask and be told so.
const UNWELCOME: Duration = Duration::from_secs(5);

/// What an admitted call goes to.
struct Admitted {
    snapshot: Arc<Snapshot>,
    service: Arc<Service>,
    endpoint: Arc<Endpoint>,
    permit: Permit,
    seen: u64,
}

impl Admitted {
    /// To this endpoint and no other, without its proxy, which is this one.
    fn dispatch(&self, worker: &Arc<Worker>) -> Dispatch {
        Dispatch::plain(worker, &self.snapshot, &self.endpoint, &self.permit)
    }
}

fn client_at(address: IpAddr) -> Client<'static> {
    Client { peer: None, address: Some(address.to_canonical()) }
}

/// Serves one connection for as long as the policy lets its client in at all.
pub(crate) async fn serve(
    worker: &Arc<Worker>,
    destination: Destination,
    client: IpAddr,
    stream: Stream,
) {
    let seen = worker.changes.seen();
    let patience = match is_welcome(worker, &destination, client).await {
        true => None,
        false => Some(clock::monotonic() + UNWELCOME),
    };
    tokio::select! {
        biased;
        () = carry_all(worker, &destination, client, stream) => {}
        () = until_unwelcome(worker, &destination, client, seen) => {
            log::info!(from:% = client, service = destination.service.as_str(); "cut: no rule allows it any more");
        }
        () = late(patience) => {}
    }
}

async fn late(patience: Option<tokio::time::Instant>) {
    match patience {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

async fn is_welcome(worker: &Worker, destination: &Destination, client: IpAddr) -> bool {
    let snapshot = worker.shared.snapshot.want(&destination.service).await;
    let service = snapshot.as_ref().and_then(|s| s.services.get(&destination.service));
    service.is_some_and(|s| may_connect(&s.policy, client_at(client), &destination.port))
}

/// Who was never let in is told so, call by call, and not cut.
async fn until_unwelcome(
    worker: &Worker,
    destination: &Destination,
    client: IpAddr,
    mut seen: u64,
) {
    let mut welcome = is_welcome(worker, destination, client).await;
    loop {
        seen = worker.changes.after(seen).await;
        let now = is_welcome(worker, destination, client).await;
        if welcome && !now {
            return;
        }
        welcome = now;
    }
}

async fn carry_all(
    worker: &Arc<Worker>,
    destination: &Destination,
    client: IpAddr,
    stream: Stream,
) {
    let requests = |stream| front::serve(worker, Toward::Own(destination.clone()), client, stream);
    match port::carriage(worker, destination).await {
        Carriage::Opaque | Carriage::Tls => carry_bytes(worker, destination, client, stream).await,
        Carriage::Http => requests(stream).await,
        Carriage::Detect => match port::detect(worker, stream).await {
            Ok((Speaks::Http1 | Speaks::Http2, stream)) => requests(stream).await,
            Ok((Speaks::Opaque | Speaks::Tls, stream)) => {
                carry_bytes(worker, destination, client, stream).await;
            }
            Err(error) => log::debug!(error:% = error; "client connection ended"),
        },
    }
}

/// Which own endpoint, and whether the client may.
async fn admit(
    worker: &Worker,
    destination: &Destination,
    request: Option<&RequestHead>,
    record: &mut Record,
) -> Result<Admitted, Refusal> {
    let Destination { service: name, port } = destination;
    record.wants(destination);
    record.entry.path_kind = "plaintext";
    if worker.shared.drain.is_draining() {
        let text = "this proxy is going away; open a new connection";
        return Err(Refusal::new(Reason::Draining, text));
    }
    let seen = worker.changes.seen();
    let snapshot = worker.shared.snapshot.want(name).await.ok_or_else(no_snapshot)?;
    let own = guard::own_endpoint(worker, &snapshot, (name, port), None);
    let (service, endpoint) = snapshot.services.get(name).zip(own).ok_or_else(|| {
        let text = format!("service {name}: this proxy has no endpoint for port {port}");
        Refusal::new(Reason::NoEndpoint, text)
    })?;
    record.entry.endpoint = Some(endpoint.clone());
    let client =
        Client { peer: None, address: record.entry.client.map(|client| client.to_canonical()) };
    let call = Call { service: name, port, request };
    let probes = &worker.shared.config.inbound_probes;
    let here = probes.iter().filter(|probe| probe.port == endpoint.target.port());
    let permit = match probe(here.filter_map(|probe| probe.path.as_deref()), client, &call) {
        Some(permit) => permit,
        None => guard::admit(worker, service, client, &call, record)?,
    };
    let service = service.clone();
    Ok(Admitted { snapshot, service, endpoint, permit, seen })
}

/// Carries the request in `scratch`, up to the head of its answer, which is put
/// in `scratch`, too.
///
/// # Errors
///
/// It is refused, or the application has not answered.
pub(crate) async fn carry(
    worker: &Arc<Worker>,
    destination: &Destination,
    scratch: &mut Scratch,
    body: ClientBody,
    client: request::Client<'_>,
    record: &mut Record,
) -> Result<Outcome, Refusal> {
    let admitted = admit(worker, destination, Some(&scratch.head), record).await?;
    let Admitted { service, endpoint, .. } = &admitted;
    worker.shared.limits.take(service, None, &scratch.head)?;
    let place = worker.shared.limits.place(service, endpoint).await?;
    let mut in_flight = worker.protections.begin(service)?;
    let mut dispatch = admitted.dispatch(worker);
    prepare(worker, &mut scratch.head, service, client.upgrade, record);
    let mut body = ReplayBody::new(body, service.traffic.replay_bytes);
    let received = (!body.is_end_stream()).then(|| body.received());
    let deadline = deadline::of_client(&scratch.head).map(|left| clock::monotonic() + left);
    let speaks = request::inner_protocol(&dispatch, client.http2, &scratch.head);
    let mut carried = Carried {
        scratch,
        speaks,
        body: Some(body),
        deadline,
        retry: None,
        attempt_timeout: None,
        traffic: &service.traffic,
        failures: &[],
        early: client.early,
    };
    let sending = attempts(worker, &mut dispatch, &mut carried, &mut in_flight, record);
    let answered = match deadline {
        None => sending.await,
        Some(deadline) => tokio::time::timeout_at(deadline, sending)
            .await
            .unwrap_or_else(|_| Err(super::app::late(endpoint))),
    };
    record.entry.path_kind = "plaintext";
    let mut answer = answered?;
    answer.used.in_flight = Some(in_flight);
    answer.used.running = place;
    Ok(Outcome::Forwarded(Box::new(Forwarded { answer, deadline, received })))
}

/// Makes a client's request what the application shall see.
fn prepare(
    worker: &Worker,
    head: &mut RequestHead,
    service: &Service,
    upgrade: bool,
    record: &Record,
) {
    request::strip(head, upgrade);
    head.fields.remove_known(Known::XForwardedClientCert);
    worker.shared.config.forwarded.apply(head, record.entry.client);
    if head.authority.is_empty() {
        head.authority.push_str(service.name.as_str());
    }
}

/// One connection of bytes; a client that cannot be served is reset.
async fn carry_bytes(
    worker: &Arc<Worker>,
    destination: &Destination,
    client: IpAddr,
    mut stream: Stream,
) {
    let mut record = Record::new(worker, Direction::Inbound, "tcp");
    record.entry.client = Some(client);
    let (admitted, opened) = match open(worker, destination, &mut record).await {
        Ok(opened) => opened,
        Err(refusal) => {
            log::debug!(reason = refusal.reason.code(); "{}", refusal.text);
            record.failed(refusal.reason);
            stream.reset();
            return;
        }
    };
    let running = Running {
        client: client_at(client),
        service: &destination.service,
        port: &destination.port,
        endpoint: &admitted.endpoint.id,
        seen: admitted.seen,
    };
    opaque::run_until(worker, stream, opened, record, running.until_cut(worker)).await;
}

async fn open(
    worker: &Arc<Worker>,
    destination: &Destination,
    record: &mut Record,
) -> Result<(Admitted, Opened), Refusal> {
    let admitted = admit(worker, destination, None, record).await?;
    let Admitted { service, endpoint, permit, .. } = &admitted;
    let running = worker.shared.limits.place(service, endpoint).await?;
    let mut dispatch = admitted.dispatch(worker);
    let (_, mut attempt) = dispatch.next(false)?;
    let app = match super::app::dial(worker, endpoint, permit).await {
        Ok(app) => app,
        Err(refusal) => {
            attempt.unreachable();
            return Err(refusal);
        }
    };
    attempt.answered();
    let used = Used { attempt, place: None, connection: None, in_flight: None, running };
    Ok((admitted, Opened::new(Relayed::App(app), used)))
}
