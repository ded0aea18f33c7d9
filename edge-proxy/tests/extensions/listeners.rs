//! How single listeners take requests.

use edge_proxy::config::{
    Forwarded, Manner, ServiceListener,
    manner::{Errors, PathForm, Paths, Underscores},
};

use super::{HERE, World, rules, support::listener};

async fn world(manner: Manner, routes: &str, policy: &str) -> World {
    let listener = ServiceListener { manner, ..listener("edge.shop", "http") };
    World::with(vec![listener], "", &rules(routes, policy)).await
}

const ROUTES: &str = "
        - name: admin
          matches: [{ path: { value: /admin } }]
          backendRefs: [{ name: b }]
        - name: cut
          matches: [{ path: { value: /cut } }]
          filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }]
          backendRefs: [{ name: c }]
        - name: moved
          matches: [{ path: { value: /moved } }]
          filters: [{ type: RequestRedirect, requestRedirect: { hostname: new.example } }]
        - name: rest
          backendRefs: [{ name: a }]";
const POLICY: &str = "      rules:
        - { name: admin, requestHeaders: { set: [{ name: x-url, value: '%{path} %{target}' }] } }";

#[tokio::test]
async fn rules_see_paths_decoded_and_applications_as_they_were_sent() {
    let paths = Paths { form: PathForm::Decoded, merge_slashes: true, forward_as_sent: true };
    let world = world(Manner { paths, ..Manner::default() }, ROUTES, POLICY).await;
    for (sent, body, asked) in [
        ("//admin?x=//", "b", "//admin?x=//"),
        ("/a/..//%61dmin/./x", "b", "/a/..//%61dmin/./x"),
        ("/a%2fb%2F..", "a", "/a%2fb%2F.."),
        ("/%63ut//a%20b%2f..%2Fc%3F?x", "c", "/c%3F?x"),
        ("/other/%2E", "a", "/other/%2E"),
        ("/admin", "b", "/admin"),
    ] {
        let (head, answered) = world.ask(HERE, "edge.example", &format!("GET {sent}")).await;
        assert_eq!(answered, body, "{sent}: {head}");
        let asked = format!("x-asked: GET {asked}\r").to_ascii_lowercase();
        assert!(format!("{head}\r").contains(&asked), "{sent}: {head}");
    }
    let (head, _) = world.ask(HERE, "edge.example", "GET /%61dmin").await;
    assert!(head.contains("x-url: </admin /%61dmin>"), "{head}");
    let (head, _) = world.ask(HERE, "edge.example:80", "GET //%6doved/x").await;
    assert!(head.contains("location: http://new.example//%6doved/x"), "{head}");
    for bad in ["/..", "/%00", "/%zz", "/a/../%2e%2e/b"] {
        let (head, _) = world.ask(HERE, "edge.example", &format!("GET {bad}")).await;
        assert!(head.starts_with("http/1.1 400"), "{bad}: {head}");
        assert!(head.contains("isthmus-error: bad_request"), "{bad}: {head}");
    }
}

#[tokio::test]
async fn applications_get_what_rules_have_seen() {
    let paths = Paths { form: PathForm::Rfc3986, merge_slashes: true, forward_as_sent: false };
    let world = world(Manner { paths, ..Manner::default() }, ROUTES, POLICY).await;
    for (sent, body, asked) in [
        ("//%61dmin/%2f?x=/../", "b", "/admin/%2f?x=/../"),
        ("/a/../admin", "b", "/admin"),
        ("/..", "a", "/"),
        ("/a\\..\\admin", "b", "/admin"),
    ] {
        let (head, answered) = world.ask(HERE, "edge.example", &format!("GET {sent}")).await;
        assert_eq!(answered, body, "{sent}: {head}");
        let asked = format!("x-asked: GET {asked}\r").to_ascii_lowercase();
        assert!(format!("{head}\r").contains(&asked), "{sent}: {head}");
    }
}

#[tokio::test]
async fn a_listener_tells_of_clients_in_its_own_way() {
    let manner = Manner {
        forwarded: Some(Forwarded::Replace),
        headers_with_underscores: Underscores::Drop,
        ..Manner::default()
    };
    let routes = "
        - name: all
          backendRefs: [{ name: a }]";
    let world = world(manner, routes, "      rules: []").await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nX_User: 1\r\nX-User: 2\r\nConnection: close\r\n\r\n";
    let head = world.raw([127, 0, 0, 9], request).await;
    assert!(head.contains("x-forwarded-for: <127.0.0.9>"), "{head}");
    assert!(head.contains("x_user: <>") && head.contains("x-user: <2>"), "{head}");
}

#[tokio::test]
async fn strangers_hear_of_no_address() {
    let routes = "
        - name: all
          backendRefs: [{ name: a }]";
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for (errors, is_told) in [(Errors::Full, true), (Errors::Brief, false)] {
        let manner = Manner { errors, ..Manner::default() };
        let mut world = world(manner, routes, "      rules: []").await;
        world.apps[0].take().unwrap().kill().await;
        let answer = world.raw([127, 0, 0, 9], request).await;
        assert!(answer.contains("isthmus-error: app_unreachable"), "{answer}");
        assert_eq!(answer.contains(&world.addrs[0].to_string()), is_told, "{answer}");
    }
}
