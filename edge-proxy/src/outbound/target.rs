//! Which service of the mesh a request names.

use std::net::IpAddr;

use http::{Method, Request, header::HOST, uri::Authority};
use mesh_core::{Reason, Service, ServiceName, Snapshot, route::Destination};

use crate::refusal::Refusal;

/// What Kubernetes appends to service names.
const CLUSTER_SUFFIXES: [&str; 2] = [".svc.cluster.local", ".svc"];

/// Host and port that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// As the client wrote it.
    pub authority: Authority,
}

/// What the request names: the target of CONNECT, the authority of an absolute
/// form or of HTTP/2, else `Host` (RFC 9112 section 3.2).
pub fn named<B>(request: &Request<B>) -> Result<Named, Refusal> {
    if let Some(authority) = request.uri().authority() {
        return Ok(Named { authority: authority.clone() });
    }
    if *request.method() == Method::CONNECT {
        return Err(Refusal::new(Reason::BadRequest, "CONNECT needs <host>:<port>"));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let host = host.filter(|_| more.is_none()).and_then(|host| host.to_str().ok());
    match host.and_then(|host| host.parse().ok()) {
        Some(authority) => Ok(Named { authority }),
        None => {
            let text = "the request names no service: send one Host header, or an absolute URI";
            Err(Refusal::new(Reason::BadRequest, text))
        }
    }
}

impl Named {
    /// The service and port it names.
    pub fn resolve(&self, snapshot: &Snapshot) -> Result<Destination, Refusal> {
        let host = self.authority.host();
        let name = service_name(host)?;
        let service = snapshot.services.get(&name).ok_or_else(|| no_such_service(host))?;
        let port = match self.authority.port_u16() {
            Some(number) => service.port_number(number),
            None if self.authority.port().is_some() => None,
            None => service.port_number(80).or_else(|| only_port(service)),
        };
        let port = port.ok_or_else(|| self.no_such_port(service))?;
        Ok(Destination { service: name, port: port.name.clone() })
    }

    fn no_such_port(&self, service: &Service) -> Refusal {
        let ports: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
        let ports = ports.join(", ");
        let problem = match self.authority.port() {
            Some(port) => format!("has no port {}", port.as_str()),
            None => "has several ports and none is 80; name one".to_owned(),
        };
        let text = format!("service {} {problem}; it has: {ports}", service.name);
        Refusal::new(Reason::NoSuchPort, text)
    }
}

fn only_port(service: &Service) -> Option<&mesh_core::ServicePort> {
    match service.ports.as_slice() {
        [port] => Some(port),
        _ => None,
    }
}

/// `name.namespace`, also with what Kubernetes appends; never an address.
fn service_name(host: &str) -> Result<ServiceName, Refusal> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<IpAddr>().is_ok() {
        let text = format!("{host} is an address; this proxy carries only to services, by name");
        return Err(Refusal::new(Reason::ForbiddenTarget, text));
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if host == "localhost" || host.ends_with(".localhost") {
        let text = "this proxy does not carry to this host itself; call it without the proxy";
        return Err(Refusal::new(Reason::ForbiddenTarget, text));
    }
    let short = CLUSTER_SUFFIXES.iter().find_map(|suffix| host.strip_suffix(suffix));
    short.unwrap_or(&host).parse().map_err(|_| no_such_service(&host))
}

fn no_such_service(host: &str) -> Refusal {
    let host: String = host.chars().take(80).collect();
    let text = format!(
        "no service {host} in this mesh; names are <name>.<namespace>, see `meshctl service list`"
    );
    Refusal::new(Reason::NoSuchService, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, hosts: &[&str]) -> Request<()> {
        let mut builder = Request::builder().method(method).uri(uri);
        for host in hosts {
            builder = builder.header(HOST, *host);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn the_target_comes_before_the_host() {
        let cases = [
            (request("GET", "http://a.b:81/x", &["c.d"]), Ok("a.b:81")),
            (request("GET", "/x", &["c.d:90"]), Ok("c.d:90")),
            (request("CONNECT", "a.b:6379", &["c.d"]), Ok("a.b:6379")),
            (request("GET", "/x", &[]), Err(Reason::BadRequest)),
            (request("GET", "/x", &["a.b", "a.b"]), Err(Reason::BadRequest)),
            (request("GET", "/x", &["a b"]), Err(Reason::BadRequest)),
        ];
        for (request, wanted) in cases {
            let named = named(&request);
            let found = named.as_ref().map(|named| named.authority.as_str());
            assert_eq!(found.map_err(|refusal| refusal.reason), wanted, "{request:?}");
        }
    }

    #[test]
    fn hosts_are_service_names_or_refused() {
        let cases = [
            ("orders.shop", Ok("orders.shop")),
            ("Orders.Shop.", Ok("orders.shop")),
            ("orders.shop.svc", Ok("orders.shop")),
            ("orders.shop.svc.cluster.local", Ok("orders.shop")),
            ("10.0.0.1", Err(Reason::ForbiddenTarget)),
            ("[::1]", Err(Reason::ForbiddenTarget)),
            ("::ffff:169.254.169.254", Err(Reason::ForbiddenTarget)),
            ("localhost", Err(Reason::ForbiddenTarget)),
            ("x.localhost", Err(Reason::ForbiddenTarget)),
            ("orders", Err(Reason::NoSuchService)),
            ("example.com.example", Err(Reason::NoSuchService)),
            ("2130706433", Err(Reason::NoSuchService)),
            ("metadata.google.internal", Err(Reason::NoSuchService)),
        ];
        for (host, wanted) in cases {
            let found = service_name(host);
            let found = found.as_ref().map(ServiceName::as_str).map_err(|refusal| refusal.reason);
            assert_eq!(found, wanted, "{host}");
        }
    }
}
