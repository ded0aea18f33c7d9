//! `meshctl why A B`: what a proxy does with a request from A to B, decided by
//! the functions the proxy calls, over the state that federation holds now.

use std::{sync::Arc, time::Duration};

use clap::Args;
use mesh_core::{
    Call, Client, Endpoint, Locality, PeerIdentity, Service, ServiceName, Snapshot, SpiffeId,
    authorize,
    balance::{Vantage, tier},
    client_hello::ClientHello,
    message,
    path::{is_reachable, path_to},
    route::{Destination, choose_backend, connection, route},
    service::{Backend, Protocol},
};
use rustls_pki_types::UnixTime;
use serde::Serialize;

use super::endpoints::{EndpointView, balancer, endpoint_table, service, snapshot, views};
use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show},
};

/// Arguments of `why`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshctl why orders.shop payments.prod
  meshctl why shop/orders payments.prod --path /pay --method POST
  meshctl why orders.shop vault.prod:443 --sni secrets.example.com
  meshctl why spiffe://west.example/ns/shop/sa/orders catalog.shop:grpc --json")]
pub struct Why {
    /// Who calls: a SPIFFE ID, <namespace>/<account>, or a service whose identity it is
    from: String,
    /// What is called: <name>.<namespace>[:port name or number]
    to: String,
    /// Path of the request
    #[arg(long, default_value = "/")]
    path: String,
    /// Method of the request
    #[arg(long, default_value = "GET")]
    method: http::Method,
    /// Name that the client of a TLS connection asks for
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
}

impl Why {
    /// A GET.
    pub(super) fn get(from: String, to: String, path: String) -> Self {
        Self { from, to, path, method: http::Method::GET, sni: None }
    }

    /// Of the request.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Downloads the snapshot, decides, shows.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let snapshot = snapshot(run).await?;
        let explained = explain(&snapshot, &self)?;
        output::print(format, &explained)
    }
}

/// Who calls, and from where.
struct Caller {
    peer: PeerIdentity,
    vantage: Vantage,
}

#[derive(Debug, Serialize)]
pub(super) struct Explained {
    pub(super) from: String,
    pub(super) site: String,
    pub(super) service: String,
    pub(super) port: String,
    request: String,
    pub(super) revision: u64,
    backends: Vec<BackendView>,
    /// The backend that this request takes, by weight.
    pub(super) backend: Option<String>,
    pub(super) chosen: Option<Chosen>,
    /// What a client sees if nothing is chosen: a stable code.
    pub(super) refused: Option<String>,
}

#[derive(Debug, Serialize)]
struct BackendView {
    service: String,
    port: String,
    weight: u32,
    candidates: Vec<EndpointView>,
}

#[derive(Debug, Serialize)]
pub(super) struct Chosen {
    pub(super) endpoint: String,
    /// Nearer ones that nothing leads to.
    skipped: Vec<String>,
    pub(super) site: String,
    pub(super) identity: String,
    pub(super) path: String,
    pub(super) hops: Vec<String>,
    pub(super) allowed: bool,
    /// Of the policy, as it is known in this site.
    pub(super) verdict: String,
    /// Which proxy takes the decision.
    decided_by: String,
}

/// What the proxies decide. Fails if a name is not one, or not known.
pub(super) fn explain(snapshot: &Snapshot, why: &Why) -> Result<Explained, Failure> {
    let caller = caller(snapshot, &why.from)?;
    let destination = destination(snapshot, &why.to)?;
    let port = service(snapshot, &destination.service)?.port(destination.port.as_str());
    let speaks = port.map(|port| port.protocol);
    let opaque = why.sni.is_some() || matches!(speaks, Some(Protocol::Tcp | Protocol::Tls));
    let server_name = why.sni.as_ref().map(|name| name.to_ascii_lowercase().into());
    let tls = why.sni.is_some() || speaks == Some(Protocol::Tls);
    let hello = tls.then_some(ClientHello { server_name });
    let head = message::RequestHead {
        method: why.method.clone(),
        target: why.path.clone(),
        ..message::RequestHead::new()
    };
    let request =
        if opaque { "a connection".into() } else { format!("{} {}", why.method, why.path) };
    let mut explained = Explained {
        from: caller.peer.id.to_string(),
        site: snapshot.site.to_string(),
        service: destination.service.to_string(),
        port: destination.port.to_string(),
        request,
        revision: snapshot.revision.n,
        backends: Vec::new(),
        backend: None,
        chosen: None,
        refused: None,
    };
    // Where it calls from is not known here.
    let from = caller.peer.id.namespace().into();
    let backends = match opaque {
        true => connection(snapshot, &destination, from, hello.as_ref()).map(|one| one.backends()),
        false => route(snapshot, &destination, from, Some(&head)),
    };
    let backends = match backends {
        Ok(backends) => backends,
        Err(none) => {
            explained.refused = Some(none.to_string());
            return Ok(explained);
        }
    };
    for backend in &backends.0 {
        explained.backends.push(candidates(snapshot, &caller.vantage, backend));
    }
    match choose_backend(&backends, rand::random()) {
        None => explained.refused = Some("no_backend: all weights are zero".into()),
        Some(backend) => {
            explained.backend = Some(format!("{}:{}", backend.service, backend.port));
            match chosen(snapshot, &caller, backend, (!opaque).then_some(&head)) {
                Ok(chosen) => explained.chosen = Some(chosen),
                Err(refused) => explained.refused = Some(refused),
            }
        }
    }
    Ok(explained)
}

