use std::fmt::{Debug, Display};
use std::str::FromStr;

use proptest::prelude::*;

use super::*;

const NODE: &str = "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11";

/// Which of the kinds of names a text is.
fn kinds(value: &str) -> Vec<&'static str> {
    fn is<T: FromStr<Err = InvalidName> + Display + Debug>(value: &str) -> bool {
        match value.parse::<T>() {
            Ok(name) => {
                assert_eq!(name.to_string(), value);
                assert_eq!(format!("{name:?}"), format!("{value:?}"));
                true
            }
            Err(error) => {
                assert!(error.to_string().len() < 500);
                false
            }
        }
    }
    type Is = fn(&str) -> bool;
    let all: [(&str, Is); 6] = [
        ("label", is::<SiteName>),
        ("service", is::<ServiceName>),
        ("id", is::<EndpointId>),
        ("uuid", is::<NodeId>),
        ("domain", is::<TrustDomain>),
        ("spiffe", is::<SpiffeId>),
    ];
    assert_eq!(is::<SiteName>(value), is::<PortName>(value));
    assert_eq!(is::<SiteName>(value), is::<GatewayId>(value));
    all.iter().filter(|(_, is)| is(value)).map(|(kind, _)| *kind).collect()
}

#[test]
fn what_is_a_name_of_what() {
    let (l63, l64, l65) = ("a".repeat(63), "a".repeat(64), "a".repeat(65));
    let (d255, d256) = ("d".repeat(255), "d".repeat(256));
    let (two, too_long) = (format!("{l63}.{l63}"), format!("{l64}.a"));
    let upper_node = NODE.to_uppercase();
    let long_id = format!("spiffe://{d255}/ns/{l63}/sa/{l63}");
    let cases: &[(&str, &[&str])] = &[
        ("east", &["label", "id", "domain"]),
        ("9", &["label", "id", "domain"]),
        ("a-b", &["label", "id", "domain"]),
        ("-a", &["id", "domain"]),
        ("a-", &["id", "domain"]),
        ("-", &["id", "domain"]),
        ("a_b", &["domain"]),
        ("A", &[]),
        ("", &[]),
        ("a b", &[]),
        ("é", &[]),
        ("a\0", &[]),
        (&l63, &["label", "id", "domain"]),
        (&l64, &["id", "domain"]),
        (&l65, &["domain"]),
        (&d255, &["domain"]),
        (&d256, &[]),
        ("orders.shop", &["service", "domain"]),
        (&two, &["service", "domain"]),
        (&too_long, &["domain"]),
        ("a.", &["domain"]),
        (".a", &["domain"]),
        (".", &["domain"]),
        ("a.b.c", &["domain"]),
        ("10.0.0.1", &["domain"]),
        ("10.0.0.1:80", &[]),
        (NODE, &["label", "id", "uuid", "domain"]),
        (&upper_node, &[]),
        ("6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e1", &["label", "id", "domain"]),
        ("6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e1g", &["label", "id", "domain"]),
        ("6f0c2a5208d0b04d5f09d4200a4a5f4c1e11", &["label", "id", "domain"]),
        ("6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c-e11", &["label", "id", "domain"]),
        ("spiffe://east.example/ns/shop/sa/web", &["spiffe"]),
        ("spiffe://east.example/node/6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11", &["spiffe"]),
        (&long_id, &["spiffe"]),
        ("spiffe://east.example/node/x", &[]),
        ("spiffe://east.example/node/6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11/x", &[]),
        ("spiffe://east.example", &[]),
        ("spiffe://east.example/", &[]),
        ("spiffe://east.example/ns/shop/sa/web/", &[]),
        ("spiffe://east.example/ns/shop/sa", &[]),
        ("spiffe://east.example/ns//sa/web", &[]),
        ("spiffe://east.example/ns/../sa/web", &[]),
        ("spiffe://east.example/ns/shop/sa/We", &[]),
        ("spiffe://east.example/ns/shop/to/web", &[]),
        ("spiffe://east.example:443/ns/shop/sa/web", &[]),
        ("spiffe://u@east.example/ns/shop/sa/web", &[]),
        ("spiffe://East.example/ns/shop/sa/web", &[]),
        ("spiffe:///ns/shop/sa/web", &[]),
        ("SPIFFE://east.example/ns/shop/sa/web", &[]),
        ("http://east.example/ns/shop/sa/web", &[]),
        ("spiffe://east.example/ns/shop/sa/web?x", &[]),
        ("spiffe://east.example/ns/shop/sa/web#x", &[]),
    ];
    for (value, expected) in cases {
        assert_eq!(kinds(value), *expected, "{value:?}");
    }
}

