//! `meshctl check --from A --to B`: the way of one request, hop by hop, up to
//! the first that fails. What can be tried is tried: the gateways are dialled,
//! and where the caller is this machine a request goes through its proxy.

use std::net::SocketAddr;

use mesh_api::v1;
use mesh_core::{Endpoint, Path, Snapshot, SpiffeId, path::path_to, service::Protocol};
use tokio::time::Instant;

use super::{
    GATEWAY_TCP_REMEDY, Walk, clock,
    probe::{self, ms},
    request::{self, Asked},
};
use crate::{
    command::{
        endpoints::snapshot,
        why::{Chosen, Explained, Why, explain},
    },
    endpoint::Run,
    failure::{Exit, Failure},
    output::count,
    time,
};

/// From whom to what.
pub(super) struct Ends {
    pub(super) why: Why,
    /// The HTTP proxy listener of this machine's proxy.
    pub(super) proxy: SocketAddr,
}

/// A hop that does not work: what is wrong, and what to do.
type Broken = (String, String);

fn broken<T>(problem: impl Into<String>, remedy: impl Into<String>) -> Result<T, Broken> {
    Err((problem.into(), remedy.into()))
}

/// Walks up to the first hop that fails. An error is a command line that makes
/// no sense.
pub(super) async fn walk(
    walk: &mut Walk,
    run: &Run,
    status: &v1::SiteStatusResponse,
    ends: &Ends,
) -> Result<(), Failure> {
    let snapshot = match snapshot(run).await {
        Ok(snapshot) => snapshot,
        Err(failure) => {
            walk.failed("name", "the state of the site is read", failure.problem, failure.remedy);
            return Ok(());
        }
    };
    let explained = match explain(&snapshot, &ends.why) {
        Ok(explained) => explained,
        Err(failure) if failure.exit == Exit::Usage => return Err(failure),
        Err(failure) => {
            walk.failed("name", "both names are known", failure.problem, failure.remedy);
            return Ok(());
        }
    };
    if !walk.hop("name", "the caller is of this site", caller(&snapshot, &explained.from)) {
        return Ok(());
    }
    let known = format!("{}:{} is known", explained.service, explained.port);
    walk.passed("name", known, format!("in {}, revision {}", explained.site, explained.revision));
    // Before all that machines say: they say it through a gateway.
    let answers = gateways(status, &explained.site).await;
    if !walk.hop("gateway", &format!("a gateway of {} answers", explained.site), answers) {
        return Ok(());
    }
    let Some(way) = decided(walk, &snapshot, explained) else { return Ok(()) };
    if !walk.hop("identity", "the proxies follow", way.identities(status))
        || !walk.hop("clock", "clocks agree", way.clocks(status))
    {
        return Ok(());
    }
    let site = way.endpoint.site.as_str();
    if way.endpoint.site != snapshot.site
        && !walk.hop("link", &format!("link {site} is up"), link(status, site))
    {
        return Ok(());
    }
    real_request(walk, run, &snapshot, &way, ends).await;
    Ok(())
}

/// Its own site alone knows what its proxy does.
fn caller(snapshot: &Snapshot, from: &str) -> Result<String, Broken> {
    match from.parse::<SpiffeId>() {
        Ok(id) if id.trust_domain() == &snapshot.trust_domain => Ok(from.to_owned()),
        _ => broken(
            format!("{from} is not of {}", snapshot.trust_domain),
            "run this in the caller's site: there its way begins",
        ),
    }
}

/// What the caller's proxy does with the request.
struct Way<'s> {
    explained: Explained,
    chosen: Chosen,
    endpoint: &'s Endpoint,
    path: Path,
}

