use mesh_api::v1::Locality;

use super::*;

fn endpoint(service: &str, port: &str, workload: &str, health: Health) -> Endpoint {
    Endpoint {
        service: service.into(),
        port: port.into(),
        site: "west".into(),
        spiffe_id: "spiffe://west.example/ns/shop/sa/orders".into(),
        weight: 1,
        health: health.into(),
        workload: workload.into(),
        locality: Some(Locality { host: "web1".into(), ..Locality::default() }),
        ..Endpoint::default()
    }
}

fn here() -> BTreeSet<String> {
    ["shop".to_owned()].into()
}

fn name(name: &str) -> (String, String) {
    ("shop".to_owned(), name.to_owned())
}

#[test]
fn an_instance_is_one_object_whatever_its_ports() {
    let all = [
        endpoint("orders.shop", "http", "aa", Health::Healthy),
        endpoint("orders.shop", "grpc", "aa", Health::Healthy),
        endpoint("orders.shop", "http", "bb", Health::Healthy),
        endpoint("orders.elsewhere", "http", "cc", Health::Healthy),
    ];
    let objects = objects(&all, &here());
    let names: Vec<_> = objects.keys().cloned().collect();
    assert_eq!(names, [name("orders-west-aa"), name("orders-west-bb")], "of namespaces here");
    let spec = &objects[&name("orders-west-aa")]["spec"];
    assert_eq!(spec["ports"], json!(["grpc", "http"]));
    assert_eq!((&spec["host"], &spec["site"]), (&json!("web1"), &json!("west")));
    assert!(spec.get("address").is_none(), "a gateway leads there");
}

#[test]
fn ready_is_who_is_well_at_every_port() {
    use Health::{Draining, Healthy, Unhealthy, Unknown, Unspecified};
    for (healths, status, reason) in [
        ([Healthy, Healthy], "True", "Healthy"),
        ([Healthy, Unknown], "Unknown", "NotHeard"),
        ([Unspecified, Healthy], "Unknown", "NotHeard"),
        ([Unknown, Draining], "False", "Draining"),
        ([Unhealthy, Draining], "False", "Unhealthy"),
    ] {
        let ports = ["grpc", "http"].iter().zip(healths);
        let ports: Vec<_> =
            ports.map(|(port, health)| endpoint("orders.shop", port, "aa", health)).collect();
        let condition = ready(&ports.iter().collect::<Vec<_>>());
        assert_eq!((&condition["status"], &condition["reason"]), (&json!(status), &json!(reason)));
    }
    let sick = endpoint("orders.shop", "grpc", "aa", Unhealthy);
    assert_eq!(ready(&[&sick])["message"], "its check of port grpc fails");
}
