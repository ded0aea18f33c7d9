//! What documents about callers do, each seen from a client.

use super::effects::{Family, family, route};
use super::scene::{Answer, Scene};

/// Who calls `orders.shop` in a scene.
const CALLER: &str = "spiffe://west.example/ns/shop/sa/checkout";

fn is(answer: &Answer, reason: &str) -> bool {
    answer.status == 403 && answer.field("isthmus-error") == reason
}

fn passes(answer: &Answer) -> bool {
    answer.status == 200 && answer.body == "orders"
}

fn document(kind: &str, spec: &str) -> String {
    let version = if kind == "Server" { "v1beta3" } else { "v1alpha1" };
    format!(
        "apiVersion: policy.linkerd.io/{version}\nkind: {kind}\n\
         metadata: {{ name: guard, namespace: shop }}\nspec:\n{spec}\n"
    )
}

/// Of the ports of `orders.shop` the one for HTTP.
pub(crate) fn server(access: &str) -> String {
    let labels = "externalWorkloadSelector: { matchLabels: { isthmus.io/service: orders } }";
    document("Server", &format!("  {labels}\n  port: http\n  accessPolicy: {access}"))
}

pub(crate) fn identities(identity: &str) -> String {
    document("MeshTLSAuthentication", &format!("  identities: ['{identity}']"))
}

fn networks(block: &str) -> String {
    document("NetworkAuthentication", &format!("  networks: [{{ cidr: {block} }}]"))
}

/// For a target, with the authentications of these kinds.
fn policy(target: &str, kinds: &[&str]) -> String {
    let one =
        |kind: &&str| format!("    - {{ group: policy.linkerd.io, kind: {kind}, name: guard }}");
    let refs: Vec<String> = kinds.iter().map(one).collect();
    let spec =
        format!("  targetRef: {{ {target} }}\n  requiredAuthenticationRefs:\n{}", refs.join("\n"));
    document("AuthorizationPolicy", &spec)
}

fn all(documents: &[String]) -> String {
    documents.join("---\n")
}

const SERVICE: &str = "kind: Service, name: orders";

pub(crate) const GUARDS: &[Family] = &[
    family(
        "policy by identity",
        || all(&[policy(SERVICE, &["MeshTLSAuthentication"]), identities("ns/ops/*")]),
        |scene| Box::pin(async move { is(&scene.get("/").await, "denied_no_rule") }),
    ),
    family(
        "policy of a namespace",
        || {
            let target = "kind: Namespace, name: shop";
            all(&[policy(target, &["MeshTLSAuthentication"]), identities("ns/ops/sa/web")])
        },
        |scene| Box::pin(async move { is(&scene.get("/").await, "denied_no_rule") }),
    ),
    family("policy by network", by_network, |scene| {
        Box::pin(async move { is(&scene.get("/").await, "denied_network") })
    }),
    family("policy by route", by_route, |scene| {
        Box::pin(async move {
            let closed = is(&scene.get("/admin/x").await, "denied_no_rule");
            closed && passes(&scene.get("/other").await)
        })
    }),
    family(
        "Server: deny",
        || server("deny"),
        |scene| Box::pin(async move { is(&scene.get("/").await, "denied_no_rule") }),
    ),
    family(
        "Server: audit",
        || server("audit"),
        |scene| Box::pin(async move { passes(&scene.get("/").await) && is_audited(scene) }),
    ),
    family(
        "plaintext by Server",
        || server("all-unauthenticated"),
        |scene| Box::pin(async move { passes(&scene.plain("/").await) }),
    ),
    family(
        "plaintext by network",
        || all(&[policy(SERVICE, &["NetworkAuthentication"]), networks("127.0.0.0/8")]),
        |scene| Box::pin(async move { passes(&scene.plain("/").await) }),
    ),
];

fn by_network() -> String {
    let both = policy(SERVICE, &["MeshTLSAuthentication", "NetworkAuthentication"]);
    all(&[both, identities("*"), networks("192.0.2.0/24")])
}

fn by_route() -> String {
    let backend = "backendRefs: [{ name: orders, port: 80 }]";
    let admin = format!("- {{ matches: [{{ path: {{ value: /admin }} }}], {backend} }}");
    let target = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: admin";
    all(&[
        route("HTTPRoute", "admin", &admin),
        route("HTTPRoute", "rest", &format!("- {{ {backend} }}")),
        policy(target, &["MeshTLSAuthentication"]),
        identities("ns/ops/*"),
    ])
}

/// What an operator is told of it.
fn is_audited(scene: &Scene) -> bool {
    scene.world.meshctl(&["why", CALLER, "orders.shop:http"]).contains("audited only")
}
