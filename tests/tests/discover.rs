//! `meshctl migrate plan --discover`: what registries say becomes pools, and a second plan
//! from what was kept is the same. Registries are servers of this test that answer as the
//! real ones do.

#[path = "discover/servers.rs"]
mod servers;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use servers::{Http, closed_port, dns, zookeeper};

fn migrate(directory: &Path, arguments: &[&str]) -> Output {
    let test = std::env::current_exe().expect("a path of this test");
    let program = test.ancestors().nth(2).expect("below target/<profile>/deps").join("meshctl");
    assert!(program.exists(), "meshctl is missing: cargo build --workspace --bins");
    let mut command = Command::new(program);
    command.current_dir(directory).env("POD_NAMESPACE", "prod");
    command.arg("migrate").args(arguments).output().expect("meshctl runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A configuration and its plan.
struct Planned {
    directory: tempfile::TempDir,
}

impl Planned {
    /// Plans with `--discover`, then again with what was kept: both must be the same.
    fn of(config: &str, more: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("linkerd.yaml");
        std::fs::write(file, config).expect("is written");
        let plan = ["plan", "--from", "linkerd1", "linkerd.yaml"];
        let first = [&plan[..], more, &["--discover", "-o", "one"]].concat();
        let output = migrate(directory.path(), &first);
        assert!(output.status.success(), "{}", said(&output));
        let kept = ["--discovery", "one/discovery.yaml", "-o", "two"];
        let output = migrate(directory.path(), &[&plan[..], more, &kept].concat());
        assert!(output.status.success(), "{}", said(&output));
        let planned = Self { directory };
        for name in
            ["proxy.yaml", "site.yaml", "rules.yaml", "report.md", "report.json", "report.html"]
        {
            assert_eq!(
                planned.file(&format!("one/{name}")),
                planned.file(&format!("two/{name}")),
                "{name}"
            );
        }
        planned
    }

    fn file(&self, name: &str) -> String {
        let path: PathBuf = self.directory.path().join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn found(&self) -> String {
        self.file("one/discovery.yaml")
    }
}

fn router(dtab: &str) -> String {
    format!("routers:\n- protocol: http\n  servers: [{{port: 4140}}]\n  dtab: |\n    {dtab}\n")
}

#[test]
fn consul_says_who_is_healthy() {
    let check = |id: &str, status: &str| {
        format!(
            r#"{{"Node":"n1","CheckID":"{id}","Name":"c","Status":"{status}","Output":"","ServiceID":""}}"#
        )
    };
    let instance = |node: &str, own: &str, port: u16, tags: &str, checks: &[String]| {
        format!(
            r#"{{"Node":{{"ID":"x","Node":"n1","Address":"{node}","Datacenter":"dc1","Meta":{{}}}},
            "Service":{{"ID":"web-1","Service":"web","Tags":{tags},"Address":"{own}","Port":{port},
            "Weights":{{"Passing":1,"Warning":1}}}},"Checks":[{}]}}"#,
            checks.join(",")
        )
    };
    let web = [
        instance("10.0.0.5", "", 8080, "null", &[check("serfHealth", "passing")]),
        instance(
            "10.0.0.6",
            "10.1.0.6",
            9090,
            r#"["big"]"#,
            &[check("a", "passing"), check("b", "passing")],
        ),
        instance("10.0.0.7", "", 8080, "[]", &[check("a", "passing"), check("b", "critical")]),
        instance("10.0.0.8", "", 8080, "[]", &[check("_node_maintenance", "critical")]),
    ];
    let consul = Http::serve(vec![
        ("/v1/catalog/datacenters", r#"["dc2","dc1"]"#.into()),
        ("/v1/catalog/services?dc=dc1&stale", r#"{"consul":[],"web":["big"],"Mail":[]}"#.into()),
        ("/v1/health/service/web?dc=dc1&stale", format!("[{}]", web.join(","))),
        ("/v1/health/service/Mail?dc=dc1&stale", "[]".into()),
    ]);
    let config = format!(
        "namers:\n- kind: io.l5d.consul\n  host: 127.0.0.1\n  port: {}\n  token: s3cret\n  useHealthCheck: true\n  \
         consistencyMode: stale\n  weights: [{{tag: big, weight: 3}}]\n- kind: io.l5d.rancher\n{}",
        consul.port,
        router("/svc => /#/io.l5d.consul/dc1")
    );
    let planned = Planned::of(&config, &[]);
    let expected = format!(
        "names:\n  \"/#/io.l5d.consul/dc1/consul\": null\n  \"/#/io.l5d.consul/dc1/mail\": []\n  \
         \"/#/io.l5d.consul/dc1/web\": [\"10.0.0.5:8080\", \"10.1.0.6:9090*3\"]\nunread:\n  \
         \"/#/io.l5d.consul\": \"http://127.0.0.1:{}/v1/health/service/consul?dc=dc1&stale: answers 404 Not Found\"\n",
        consul.port
    );
    assert_eq!(planned.found(), expected);
    let site = planned.file("one/site.yaml");
    assert!(site.contains("10.0.0.5:8080") && site.contains("10.1.0.6:9090"), "{site}");
    assert!(!site.contains("10.0.0.7"), "{site}");
    let report = planned.file("one/report.md");
    assert!(report.contains("not all of /#/io.l5d.consul was read"), "{report}");
    let asked = consul.asked();
    assert!(asked.iter().all(|head| head.contains("x-consul-token: s3cret\r\n")), "{asked:?}");
    for name in ["site.yaml", "proxy.yaml", "discovery.yaml"] {
        assert!(!planned.file(&format!("one/{name}")).contains("s3cret"), "{name}");
    }
}

#[test]
fn consul_knows_tags_and_tables() {
    let node = |ip: &str, tags: &str| {
        format!(
            r#"{{"ID":"x","Node":"n1","Address":"{ip}","Datacenter":"dc1","ServiceID":"web-1","ServiceName":"web",
            "ServiceTags":{tags},"ServiceAddress":"10.9.9.9","ServicePort":80}}"#
        )
    };
    let web = format!("[{},{}]", node("10.0.0.1", r#"["V1"]"#), node("10.0.0.2", r#"["v2","V1"]"#));
    let consul = Http::serve(vec![
        ("/v1/kv/namerd/dtabs/prod?raw", "/svc => /#/c/.local/v1 ; /svc/none => ! ;".into()),
        ("/v1/catalog/datacenters", r#"["dc1"]"#.into()),
        ("/v1/catalog/services?", r#"{"web":["V1","v2"],"db":["v3"]}"#.into()),
        ("/v1/catalog/service/web?", web),
    ]);
    let at = format!("host: 127.0.0.1, port: {}", consul.port);
    let config = format!(
        "namers:\n- {{kind: io.l5d.consul, prefix: /c, includeTag: true, preferServiceAddress: false, {at}}}\n\
         routers:\n- protocol: http\n  servers: [{{port: 4140}}]\n  interpreter: {{kind: io.l5d.consul.interpreter, namespace: prod, {at}}}\n"
    );
    let planned = Planned::of(&config, &[]);
    assert_eq!(
        planned.found(),
        "names:\n  \"/#/c/.local/v1/web\": [\"10.0.0.1:80\", \"10.0.0.2:80\"]\ndtabs:\n  \"prod\": |\n    \
         /svc => /#/c/.local/v1 ;\n    /svc/none => ! ;\n"
    );
    assert!(planned.file("one/site.yaml").contains("10.0.0.2:80"));
}

#[test]
fn namerd_binds_what_is_used() {
    let leaf = r#"{"type":"leaf","path":"/svc/web","bound":{"id":"/#/io.l5d.consul/dc1/web","path":"/",
        "addr":{"type":"bound","addrs":[{"ip":"10.0.0.7","port":80,"meta":{}}],"meta":{}}}}"#;
    let listed =
        leaf.replace("io.l5d.consul/dc1/web", "io.l5d.fs/x").replace("10.0.0.7", "10.0.0.8");
    let namerd = Http::serve(vec![
        (
            "/api/1/dtabs/prod",
            r#"[{"prefix":"/svc","dst":"/#/io.l5d.consul/dc1 | /#/io.l5d.fs"}]"#.into(),
        ),
        ("/api/1/bound-names", r#"["/#/io.l5d.fs/x","/#/io.l5d.other/y"]"#.into()),
        (
            "/api/1/bind/prod?path=%2F%23%2Fio.l5d.consul%2Fdc1",
            r#"{"type":"neg","path":null}"#.into(),
        ),
        ("/api/1/bind/prod?path=%2F%23%2Fio.l5d.fs", r#"{"type":"neg","path":null}"#.into()),
        ("/api/1/bind/prod?path=%2F%23%2Fio.l5d.fs%2Fx", listed),
        ("/api/1/bind/prod?path=%2Fsvc%2Fweb", leaf.into()),
    ]);
    let config = format!(
        "routers:\n- protocol: http\n  servers: [{{port: 4140}}]\n  interpreter:\n    kind: io.l5d.namerd.http\n    \
         experimental: true\n    dst: /$/inet/127.0.0.1/{}\n    namespace: prod\n",
        namerd.port
    );
    let planned = Planned::of(&config, &["--name", "/svc/web"]);
    let site = planned.file("one/site.yaml");
    assert!(site.contains("10.0.0.7:80") && site.contains("10.0.0.8:80"), "{site}");
    assert!(!planned.found().contains("unread"), "{}", planned.found());
}

#[test]
fn who_does_not_answer_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let port = closed_port();
    let dead = format!("namers:\n- kind: io.l5d.consul\n  host: 127.0.0.1\n  port: {port}\n");
    let config = dead.clone() + &router("/svc => /#/io.l5d.consul/dc1");
    std::fs::write(directory.path().join("linkerd.yaml"), &config).unwrap();
    let plan = ["plan", "--from", "linkerd1", "linkerd.yaml", "--discover", "--out", "out"];
    let output = migrate(directory.path(), &plan);
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    let text = said(&output);
    let expected = format!("linkerd.yaml:2:3: http://127.0.0.1:{port}/v1/catalog/datacenters: ");
    assert!(text.contains(&expected) && text.contains("--discovery FILE"), "{text}");
    assert!(!directory.path().join("out").exists(), "nothing is written");

    // Another answers: the plan goes on, and says what it lacks.
    let other = Http::serve(vec![
        ("/v1/catalog/datacenters", r#"["dc1"]"#.into()),
        ("/v1/catalog/services?dc=dc1", "no JSON".into()),
    ]);
    let good = Http::serve(vec![
        ("/v1/catalog/datacenters", r#"["dc1"]"#.into()),
        ("/v1/catalog/services?dc=dc1", "{}".into()),
    ]);
    let more = |prefix: &str, port: u16| {
        format!("- {{kind: io.l5d.consul, prefix: {prefix}, host: 127.0.0.1, port: {port}}}\n")
    };
    let config = dead
        + &more("/b", other.port)
        + &more("/c", good.port)
        + "- {kind: com.example.plugin, prefix: /p}\n- {kind: io.l5d.consul, prefix: /t, tls: {commonName: c}}\n"
        + &router("/svc => /#/io.l5d.consul | /#/b | /#/c | /#/p | /#/t");
    let report = Planned::of(&config, &[]).file("one/report.md");
    for what in ["/#/io.l5d.consul", "/#/b", "/#/p", "/#/t"] {
        assert!(report.contains(&format!("not all of {what} was read")), "{what}: {report}");
    }
    assert!(report.contains("says something else") && report.contains("with TLS"), "{report}");

    std::fs::write(directory.path().join("a.cfg"), "").unwrap();
    let output = migrate(directory.path(), &["plan", "--from", "haproxy", "a.cfg", "--discover"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let both = [&plan[..], &["--discovery", "a.cfg"]].concat();
    assert_eq!(migrate(directory.path(), &both).status.code(), Some(2));
}

#[test]
fn kubernetes_has_ports_by_name_and_number() {
    let endpoints = r#"{"kind":"EndpointsList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[
      {"metadata":{"name":"web","namespace":"prod","labels":{"version":"V1"}},
       "subsets":[{"addresses":[{"ip":"10.2.0.2","nodeName":"n1"},{"ip":"10.2.0.1"}],
                   "notReadyAddresses":[{"ip":"10.2.0.9"}],
                   "ports":[{"name":"http","port":8080,"protocol":"TCP"},{"name":"dns","port":53,"protocol":"UDP"}]}]},
      {"metadata":{"name":"empty","namespace":"prod"},
       "subsets":[{"notReadyAddresses":[{"ip":"10.2.0.8"}],"ports":[{"name":"http","port":1}]}]},
      {"metadata":{"name":"none","namespace":"prod"}}]}"#;
    let services = r#"{"kind":"ServiceList","items":[
      {"metadata":{"name":"web","namespace":"prod"},
       "spec":{"ports":[{"name":"http","port":80,"targetPort":"web","protocol":"TCP"}]},
       "status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"hostname":"lb.example"}]}}}]}"#;
    let api = Http::serve(vec![
        ("/api/v1/namespaces/prod/endpoints", endpoints.into()),
        ("/api/v1/namespaces/prod/services", services.into()),
    ]);
    let at = format!("host: 127.0.0.1, port: {}", api.port);
    let config = format!(
        "namers:\n- {{kind: io.l5d.k8s, {at}}}\n- {{kind: io.l5d.k8s.ns, prefix: /ns, labelSelector: version, {at}}}\n\
         - {{kind: io.l5d.k8s.external, prefix: /ext, experimental: true, {at}}}\n{}",
        router(
            "/svc => /#/io.l5d.k8s/prod/http | /#/io.l5d.k8s/prod/80 | /#/ns/http | /#/ext/prod/80 ;"
        )
    );
    let planned = Planned::of(&config, &[]);
    let both = "[\"10.2.0.1:8080\", \"10.2.0.2:8080\"]";
    assert_eq!(
        planned.found(),
        format!(
            "names:\n  \"/#/ext/prod/80/web\": [\"192.0.2.1:80\", \"lb.example:80\"]\n  \
             \"/#/io.l5d.k8s/prod/80/web\": {both}\n  \"/#/io.l5d.k8s/prod/http/empty\": null\n  \
             \"/#/io.l5d.k8s/prod/http/web\": {both}\n  \"/#/ns/http/web/v1\": {both}\n"
        )
    );
    assert!(planned.file("one/site.yaml").contains("10.2.0.1:8080"));
}

#[test]
fn marathon_has_tasks() {
    let apps = r#"{"apps":[
      {"id":"/prod/web","healthChecks":[{"protocol":"HTTP"}],"tasks":[
        {"id":"t1","host":"agent-2","ports":[31002,31003],"state":"TASK_RUNNING","healthCheckResults":[{"alive":true}]},
        {"id":"t2","host":"10.3.0.1","ports":[31001],"healthCheckResults":[{"alive":false}]},
        {"id":"t3","host":"10.3.0.2","ports":[],"healthCheckResults":[{"alive":true}]}]},
      {"id":"/prod/own","ipAddress":{"discovery":{"ports":[{"number":8080,"name":"http"}]}},"tasks":[
        {"id":"t4","host":"10.3.0.3","ports":[0],"ipAddresses":[{"ipAddress":"9.0.0.1","protocol":"IPv4"}]}]},
      {"id":"/test/web","tasks":[]}]}"#;
    let marathon = Http::serve(vec![("/marathon/v2/apps?embed=apps.tasks", apps.into())]);
    let config = format!(
        "namers:\n- kind: io.l5d.marathon\n  host: 127.0.0.1\n  port: {}\n  uriPrefix: /marathon\n  useHealthCheck: true\n{}",
        marathon.port,
        router("/svc => /#/io.l5d.marathon/prod")
    );
    let planned = Planned::of(&config, &[]);
    assert_eq!(
        planned.found(),
        "names:\n  \"/#/io.l5d.marathon/prod/own\": [\"9.0.0.1:8080\"]\n  \
         \"/#/io.l5d.marathon/prod/web\": [\"agent-2:31002\"]\n"
    );
    assert!(planned.file("one/site.yaml").contains("9.0.0.1:8080"));
}

#[test]
fn dns_is_asked_for_what_is_used() {
    let port = dns(&[
        (
            "_http._tcp.web.corp",
            &[("b.web.corp", 8080, None), ("a.web.corp", 8081, Some([10, 4, 0, 1]))],
        ),
        ("_http._tcp.api.corp", &[("10.4.0.2", 80, None)]),
    ]);
    let config = format!(
        "namers:\n- kind: io.l5d.dnssrv\n  experimental: true\n  dnsHosts: [\"127.0.0.1:{port}\"]\n{}",
        router("/svc => /#/io.l5d.dnssrv ; /svc/api => /#/io.l5d.dnssrv/_http._tcp.api.corp ;")
    );
    let names = ["--name", "/svc/_http._tcp.web.corp", "--name", "/svc/_http._tcp.gone.corp"];
    let planned = Planned::of(&config, &names);
    let found = planned.found();
    assert!(
        found.starts_with(
            "names:\n  \"/#/io.l5d.dnssrv/_http._tcp.api.corp\": [\"10.4.0.2:80\"]\n  \
             \"/#/io.l5d.dnssrv/_http._tcp.gone.corp\": []\n  \
             \"/#/io.l5d.dnssrv/_http._tcp.web.corp\": [\"10.4.0.1:8081\", \"b.web.corp:8080\"]\nunread:\n"
        ),
        "{found}"
    );
    assert!(found.contains("up to requests"), "{found}");
}

#[test]
fn zookeeper_has_members() {
    let member = |host: &str, status: &str| {
        format!(
            r#"{{"serviceEndpoint":{{"host":"{host}","port":80}},"additionalEndpoints":{{"admin":{{"host":"{host}","port":81}}}},"status":"{status}","shard":0}}"#
        )
    };
    let port = zookeeper(&[
        ("/discovery/prod/web/member_0000000001", &member("10.5.0.2", "ALIVE")),
        ("/discovery/prod/web/member_0000000000", &member("10.5.0.1", "ALIVE")),
        ("/discovery/prod/web/member_0000000002", &member("10.5.0.3", "DEAD")),
        ("/discovery/prod/jobs/cron/member_0000000000", &member("10.5.0.4", "ALIVE")),
        ("/discovery/test/web/member_0000000000", &member("10.5.0.9", "ALIVE")),
        ("/discovery/prod/closed/member_0000000000", "closed"),
        ("/zookeeper/quota", ""),
    ]);
    let config = format!(
        "namers:\n- kind: io.l5d.serversets\n  zkAddrs:\n  - {{host: 127.0.0.1, port: {}}}\n  - {{host: 127.0.0.1, port: {port}}}\n{}",
        closed_port(),
        router(
            "/svc => /#/io.l5d.serversets/discovery/prod ; /svc/deep => /#/io.l5d.serversets/discovery/prod/web/a/b ;"
        )
    );
    let planned = Planned::of(&config, &[]);
    let found = planned.found();
    let (names, unread) = found.split_once("unread:").expect("one may not be read");
    assert!(unread.contains("closed/member_0000000000: not everybody may read it"), "{unread}");
    assert_eq!(
        names,
        "names:\n  \"/#/io.l5d.serversets/discovery/prod/closed\": null\n  \"/#/io.l5d.serversets/discovery/prod/jobs/cron\": [\"10.5.0.4:80\"]\n  \
         \"/#/io.l5d.serversets/discovery/prod/jobs/cron:admin\": [\"10.5.0.4:81\"]\n  \
         \"/#/io.l5d.serversets/discovery/prod/web\": [\"10.5.0.1:80\", \"10.5.0.2:80\"]\n  \
         \"/#/io.l5d.serversets/discovery/prod/web:admin\": [\"10.5.0.1:81\", \"10.5.0.2:81\"]\n"
    );
    assert!(planned.file("one/site.yaml").contains("10.5.0.2:80"));
}