fn candidates(snapshot: &Snapshot, from: &Vantage, backend: &Backend) -> BackendView {
    let service = snapshot.services.get(&backend.service);
    let candidates = service.map(|service| views(snapshot, from, service, &backend.port));
    BackendView {
        service: backend.service.to_string(),
        port: backend.port.to_string(),
        weight: backend.weight,
        candidates: candidates.unwrap_or_default(),
    }
}

fn chosen(
    snapshot: &Snapshot,
    caller: &Caller,
    backend: &Backend,
    head: Option<&message::RequestHead>,
) -> Result<Chosen, String> {
    let target = snapshot.services.get(&backend.service).ok_or("no_such_service")?;
    let mut balancer = balancer(snapshot, &caller.vantage, target, &backend.port);
    let slot = balancer.choose(&[], None, Duration::ZERO);
    let slot =
        slot.ok_or_else(|| format!("no_endpoint: no endpoint of {} may be used", backend.service))?;
    let endpoint = balancer.endpoint(slot);
    let path = path_to(snapshot, endpoint).map_err(|none| format!("no_path: {none}"))?;
    let call = Call { service: &backend.service, port: &backend.port, request: head };
    let (allowed, verdict) = verdict(target, &caller.peer, &call);
    Ok(Chosen {
        endpoint: endpoint.id.to_string(),
        skipped: skipped(snapshot, caller, target, endpoint),
        site: endpoint.site.to_string(),
        identity: endpoint.answers_as().to_owned(),
        hops: hops(snapshot, caller, endpoint, &path),
        path: path.describe().to_owned(),
        allowed,
        verdict,
        decided_by: format!("the proxy of {} in {}", endpoint.answers_as(), endpoint.site),
    })
}

/// Those that would have been as good or better, if anything led there.
fn skipped(
    snapshot: &Snapshot,
    caller: &Caller,
    target: &Service,
    taken: &Endpoint,
) -> Vec<String> {
    let near = |endpoint: &Endpoint| tier(&caller.vantage, endpoint);
    let as_good = |endpoint: &&Arc<Endpoint>| {
        endpoint.port == taken.port
            && endpoint.weight > 0
            && endpoint.health.is_usable()
            && near(endpoint) <= near(taken)
    };
    let endpoints = target.endpoints.iter().filter(as_good);
    let cut = endpoints.filter(|endpoint| !is_reachable(snapshot, endpoint));
    cut.map(|endpoint| endpoint.id.to_string()).collect()
}

fn verdict(target: &Service, peer: &PeerIdentity, call: &Call<'_>) -> (bool, String) {
    // Where the caller is, nobody has said.
    let client = Client { peer: Some(peer), address: None };
    match authorize(&target.policy, client, call) {
        Ok(permit) => match (permit.would_deny(), permit.rule().filter(|rule| !rule.is_empty())) {
            (Some(reason), _) => {
                let code = reason.reason();
                (true, format!("allowed as {}, audited only: {code}: {reason}", peer.id))
            }
            (None, Some(rule)) => (true, format!("allowed as {} by {rule}", peer.id)),
            (None, None) => (true, format!("allowed as {}", peer.id)),
        },
        Err(denied) => (false, format!("{}: {denied}", denied.reason.reason())),
    }
}

/// Every process that the bytes pass, by name.
fn hops(
    snapshot: &Snapshot,
    caller: &Caller,
    endpoint: &Endpoint,
    path: &mesh_core::Path,
) -> Vec<String> {
    let mut hops = vec![format!("proxy of {}", caller.peer.id)];
    let gateways = |site: &str, ids: &[mesh_core::GatewayId]| {
        let ids: Vec<&str> = ids.iter().map(mesh_core::GatewayId::as_str).collect();
        format!("gateway {site}/{}", ids.join("|"))
    };
    match path {
        mesh_core::Path::Direct(_) => {}
        mesh_core::Path::ViaGateway(ids) | mesh_core::Path::Reverse(ids) => {
            hops.push(gateways(snapshot.site.as_str(), ids));
        }
    }
    if endpoint.site != snapshot.site {
        let theirs: Vec<_> = snapshot
            .gateways
            .keys()
            .filter(|(site, _)| *site == endpoint.site)
            .map(|(_, id)| id.clone())
            .collect();
        hops.push(gateways(endpoint.site.as_str(), &theirs));
    }
    // How another site reaches its own endpoints is not known here.
    let dialled = endpoint.address.is_none() && endpoint.site == snapshot.site;
    let reverse = if dialled { " (through the session it dialled)" } else { "" };
    hops.push(format!("proxy of {}{reverse}", endpoint.answers_as()));
    hops
}

