//! What a worker derives from a snapshot, once, and looks up per request.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use mesh_core::{Endpoint, PortName, Service, ServiceName, Snapshot, route::Destination};

type PortKey = (ServiceName, PortName);
type Endpoints = Arc<[Arc<Endpoint>]>;

/// Derived from one snapshot.
#[derive(Debug)]
pub struct View {
    snapshot: Arc<Snapshot>,
    captured: HashMap<(IpAddr, u16), Destination>,
    endpoints: Mutex<HashMap<PortKey, (Arc<Service>, Endpoints)>>,
}

impl View {
    /// What does not depend on services is derived at once; what an earlier
    /// view knew of services that have not changed is kept.
    pub fn new(snapshot: &Arc<Snapshot>, earlier: Option<&View>) -> Self {
        let mut captured = HashMap::new();
        for service in snapshot.services.values() {
            let Some(address) = service.virtual_address else { continue };
            for port in &service.ports {
                let destination =
                    Destination { service: service.name.clone(), port: port.name.clone() };
                captured.insert((address, port.number), destination);
            }
        }
        let same = |service: &Arc<Service>| {
            snapshot.services.get(&service.name).is_some_and(|now| Arc::ptr_eq(now, service))
        };
        let mut endpoints = earlier.map(|earlier| earlier.table().clone()).unwrap_or_default();
        endpoints.retain(|_, (service, _)| same(service));
        Self { snapshot: snapshot.clone(), captured, endpoints: Mutex::new(endpoints) }
    }

    /// Whether it was derived from this very snapshot.
    pub fn is_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        Arc::ptr_eq(&self.snapshot, snapshot)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<PortKey, (Arc<Service>, Endpoints)>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which service has this virtual address and port.
    pub fn captured(&self, dialled: SocketAddr) -> Option<Destination> {
        self.captured.get(&(dialled.ip().to_canonical(), dialled.port())).cloned()
    }

    /// The endpoints of one port of a service; empty if there is none.
    pub fn endpoints(&self, name: &ServiceName, port: &PortName) -> Endpoints {
        let Some(service) = self.snapshot.services.get(name) else { return Arc::new([]) };
        let key = (name.clone(), port.clone());
        let mut table = self.table();
        let derived = table.entry(key).or_insert_with(|| {
            let of_port = service.endpoints.iter().filter(|endpoint| endpoint.port == *port);
            (service.clone(), of_port.cloned().collect())
        });
        derived.1.clone()
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::TrustBundles;

    use super::*;
    use crate::files::snapshot;

    fn site(endpoints: &str) -> Arc<Snapshot> {
        let text = format!(
            "site: west\ntrust_domain: west.example\nservices:\n  - name: orders.shop\n    \
             virtual_address: 10.96.0.1\n    ports: [{{ name: http, port: 80 }}, {{ name: tcp, \
             port: 81 }}]\n    endpoints: [{endpoints}]\n  - name: other.shop\n    ports: [{{ \
             name: http, port: 80 }}]\n"
        );
        Arc::new(snapshot::parse(&text, "site.yaml", &TrustBundles::new()).unwrap())
    }

    fn endpoint(id: &str, port: &str) -> String {
        let identity = "spiffe://west.example/ns/shop/sa/orders";
        format!("{{ id: {id}, port: {port}, identity: {identity}, target: '127.0.0.1:1' }}")
    }

    #[test]
    fn virtual_addresses_name_services() {
        let view = View::new(&site(""), None);
        let cases = [
            ("10.96.0.1:80", Some("http")),
            ("10.96.0.1:81", Some("tcp")),
            ("[::ffff:10.96.0.1]:80", Some("http")),
            ("10.96.0.1:82", None),
            ("10.96.0.2:80", None),
        ];
        for (dialled, wanted) in cases {
            let found = view.captured(dialled.parse().unwrap());
            assert_eq!(found.as_ref().map(|d| d.port.as_str()), wanted, "{dialled}");
        }
    }

    #[test]
    fn endpoints_are_those_of_the_port_and_of_the_newest_snapshot() {
        let (service, http) = ("orders.shop".parse().unwrap(), "http".parse().unwrap());
        let ids = |view: &View| {
            let found = view.endpoints(&service, &http);
            found.iter().map(|endpoint| endpoint.id.to_string()).collect::<Vec<_>>()
        };
        let first = site(&[endpoint("a", "http"), endpoint("b", "tcp")].join(", "));
        let view = View::new(&first, None);
        assert_eq!(ids(&view), ["a"]);
        let second = site(&[endpoint("a", "http"), endpoint("c", "http")].join(", "));
        assert!(!view.is_of(&second));
        let view = View::new(&second, Some(&view));
        assert_eq!(ids(&view), ["a", "c"]);
        let unknown = "nobody.shop".parse().unwrap();
        assert!(view.endpoints(&unknown, &http).is_empty());
    }
}