/// Route, endpoint and policy, as the proxies decide them.
fn decided<'s>(
    walk: &mut Walk,
    snapshot: &'s Snapshot,
    mut explained: Explained,
) -> Option<Way<'s>> {
    let (service, from) = (explained.service.clone(), explained.from.clone());
    let Some(chosen) = explained.chosen.take() else {
        let why = explained.refused.unwrap_or_default();
        let (hop, name, remedy) = match why.split(':').next().unwrap_or_default() {
            "no_endpoint" => (
                "endpoint",
                "an endpoint may be used",
                format!(
                    "`meshctl endpoints {service}` shows each; on its machine: journalctl -u isthmus-vm-agent"
                ),
            ),
            "no_path" => (
                "path",
                "a path leads to an endpoint",
                "on its machine: systemctl status isthmus-proxy; for another site: meshctl links"
                    .to_owned(),
            ),
            _ => (
                "route",
                "a route matches",
                format!(
                    "`meshctl get` shows the routes; `meshctl why {from} {service}` what they make of a request"
                ),
            ),
        };
        walk.failed(hop, name, why, remedy);
        return None;
    };
    walk.passed("route", "a route matches", explained.backend.clone().unwrap_or_default());
    let found = snapshot.services.values().flat_map(|service| &service.endpoints);
    let mut found = found.filter(|endpoint| endpoint.id.to_string() == chosen.endpoint);
    let endpoint = found.next()?;
    walk.passed(
        "endpoint",
        "an endpoint may be used",
        format!("{} in {}, {}", chosen.endpoint, chosen.site, chosen.identity),
    );
    if !chosen.allowed {
        let remedy = format!(
            "`meshctl why {from} {service}` shows who decides; export it to the caller's site, or \
             allow the caller in its policy (`meshctl get`)"
        );
        walk.failed("policy", "the policy allows it", &chosen.verdict, remedy);
        return None;
    }
    walk.passed("policy", "the policy allows it", &chosen.verdict);
    // There is one: nothing is chosen that no path leads to.
    let path = path_to(snapshot, endpoint).ok()?;
    let hops = format!("{}: {}", chosen.path, chosen.hops.join(" → "));
    walk.passed("path", "a path leads there", hops);
    Some(Way { explained, chosen, endpoint, path })
}

impl Way<'_> {
    /// The caller's proxy, and the endpoint's if it is of this site too: of
    /// another's nobody here knows more than the link says.
    fn identities(&self, status: &v1::SiteStatusResponse) -> Result<String, Broken> {
        let (from, to) = (&self.explained.from, &self.chosen.identity);
        proxy_of(status, from, None)?;
        if self.endpoint.site.as_str() != self.explained.site {
            return Ok(from.clone());
        }
        let node = self.endpoint.node.as_ref().map(ToString::to_string);
        proxy_of(status, to, node.as_deref())?;
        Ok(format!("{from} and {to}"))
    }

    /// Of the machines and gateways on the way.
    fn clocks(&self, status: &v1::SiteStatusResponse) -> Result<String, Broken> {
        let node = self.endpoint.node.as_ref().map(ToString::to_string).unwrap_or_default();
        let on = |id: &str| {
            let proxy = status.proxies.iter().find(|proxy| proxy.spiffe_id == self.explained.from);
            id == node || proxy.is_some_and(|proxy| proxy.node == id)
        };
        let differing = clock::differing(status, |whose| match whose {
            clock::Whose::Node(id) => on(id),
            clock::Whose::Gateway(id) => self.may_pass(id),
            clock::Whose::Link(site) => site == self.endpoint.site.as_str(),
        });
        match differing.into_iter().next() {
            None => Ok("with federation's".to_owned()),
            Some(one) => broken(one, clock::REMEDY),
        }
    }

    /// Whether the request passes this gateway of the caller's site.
    fn may_pass(&self, gateway: &str) -> bool {
        match &self.path {
            Path::Direct(_) => false,
            Path::ViaGateway(ids) | Path::Reverse(ids) => {
                ids.iter().any(|id| id.as_str() == gateway)
            }
        }
    }
}