/// Reads `from`: an identity, or a service of this site whose identity it is.
fn caller(snapshot: &Snapshot, from: &str) -> Result<Caller, Failure> {
    let mut locality = Locality::default();
    let mut node = None;
    let id: SpiffeId = if from.starts_with("spiffe://") {
        from.parse().map_err(Failure::usage)?
    } else if let Some((namespace, account)) = from.split_once('/') {
        SpiffeId::workload(&snapshot.trust_domain, namespace, account).map_err(Failure::usage)?
    } else {
        let name: ServiceName = from.parse().map_err(|error| {
            Failure::usage(error)
                .remedy("name the caller by SPIFFE ID, as <namespace>/<account>, or by a service")
        })?;
        let local = service(snapshot, &name)?.endpoints.iter().find(|e| e.site == snapshot.site);
        let endpoint = local.ok_or_else(|| {
            Failure::new(format!(
                "service {name}: no endpoint in site {}, so no identity",
                snapshot.site
            ))
            .remedy("name the caller by SPIFFE ID or as <namespace>/<account>")
        })?;
        locality = endpoint.locality.clone();
        node.clone_from(&endpoint.node);
        endpoint.identity.clone().expect("what federation sends has an identity")
    };
    let year = Duration::from_secs(365 * 24 * 3600);
    let not_after = UnixTime::since_unix_epoch(mesh_runtime::clock::now_unix() + year);
    let peer = PeerIdentity { id, node, serial: String::new(), not_after };
    Ok(Caller { peer, vantage: Vantage { site: snapshot.site.clone(), locality } })
}

/// Reads `to`: a service and one of its ports; without one, the first HTTP
/// port, else the first.
fn destination(snapshot: &Snapshot, to: &str) -> Result<Destination, Failure> {
    let (name, port) = match to.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (to, None),
    };
    let name: ServiceName = name.parse().map_err(Failure::usage)?;
    let service = service(snapshot, &name)?;
    let found = match port {
        Some(port) => service.port(port).or_else(|| service.port_number(port.parse().ok()?)),
        None => service
            .ports
            .iter()
            .find(|port| port.protocol == Protocol::Http)
            .or_else(|| service.ports.first()),
    };
    let port = found.ok_or_else(|| {
        let known: Vec<String> =
            service.ports.iter().map(|port| format!("{} ({})", port.name, port.number)).collect();
        Failure::new(format!("service {name}: no port {}", port.unwrap_or_default()))
            .remedy(format!("it has {}", known.join(", ")))
    })?;
    Ok(Destination { service: name, port: port.name.clone() })
}

