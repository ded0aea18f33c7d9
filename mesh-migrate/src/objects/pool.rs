//! Pools as services whose endpoints have no proxy.

use std::time::Duration;

use serde_json::{Value, json};

use super::{CONNECTIONS, Making, REQUESTS, Use, duration, object};
use crate::program::{Balance, Check, Key, Member, Pool};

/// Statuses of a health check of ours.
const MAX_STATUSES: usize = 32;
/// Of an endpoint that has failed.
const MIN_EJECTION: Duration = Duration::from_millis(100);
const MAX_EJECTION: Duration = Duration::from_secs(3600);

impl Making<'_> {
    pub(super) fn pool(&mut self, name: &str, pool: &Pool, of: Use) {
        let Some(label) = self.names.of_pool(name).map(str::to_owned) else { return };
        let mut ports = Vec::new();
        if of.requests {
            let protocol = if pool.is_http2 { "grpc" } else { "http" };
            ports.push(json!({ "name": "http", "port": REQUESTS, "protocol": protocol }));
        }
        if of.connections {
            ports.push(json!({ "name": "tcp", "port": CONNECTIONS, "protocol": "tcp" }));
        }
        let mut endpoints = Vec::new();
        let mut order: Vec<&Member> = pool.members.iter().collect();
        if pool.balance == Balance::First {
            // One after the other, standbys last.
            order.sort_by_key(|member| member.priority);
        }
        for (number, member) in (0..).zip(order) {
            let priority = if pool.balance == Balance::First { number } else { member.priority };
            for port in &ports {
                let port = port["name"].as_str().unwrap_or_default();
                endpoints.extend(self.member(member, priority, port));
            }
        }
        let tls = pool.tls.as_ref().and_then(|tls| self.client_tls(pool, tls));
        if pool.tls.is_some() && tls.is_none() {
            // Never in plaintext what was in TLS.
            endpoints.clear();
        }
        let endpoints = self.spoken_alike(&pool.place, endpoints, tls.as_ref());
        let service = format!("{label}.{}", self.wanted.namespace);
        let mut made = json!({ "name": service, "ports": ports, "endpoints": endpoints });
        if let Some(tls) = tls {
            made["tls"] = tls;
        }
        self.services.push(made);
        self.policy(&label, pool);
    }

    fn member(&mut self, member: &Member, priority: u32, port: &str) -> Vec<Value> {
        let addresses = self.addresses(&member.endpoint);
        if addresses.is_empty() {
            self.ledger.decision(
                &member.place,
                "its name has no address now",
                &["give it one, and import again", "leave it out"],
            );
        }
        let weight = if member.is_disabled { 0 } else { member.weight };
        let one = |address: std::net::SocketAddr| {
            object([
                ("port", Some(port.into())),
                ("plaintext", Some(true.into())),
                ("target", Some(address.to_string().into())),
                ("weight", (weight != 1).then(|| weight.into())),
                ("priority", (priority != 0).then(|| priority.into())),
                ("capacity", (member.max_requests != 0).then(|| member.max_requests.into())),
            ])
        };
        addresses.into_iter().map(one).collect()
    }

    fn policy(&mut self, label: &str, pool: &Pool) {
        let affinity = match &pool.balance {
            Balance::Hash(key) => Some(match key {
                Key::Source => json!({ "source": true }),
                Key::Header(name) => json!({ "header": name }),
                Key::Cookie(name, None) => json!({ "applicationCookie": name }),
                Key::Cookie(name, Some(life)) => object([
                    ("cookie", Some(name.as_str().into())),
                    ("cookieTtl", (!life.is_zero()).then(|| duration(*life))),
                ]),
                Key::Path(depth) => json!({ "path": { "depth": depth } }),
                Key::Query(name) => json!({ "query": name }),
            }),
            Balance::RoundRobin | Balance::LeastLoaded | Balance::Random | Balance::First => None,
        };
        let outlier = pool.outlier.as_ref().map(|outlier| {
            let ejection = outlier.ejection.clamp(MIN_EJECTION, MAX_EJECTION);
            if ejection != outlier.ejection {
                let how = "an endpoint is left alone for 100 ms to an hour";
                self.ledger.approximated(&pool.place, how);
            }
            match outlier.failures {
                0 => json!({ "consecutiveFailures": 0, "successRate": { "off": true } }),
                failures => json!({
                    "consecutiveFailures": failures,
                    "baseEjection": duration(ejection),
                }),
            }
        });
        let balance = object([
            ("affinity", affinity),
            ("outlier", outlier),
            ("panicPercent", pool.panic_percent.map(Into::into)),
        ]);
        let limits = pool.limits;
        let limit = |limit: u32| (limit != 0).then(|| limit.into());
        let breaker = object([
            ("maxRequests", limit(limits.requests)),
            ("maxPending", limit(limits.pending)),
            ("maxConnections", limit(limits.connections)),
            ("maxRetries", limit(limits.retries)),
        ]);
        let some = |value: Value| (value != json!({})).then_some(value);
        let check = pool.check.as_ref().map(|check| self.check(pool, check));
        let traffic = object([("circuitBreaker", some(breaker)), ("healthCheck", check)]);
        let spec = object([
            ("targetRef", Some(json!({ "kind": "Service", "name": label }))),
            ("balance", some(balance)),
            ("traffic", some(traffic)),
        ]);
        if spec.as_object().is_some_and(|spec| spec.len() > 1) {
            self.documents.push(json!({
                "apiVersion": "isthmus.io/v1",
                "kind": "TrafficPolicy",
                "metadata": self.metadata(label),
                "spec": spec,
            }));
        }
    }

    fn check(&mut self, pool: &Pool, check: &Check) -> Value {
        if check.port.is_some() {
            let how = "its checks go to another port than requests; ours to that of requests";
            self.ledger.approximated(&pool.place, how);
        }
        if check.host.is_some() {
            let how = "its checks have a Host of their own; ours the name of the service";
            self.ledger.approximated(&pool.place, how);
        }
        let is_long = check.statuses.len() > MAX_STATUSES;
        if is_long {
            let how = "its checks name more statuses than ours can: 200 to 399 is well";
            self.ledger.approximated(&pool.place, how);
        }
        let kind = match &check.path {
            Some(path) if check.statuses.is_empty() || is_long => ("http", json!({ "path": path })),
            Some(path) => ("http", json!({ "path": path, "expectedStatuses": check.statuses })),
            None => ("tcp", json!({})),
        };
        let interval = check.interval.max(std::time::Duration::from_millis(100));
        object([
            (kind.0, Some(kind.1)),
            ("interval", Some(duration(interval))),
            ("timeout", check.timeout.map(duration)),
            ("unhealthyThreshold", Some(check.fall.into())),
            ("healthyThreshold", Some(check.rise.into())),
        ])
    }
}