/// One that answers is enough.
async fn gateways(status: &v1::SiteStatusResponse, site: &str) -> Result<String, Broken> {
    let own = status.gateways.iter().filter(|g| g.site.is_empty() || g.site == site);
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for gateway in own {
        match gateway_answers(gateway).await {
            Ok(how) => good.push(format!("{}: {how}", gateway.id)),
            Err(why) => bad.push(format!("{}: {why}", gateway.id)),
        }
    }
    let told = [good.as_slice(), &bad].concat().join("; ");
    if good.is_empty() { broken(told, GATEWAY_TCP_REMEDY) } else { Ok(told) }
}

fn link(status: &v1::SiteStatusResponse, site: &str) -> Result<String, Broken> {
    let Some(link) = status.links.iter().find(|link| link.site == site) else {
        return broken("there is none", format!("meshctl link cluster {site} <token>"));
    };
    let heard = format!("last heard {} ago", time::age_ms(link.last_heard_ms));
    if link.state != "up" || link.last_heard_ms >= super::LINK_SILENCE_MS {
        return broken(format!("{}, {heard}", link.state), super::link_remedy(site));
    }
    match link.tunnels.iter().map(|tunnel| tunnel.count).sum::<u32>() {
        0 => broken("no gateway of this site has a tunnel to it", super::link_remedy(site)),
        n => Ok(format!("{}, {heard}", count(n as usize, "tunnel"))),
    }
}

/// A proxy with this identity, on this node if it is known.
fn proxy_of(status: &v1::SiteStatusResponse, id: &str, node: Option<&str>) -> Result<(), Broken> {
    let mut found = status
        .proxies
        .iter()
        .filter(|proxy| proxy.spiffe_id == id && node.is_none_or(|node| proxy.node == node));
    let Some(proxy) = found.next() else {
        return broken(
            format!("no proxy of {id} follows this site"),
            "on its machine: systemctl status isthmus-proxy isthmus-vm-agent, and `meshctl join` if it has not joined",
        );
    };
    if !proxy.nack.is_empty() {
        let problem = format!("the proxy of {id} refuses the newest state: {}", proxy.nack);
        return broken(problem, "upgrade that proxy: it runs an older version than federation");
    }
    if proxy.certificate_expires_unix_s <= time::now_unix_s() {
        let problem = format!("the certificate of {id} has expired");
        return broken(
            problem,
            "on its machine: journalctl -u isthmus-proxy says why it is not renewed",
        );
    }
    Ok(())
}

/// Over TCP or UDP: tunnels take what there is.
async fn gateway_answers(gateway: &v1::Gateway) -> Result<String, String> {
    let mut told = Vec::new();
    let mut any = false;
    for address in &gateway.tls_addresses {
        let answer = probe::tcp(address).await;
        any |= answer.is_ok();
        told.push(format!("TCP {address} {}", answer.unwrap_or_else(|why| why)));
    }
    for address in &gateway.quic_addresses {
        let answer = probe::quic(address).await;
        any |= answer.is_ok();
        told.push(format!("UDP {address} {}", answer.unwrap_or_else(|why| why)));
    }
    if any { Ok(told.join(", ")) } else { Err(told.join(", ")) }
}

/// Through the proxy of this machine, if the caller is on it.
async fn real_request(walk: &mut Walk, run: &Run, snapshot: &Snapshot, way: &Way<'_>, ends: &Ends) {
    let name = format!("{} answers", way.explained.service);
    if let Err(why) = is_here(run, &way.explained.from).await {
        let how = "run this on the caller's machine to make a real request";
        walk.skipped("request", name, format!("not asked: {why}; {how}"));
        return;
    }
    let known = snapshot.services.values().find(|s| s.name.as_str() == way.explained.service);
    let port = known.and_then(|service| service.port(&way.explained.port));
    let Some(port) = port else { return };
    let asked = Asked {
        proxy: ends.proxy,
        authority: format!("{}:{}", way.explained.service, port.number),
        path: ends.why.path().to_owned(),
        protocol: port.protocol,
    };
    let began = Instant::now();
    let answer = match request::ask(&asked).await {
        Ok(answer) => Ok(format!("{answer} in {}", ms(began))),
        Err(request::Failed::NoProxy(why)) => {
            let remedy = "systemctl status isthmus-proxy; if its http_listener is elsewhere, name it with --proxy IP:PORT";
            walk.failed(
                "proxy",
                format!("this machine's proxy listens on {}", ends.proxy),
                why,
                remedy,
            );
            return;
        }
        Err(request::Failed::Refused(why)) => {
            let (from, to) = (&way.explained.from, &way.explained.service);
            let remedy = format!(
                "`journalctl -u isthmus-proxy` here says more; `meshctl why {from} {to}` what should happen"
            );
            Err((why, remedy))
        }
    };
    let what = if matches!(port.protocol, Protocol::Tcp | Protocol::Tls) {
        "accepts a connection"
    } else {
        "answers"
    };
    walk.hop("request", &format!("{} {what}", way.explained.service), answer);
}

