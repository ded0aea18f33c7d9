use mesh_api::v1::{ManifestName, Service, resource::Resource as R};

use super::*;
use crate::{
    testing::{TestSite, short},
    view::{View, ViewConfig},
};

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: shop }
spec:
  parentRefs: [{ kind: Service, name: orders }]
  rules: [{ backendRefs: [{ name: orders }, { name: missing }] }]
";

const TLS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: { name: names, namespace: shop }
spec:
  parentRefs: [{ kind: Service, name: orders, port: 80 }]
  hostnames: ['*.example.com']
  rules: [{ backendRefs: [{ name: orders, port: 80 }, { name: missing, weight: 3 }] }]
";

const POLICY: &str = "
apiVersion: isthmus.io/v1
kind: TrafficPolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRef: { kind: Service, name: orders }
  balance: { subset: 3, affinity: { header: x-user } }
";

fn name() -> ManifestName {
    ManifestName { kind: "HTTPRoute".into(), namespace: "shop".into(), name: "orders".into() }
}

fn request(documents: &str) -> v1::ApplyManifestsRequest {
    v1::ApplyManifestsRequest {
        documents: documents.into(),
        source: "f.yaml".into(),
        dry_run: false,
    }
}

struct World {
    site: TestSite,
    view: View,
}

impl World {
    fn new() -> Self {
        let site = TestSite::new("west", &Default::default(), short());
        let view = View::new(site.site.authority.clone(), ViewConfig::default());
        Self { site, view }
    }

    async fn apply(&self, documents: &str) -> Result<Vec<v1::ManifestChange>, String> {
        let change = Change::read(&request(documents)).map_err(|error| error.to_string())?;
        let applied = change.apply(&self.site.site, &self.view, "local:0").await;
        applied.map(|answer| answer.changes).map_err(|status| status.message().to_owned())
    }

    fn state(&self) -> std::sync::Arc<State> {
        self.site.site.authority.state()
    }
}

#[tokio::test]
async fn documents_are_applied_changed_and_deleted() {
    let world = World::new();
    let first = world.apply(ROUTE).await.unwrap();
    assert_eq!(first[0].action, "created");
    assert_eq!(first[0].problems, ["NoMatchingParent: there is no service orders.shop yet"]);
    assert_eq!(world.apply(ROUTE).await.unwrap()[0].action, "unchanged");
    let revision = world.state().revision;
    let changed = world.apply(&ROUTE.replace("missing", "other")).await.unwrap();
    assert_eq!(changed[0].action, "configured");
    assert!(changed[0].before.contains("missing") && changed[0].after.contains("other"));
    assert_eq!(world.state().revision.n, revision.n + 1);
    delete(&world.site.site, "local:0", &[name()]).await.unwrap();
    assert!(world.state().manifests.is_empty());
    let again = delete(&world.site.site, "local:0", &[name()]).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
}

const ACCESS: &str = "
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRef: { kind: Service, name: orders }
  requiredAuthenticationRefs:
    - { group: policy.linkerd.io, kind: MeshTLSAuthentication, name: ops }
";

