//! What a worker derives from a snapshot, once, and looks up per request.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_core::{
    Endpoint, PortName, Service, ServiceName, Snapshot,
    balance::{Backing, Vantage, hash},
    path::is_reachable,
    route::Destination,
};
use rustc_hash::FxHashMap;

use crate::{
    outbound::{
        loads::{Balanced, Loads},
        probe::Probed,
    },
    own::Own,
};

type PortKey = (ServiceName, PortName);
type Endpoints = Arc<[Arc<Endpoint>]>;

/// Who derives: what besides the snapshot decides how endpoints look.
#[derive(Debug, Clone)]
pub struct Viewer {
    /// What the worker has seen.
    pub loads: Arc<Loads>,
    /// What the proxy knows of itself.
    pub own: Arc<Own>,
    /// Tells this worker from others where the machine is not known.
    pub seed: u64,
    /// Which worker of how many.
    pub worker: (usize, usize),
}

/// Derived from one snapshot.
#[derive(Debug)]
pub struct View {
    snapshot: Arc<Snapshot>,
    viewer: Viewer,
    captured: FxHashMap<(IpAddr, u16), Destination>,
    ports: Mutex<FxHashMap<PortKey, Entry>>,
}

/// The endpoints of one port of a service, as this very service has them.
#[derive(Debug, Clone)]
struct Entry {
    service: Arc<Service>,
    endpoints: Endpoints,
    /// Once somebody has chosen among them.
    balanced: Option<Arc<Balanced>>,
}

impl Entry {
    fn new(service: &Arc<Service>, port: &PortName) -> Self {
        let of_port = service.endpoints.iter().filter(|endpoint| endpoint.port == *port);
        let endpoints = of_port.cloned().collect();
        Self { service: service.clone(), endpoints, balanced: None }
    }
}

impl View {
    /// What does not depend on services is derived at once; what is known of
    /// the endpoints of services that are still there is kept.
    pub fn new(snapshot: &Arc<Snapshot>, viewer: Viewer, earlier: Option<&View>) -> Self {
        let mut captured = FxHashMap::default();
        for service in snapshot.services.values() {
            for address in service.virtual_addresses() {
                for port in &service.ports {
                    let destination =
                        Destination { service: service.name.clone(), port: port.name.clone() };
                    captured.insert((address, port.number), destination);
                }
            }
        }
        let snapshot = snapshot.clone();
        let view = Self { snapshot, viewer, captured, ports: Mutex::default() };
        if let Some(earlier) = earlier {
            view.take_over(earlier);
        }
        view
    }

    /// Endpoints are looked at anew where anything has changed that matters to
    /// them: their service, the ways to them, where this proxy is.
    fn take_over(&self, earlier: &View) {
        let (now, before) = (&self.snapshot, &earlier.snapshot);
        let same_ways = now.gateways == before.gateways
            && now.links == before.links
            && Arc::ptr_eq(&self.viewer.own, &earlier.viewer.own);
        let mut table = self.table();
        for ((name, port), entry) in earlier.table().iter() {
            let Some(service) = now.services.get(name) else { continue };
            let same = Arc::ptr_eq(service, &entry.service);
            let mut taken = if same { entry.clone() } else { Entry::new(service, port) };
            taken.balanced.clone_from(&entry.balanced);
            if let Some(balanced) = taken.balanced.as_ref().filter(|_| !same || !same_ways) {
                self.compile(&taken, balanced);
            }
            table.insert((name.clone(), port.clone()), taken);
        }
    }

    /// Whether it was derived from this very snapshot, by who knew this of
    /// itself.
    pub fn is_of(&self, snapshot: &Arc<Snapshot>, own: &Arc<Own>) -> bool {
        Arc::ptr_eq(&self.snapshot, snapshot) && Arc::ptr_eq(&self.viewer.own, own)
    }

    fn table(&self) -> MutexGuard<'_, FxHashMap<PortKey, Entry>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which service has this virtual address and port.
    pub fn captured(&self, dialled: SocketAddr) -> Option<Destination> {
        self.captured.get(&(dialled.ip().to_canonical(), dialled.port())).cloned()
    }

    /// The endpoints of one port of a service; empty if there is none.
    pub fn endpoints(&self, name: &ServiceName, port: &PortName) -> Endpoints {
        let Some(service) = self.snapshot.services.get(name) else { return Arc::new([]) };
        let mut table = self.table();
        let entry = table.entry((name.clone(), port.clone()));
        entry.or_insert_with(|| Entry::new(service, port)).endpoints.clone()
    }

    /// The same, to choose from.
    pub fn balanced(&self, name: &ServiceName, port: &PortName) -> Arc<Balanced> {
        let Some(service) = self.snapshot.services.get(name) else { return self.empty() };
        let mut table = self.table();
        let entry = table.entry((name.clone(), port.clone()));
        let entry = entry.or_insert_with(|| Entry::new(service, port));
        if let Some(balanced) = &entry.balanced {
            return balanced.clone();
        }
        let balanced = self.empty();
        self.compile(entry, &balanced);
        entry.balanced = Some(balanced.clone());
        balanced
    }

