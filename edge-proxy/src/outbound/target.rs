//! Which service of the mesh a request names.

use std::net::IpAddr;

use http::Method;
use mesh_core::{
    Reason, Service, ServiceName, ServicePort, Snapshot, message::RequestHead, route::Destination,
};

use crate::refusal::Refusal;

/// What Kubernetes appends to service names.
const CLUSTER_SUFFIXES: [&str; 2] = [".svc.cluster.local", ".svc"];

/// The service and port that a request names: by the target of CONNECT, the
/// authority of an absolute form or of HTTP/2, else `Host` (RFC 9112 section
/// 3.2).
pub fn resolve(head: &RequestHead, snapshot: &Snapshot) -> Result<Destination, Refusal> {
    if head.authority.is_empty() {
        let text = "the request names no service: send one Host header, or an absolute URI";
        return Err(Refusal::new(Reason::BadRequest, text));
    }
    // An empty port is none (RFC 3986 section 3.2.3).
    let (host, number) = (head.host(), head.port().filter(|port| !port.is_empty()));
    if head.method == Method::CONNECT && number.is_none() {
        return Err(Refusal::new(Reason::BadRequest, "CONNECT needs <host>:<port>"));
    }
    let name = service_name(host)?;
    let service = snapshot.services.get(&name).ok_or_else(|| no_such_service(host))?;
    let port = match number {
        Some(number) => number.parse().ok().and_then(|number| service.port_number(number)),
        None => service.port_number(80).or_else(|| only_port(service)),
    };
    let port = port.ok_or_else(|| no_such_port(service, number))?;
    Ok(Destination { service: name, port: port.name.clone() })
}

fn no_such_port(service: &Service, number: Option<&str>) -> Refusal {
    let ports: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
    let ports = ports.join(", ");
    let problem = match number {
        Some(number) => format!("has no port {number}"),
        None => "has several ports and none is 80; name one".to_owned(),
    };
    let text = format!("service {} {problem}; it has: {ports}", service.name);
    Refusal::new(Reason::NoSuchPort, text)
}

/// The service and port that a TLS client asks for by name; without a number
/// 443, or the only one.
pub fn by_server_name<'s>(
    name: &str,
    number: Option<u16>,
    snapshot: &'s Snapshot,
) -> Result<(&'s Service, &'s ServicePort), Refusal> {
    let service = snapshot.services.get(&service_name(name)?);
    let service = service.ok_or_else(|| no_such_service(name))?;
    let port = match number {
        Some(number) => service.port_number(number),
        None => service.port_number(443).or_else(|| only_port(service)),
    };
    let port = port.ok_or_else(|| {
        let number = number.unwrap_or(443);
        let text = format!("service {} has no port {number}", service.name);
        Refusal::new(Reason::NoSuchPort, text)
    });
    Ok((service, port?))
}

fn only_port(service: &Service) -> Option<&ServicePort> {
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
    use mesh_core::TrustBundles;

    use super::*;
    use crate::files::snapshot;

    #[test]
    fn ports_are_those_of_the_service() {
        let text = "site: west\ntrust_domain: west.example\nservices:\n\
                    \x20 - name: web.shop\n    ports: [{ name: a, port: 80 }, { name: b, port: 81 }]\n\
                    \x20 - name: db.shop\n    ports: [{ name: sql, port: 5432 }]\n\
                    \x20 - name: two.shop\n    ports: [{ name: a, port: 1 }, { name: b, port: 2 }]\n";
        let snapshot = snapshot::parse(text, "t.yaml", &TrustBundles::new()).unwrap();
        let cases = [
            (Method::GET, "web.shop", Ok("a")),
            (Method::GET, "web.shop:", Ok("a")),
            (Method::GET, "web.shop:81", Ok("b")),
            (Method::GET, "web.shop:82", Err(Reason::NoSuchPort)),
            (Method::GET, "web.shop:65617", Err(Reason::NoSuchPort)),
            (Method::GET, "db.shop", Ok("sql")),
            (Method::GET, "two.shop", Err(Reason::NoSuchPort)),
            (Method::GET, "no.shop", Err(Reason::NoSuchService)),
            (Method::GET, "", Err(Reason::BadRequest)),
            (Method::CONNECT, "db.shop:5432", Ok("sql")),
            (Method::CONNECT, "db.shop", Err(Reason::BadRequest)),
        ];
        for (method, authority, wanted) in cases {
            let authority = authority.to_owned();
            let head = RequestHead { method, authority, ..RequestHead::new() };
            let found = resolve(&head, &snapshot);
            let found = found.as_ref().map(|found| found.port.as_str());
            assert_eq!(found.map_err(|refusal| refusal.reason), wanted, "{head:?}");
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