/// Whether the workload of this machine is the caller.
async fn is_here(run: &Run, caller: &str) -> Result<(), String> {
    let mut agent = run.agent().await.map_err(|failure| failure.problem)?;
    let status = agent.agent_status(v1::AgentStatusRequest {}).await;
    let status = status.map_err(|status| status.message().to_owned())?.into_inner();
    match status.spiffe_id.as_str() {
        id if id == caller => Ok(()),
        "" => Err("this machine has not joined".to_owned()),
        id => Err(format!("this machine is {id}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_up_heard_and_has_tunnels() {
        let tunnel = v1::TunnelStatus { count: 2, ..Default::default() };
        let good = v1::LinkInfo {
            site: "east".into(),
            state: "up".into(),
            tunnels: vec![tunnel],
            ..Default::default()
        };
        let told = |link: v1::LinkInfo| {
            let status = v1::SiteStatusResponse { links: vec![link], ..Default::default() };
            link_of(&status)
        };
        fn link_of(status: &v1::SiteStatusResponse) -> Result<String, Broken> {
            link(status, "east")
        }
        assert_eq!(told(good.clone()).unwrap(), "2 tunnels, last heard 0.0s ago");
        for (bad, problem) in [
            (v1::LinkInfo { site: "north".into(), ..good.clone() }, "there is none"),
            (v1::LinkInfo { state: "lost".into(), ..good.clone() }, "lost, last heard"),
            (v1::LinkInfo { last_heard_ms: 11_000, ..good.clone() }, "up, last heard 11s"),
            (v1::LinkInfo { tunnels: vec![], ..good.clone() }, "no gateway of this site"),
        ] {
            let (told, remedy) = told(bad).unwrap_err();
            assert!(told.contains(problem) && remedy.contains("meshctl"), "{told}: {remedy}");
        }
    }

    #[test]
    fn a_proxy_follows_accepts_and_has_not_expired() {
        let good = v1::ProxyInfo {
            spiffe_id: "spiffe://west.example/ns/shop/sa/a".into(),
            node: "n1".into(),
            certificate_expires_unix_s: i64::MAX,
            ..Default::default()
        };
        let id = good.spiffe_id.clone();
        let told = |proxy: v1::ProxyInfo, node: Option<&str>| {
            let status = v1::SiteStatusResponse { proxies: vec![proxy], ..Default::default() };
            proxy_of(&status, &id, node)
        };
        assert!(told(good.clone(), None).is_ok() && told(good.clone(), Some("n1")).is_ok());
        for (bad, problem) in [
            (v1::ProxyInfo { spiffe_id: "other".into(), ..good.clone() }, "no proxy of"),
            (v1::ProxyInfo { node: "n2".into(), ..good.clone() }, "no proxy of"),
            (v1::ProxyInfo { nack: "bad".into(), ..good.clone() }, "refuses"),
            (v1::ProxyInfo { certificate_expires_unix_s: 1, ..good.clone() }, "expired"),
        ] {
            let (told, remedy) = told(bad, Some("n1")).unwrap_err();
            assert!(told.contains(problem) && !remedy.is_empty(), "{told}: {remedy}");
        }
    }
}