    /// Ports that somebody has chosen among and whose service wants its
    /// endpoints to be asked.
    pub fn probed(&self) -> Vec<Probed> {
        let probed = |((name, port), entry): (&PortKey, &Entry)| {
            let service = &entry.service;
            Some(Probed {
                service: name.clone(),
                port: port.clone(),
                protocol: service.port(port.as_str())?.protocol,
                check: Arc::new(service.traffic.health_check.clone()?),
                balanced: entry.balanced.clone()?,
            })
        };
        self.table().iter().filter_map(probed).collect()
    }

    /// The seed is the same whenever this worker of this machine starts.
    fn empty(&self) -> Arc<Balanced> {
        let node = self.viewer.own.node.as_ref();
        let machine = node.map_or(self.viewer.seed, |node| hash(node.as_str().as_bytes()));
        let seed = machine.wrapping_add(self.viewer.worker.0 as u64);
        Arc::new(Balanced::new(&self.viewer.loads, seed))
    }

    fn compile(&self, entry: &Entry, balanced: &Balanced) {
        let locality = self.viewer.own.locality.clone();
        balanced.update(&Backing {
            from: &Vantage { site: self.snapshot.site.clone(), locality },
            policy: &entry.service.balance,
            endpoints: &entry.endpoints,
            reachable: &|endpoint| is_reachable(&self.snapshot, endpoint),
            workers: u32::try_from(self.viewer.worker.1).unwrap_or(u32::MAX),
        });
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
        format!(
            "{{ id: {id}, port: {port}, identity: {identity}, zone: {id}, target: '127.0.0.1:1', \
             proxy: '127.0.0.1:2' }}"
        )
    }

    fn viewer(own: Own) -> Viewer {
        Viewer { loads: Arc::default(), own: Arc::new(own), seed: 7, worker: (0, 1) }
    }

    #[test]
    fn virtual_addresses_name_services() {
        let view = View::new(&site(""), viewer(Own::default()), None);
        let cases = [
            ("10.96.0.1:80", Some("http")),
            ("10.96.0.1:81", Some("tcp")),
            ("[::ffff:10.96.0.1]:80", Some("http")),
            ("[fd69:7374:686d::a60:1]:81", Some("tcp")),
            ("[fd69:7374:686d::a60:2]:81", None),
            ("10.96.0.1:82", None),
            ("10.96.0.2:80", None),
        ];
        for (dialled, wanted) in cases {
            let found = view.captured(dialled.parse().unwrap());
            assert_eq!(found.as_ref().map(|d| d.port.as_str()), wanted, "{dialled}");
        }
    }

    fn chosen(view: &View) -> Vec<String> {
        let balanced = view.balanced(&"orders.shop".parse().unwrap(), &"http".parse().unwrap());
        let (mut tried, mut ids) = (Vec::new(), Vec::new());
        while let Some((endpoint, attempt)) = balanced.choose(&tried, None) {
            tried.push(attempt.slot());
            ids.push(endpoint.id.to_string());
        }
        ids.sort();
        ids
    }

    #[test]
    fn endpoints_are_those_of_the_port_and_of_the_newest_snapshot() {
        let first = site(&[endpoint("a", "http"), endpoint("b", "tcp")].join(", "));
        let viewer = viewer(Own::default());
        let view = View::new(&first, viewer.clone(), None);
        let (orders, http) = ("orders.shop".parse().unwrap(), "http".parse().unwrap());
        let held = view.balanced(&orders, &http);
        assert_eq!(chosen(&view), ["a"]);
        let second = site(&[endpoint("a", "http"), endpoint("c", "http")].join(", "));
        assert!(view.is_of(&first, &viewer.own) && !view.is_of(&second, &viewer.own));
        let view = View::new(&second, viewer, Some(&view));
        assert_eq!(chosen(&view), ["a", "c"]);
        assert!(Arc::ptr_eq(&held, &view.balanced(&orders, &http)), "it lives on");
        assert!(view.balanced(&"nobody.shop".parse().unwrap(), &http).is_empty());
    }

    #[test]
    fn where_the_proxy_is_decides_what_is_near() {
        let snapshot = site(&[endpoint("a", "http"), endpoint("b", "http")].join(", "));
        let at = |zone: &str| {
            let mut own = Own::default();
            own.locality.zone = zone.into();
            viewer(own)
        };
        let first = |view: &View| {
            let balanced = view.balanced(&"orders.shop".parse().unwrap(), &"http".parse().unwrap());
            balanced.choose(&[], None).unwrap().0.id.to_string()
        };
        let view = View::new(&snapshot, at("a"), None);
        assert!((0..20).all(|_| first(&view) == "a"));
        let moved = at("b");
        assert!(!view.is_of(&snapshot, &moved.own));
        let view = View::new(&snapshot, moved, Some(&view));
        assert!((0..20).all(|_| first(&view) == "b"));
    }
}
