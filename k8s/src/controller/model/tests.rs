use k8s_openapi::api::{
    core::v1::{Node, Pod as KPod, Service as KService},
    discovery::v1::EndpointSlice,
};
use mesh_api::v1::Protocol;
use serde_json::{Value, json};

use super::*;

fn pod(name: &str, uid: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": uid, "annotations": { INJECTED: "1.2.3" },
        },
        "spec": { "serviceAccountName": "orders", "nodeName": "n1", "containers": [] },
        "status": { "phase": "Running", "podIP": "10.1.0.7" },
    })
}

fn service(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "shop" },
        "spec": {
            "clusterIP": "10.96.0.7",
            "clusterIPs": ["10.96.0.7", "fd00:96::7"],
            "ports": [
                { "name": "http", "port": 80 },
                { "name": "dns", "port": 53, "protocol": "UDP" },
            ],
        },
    })
}

fn slice(name: &str, of: &str, uids: &[&str]) -> Value {
    let endpoint = |uid: &&str| {
        json!({
            "addresses": ["10.1.0.7"],
            "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "name": "orders-1", "namespace": "shop", "uid": uid },
        })
    };
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "labels": { "kubernetes.io/service-name": of },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": uids.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// A model that is told what an API server says, without complaints.
#[derive(Default)]
struct Cluster {
    model: Model,
    problems: Vec<Problem>,
}

impl Cluster {
    fn pod(&mut self, value: Value) {
        let pod: KPod = serde_json::from_value(value).unwrap();
        let read = PodSeen::read(&pod, &mut self.problems).unwrap();
        self.model.pod(Name::of(&pod), read);
    }

    fn service(&mut self, value: Value) {
        let service: KService = serde_json::from_value(value).unwrap();
        let read = ServiceSeen::read(&service, &mut self.problems);
        self.model.service(Name::of(&service), read);
    }

    fn slice(&mut self, value: Value) {
        let slice: EndpointSlice = serde_json::from_value(value).unwrap();
        let read = SliceSeen::read(&slice, &mut self.problems).unwrap();
        self.problems.extend(self.model.misplaced(&read));
        self.model.slice(Name::of(&slice), read);
    }

    fn node(&mut self, labels: Value) {
        let node: Node =
            serde_json::from_value(json!({ "metadata": { "name": "n1", "labels": labels } }))
                .unwrap();
        self.model.node(NodeSeen::read(&node));
    }

    /// What is told next, as one change.
    fn told(&mut self) -> ClusterChange {
        let mut changes = self.model.changes(false);
        assert!(changes.len() <= 1, "{changes:?}");
        changes.pop().unwrap_or_default()
    }
}

/// One pod that backs `orders.shop`, told of.
fn running() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.node(json!({
        "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-1",
    }));
    cluster.slice(slice("orders-a", "orders", &["u1"]));
    cluster.service(service("orders"));
    cluster.pod(pod("orders-1", "u1"));
    let told = cluster.told();
    assert_eq!((told.pods.len(), told.services.len()), (1, 1), "{told:?}");
    cluster
}

/// Its name comes before that of the real one.
#[test]
fn a_slice_by_hand_takes_no_pod_away() {
    let mut cluster = running();
    for (address, says) in [
        ("10.9.9.9", "endpoints[0].addresses: 10.9.9.9 is not where pod orders-1 is (10.1.0.7)"),
        ("orders.example", "endpoints[0].addresses: \"orders.example\" is no address of a pod"),
    ] {
        let mut value = slice("a-mistake", "orders", &["u1"]);
        value["endpoints"][0]["addresses"][0] = json!(address);
        cluster.slice(value);
        assert_eq!(cluster.told(), ClusterChange::default());
        let problem = cluster.problems.pop().unwrap().to_string();
        assert!(problem.starts_with(says), "{problem}");
    }
    let mut both = pod("orders-1", "u1");
    both["status"]["podIPs"] = json!([{ "ip": "10.1.0.7" }, { "ip": "fd00::7" }]);
    cluster.pod(both);
    let mut value = slice("a-mistake", "orders", &["u1"]);
    value["endpoints"][0]["addresses"][0] = json!("fd00::7");
    cluster.slice(value);
    assert_eq!(cluster.told().pods[0].instances[0].address, "[fd00::7]:4143");
    assert_eq!(cluster.problems, []);
}

