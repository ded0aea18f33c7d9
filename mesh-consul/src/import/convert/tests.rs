use super::*;
use crate::{
    import::{AddressOf, Health, Host, Pattern, rule::watched},
    wire::{Check, Node, Service, TaggedAddress, Weights},
};

fn rule(allow: &[&str]) -> ImportRule {
    ImportRule {
        allow: allow.iter().map(|name| Pattern((*name).into())).collect(),
        tags: Vec::new(),
        dc: None,
        as_namespace: "consul".into(),
        rename: BTreeMap::new(),
        address: AddressOf::Service,
        port: None,
    }
}

fn entry(node: &str, service: &str, port: i64) -> ServiceEntry {
    ServiceEntry {
        node: Node {
            node: node.into(),
            address: "10.0.0.1".into(),
            datacenter: "dc1".into(),
            ..Node::default()
        },
        service: Service {
            id: format!("{service}-1"),
            service: service.into(),
            port,
            weights: Weights { passing: 10, warning: 2 },
            ..Service::default()
        },
        checks: Vec::new(),
    }
}

fn check(id: &str, status: &str, service: &str) -> Check {
    Check { id: id.into(), status: status.into(), service_id: service.into() }
}

/// What a snapshot with these services of the agent's own datacenter says.
fn snapshot(services: &[(&str, Vec<ServiceEntry>)]) -> Snapshot {
    let names = services.iter().map(|(name, _)| ((*name).to_owned(), None)).collect();
    let key = |name: &str| (None, name.to_owned());
    Snapshot {
        names: BTreeMap::from([(None, Arc::new(names))]),
        entries: services
            .iter()
            .map(|(name, entries)| (key(name), (Arc::new(entries.clone()), None)))
            .collect(),
        ..Snapshot::default()
    }
}

fn one(rule: ImportRule, entry: ServiceEntry) -> Result<Instance, String> {
    let name = entry.service.service.clone();
    let import = convert(&[rule], &snapshot(&[(&name, vec![entry])]));
    match import.services.into_values().next() {
        Some(imported) => Ok(imported.instances.into_iter().next().unwrap()),
        None => Err(import.skipped.into_iter().map(|skipped| skipped.why).collect()),
    }
}

#[test]
fn an_instance_is_where_consul_says() {
    let mut entry = entry("n1", "web", 80);
    entry.node.tagged_addresses = BTreeMap::from([("wan".into(), "203.0.113.1".into())]);
    let of = |address, entry: &ServiceEntry| {
        let instance = one(ImportRule { address, ..rule(&["web"]) }, entry.clone()).unwrap();
        format!("{}:{}", instance.address, instance.port)
    };
    let wan = || AddressOf::Tagged("wan".into());
    assert_eq!(of(AddressOf::Service, &entry), "10.0.0.1:80", "its node's");
    assert_eq!(of(wan(), &entry), "203.0.113.1:80");
    entry.service.address = "Web.Example.".into();
    assert_eq!(of(AddressOf::Service, &entry), "web.example:80");
    assert_eq!(of(AddressOf::Node, &entry), "10.0.0.1:80");
    assert_eq!(of(wan(), &entry), "web.example:80");
    let tagged = |port| TaggedAddress { address: "203.0.113.9".into(), port };
    for (port, expected) in [(0, "203.0.113.9:80"), (8080, "203.0.113.9:8080")] {
        entry.service.tagged_addresses = BTreeMap::from([("wan".into(), tagged(port))]);
        assert_eq!(of(wan(), &entry), expected);
    }
    entry.service.address = "fd00::1".into();
    let instance = one(rule(&["web"]), entry).unwrap();
    assert_eq!(instance.address, Host::Ip("fd00::1".parse().unwrap()));
}

#[test]
fn what_is_no_place_is_skipped_with_a_reason() {
    for port in [0, -1, 65_536, i64::MAX] {
        assert!(one(rule(&["web"]), entry("n1", "web", port)).unwrap_err().contains("no port"));
    }
    for address in ["10.0.0.256", "a b", "a..b", "http://x", "10.0.0.1:80", &"x".repeat(300)] {
        let mut entry = entry("n1", "web", 80);
        entry.service.address = address.into();
        let why = one(rule(&["web"]), entry).unwrap_err();
        assert!(why.contains("which is none"), "{address}: {why}");
    }
}

