//! Clusters as pools.

use std::time::Duration;

use super::Converter;
use crate::{
    envoy::{
        parts::{self, Lb},
        tree::{Tree, What},
    },
    program::{Balance, Check, Limits, Member, Outlier, Pool},
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

impl Converter<'_> {
    pub(super) fn pool(&mut self, cluster: &Tree) -> Pool {
        let name = cluster.text("name").unwrap_or_default();
        Pool {
            panic_percent: panic_percent(cluster),
            place: cluster.place.clone(),
            members: self.members(cluster),
            balance: self.balance(cluster, name),
            connect_timeout: Some(
                cluster.duration("connect_timeout").unwrap_or(Duration::from_secs(5)),
            ),
            idle_timeout: self.idle.get(name).copied(),
            check: self.check(cluster),
            outlier: self.outlier(cluster),
            tls: self.client_tls(cluster),
            is_http2: self.is_http2(cluster),
            limits: self.limits(cluster),
        }
    }

    fn balance(&mut self, cluster: &Tree, name: &str) -> Balance {
        let place = ["load_balancing_policy", "lb_policy"]
            .iter()
            .find_map(|field| cluster.entry(field))
            .map_or_else(|| cluster.place.clone(), |field| field.place.clone());
        match parts::lb(cluster) {
            Lb::RoundRobin => Balance::RoundRobin,
            Lb::LeastRequest => {
                self.notes.approximated(
                    &place,
                    "the fewest in flight of all, not of two that chance took",
                );
                Balance::LeastLoaded
            }
            Lb::Random => Balance::Random,
            Lb::RingHash | Lb::Maglev => {
                let keys = self.keys.get(name).cloned().unwrap_or_default();
                let first = keys.iter().flatten().next().cloned();
                if keys.iter().any(|key| *key != first) {
                    let question = "Routes to this cluster hash different things, and a pool of ours one. Until it is said, it is that of the first.";
                    self.notes.decision(&place, question, &["one for all", "a cluster for each"]);
                }
                match first {
                    Some(key) => {
                        self.notes.approximated(
                            &place,
                            "a key goes to another endpoint than with Envoy, always to the same",
                        );
                        Balance::Hash(key)
                    }
                    None => {
                        self.notes.approximated(
                            &place,
                            "no route to it says what to hash: by chance, as with Envoy",
                        );
                        Balance::Random
                    }
                }
            }
            Lb::Other(policy) => {
                let question = format!(
                    "How {policy} chooses is not known here. Until it is said, endpoints are taken in turn."
                );
                self.notes.decision(
                    &place,
                    question,
                    &["in turn", "the fewest in flight", "by chance"],
                );
                Balance::RoundRobin
            }
        }
    }

    fn members(&mut self, cluster: &Tree) -> Vec<Member> {
        let kind = cluster.text("type").unwrap_or("STATIC");
        if let Some(field) = cluster.entry("cluster_type") {
            let question = "Endpoints are found by an extension. Until it is said, there are those that are written here.";
            self.notes.decision(&field.place, question, &["write them down", "a name of DNS"]);
        }
        match (kind, cluster.entry("type")) {
            ("ORIGINAL_DST", Some(field)) => {
                let question =
                    "Connections go where the client wanted to go. Until it is said, nowhere.";
                let choices = ["intercept with our agent", "write endpoints down"];
                self.notes.decision(&field.place, question, &choices);
            }
            ("LOGICAL_DNS", Some(field)) => {
                let how = "all addresses of the name take connections, not the first only";
                self.notes.approximated(&field.place, how);
            }
            _ => {}
        }
        let Some(assignment) = self.config.load_assignment(cluster) else { return Vec::new() };
        let hosts =
            || assignment.messages("endpoints").flat_map(|one| one.messages("lb_endpoints"));
        // With so few that are well Envoy takes all of them.
        let levels = assignment.messages("endpoints").filter_map(|one| one.count("priority"));
        let has_others = levels.max().unwrap_or(0) > 0;
        let drained = |host: &&Tree| host.text("health_status") == Some("DRAINING");
        let counted = hosts().count() - hosts().filter(drained).count();
        let well = hosts().filter(|host| !parts::is_out(host)).count();
        let panics = well == 0 || (!has_others && well * 2 < counted);
        if let Some(field) = assignment.entry("policy") {
            let policy =
                assignment.msg("policy").and_then(|one| one.count("overprovisioning_factor"));
            if policy.is_some_and(|factor| factor < 100) {
                let meaning = "Envoy gives a part of the requests to endpoints of lower priority even if all are well; here they take nothing then";
                self.notes.dropped(&field.place, meaning);
            }
        }
        let weighs = parts::weighs_localities(cluster);
        let is_random = parts::lb(cluster) == Lb::Random;
        let mut members = Vec::new();
        for locality in assignment.messages("endpoints") {
            let scale = if weighs { self.scale(locality) } else { 1.0 };
            if let Some(field) = locality.entry("load_balancing_weight").filter(|_| !weighs) {
                self.notes.approximated(
                    &field.place,
                    "it counts for nothing with Envoy, either, without locality_weighted_lb_config",
                );
            }
            for host in locality.messages("lb_endpoints") {
                let own = host.count("load_balancing_weight").filter(|_| !is_random).unwrap_or(1);
                let weight = (f64::from(own) * scale).round().min(f64::from(u32::MAX)) as u32;
                let priority = locality.count("priority").unwrap_or(0);
                let is_disabled = parts::is_out(host) && !panics;
                members.extend(self.member(host, weight, priority, is_disabled));
            }
        }
        if is_random {
            let weighted =
                assignment.messages("endpoints").flat_map(|one| one.messages("lb_endpoints"));
            for field in weighted.filter_map(|one| one.entry("load_balancing_weight")) {
                self.notes.approximated(
                    &field.place,
                    "RANDOM does not look at weights, with Envoy or with us",
                );
            }
        }
        members
    }

    /// Weights of a locality's endpoints are parts of the locality's own.
    fn scale(&mut self, locality: &Tree) -> f64 {
        let weight = |one: &Tree| f64::from(one.count("load_balancing_weight").unwrap_or(1));
        let sum: f64 = locality.messages("lb_endpoints").map(weight).sum();
        if let Some(field) = locality.entry("load_balancing_weight") {
            self.notes.approximated(&field.place, "it is multiplied into the weights of the endpoints, and does not follow their health");
        }
        let own = locality.count("load_balancing_weight").unwrap_or(0);
        if sum > 0.0 { f64::from(own) / sum * 10_000.0 } else { 0.0 }
    }

    fn member(
        &mut self,
        host: &Tree,
        weight: u32,
        priority: u32,
        is_disabled: bool,
    ) -> Option<Member> {
        let address = host.msg("endpoint")?.msg("address")?;
        let Some(endpoint) = parts::socket(Some(address)) else {
            let question =
                "The endpoint is at no address of TCP. Until it is said, it is left out.";
            self.notes.ask(host, question, &["listen at an address, too", "leave it out"]);
            return None;
        };
        if let Some(field) = host.entry("health_status") {
            match is_disabled {
                true => self.notes.approximated(&field.place, "it is taken out; of a level with some taken out, Envoy hands a part to the next level"),
                false => self.notes.approximated(&field.place, "health is found out, not written down"),
            }
        }
        let place = host.place.clone();
        Some(Member { place, endpoint, weight, priority, is_disabled, max_requests: 0 })
    }

    fn check(&mut self, cluster: &Tree) -> Option<Check> {
        let mut all = cluster.messages("health_checks");
        let first = all.next()?;
        for other in all {
            self.notes.ask(
                other,
                "A second health check. Until it is said, the first decides.",
                &["the first", "this one"],
            );
        }
        let interval = first.duration("interval").unwrap_or(Duration::from_secs(5));
        let http = first.msg("http_health_check");
        let grpc = first.msg("grpc_health_check").is_some();
        let statuses = http.map(|http| self.statuses(http)).unwrap_or_default();
        let http = http.filter(|_| !grpc);
        Some(Check {
            path: http.and_then(|http| http.some_text("path")).map(String::from),
            host: http.and_then(|http| http.some_text("host")).map(String::from),
            statuses,
            port: first.count("alt_port").and_then(|port| u16::try_from(port).ok()),
            interval,
            timeout: first.duration("timeout"),
            fall: first.count("unhealthy_threshold").unwrap_or(1),
            rise: first.count("healthy_threshold").unwrap_or(1),
        })
    }

    fn statuses(&mut self, http: &Tree) -> Vec<u16> {
        let mut statuses = Vec::new();
        for range in http.messages("expected_statuses") {
            let from = range.whole("start").unwrap_or(0).clamp(100, 600);
            let to = range.whole("end").unwrap_or(0).clamp(from, 600);
            statuses.extend((from..to).filter_map(|status| u16::try_from(status).ok()));
        }
        match statuses.is_empty() {
            true => vec![200],
            false => statuses,
        }
    }

    fn outlier(&mut self, cluster: &Tree) -> Option<Outlier> {
        let outlier = cluster.msg("outlier_detection")?;
        if outlier.count("enforcing_consecutive_5xx") == Some(0) {
            return None;
        }
        if let Some(field) = outlier.entry("enforcing_consecutive_5xx") {
            self.notes.approximated(
                &field.place,
                "every endpoint that fails so often is left alone, not some of them",
            );
        }
        Some(Outlier {
            failures: outlier.count("consecutive_5xx").unwrap_or(5),
            ejection: outlier.duration("base_ejection_time").unwrap_or(Duration::from_secs(30)),
        })
    }

    /// "CircuitBreakers.Thresholds": those of DEFAULT priority, and what Envoy does
    /// without any.
    fn limits(&mut self, cluster: &Tree) -> Limits {
        let all = cluster.msg("circuit_breakers");
        let mut own = None;
        for one in all.into_iter().flat_map(|all| all.messages("thresholds")) {
            match one.text("priority").unwrap_or("DEFAULT") {
                "DEFAULT" if own.is_none() => own = Some(one),
                "DEFAULT" => {}
                _ => {
                    let how = "requests of high priority have no limits of their own";
                    self.notes.whole(one, crate::ledger::Verdict::Dropped { meaning: how.into() });
                }
            }
        }
        let count = |name: &str, default| own.and_then(|own| own.count(name)).unwrap_or(default);
        Limits {
            connections: count("max_connections", 1024),
            pending: count("max_pending_requests", 1024),
            requests: count("max_requests", 1024),
            retries: count("max_retries", 3),
        }
    }

    fn is_http2(&mut self, cluster: &Tree) -> bool {
        if cluster.entry("http2_protocol_options").is_some() {
            return true;
        }
        let Some(What::Map(options)) = cluster.at("typed_extension_protocol_options") else {
            return false;
        };
        let own = options.iter().find(|one| one.name == HTTP_OPTIONS);
        let Some(What::Message(options)) = own.map(|one| &one.value.what) else { return false };
        let explicit = options.msg("explicit_http_config");
        let h2 = explicit.and_then(|explicit| explicit.entry("http2_protocol_options"));
        if let Some(What::Message(details)) = h2.map(|field| &field.value.what) {
            for field in &details.fields {
                self.notes
                    .dropped(&field.place, "windows, streams and keepalive of HTTP/2 are our own");
            }
        }
        h2.is_some()
    }
}

/// `healthy_panic_threshold`, in whole per cent; ours is the same where it is not said.
fn panic_percent(cluster: &Tree) -> Option<u32> {
    let own = cluster.msg("common_lb_config")?.msg("healthy_panic_threshold")?;
    let value = match own.at("value") {
        Some(What::Real(value)) => value.clamp(0.0, 100.0),
        _ => 0.0,
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
    Some(value.round() as u32)
}
