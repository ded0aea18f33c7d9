//! What the kubelet asks of a pod's containers: probes and hooks, which reach
//! them by the proxy, in plaintext and without an identity.

use std::collections::BTreeSet;

use serde_json::Value;

/// A port that is asked, and the path where it speaks HTTP in plaintext.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probe {
    pub(crate) port: u16,
    /// `None` where bytes are all that can be seen, or a connection is enough.
    pub(crate) path: Option<String>,
}

/// Of every container that goes on; what cannot be read is the API server's to
/// refuse.
pub(crate) fn probes(pod: &Value) -> BTreeSet<Probe> {
    const ACTIONS: [&str; 5] = [
        "/livenessProbe",
        "/readinessProbe",
        "/startupProbe",
        "/lifecycle/postStart",
        "/lifecycle/preStop",
    ];
    let all = |key: &str| pod.pointer(key).and_then(Value::as_array).into_iter().flatten();
    let goes_on = |container: &&Value| container["restartPolicy"] == "Always";
    let containers = all("/spec/containers").chain(all("/spec/initContainers").filter(goes_on));
    containers
        .flat_map(|container| {
            let actions = ACTIONS.iter().filter_map(|action| container.pointer(action));
            actions.filter_map(|action| probe(action, container))
        })
        .collect()
}

fn probe(action: &Value, container: &Value) -> Option<Probe> {
    let port = |of: &Value| number(&of["port"], container);
    // One that names a host goes there, and not to the pod.
    let is_here = |of: &Value| of["host"].as_str().is_none_or(str::is_empty);
    if let Some(http) = action.get("httpGet").filter(|http| http.is_object()) {
        let is_plain = http["scheme"].as_str().is_none_or(|scheme| scheme != "HTTPS");
        return is_here(http)
            .then_some(Probe { port: port(http)?, path: is_plain.then(|| path(http)) });
    }
    if let Some(tcp) = action.get("tcpSocket").filter(|tcp| tcp.is_object()) {
        return is_here(tcp).then_some(Probe { port: port(tcp)?, path: None });
    }
    let grpc = action.get("grpc").filter(|grpc| grpc.is_object())?;
    // https://github.com/grpc/grpc/blob/master/doc/health-checking.md
    Some(Probe { port: port(grpc)?, path: Some("/grpc.health.v1.Health/Check".into()) })
}

/// As a request has it: from a slash on, without query and fragment.
fn path(http: &Value) -> String {
    let path = http["path"].as_str().unwrap_or_default();
    let path = path.split(['?', '#']).next().unwrap_or_default();
    format!("/{}", path.trim_start_matches('/'))
}

/// A number, or the name of one of the container's ports.
fn number(port: &Value, container: &Value) -> Option<u16> {
    let number =
        |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    let Some(name) = port.as_str() else { return number(port) };
    let ports = container["ports"].as_array().into_iter().flatten();
    let named =
        ports.filter(|port| port["name"] == name).find_map(|port| number(&port["containerPort"]));
    named.or_else(|| name.parse().ok())
}

/// As a list of YAML that can stand in `ISTHMUS_PROXY_SET`: `;` would end the
/// setting there, and `$(` begins a variable of the kubelet's.
pub(crate) fn as_setting(probes: &BTreeSet<Probe>) -> String {
    let quoted = |path: &String| {
        let text = Value::from(path.as_str()).to_string();
        text.replace(';', "\\u003b").replace('$', "\\u0024")
    };
    let each = probes.iter().map(|Probe { port, path }| match path {
        Some(path) => format!("{{port: {port}, path: {}}}", quoted(path)),
        None => format!("{{port: {port}}}"),
    });
    format!("[{}]", each.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(container: Value) -> Vec<(u16, Option<String>)> {
        let pod = json!({"spec": {"containers": [container]}});
        probes(&pod).into_iter().map(|probe| (probe.port, probe.path)).collect()
    }

    #[test]
    fn every_kind_is_found() {
        let container = json!({
            "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"path": "/live?full=1", "port": "http"}},
            "readinessProbe": {"tcpSocket": {"port": 5432}},
            "startupProbe": {"grpc": {"port": 9090, "service": "orders"}},
            "lifecycle": {
                "postStart": {"httpGet": {"port": 8443, "scheme": "HTTPS", "path": "/x"}},
                "preStop": {"httpGet": {"port": "8081"}},
            },
        });
        let path = |path: &str| Some(path.to_owned());
        assert_eq!(
            of(container),
            [
                (5432, None),
                (8080, path("/live")),
                (8081, path("/")),
                (8443, None),
                (9090, path("/grpc.health.v1.Health/Check")),
            ]
        );
    }

    #[test]
    fn what_does_not_reach_the_pod_is_none() {
        let none = [
            json!({"livenessProbe": {"exec": {"command": ["true"]}}}),
            json!({"livenessProbe": {"httpGet": {"port": 80, "host": "192.0.2.1"}}}),
            json!({"livenessProbe": {"httpGet": {"port": "nowhere"}}}),
            json!({"livenessProbe": {"httpGet": {"port": 0}}}),
            json!({"livenessProbe": {"httpGet": null, "exec": {}}}),
            json!({"livenessProbe": {"tcpSocket": {"port": 99999}}}),
            json!({"livenessProbe": 7}),
            json!("a container"),
        ];
        for container in none {
            assert_eq!(of(container.clone()), [], "{container}");
        }
    }

    #[test]
    fn only_init_containers_that_go_on_are_asked() {
        let probe = json!({"tcpSocket": {"port": 7}});
        let init = |policy: Value| json!({"spec": {"initContainers": [{"restartPolicy": policy, "livenessProbe": probe}]}});
        assert_eq!(probes(&init(json!("Always"))).len(), 1);
        assert_eq!(probes(&init(Value::Null)).len(), 0);
    }

    #[test]
    fn a_path_cannot_leave_its_setting() {
        let path = |path: &str| BTreeSet::from([Probe { port: 80, path: Some(path.to_owned()) }]);
        let text = as_setting(&path("/a;admin=off \"$(HOME)\""));
        assert_eq!(text, r#"[{port: 80, path: "/a\u003badmin=off \"\u0024(HOME)\""}]"#);
        let read: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(read[0]["path"], "/a;admin=off \"$(HOME)\"");
        let both = BTreeSet::from([Probe { port: 1, path: None }, Probe { port: 2, path: None }]);
        assert_eq!(as_setting(&both), "[{port: 1}, {port: 2}]");
    }
}