#[test]
fn a_pod_backs_the_services_whose_slices_name_it() {
    let mut cluster = running();
    cluster.model.begin();
    let told = cluster.model.changes(true).pop().unwrap();
    assert!(told.complete);
    let register = &told.pods[0].instances[0];
    assert_eq!((register.instance.as_str(), register.service.as_str()), ("orders", "orders.shop"));
    assert_eq!(register.ports.len(), 1, "UDP is not the mesh's");
    assert_eq!((register.ports[0].number, register.target_ports[0]), (80, 8080));
    assert_eq!(register.ports[0].protocol(), Protocol::Http);
    assert_eq!(register.address, "10.1.0.7:4143");
    assert_eq!(register.target_address, "10.1.0.7");
    assert_eq!(register.health(), Health::Healthy);
    let locality = register.locality.as_ref().unwrap();
    assert_eq!([&locality.region, &locality.zone, &locality.host], ["eu", "eu-1", "n1"]);
    let addresses = [&*told.services[0].address, &*told.services[0].second_address];
    assert_eq!(addresses, ["10.96.0.7", "fd00:96::7"]);
    assert_eq!(cluster.told(), ClusterChange::default(), "nothing is said twice");
    assert_eq!(cluster.problems, []);
}

#[test]
fn the_order_in_which_objects_come_does_not_matter() {
    type Say = fn(&mut Cluster);
    let says: [Say; 4] = [
        |cluster| cluster.node(json!({ "topology.kubernetes.io/zone": "eu-1" })),
        |cluster| cluster.slice(slice("orders-a", "orders", &["u1"])),
        |cluster| cluster.service(service("orders")),
        |cluster| cluster.pod(pod("orders-1", "u1")),
    ];
    let mut outcomes = Vec::new();
    for first in 0..4 {
        for second in (0..4).filter(|i| *i != first) {
            let rest = (0..4).filter(|i| *i != first && *i != second);
            let mut cluster = Cluster::default();
            for i in [first, second].into_iter().chain(rest) {
                says[i](&mut cluster);
                cluster.told();
            }
            outcomes.push((cluster.model.told_pods.clone(), cluster.model.told_services.clone()));
        }
    }
    assert_eq!(outcomes[0].0["u1"].instances.len(), 1);
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
}

#[test]
fn what_goes_is_told() {
    let name = Name::new("shop", "orders");
    type Go = fn(&mut Cluster);
    let table: [(&str, Go); 3] = [
        ("service", |cluster| cluster.model.service_gone(&Name::new("shop", "orders"))),
        ("slice", |cluster| cluster.model.slice_gone(&Name::new("shop", "orders-a"))),
        ("endpoint", |cluster| cluster.slice(slice("orders-a", "orders", &[]))),
    ];
    for (what, go) in table {
        let mut cluster = running();
        go(&mut cluster);
        let told = cluster.told();
        assert_eq!(told.pods[0].instances, [], "{what}");
        assert_eq!(told.gone_services, ["orders.shop"], "{what}");
        assert!(cluster.model.told_services.is_empty());
    }
    let mut cluster = running();
    cluster.model.pod_gone(&Name::new("shop", "orders-1"));
    let told = cluster.told();
    assert_eq!((told.gone, told.gone_services), (vec!["u1".to_owned()], vec![name.of_mesh()]));
    // A list without it is the same; and a pod that took its name is another.
    let mut cluster = running();
    cluster.model.keep_pods(&BTreeSet::new());
    assert_eq!(cluster.told().gone, ["u1"]);
    let mut cluster = running();
    cluster.pod(pod("orders-1", "u2"));
    let told = cluster.told();
    assert_eq!(
        (told.gone.as_slice(), told.pods[0].uid.as_str()),
        (["u1".to_owned()].as_slice(), "u2")
    );
}

