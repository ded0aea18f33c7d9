use super::*;

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: shop }
spec:
  parentRefs: [{ group: '', kind: Service, name: orders, port: 80 }]
  rules:
    - matches: [{ path: { type: PathPrefix, value: /v2 } }]
      filters:
        - type: URLRewrite
          urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } }
      backendRefs: [{ name: orders-v2, port: 80, weight: 3 }]
      timeouts: { request: 2s, backendRequest: 500ms }
";

fn one(text: &str) -> Result<Vec<Manifest>, String> {
    read(text, "orders.yaml").map_err(|error| error.to_string())
}

#[test]
fn streams_lists_and_empty_documents() {
    let list = format!(
        "---\n{ROUTE}---\n---\nkind: List\napiVersion: v1\nitems:\n- {}",
        ROUTE.trim().replace('\n', "\n  ").replace("name: orders,", "name: other,")
    );
    let found = one(&list).unwrap();
    let names: Vec<String> = found.iter().map(|m| m.name.to_string()).collect();
    assert_eq!(names, ["HTTPRoute shop/orders", "HTTPRoute shop/other"]);
    assert_eq!(one("").unwrap(), []);
    let json = serde_json::to_string(&found[0].document).unwrap();
    assert_eq!(one(&json).unwrap()[0], found[0], "what is kept reads as what was written");
}

#[test]
fn kinds_as_people_type_them() {
    let cases = [
        ("httproute", Some(Kind::HTTPRoute)),
        ("HTTPRoutes", Some(Kind::HTTPRoute)),
        ("sp", Some(Kind::ServiceProfile)),
        ("serviceprofiles", Some(Kind::ServiceProfile)),
        ("trafficpolicies", Some(Kind::TrafficPolicy)),
        ("trafficpolicy", Some(Kind::TrafficPolicy)),
        ("pod", None),
        ("", None),
        ("s", None),
    ];
    for (typed, wanted) in cases {
        assert_eq!(Kind::from_typed(typed), wanted, "{typed}");
    }
}

/// Each mistake names its place and field.
#[test]
fn mistakes_are_named() {
    let change = |from: &str, to: &str| {
        assert!(ROUTE.contains(from), "{from}");
        one(&ROUTE.replace(from, to)).unwrap_err()
    };
    let cases = [
        (change("HTTPRoute", "HTTPRout"), "did you mean HTTPRoute?"),
        (change("k8s.io/v1", "k8s.io/v3"), "apiVersion: a HTTPRoute is of"),
        (change("name: orders,", "name: Orders,"), "metadata.name: \"Orders\" is no DNS name"),
        (change("matches:", "match:"), "spec.rules[0].match: unknown field"),
        (change("matches:", "matchs:"), "did you mean `matches`?"),
        (change("PathPrefix", "Prefix"), "did you mean `PathPrefix`?"),
        (change("value: /v2", "value: v2"), "matches.path: must begin with '/'"),
        (change("weight: 3", "weight: -3"), "spec.rules[0]"),
        (change("2s", "2 parsecs"), "spec.rules[0].timeouts.request"),
        (change("500ms", "5s"), "timeouts.backendRequest: is longer"),
        (change("URLRewrite", "URLRewrit"), "did you mean `URLRewrite`?"),
        (change("[{ group: '', kind: Service, name: orders, port: 80 }]", "[]"), "spec.parentRefs"),
        (change("PathPrefix", "Exact"), "needs every match to be a path prefix"),
        (one("a: [").unwrap_err(), "orders.yaml:"),
        (one("kind: HTTPRoute").unwrap_err(), "missing field `apiVersion`"),
    ];
    for (error, wanted) in cases {
        assert!(error.contains(wanted), "{error}\nlacks {wanted}");
        assert!(error.starts_with("orders.yaml"), "{error}");
    }
}

#[test]
fn floods_are_refused() {
    let many = format!("---\n{ROUTE}").repeat(MAX_DOCUMENTS + 1);
    assert!(one(&many).unwrap_err().contains("split it"));
    assert!(one(&" ".repeat(MAX_BYTES + 1)).unwrap_err().contains("split it"));
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n".to_owned()
        + "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
        + "e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
        + "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    assert!(one(&bomb).is_err());
}