const OPS: &str = "
apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata: { name: ops, namespace: shop }
spec: { identities: [ns/ops/*] }
";

/// Each is seen with all others, those that come with it included.
#[tokio::test]
async fn what_a_policy_lacks_is_told_until_it_is_there() {
    let world = World::new();
    let lacks = |changes: &[v1::ManifestChange]| {
        let problems = changes.iter().flat_map(|change| &change.problems);
        problems.filter(|problem| problem.starts_with("RefNotResolved")).count()
    };
    assert_eq!(lacks(&world.apply(&format!("{ACCESS}---{OPS}")).await.unwrap()), 0);
    let ops = ManifestName { kind: "meshtlsauthn".into(), name: "ops".into(), ..name() };
    delete(&world.site.site, "local:0", &[ops]).await.unwrap();
    assert_eq!(lacks(&world.apply(ACCESS).await.unwrap()), 1);
    let state = world.state();
    let mut manifests = Manifests::of(&state);
    let ports = BTreeMap::from([("orders.shop".to_owned(), vec![("http".to_owned(), 80)])]);
    let compiled = manifests.compile("orders.shop", &ports, AccessPolicy::AllUnauthenticated);
    let rules = compiled.policy.unwrap().rules;
    assert!(rules.iter().all(|rule| rule.callers.is_empty() && !rule.anyone), "{rules:?}");
    assert_eq!(manifests.unused().count(), 1, "and `get` tells of it");
    drop(state);
    assert_eq!(lacks(&world.apply(OPS).await.unwrap()), 0);
    assert_eq!(lacks(&world.apply(ACCESS).await.unwrap()), 0);
}

#[tokio::test]
async fn all_of_them_or_none() {
    let world = World::new();
    let wrong = format!(
        "{ROUTE}---{}",
        ROUTE.replace("name: orders,", "name: b,").replace("rules", "rule")
    );
    let error = world.apply(&wrong).await.unwrap_err();
    assert!(error.contains("f.yaml, document 2: HTTPRoute shop/b: spec."), "{error}");
    let twice = world.apply(&format!("{ROUTE}---{ROUTE}")).await.unwrap_err();
    assert!(twice.contains("is there twice"), "{twice}");
    assert!(world.state().manifests.is_empty());
    let both = format!("{ROUTE}---{}", ROUTE.replace("name: orders,", "name: b,"));
    let dry = v1::ApplyManifestsRequest { dry_run: true, ..request(&both) };
    let dry = Change::read(&dry).unwrap().apply(&world.site.site, &world.view, "local:0").await;
    assert_eq!(dry.unwrap().changes.len(), 2);
    assert!(world.state().manifests.is_empty(), "only asked");
    let known = [name(), ManifestName { name: "none".into(), ..name() }];
    world.apply(ROUTE).await.unwrap();
    delete(&world.site.site, "local:0", &known).await.unwrap_err();
    assert_eq!(world.state().manifests.len(), 1);
}

/// What is applied survives a compacted log, its age included.
#[tokio::test]
async fn documents_survive_compaction() {
    let world = World::new();
    world.apply(ROUTE).await.unwrap();
    let state = world.state();
    let mut folded = State::default();
    for record in crate::authority::snapshot::records(&state, 0) {
        folded.fold(&record).unwrap();
    }
    assert_eq!(folded.manifests, state.manifests);
    assert!(folded.manifests.values().all(|manifest| manifest.read.is_ok()));
}

/// A document that this version refuses is kept, told of, and nothing else is
/// lost.
#[test]
fn what_is_not_understood_is_no_obstacle() {
    let mut state = State::default();
    let created = Event::SiteCreated(v1::SiteCreated {
        name: "west".into(),
        trust_domain: "west.example".into(),
        root: vec![1],
        restored: None,
    });
    let applied = Event::ManifestApplied(v1::ManifestApplied {
        document: "{\"kind\": \"HTTPRoute\"}".into(),
        name: Some(name()),
        created_unix_s: 1,
    });
    for (n, event) in [created, applied].into_iter().enumerate() {
        let revision = Some(v1::Revision { epoch: 1, n: n as u64 + 1 });
        let record = v1::AuthorityRecord { revision, event: Some(event), ..Default::default() };
        state.fold(&record).unwrap();
    }
    let problems: Vec<Problem> = Manifests::of(&state).unused().collect();
    assert_eq!(problems[0].document, "HTTPRoute shop/orders");
    assert!(problems[0].text.contains("apiVersion"), "{}", problems[0].text);
}

#[test]
fn operators_of_both_namespaces_may_change_a_consumer_route() {
    let consumer = ROUTE.replace("namespace: shop }", "namespace: web }").replace(
        "{ kind: Service, name: orders }",
        "{ kind: Service, name: orders, namespace: shop }",
    );
    let change = Change::read(&request(&consumer)).unwrap();
    assert_eq!(change.namespaces(), ["shop", "web"]);
}

async fn register(world: &World, service: &str) {
    const NODE: &str = "00000000-0000-4000-8000-000000000001";
    let joined = Event::NodeJoined(v1::NodeJoined { id: NODE.into(), ..Default::default() });
    let port = v1::Port { name: "http".into(), number: 80, protocol: 0 };
    let register = v1::Register {
        instance: "a".into(),
        service: service.into(),
        ports: vec![port],
        target_ports: vec![8080],
        ..Default::default()
    };
    let registered = Event::Registered(v1::EndpointRegistered {
        node: NODE.into(),
        spiffe_id: "spiffe://west.example/ns/shop/sa/orders".into(),
        register: Some(register),
        registered_at: 0,
    });
    let decide = |_: &State| Ok::<_, ManifestRefusal>((vec![joined, registered], ()));
    world.site.site.authority.commit("local:0", decide).await.unwrap();
}

/// What is applied is published with the service it is for.
#[tokio::test]
async fn documents_become_routes_of_their_service() {
    let world = World::new();
    register(&world, "orders.shop").await;
    world.apply(&format!("{ROUTE}---{POLICY}---{TLS}")).await.unwrap();
    let view = View::new(world.site.site.authority.clone(), ViewConfig::default());
    let published =
        view.snapshot().upsert.into_iter().find_map(|resource| match resource.resource {
            Some(R::Service(service)) => Some(service),
            _ => None,
        });
    let Service { routes, connection_routes, balance, .. } = published.unwrap();
    assert_eq!(balance.unwrap().subset, Some(3));
    let invalid: Vec<&str> = routes[0].backends.iter().map(|b| b.invalid.as_str()).collect();
    assert_eq!(invalid, ["", "BackendNotFound: there is no service missing.shop"]);
    let names = &connection_routes[0];
    assert_eq!((names.port.as_str(), names.tls), ("http", true));
    assert_eq!(names.hostnames, ["*.example.com"]);
    assert_eq!(names.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [1, 3]);
    let listed = list(&world.state(), &view, &ManifestName::default()).unwrap().manifests;
    assert_eq!(listed[0].services, ["orders.shop"]);
    assert_eq!(
        listed[0].problems,
        ["BackendNotFound: there is no service missing.shop; its share is answered with 500"]
    );
    let kind = ManifestName { kind: "tlsroutes".into(), ..Default::default() };
    let connections = list(&world.state(), &view, &kind).unwrap().manifests;
    assert_eq!(
        connections[0].problems,
        ["BackendNotFound: there is no service missing.shop; its share is refused"]
    );
    let kind = ManifestName { kind: "pod".into(), ..Default::default() };
    assert!(list(&world.state(), &view, &kind).is_err());
    let none = ManifestName { namespace: "web".into(), ..Default::default() };
    assert!(list(&world.state(), &view, &none).unwrap().manifests.is_empty());
}