#[test]
fn a_spiffe_id_has_a_limit_of_its_own() {
    // SPIFFE-ID section 2.3; reached before any part is looked at.
    let error = "x".repeat(2049).parse::<SpiffeId>().unwrap_err();
    assert!(error.to_string().ends_with("is longer than 2048 bytes"), "{error}");
    let error = "x".repeat(2048).parse::<SpiffeId>().unwrap_err();
    assert!(error.to_string().ends_with("must begin with spiffe://"), "{error}");
}

#[test]
fn refusals_name_the_rule_and_stay_short() {
    let of = |value: &str| value.parse::<SiteName>().unwrap_err().to_string();
    assert_eq!(of(""), "site \"\": is empty");
    assert_eq!(of("a b"), "site \"a b\": may hold only a-z, 0-9 and '-'");
    assert_eq!(of("-a"), "site \"-a\": must begin and end with a letter or digit");
    let long = of(&"x".repeat(10_000));
    assert!(long.len() < 150 && long.ends_with("is longer than 63 bytes"), "{long}");
    let service = "orders".parse::<ServiceName>().unwrap_err().to_string();
    assert_eq!(service, "service \"orders\": must be <name>.<namespace>");
}

#[test]
fn parts_of_names() {
    let service: ServiceName = "orders.shop".parse().unwrap();
    assert_eq!((service.name(), service.namespace()), ("orders", "shop"));
    for (namespace, reserved) in [
        ("kube-system", true),
        ("isthmus-system", true),
        ("kube", false),
        ("kubernetes", false),
        ("isthmus", false),
        ("shop", false),
        ("my-kube-system", false),
    ] {
        assert_eq!(is_reserved_namespace(namespace), reserved, "{namespace}");
    }
}

#[test]
fn a_workload_has_a_namespace_and_a_node_has_none() {
    let of = |id: &str| id.parse::<SpiffeId>().unwrap().namespace().map(str::to_owned);
    assert_eq!(of("spiffe://west.example/ns/shop/sa/orders").as_deref(), Some("shop"));
    assert_eq!(of("spiffe://west.example/node/6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11"), None);
}

#[test]
fn made_identities_are_the_parsed_ones() {
    let domain: TrustDomain = "east.example".parse().unwrap();
    let node: NodeId = NODE.parse().unwrap();
    let parsed = |uri: &str| -> SpiffeId { uri.parse().unwrap() };
    let made = [
        SpiffeId::workload(&domain, "shop", "web").unwrap(),
        SpiffeId::node(&domain, &node),
        SpiffeId::gateway(&domain),
        SpiffeId::federation(&domain),
    ];
    for id in &made {
        assert_eq!(parsed(id.as_str()), *id);
        assert_eq!(id.trust_domain(), &domain);
    }
    let [web, of_node, gateway, federation] = made;
    assert_eq!(of_node.subject(), &Subject::Node(node));
    let part = |part: &str| -> Arc<str> { part.into() };
    let expected = Subject::Workload { namespace: part("shop"), account: part("web") };
    assert_eq!(web.subject(), &expected);
    assert_eq!((web.is_gateway(), web.is_federation()), (false, false));
    assert_eq!((of_node.is_gateway(), of_node.is_federation()), (false, false));
    assert_eq!((gateway.is_gateway(), gateway.is_federation()), (true, false));
    assert_eq!((federation.is_gateway(), federation.is_federation()), (false, true));
    assert!(!parsed("spiffe://east.example/ns/shop/sa/gateway").is_gateway());
    assert!(SpiffeId::workload(&domain, "shop/x", "web").is_err());
    assert!(SpiffeId::workload(&domain, "shop", "").is_err());
}

proptest! {
    /// Text of any kind is a name or an error, and a name says what was
    /// parsed (`kinds` asserts it).
    #[test]
    fn arbitrary_text(value in prop_oneof![
        any::<String>(),
        "[a-z0-9._-]{0,70}",
        "spiffe://[a-zA-Z0-9._-]{0,12}(/(ns|sa|node|[a-z-]{0,5})){0,6}",
    ]) {
        kinds(&value);
    }

    #[test]
    fn well_formed_names_round_trip(
        label in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        other in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        domain in "[a-z0-9._-]{1,255}",
        node in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    ) {
        prop_assert!(kinds(&label).contains(&"label"));
        let service = format!("{label}.{other}");
        prop_assert!(kinds(&service).contains(&"service"));
        prop_assert!(kinds(&node).contains(&"uuid"));
        prop_assert!(kinds(&domain).contains(&"domain"));
        let workload = format!("spiffe://{domain}/ns/{label}/sa/{other}");
        let of_node = format!("spiffe://{domain}/node/{node}");
        prop_assert_eq!(kinds(&workload), ["spiffe"]);
        prop_assert_eq!(kinds(&of_node), ["spiffe"]);
    }
}