impl Show for Explained {
    fn text(&self, wide: bool, paint: Paint) -> String {
        let mut text = format!(
            "{} from {}\n  to {}:{}, decided in site {} at revision {}\n",
            self.request,
            paint.bold(&self.from),
            paint.bold(&self.service),
            self.port,
            self.site,
            self.revision
        );
        for backend in &self.backends {
            text.push_str(&format!(
                "\nbackend {}:{} weight {}\n",
                backend.service, backend.port, backend.weight
            ));
            text.push_str(&endpoint_table(&backend.candidates, wide, paint));
        }
        if let Some(refused) = &self.refused {
            text.push_str(&format!("\n{} {refused}\n", paint.bad("refused")));
        }
        if let Some(chosen) = &self.chosen {
            let verdict = if chosen.allowed {
                paint.good(&chosen.verdict)
            } else {
                paint.bad(&chosen.verdict)
            };
            if !chosen.skipped.is_empty() {
                let skipped = chosen.skipped.join(", ");
                text.push_str(&format!(
                    "\n{} {skipped}: nothing leads there\n",
                    paint.warn("skipped")
                ));
            }
            text.push_str(&format!(
                "\nchosen   {} in {}\npath     {}\n         {}\nmust be  {}\nverdict  {verdict}\n         decided by {}\n",
                chosen.endpoint,
                chosen.site,
                chosen.path,
                chosen.hops.join("\n         → "),
                chosen.identity,
                chosen.decided_by,
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use mesh_api::v1::{self, resource::Resource as Kind};
    use mesh_core::snapshot::apply;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        why: Why,
    }

    fn endpoint(id: &str, site: &str, identity: &str, via: &[&str]) -> Kind {
        Kind::Endpoint(v1::Endpoint {
            id: id.into(),
            service: "catalog.shop".into(),
            port: "http".into(),
            site: site.into(),
            spiffe_id: identity.into(),
            target_port: 8080,
            weight: 1,
            health: v1::Health::Healthy.into(),
            node: "0d4c1f0e-6ad3-4d0c-9d31-5d8f4f2f8a11".into(),
            via: via.iter().map(|gateway| (*gateway).to_owned()).collect(),
            ..Default::default()
        })
    }

    fn gateway(site: &str) -> Kind {
        let tls_addresses = vec!["127.0.0.1:8443".into()];
        Kind::Gateway(v1::Gateway {
            id: "gw1".into(),
            site: site.into(),
            tls_addresses,
            ..Default::default()
        })
    }

    /// West, linked to east; catalog.shop has an endpoint in each.
    fn west(via: &[&str]) -> Snapshot {
        let site = v1::Site {
            name: "west".into(),
            trust_domain: "west.example".into(),
            ..Default::default()
        };
        let link = v1::Link {
            site: "east".into(),
            trust_domain: "east.example".into(),
            ..Default::default()
        };
        let service = v1::Service {
            name: "catalog.shop".into(),
            ports: vec![v1::Port {
                name: "http".into(),
                number: 80,
                protocol: v1::Protocol::Http.into(),
            }],
            exported_to: vec!["east".into()],
            imported_from: vec!["east".into()],
            ..Default::default()
        };
        let kinds = vec![
            Kind::Site(site),
            Kind::Link(link),
            gateway("west"),
            gateway("east"),
            Kind::Service(service),
            endpoint("w1", "west", "spiffe://west.example/ns/shop/sa/catalog", via),
            endpoint("e1", "east", "spiffe://east.example/ns/shop/sa/catalog", &["gw1"]),
        ];
        let upsert = kinds.into_iter().map(|kind| v1::Resource { resource: Some(kind) }).collect();
        let to = Some(v1::Revision { epoch: 1, n: 7 });
        apply(None, &v1::Delta { from: None, to, upsert, remove: Vec::new() }).expect("well formed")
    }

    fn why_with(via: &[&str], line: &str) -> Result<Explained, Failure> {
        let words = std::iter::once("why").chain(line.split(' '));
        explain(&west(via), &Line::try_parse_from(words).expect("arguments").why)
    }

    fn why(line: &str) -> Result<Explained, Failure> {
        why_with(&["gw1"], line)
    }

    #[test]
    fn what_nothing_leads_to_is_skipped() {
        let explained = why_with(&[], "shop/orders catalog.shop").expect("explained");
        let chosen = explained.chosen.expect("the other site's");
        assert_eq!((chosen.endpoint.as_str(), chosen.path.as_str()), ("e1", "via gateway"));
        assert_eq!(chosen.skipped, ["w1"]);
    }

    #[test]
    fn the_nearer_endpoint_is_chosen_and_the_way_is_told() {
        let explained = why("shop/orders catalog.shop --path /a").expect("explained");
        assert_eq!(explained.from, "spiffe://west.example/ns/shop/sa/orders");
        assert_eq!((explained.port.as_str(), explained.revision), ("http", 7));
        let shares = explained.backends[0].candidates.iter().map(|c| (c.id.as_str(), c.share));
        assert_eq!(Vec::from_iter(shares), [("e1", 0.0), ("w1", 1.0)]);
        let chosen = explained.chosen.expect("an endpoint");
        assert_eq!((chosen.endpoint.as_str(), chosen.path.as_str()), ("w1", "reverse"));
        assert!(chosen.allowed, "{}", chosen.verdict);
        assert_eq!(chosen.hops.len(), 3, "{:?}", chosen.hops);
    }

    #[test]
    fn a_caller_that_may_not_is_told_so() {
        let explained = why("spiffe://north.example/ns/a/sa/b catalog.shop:80").expect("explained");
        let chosen = explained.chosen.expect("an endpoint");
        assert!(
            !chosen.allowed && chosen.verdict.contains("denied_not_exported"),
            "{}",
            chosen.verdict
        );
    }

    #[test]
    fn what_is_not_there_is_named() {
        for (line, expected) in [
            ("shop/orders nothing.shop", "nothing.shop"),
            ("shop/orders catalog.shop:grpc", "no port grpc"),
            ("nothing.shop catalog.shop", "nothing.shop"),
            ("orders catalog.shop", "SPIFFE ID"),
        ] {
            let failure = why(line).expect_err("refused");
            assert!(failure.to_string().contains(expected), "{line}: {failure}");
        }
    }

    #[test]
    fn a_service_stands_for_its_identity() {
        let explained = why("catalog.shop catalog.shop").expect("explained");
        assert_eq!(explained.from, "spiffe://west.example/ns/shop/sa/catalog");
    }
}
