//! Rules of a listener for connections.

use serde_json::{Value, json};

use super::{CONNECTIONS, Making, object, some_list};
use crate::program::{Clients, TcpRule};

impl Making<'_> {
    pub(super) fn tcp_rules(&mut self, name: &str, port: u16, rules: &[TcpRule]) {
        if TcpRule::are_by_client(rules) {
            return self.tcp_rules_by_client(name, port, rules);
        }
        let asks_for_names = rules.iter().any(|rule| !rule.server_names.is_empty());
        let mut taken: Vec<&String> = Vec::new();
        for (number, rule) in (1..).zip(rules) {
            // The first rule counts, and of ours the narrowest name: one that comes after a
            // wider one takes nothing.
            let is_left = |name: &&String| !taken.iter().any(|wide| covers(wide, name));
            let names: Vec<&String> = rule.server_names.iter().filter(is_left).collect();
            if names.is_empty() && !rule.server_names.is_empty() {
                continue;
            }
            taken.extend(&names);
            let backends = self.backends(&rule.place, &rule.pools, CONNECTIONS);
            let spec = json!({
                "parentRefs": [{ "kind": "Service", "name": name, "port": port }],
                "rules": [{ "backendRefs": backends }],
            });
            let name = format!("{name}-{number}");
            if !rule.server_names.is_empty() {
                self.connection_route("TLSRoute", &name, &names, spec);
                continue;
            }
            // A TCPRoute has no TLS where there is a TLSRoute.
            if asks_for_names {
                self.connection_route("TLSRoute", &format!("{name}-tls"), &[], spec.clone());
            }
            self.connection_route("TCPRoute", &name, &[], spec);
            // No later one is asked.
            return;
        }
    }

    /// Rules for requests without matches take connections, too, and know clients.
    fn tcp_rules_by_client(&mut self, name: &str, port: u16, rules: &[TcpRule]) {
        let (mut route, mut policy) = (Vec::new(), Vec::new());
        for (number, rule) in (1..).zip(rules) {
            if !rule.server_names.is_empty() {
                let question = "connections are told apart by TLS name or by client, not both: \
                                this line is left out";
                self.ledger.decision(
                    &rule.place,
                    question,
                    &["a listener for each", "leave it so"],
                );
                continue;
            }
            let backends = self.backends(&rule.place, &rule.pools, CONNECTIONS);
            let one = format!("r{number}");
            route.push(json!({ "name": one, "backendRefs": backends }));
            let list = |blocks: &[String]| some_list(blocks.iter().map(|b| json!(b)).collect());
            let more = object([
                ("name", Some(one.into())),
                ("sources", list(&rule.clients.within)),
                ("notSources", list(&rule.clients.outside)),
            ]);
            policy.extend((rule.clients != Clients::default()).then_some(more));
        }
        self.documents.push(json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": self.metadata(name),
            "spec": {
                "parentRefs": [{ "kind": "Service", "name": name, "port": port }],
                "rules": route,
            },
        }));
        self.documents.push(json!({
            "apiVersion": "isthmus.io/v1",
            "kind": "TrafficPolicy",
            "metadata": self.metadata(name),
            "spec": {
                "targetRef": { "kind": "Service", "name": name },
                "ruleOrder": "Listed",
                "rules": policy,
            },
        }));
    }

    fn connection_route(&mut self, kind: &str, name: &str, hostnames: &[&String], mut spec: Value) {
        if !hostnames.is_empty() {
            spec["hostnames"] = json!(hostnames);
        }
        self.documents.push(json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": kind,
            "metadata": self.metadata(name),
            "spec": spec,
        }));
    }
}

/// Whether a name of TLS, or `*.` before one, is among those of another.
fn covers(wide: &str, name: &str) -> bool {
    let (wide, name) = (wide.to_ascii_lowercase(), name.to_ascii_lowercase());
    let below = wide.strip_prefix('*').is_some_and(|end| {
        let name = name.strip_prefix('*').unwrap_or(&name);
        name.len() > end.len() && name.ends_with(end)
    });
    below || wide == name
}