#[test]
fn readiness_is_what_the_slice_says() {
    let table = [
        (json!({}), false, Health::Healthy),
        (json!({ "ready": true }), false, Health::Healthy),
        (json!({ "ready": true }), true, Health::Draining),
        (json!({ "ready": false, "serving": true, "terminating": true }), true, Health::Draining),
        (json!({ "ready": false, "serving": false }), false, Health::Unhealthy),
        (json!({ "ready": false }), false, Health::Unhealthy),
    ];
    for (conditions, ends, health) in table {
        let mut cluster = running();
        let mut value = slice("orders-a", "orders", &["u1"]);
        value["endpoints"][0]["conditions"] = conditions.clone();
        cluster.slice(value);
        if ends {
            let mut value = pod("orders-1", "u1");
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            cluster.pod(value);
        }
        cluster.model.begin();
        let told = cluster.told();
        assert_eq!(told.pods[0].instances[0].health(), health, "{conditions} {ends}");
    }
}

#[test]
fn protocols_come_from_app_protocol_then_names() {
    let table = [
        (json!({ "port": 80 }), "main", Protocol::Unspecified),
        (json!({ "port": 80, "name": "web" }), "web", Protocol::Unspecified),
        (json!({ "port": 80, "name": "http-web" }), "http-web", Protocol::Http),
        (json!({ "port": 80, "name": "grpc" }), "grpc", Protocol::Grpc),
        (json!({ "port": 80, "name": "web", "appProtocol": "grpc" }), "web", Protocol::Grpc),
        (json!({ "port": 80, "name": "http", "appProtocol": "TCP" }), "http", Protocol::Tcp),
        (json!({ "port": 80, "appProtocol": "kubernetes.io/h2c" }), "http", Protocol::Http),
        (json!({ "port": 443, "name": "https" }), "https", Protocol::Tls),
        (json!({ "port": 3306, "name": "http" }), "http", Protocol::Tcp),
    ];
    for (port, name, protocol) in table {
        let mut cluster = running();
        let mut value = service("orders");
        value["metadata"]["annotations"] = json!({ OPAQUE_PORTS: "25,3300-3310" });
        value["spec"]["ports"] = json!([port]);
        cluster.service(value);
        let mut value = slice("orders-a", "orders", &["u1"]);
        value["ports"] = json!([{ "name": port["name"], "port": 8080 }]);
        cluster.slice(value);
        cluster.model.begin();
        let told = &cluster.told().pods[0].instances[0].ports[0];
        assert_eq!((told.name.as_str(), told.protocol()), (name, protocol), "{port}");
    }
}

#[test]
fn exports_are_labels_or_annotations() {
    let table = [
        (json!({}), json!({}), false, vec![]),
        (json!({ EXPORT: "true" }), json!({}), true, vec![]),
        (json!({ EXPORT: "false" }), json!({}), false, vec![]),
        (json!({ EXPORT: "west" }), json!({}), false, vec!["west"]),
        (json!({ EXPORT: "true" }), json!({ EXPORT: "west, north" }), false, vec!["west", "north"]),
    ];
    for (labels, annotations, all, sites) in table {
        let mut cluster = running();
        let mut value = service("orders");
        value["metadata"]["labels"] = labels;
        value["metadata"]["annotations"] = annotations;
        cluster.service(value);
        cluster.model.begin();
        let told = cluster.told().services.remove(0);
        assert_eq!(
            (told.exported_to_all, told.exported_to),
            (all, sites.iter().map(|s| (*s).to_owned()).collect())
        );
        assert_eq!(cluster.problems, []);
    }
}