#[test]
fn health_is_the_worst_of_node_and_instance_and_weight_follows() {
    use Health::{Critical, Maintenance, Passing, Warning};
    let cases = [
        (vec![], Passing, 10),
        (vec![check("serfHealth", "passing", "")], Passing, 10),
        (vec![check("serfHealth", "critical", "")], Critical, 10),
        (vec![check("a", "warning", "web-1"), check("b", "passing", "web-1")], Warning, 2),
        (vec![check("a", "warning", "web-1"), check("b", "critical", "web-1")], Critical, 10),
        (vec![check("a", "critical", "web-2")], Passing, 10),
        (vec![check("_node_maintenance", "critical", "")], Maintenance, 10),
        (vec![check("_service_maintenance:web-1", "critical", "web-1")], Maintenance, 10),
        (vec![check("a", "unheard of", "web-1")], Critical, 10),
    ];
    for (checks, health, weight) in cases {
        let instance =
            one(rule(&["web"]), ServiceEntry { checks: checks.clone(), ..entry("n1", "web", 80) });
        let instance = instance.unwrap();
        assert_eq!((instance.health, instance.weight), (health, weight), "{checks:?}");
    }
    let mut entry = entry("n1", "web", 80);
    for (passing, weight) in [(-1, 0), (1 << 40, 65_535)] {
        entry.service.weights.passing = passing;
        assert_eq!(one(rule(&["web"]), entry.clone()).unwrap().weight, weight);
    }
}

#[test]
fn what_an_isthmus_wrote_is_never_imported() {
    let mut ours = entry("n1", "web", 80);
    ours.service.meta.insert("managed-by".into(), "isthmus".into());
    ours.service.meta.insert("isthmus-site".into(), "elsewhere".into());
    let import = convert(&[rule(&["*"])], &snapshot(&[("web", vec![ours.clone()])]));
    assert!(import.services.is_empty() && import.skipped.is_empty());
    let both = vec![ours, entry("n2", "web", 80)];
    let import = convert(&[rule(&["*"])], &snapshot(&[("web", both)]));
    let instances = &import.services.values().next().unwrap().instances;
    assert_eq!(instances.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["dc1/n2/web-1"]);
}

#[test]
fn proxies_of_consul_and_its_servers_are_not_applications() {
    let mut proxy = entry("n1", "web", 80);
    proxy.service.kind = "connect-proxy".into();
    let services = [("web", vec![proxy]), ("consul", vec![entry("n1", "consul", 8300)])];
    assert!(convert(&[rule(&["*"])], &snapshot(&services)).services.is_empty());
    assert_eq!(convert(&[rule(&["consul"])], &snapshot(&services)).services.len(), 1);
}

#[test]
fn rules_say_what_and_under_which_name() {
    let mut renamed = rule(&["orders_*"]);
    renamed.rename = BTreeMap::from([("orders_api".into(), "orders".into())]);
    renamed.as_namespace = "shop".into();
    let rules = [renamed, rule(&["*"])];
    let all = ["orders_api", "orders_db", "Web", "orders"];
    let services: Vec<_> = all.iter().map(|name| (*name, vec![entry("n1", name, 80)])).collect();
    let import = convert(&rules, &snapshot(&services));
    let names: Vec<_> = import.services.keys().map(ServiceName::as_str).collect();
    assert_eq!(names, ["orders.consul", "orders.shop", "web.consul"]);
    let skipped = import.skipped.into_iter().next().unwrap();
    assert_eq!(skipped.what, "orders_db");
    assert!(skipped.why.contains("give it another name in `rename`"), "{}", skipped.why);
}

#[test]
fn two_services_are_not_made_one_and_two_datacenters_are() {
    let services = [("Web", vec![entry("n1", "Web", 80)]), ("web", vec![entry("n2", "web", 80)])];
    let import = convert(&[rule(&["*"])], &snapshot(&services));
    let instances = &import.services.values().next().unwrap().instances;
    assert_eq!(instances.len(), 1);
    assert!(import.skipped.first().unwrap().why.contains("already"));

    let mut snapshot = snapshot(&[("web", vec![entry("n1", "web", 80)])]);
    let mut other = entry("n1", "web", 81);
    other.node.datacenter = "dc2".into();
    let key = (Some("dc2".to_owned()), "web".to_owned());
    snapshot.entries.insert(key, (Arc::new(vec![other]), None));
    let rules = [rule(&["*"]), ImportRule { dc: Some("dc2".into()), ..rule(&["*"]) }];
    let import = convert(&rules, &snapshot);
    let web = import.services.values().next().unwrap();
    assert_eq!((web.instances.len(), web.port.get()), (2, 80));
    assert!(!import.complete, "the names of dc2 are not known");
}

