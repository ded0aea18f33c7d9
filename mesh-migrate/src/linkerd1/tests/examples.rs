//! Configurations as the examples of Linkerd have them.

use super::{
    super::{config::Config, convert::convert, explain::delegate, world::*},
    conversion::{both, gist, populated},
    no_files,
    rules::get,
};
use crate::{
    ledger::Verdict,
    request::{Outcome, Request},
    source::Source,
};

/// A service mesh on Kubernetes, a Linkerd on each node.
const DAEMONSET: &str = r#"
admin: {ip: 0.0.0.0, port: 9990}
namers:
- kind: io.l5d.k8s
  prefix: /io.l5d.k8s.http
  transformers:
  - {kind: io.l5d.k8s.daemonset, namespace: l5d, port: http-incoming, service: l5d}
- {kind: io.l5d.k8s, prefix: /io.l5d.k8s.local, transformers: [{kind: io.l5d.k8s.localnode}]}
- kind: io.l5d.rewrite
  prefix: /portNsSvcToK8s
  pattern: "/{port}/{ns}/{svc}"
  name: "/k8s/{ns}/{port}/{svc}"
routers:
- label: http-outgoing
  protocol: http
  servers: [{port: 4140, ip: 0.0.0.0}]
  dtab: |
    /ph  => /$/io.buoyant.rinet ;
    /svc => /ph/80 ;
    /svc => /$/io.buoyant.porthostPfx/ph ;
    /k8s => /#/io.l5d.k8s.http ;
    /portNsSvc => /#/portNsSvcToK8s ;
    /host => /portNsSvc/http/default ;
    /host => /portNsSvc/http ;
    /svc => /$/io.buoyant.http.domainToPathPfx/host ;
  client:
    kind: io.l5d.static
    configs:
    - prefix: "/$/io.buoyant.rinet/443/{service}"
      tls: {commonName: "{service}"}
- label: http-incoming
  protocol: http
  servers: [{port: 4141, ip: 0.0.0.0}]
  dtab: |
    /k8s => /#/io.l5d.k8s.local ;
    /portNsSvc => /#/portNsSvcToK8s ;
    /host => /portNsSvc/http/default ;
    /host => /portNsSvc/http ;
    /svc => /$/io.buoyant.http.domainToPathPfx/host ;
"#;

fn at(listener: &str, host: &str) -> Request {
    Request { listener: Some(listener.into()), ..get(host, "/", &[]) }
}

fn cluster() -> World {
    let mut world = World::of_names([
        "/#/io.l5d.k8s.http/default/http/hello",
        "/#/io.l5d.k8s.http/prod/http/web",
        "/#/io.l5d.k8s.local/default/http/hello",
        "/#/io.l5d.k8s/l5d/http-incoming/l5d",
    ]);
    populated(&mut world);
    world
}

#[test]
fn a_daemonset_mesh() {
    let config = Config::read(&Source::of("l", DAEMONSET)).unwrap();
    let mut world = cluster();
    world.environment.insert("POD_IP".into(), "10.9.0.77".into());
    let daemonset = "/%/io.l5d.k8s.daemonset/l5d/http-incoming/l5d/#/io.l5d.k8s.http";
    for (router, host, service, client) in [
        ("http-outgoing", "hello", "/svc/hello", format!("{daemonset}/default/http/hello")),
        ("http-outgoing", "web.prod", "/svc/web.prod", format!("{daemonset}/prod/http/web")),
        (
            "http-outgoing",
            "example.com",
            "/svc/example.com",
            "/$/io.buoyant.rinet/80/example.com".into(),
        ),
        (
            "http-outgoing",
            "example.com:443",
            "/svc/example.com:443",
            "/$/io.buoyant.rinet/443/example.com".into(),
        ),
        (
            "http-incoming",
            "hello",
            "/svc/hello",
            "/%/io.l5d.k8s.localnode/10.9.0.77/#/io.l5d.k8s.local/default/http/hello".into(),
        ),
        ("http-incoming", "web.prod", "/svc/web.prod", "NEG".into()),
    ] {
        let found = delegate(&config, &world, &no_files, &at(router, host)).unwrap();
        assert_eq!(found.service.as_ref().unwrap().to_string(), service);
        assert_eq!(found.bound[0].client.to_string(), client, "{found}");
    }
    let tls =
        delegate(&config, &world, &no_files, &at("http-outgoing", "example.com:443")).unwrap();
    assert_eq!(tls.client_policy()["tls"]["commonName"], "example.com");
    let (program, ledger) = convert(&config, &world, &no_files, &[]);
    // The hop to the daemonset is gone: pools hold the pods that it would have sent to.
    for (host, name) in [
        ("hello", "/#/io.l5d.k8s.http/default/http/hello"),
        ("hello.default", "/#/io.l5d.k8s.http/default/http/hello"),
        ("web.prod", "/#/io.l5d.k8s.http/prod/http/web"),
    ] {
        let (legacy, ours) = both(&config, &world, &program, &at("http-outgoing", host));
        let Outcome::Forwarded(to) = &ours.outcome else { panic!("{host}: {ours:?}") };
        let pods = world.names[name].as_ref().unwrap();
        assert_eq!(to.endpoints[0].0, pods[0].0, "{host}");
        assert_ne!(gist(&legacy, true), gist(&ours, true), "{host}");
    }
    let anybody = ledger.entries().into_iter().any(|entry| {
        matches!(&entry.verdict, Verdict::Decision { question, .. }
            if question.contains("any name goes to /$/io.buoyant.rinet/80/<any>"))
    });
    assert!(anybody, "{:#?}", ledger.entries());
}

#[test]
fn an_ingress_controller() {
    let yaml = "routers:\n- protocol: http\n  label: i\n  servers: [{port: 80, ip: 0.0.0.0}]\n  identifier: {kind: io.l5d.ingress}\n  \
        dtab: /svc => /#/io.l5d.k8s\nnamers: [{kind: io.l5d.k8s}]\n";
    let config = Config::read(&Source::of("l", yaml)).unwrap();
    let mut world = World::of_names(["/#/io.l5d.k8s/prod/http/web", "/#/io.l5d.k8s/prod/80/rest"]);
    populated(&mut world);
    let lost = convert(&config, &world, &no_files, &[]).1;
    assert!(
        lost.entries()
            .iter()
            .any(|entry| matches!(&entry.verdict, Verdict::Decision { question, .. }
        if question.contains("the rules of Ingresses are not known")))
    );
    let rule = IngressRule {
        host: Some("web.corp".into()),
        path: Some("/a/.*".into()),
        service: "web".into(),
        port: "http".into(),
    };
    let default_backend = Some(("rest".into(), "80".into()));
    let ingress =
        Ingress { namespace: "prod".into(), class: None, rules: vec![rule], default_backend };
    world.ingresses = Some(vec![ingress]);
    let (program, _) = convert(&config, &world, &no_files, &[]);
    for (host, target) in
        [("web.corp", "/a/x"), ("web.corp:80", "/a/"), ("web.corp", "/a"), ("x", "/a/x")]
    {
        let request = Request { listener: Some("i".into()), ..get(host, target, &[]) };
        let (legacy, ours) = both(&config, &world, &program, &request);
        assert_eq!(gist(&legacy, true), gist(&ours, true), "{host} {target}");
        assert!(gist(&ours, true).contains("10.9."), "{}", gist(&ours, true));
    }
}