#[test]
fn who_is_exported_keeps_its_address_while_nobody_backs_it() {
    let table = [("true", &[][..], true), ("false", &[], false), ("true", &["plain"], false)];
    for (export, backed, told) in table {
        let mut cluster = running();
        let mut value = service("orders");
        value["metadata"]["labels"] = json!({ EXPORT: export });
        cluster.service(value);
        cluster.slice(slice("orders-a", "orders", backed));
        cluster.model.begin();
        let services = cluster.told().services;
        let addresses: Vec<_> = services.iter().map(|one| !one.address.is_empty()).collect();
        assert_eq!(addresses, vec![true; usize::from(told)], "{export} {backed:?}");
    }
}

#[test]
fn fields_that_make_no_sense_are_named_and_do_not_count() {
    let mut cluster = running();
    let mut value = pod("orders-1", "u1");
    value["metadata"]["annotations"][OPAQUE_PORTS] = json!("0,x,5-3");
    value["metadata"]["annotations"][WEIGHT] = json!("-1");
    value["metadata"]["labels"][INJECT] = json!("true");
    cluster.pod(value);
    let mut value = service("orders");
    value["metadata"]["labels"] = json!({ EXPORT: "No_Site" });
    cluster.service(value);
    let said: Vec<String> = cluster.problems.iter().map(ToString::to_string).collect();
    let expected = ["\"true\"", "\"0\"", "\"x\"", "\"5-3\"", "\"-1\"", "No_Site"];
    assert_eq!(said.len(), expected.len(), "{said:?}");
    for (problem, says) in expected.into_iter().enumerate() {
        assert!(said[problem].contains(says) && said[problem].starts_with("metadata."), "{said:?}");
    }
    cluster.model.begin();
    let told = cluster.told();
    assert_eq!(told.pods[0].instances[0].weight, 1);
    assert!(!told.services[0].exported_to_all && told.services[0].exported_to.is_empty());
}

#[test]
fn pods_that_are_not_of_the_mesh_do_not_count() {
    let table = [
        (json!({}), json!({}), "Running", false),
        (json!({ INJECTED: "1" }), json!({}), "Running", true),
        (json!({ INJECTED: "1" }), json!({}), "Succeeded", false),
        (json!({}), json!({ "isthmus.dev/proxy": "gateway" }), "Running", true),
    ];
    for (annotations, labels, phase, counts) in table {
        let mut value = pod("orders-1", "u1");
        value["metadata"]["annotations"] = annotations;
        value["metadata"]["labels"] = labels;
        value["status"]["phase"] = json!(phase);
        let read: KPod = serde_json::from_value(value).unwrap();
        assert_eq!(PodSeen::read(&read, &mut Vec::new()).is_some(), counts, "{read:?}");
    }
}

#[test]
fn nothing_of_another_namespace_is_backed() {
    let mut cluster = running();
    let mut value = slice("theirs", "theirs", &["u1"]);
    value["metadata"]["namespace"] = json!("prod");
    cluster.slice(value);
    let mut value = service("theirs");
    value["metadata"]["namespace"] = json!("prod");
    cluster.service(value);
    cluster.model.begin();
    let told = cluster.told();
    assert_eq!(told.pods[0].instances.len(), 1, "{told:?}");
}

#[test]
fn many_are_told_in_parts() {
    let mut cluster = running();
    for i in 0..2500 {
        cluster.pod(pod(&format!("p{i}"), &format!("u-{i}")));
    }
    cluster.model.begin();
    let changes = cluster.model.changes(true);
    assert_eq!(changes.len(), 3);
    assert_eq!(changes.iter().filter(|change| change.complete).count(), 1);
    assert!(changes[2].complete);
    assert_eq!(changes.iter().map(|change| change.pods.len()).sum::<usize>(), 2501);
    // Nothing at all is also all.
    let empty = Cluster::default().model.changes(true);
    assert_eq!(empty, [ClusterChange { complete: true, ..ClusterChange::default() }]);
}

use crate::names::{EXPORT, INJECT, INJECTED, OPAQUE_PORTS, WEIGHT};