#[test]
fn the_port_is_the_rules_or_what_most_have() {
    let ports = |ports: &[i64], of_rule: Option<u16>| {
        let entries = ports.iter().enumerate().map(|(i, p)| entry(&format!("n{i}"), "web", *p));
        let rule = ImportRule { port: of_rule.and_then(NonZeroU16::new), ..rule(&["web"]) };
        let import = convert(&[rule], &snapshot(&[("web", entries.collect())]));
        import.services.values().next().unwrap().port.get()
    };
    assert_eq!(ports(&[90, 80, 90], None), 90);
    assert_eq!(ports(&[90, 80], None), 80);
    assert_eq!(ports(&[90, 80], Some(443)), 443);
}

#[test]
fn tags_are_asked_of_each_instance() {
    let rules = [ImportRule { tags: vec!["a".into(), "b".into()], ..rule(&["*"]) }];
    let tagged = |node: &str, tags: &[&str]| {
        let mut entry = entry(node, "web", 80);
        entry.service.tags = tags.iter().map(|tag| (*tag).into()).collect();
        entry
    };
    let entries = vec![tagged("n1", &["a"]), tagged("n2", &["b", "a"]), tagged("n3", &["b"])];
    let mut snapshot = snapshot(&[("web", entries)]);
    let import = convert(&rules, &snapshot);
    assert_eq!(import.services.values().next().unwrap().instances[0].node, "n2");
    // A service no instance of which can have them is not watched.
    let all = |tags: &[&str]| Some(tags.iter().map(|tag| (*tag).to_owned()).collect());
    let names = BTreeMap::from([("db".into(), all(&["a"])), ("web".into(), all(&["a", "b"]))]);
    snapshot.names.insert(None, Arc::new(names));
    let (wanted, _) = watched(&rules, &snapshot.names, 10);
    assert_eq!(wanted.into_iter().map(|key| key.1).collect::<Vec<_>>(), ["web"]);
    let (wanted, skipped) = watched(&[rule(&["*"])], &snapshot.names, 1);
    assert_eq!((wanted.len(), skipped.first().unwrap().what.as_str()), (1, "web"));
}

const DOCUMENTED: &str = r#"[{"Node":{"ID":"u","Node":"n1","Address":"10.0.0.5",
    "Datacenter":"dc1","TaggedAddresses":{"wan":"203.0.113.1"},"Meta":{}},
    "Service":{"Kind":"","ID":"web-1","Service":"web","Tags":["v1"],"Address":"10.0.0.6",
    "Port":8080,"Meta":{"a":"b"},"TaggedAddresses":{"lan":{"address":"10.0.0.7","port":80}},
    "Weights":{"Passing":10,"Warning":1}},
    "Checks":[{"CheckID":"serfHealth","Status":"passing","ServiceID":""}]}]"#;

proptest::proptest! {
    /// Whoever answers in Consul's place can make no import that is none.
    #[test]
    fn no_answer_panics_and_what_it_brings_is_whole(
        changes in proptest::collection::vec((0..DOCUMENTED.len(), proptest::num::u8::ANY), 0..4),
        numbers in proptest::array::uniform3(proptest::num::i64::ANY),
        address in "[a-zA-Z0-9:._ -]{0,20}",
        copies in 1..4usize,
    ) {
        let mut text = DOCUMENTED.as_bytes().to_vec();
        for (at, byte) in changes {
            text[at] = byte;
        }
        let read = serde_json::from_slice::<Vec<ServiceEntry>>(&text);
        let mut entries = read.unwrap_or_default();
        entries.extend(serde_json::from_str::<Vec<ServiceEntry>>(DOCUMENTED).unwrap());
        let last = entries.last_mut().unwrap();
        last.service.address = address;
        last.service.port = numbers[0];
        last.service.weights = Weights { passing: numbers[1], warning: numbers[2] };
        let all: Vec<_> = std::iter::repeat_n(entries, copies).flatten().collect();
        for address in [AddressOf::Service, AddressOf::Node, AddressOf::Tagged("lan".into())] {
            let rules = [ImportRule { address, ..rule(&["*"]) }];
            let import = convert(&rules, &snapshot(&[("web", all.clone())]));
            for imported in import.services.values() {
                let ids: BTreeSet<_> = imported.instances.iter().map(|i| &i.id).collect();
                proptest::prop_assert_eq!(ids.len(), imported.instances.len());
                proptest::prop_assert!(!imported.instances.is_empty());
                proptest::prop_assert!(imported.instances.iter().all(|i| i.weight <= 65_535));
            }
        }
    }
}
