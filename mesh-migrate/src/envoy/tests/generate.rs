//! Configurations that Envoy takes, and requests for them, from one number.

use serde_json::{Map, Value, json};

use super::chance::{
    Chance, DOMAINS, HEADERS, HOST_ADDRESSES, HOSTS, PATHS, REGEXES, TYPES, VALUES,
};

/// A configuration.
pub(crate) struct Generated {
    pub(crate) config: Value,
    /// `listener`, `host`, `target`, `method`, `headers`, `source`.
    pub(crate) requests: Vec<Value>,
}

/// What a number stands for. Only what Envoy carries out in the same way each time,
/// if `is_steady`.
pub(crate) fn generate(seed: u64, is_steady: bool) -> Generated {
    let mut chance = Chance::new(seed);
    let mut maker = Maker { chance: &mut chance, clusters: 0, is_steady };
    let config = maker.bootstrap();
    let requests = (0..12).map(|_| maker.request()).collect();
    Generated { config, requests }
}

struct Maker<'c> {
    chance: &'c mut Chance,
    clusters: usize,
    is_steady: bool,
}

fn object(fields: Vec<(&str, Value)>) -> Value {
    Value::Object(
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>(),
    )
}

impl Maker<'_> {
    fn sometimes(
        &mut self,
        part: usize,
        fields: &mut Vec<(&'static str, Value)>,
        name: &'static str,
        make: impl FnOnce(&mut Self) -> Value,
    ) {
        if self.chance.percent(part) {
            let value = make(self);
            fields.push((name, value));
        }
    }

    fn word(&mut self, all: &[&str]) -> Value {
        json!(self.chance.of(all))
    }

    fn bootstrap(&mut self) -> Value {
        self.clusters = 2 + self.chance.below(4);
        let clusters: Vec<Value> = (0..self.clusters).map(|n| self.cluster(n)).collect();
        let listener = self.listener();
        let mut fields = Vec::new();
        self.sometimes(20, &mut fields, "node", |_| json!({"id": "n", "cluster": "c"}));
        self.sometimes(
            20,
            &mut fields,
            "layered_runtime",
            |_| json!({"layers": [{"name": "l", "static_layer": {"a.b": 1}}]}),
        );
        self.sometimes(20, &mut fields, "stats_config", |_| json!({"use_all_default_tags": true}));
        fields.push(("static_resources", json!({"listeners": [listener], "clusters": clusters})));
        object(fields)
    }

    fn endpoint(&mut self) -> Value {
        let address = *self.chance.of(&HOST_ADDRESSES);
        let port = *self.chance.of(&[8080, 8443, 9090]);
        let address = json!({"socket_address": {"address": address, "port_value": port}});
        let mut fields = vec![("endpoint", json!({ "address": address }))];
        self.sometimes(30, &mut fields, "load_balancing_weight", |m| json!(1 + m.chance.below(4)));
        self.sometimes(if self.is_steady { 0 } else { 8 }, &mut fields, "health_status", |m| {
            m.word(&["UNHEALTHY", "HEALTHY", "DRAINING"])
        });
        object(fields)
    }

    fn cluster(&mut self, number: usize) -> Value {
        let name = format!("c{number}");
        let mut localities: Vec<Value> = Vec::new();
        for priority in 0..=usize::from(self.chance.percent(20)) {
            let hosts: Vec<Value> =
                (0..1 + self.chance.below(3)).map(|_| self.endpoint()).collect();
            localities.push(json!({"priority": priority, "lb_endpoints": hosts}));
        }
        let mut fields = vec![
            ("name", json!(name)),
            ("load_assignment", json!({"cluster_name": name, "endpoints": localities})),
        ];
        self.sometimes(50, &mut fields, "type", |m| m.word(&["STATIC", "STRICT_DNS"]));
        self.sometimes(50, &mut fields, "connect_timeout", |m| m.word(&["1s", "0.25s", "5s"]));
        self.sometimes(40, &mut fields, "lb_policy", |m| {
            m.word(&["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"])
        });
        self.sometimes(
            15,
            &mut fields,
            "outlier_detection",
            |_| json!({"consecutive_5xx": 3, "interval": "5s"}),
        );
        self.sometimes(20, &mut fields, "circuit_breakers", |_| json!({"thresholds": [{"max_connections": 100, "max_retries": 9}, {"priority": "HIGH", "max_requests": 7}]}));
        self.sometimes(10, &mut fields, "alt_stat_name", |_| json!("s"));
        object(fields)
    }

    fn listener(&mut self) -> Value {
        let filters = if self.chance.percent(92) { self.http() } else { self.tcp() };
        let mut fields = vec![
            ("name", json!("in:1")),
            ("address", json!({"socket_address": {"address": "10.20.0.6", "port_value": 8080}})),
            ("filter_chains", json!([{ "filters": [filters] }])),
        ];
        self.sometimes(10, &mut fields, "traffic_direction", |_| json!("INBOUND"));
        self.sometimes(10, &mut fields, "per_connection_buffer_limit_bytes", |_| json!(32768));
        object(fields)
    }

    fn a_cluster(&mut self) -> Value {
        json!(format!("c{}", self.chance.below(self.clusters)))
    }

    fn tcp(&mut self) -> Value {
        let mut fields = vec![
            ("@type", json!(format!("{TYPES}filters.network.tcp_proxy.v3.TcpProxy"))),
            ("stat_prefix", json!("t")),
        ];
        if self.chance.percent(50) {
            fields.push(("cluster", self.a_cluster()));
        } else {
            let one =
                |m: &mut Self| json!({"name": m.a_cluster(), "weight": 1 + m.chance.below(5)});
            let all = json!([one(self), one(self)]);
            fields.push(("weighted_clusters", json!({ "clusters": all })));
        }
        self.sometimes(30, &mut fields, "idle_timeout", |_| json!("60s"));
        json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": object(fields)})
    }

    fn http(&mut self) -> Value {
        let router = json!({"name": "envoy.filters.http.router", "typed_config": {"@type": format!("{TYPES}filters.http.router.v3.Router")}});
        let mut fields = vec![
            (
                "@type",
                json!(format!(
                    "{TYPES}filters.network.http_connection_manager.v3.HttpConnectionManager"
                )),
            ),
            ("stat_prefix", json!("h")),
            ("route_config", self.routes()),
        ];
        let buffer = json!({"name": "envoy.filters.http.buffer", "typed_config": {"@type": format!("{TYPES}filters.http.buffer.v3.Buffer"), "max_request_bytes": 65536}});
        let filters =
            if self.chance.percent(10) { json!([buffer, router]) } else { json!([router]) };
        fields.push(("http_filters", filters));
        match self.chance.below(5) {
            0 => fields.push(("strip_matching_host_port", json!(true))),
            1 => fields.push(("strip_any_host_port", json!(true))),
            _ => {}
        }
        self.sometimes(30, &mut fields, "use_remote_address", |m| json!(m.chance.percent(70)));
        self.sometimes(10, &mut fields, "normalize_path", |_| json!(true));
        self.sometimes(10, &mut fields, "merge_slashes", |_| json!(true));
        self.sometimes(
            20,
            &mut fields,
            "common_http_protocol_options",
            |_| json!({"idle_timeout": "60s"}),
        );
        self.sometimes(20, &mut fields, "codec_type", |m| m.word(&["AUTO", "HTTP1"]));
        json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": object(fields)})
    }

    fn routes(&mut self) -> Value {
        let mut domains: Vec<&str> = DOMAINS.to_vec();
        let count = 1 + self.chance.below(4);
        let hosts: Vec<Value> = (0..count).map(|n| self.host(n, &mut domains)).collect();
        let mut fields = vec![("virtual_hosts", json!(hosts))];
        self.sometimes(50, &mut fields, "name", |_| json!("local"));
        self.mutations(20, &mut fields);
        self.sometimes(15, &mut fields, "most_specific_header_mutations_wins", |_| json!(true));
        self.sometimes(10, &mut fields, "ignore_port_in_host_matching", |_| json!(true));
        object(fields)
    }

    fn host(&mut self, number: usize, domains: &mut Vec<&'static str>) -> Value {
        let mut own = Vec::new();
        for _ in 0..1 + self.chance.below(3) {
            own.push(domains.remove(self.chance.below(domains.len())));
        }
        let count = 1 + self.chance.below(6);
        let routes: Vec<Value> = (0..count).map(|_| self.route()).collect();
        let mut fields = vec![
            ("name", json!(format!("v{number}"))),
            ("domains", json!(own)),
            ("routes", json!(routes)),
        ];
        self.sometimes(5, &mut fields, "require_tls", |_| json!("ALL"));
        self.sometimes(15, &mut fields, "retry_policy", |m| m.retry());
        self.mutations(20, &mut fields);
        object(fields)
    }

    fn retry(&mut self) -> Value {
        let on = self.word(&[
            "5xx",
            "connect-failure,refused-stream",
            "gateway-error, reset",
            "retriable-status-codes",
        ]);
        json!({"retry_on": on, "num_retries": self.chance.below(4), "retriable_status_codes": [503], "per_try_timeout": "1s"})
    }

    fn mutations(&mut self, part: usize, fields: &mut Vec<(&'static str, Value)>) {
        self.sometimes(part, fields, "request_headers_to_add", |m| {
            let one = |m: &mut Self| {
                let mut fields = vec![("header", json!({"key": m.word(&["x-l", "X-Edge", "x-a"]), "value": m.word(&["one", "100%%", "%REQ(x-in)%", "two", ""])}))];
                let actions = ["APPEND_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS"];
                m.sometimes(60, &mut fields, "append_action", |m| m.word(&actions));
                m.sometimes(10, &mut fields, "keep_empty_value", |_| json!(true));
                object(fields)
            };
            json!((0..1 + m.chance.below(3)).map(|_| one(m)).collect::<Vec<_>>())
        });
        self.sometimes(part / 2, fields, "request_headers_to_remove", |m| {
            json!([m.word(&["x-l", "x-a", "x-in"])])
        });
        self.sometimes(
            part / 2,
            fields,
            "response_headers_to_add",
            |_| json!([{"header": {"key": "x-r", "value": "r"}}]),
        );
    }

    fn route(&mut self) -> Value {
        let (matcher, is_whole) = self.matcher();
        let mut fields = vec![("match", matcher)];
        match self.chance.below(10) {
            0 => fields.push(("redirect", self.redirect(is_whole))),
            1 => fields.push(("direct_response", json!({"status": self.chance.of(&[200, 403, 418]), "body": {"inline_string": "no"}}))),
            _ => fields.push(("route", self.action(is_whole))),
        }
        self.sometimes(30, &mut fields, "name", |_| json!("r # not a comment"));
        self.sometimes(
            10,
            &mut fields,
            "metadata",
            |_| json!({"filter_metadata": {"x": {"y": [1, {"z": "w"}]}}}),
        );
        self.mutations(20, &mut fields);
        object(fields)
    }

    /// A match, and whether its path can only be replaced as a whole.
    fn matcher(&mut self) -> (Value, bool) {
        let mut fields = Vec::new();
        let path = self.word(&PATHS);
        let mut is_whole = false;
        match self.chance.below(8) {
            0..=2 => fields.push(("prefix", path)),
            3 => {
                is_whole = true;
                fields.push(("path", path));
            }
            4 => fields.push(("path_separated_prefix", self.word(&["/a", "/api", "/A", "/files"]))),
            5 => {
                is_whole = true;
                fields.push(("safe_regex", json!({"regex": self.word(&REGEXES)})));
            }
            6 => {
                fields.push(("prefix", path));
                fields.push(("case_sensitive", json!(self.chance.percent(30))));
            }
            _ => fields.push(("prefix", json!("/"))),
        }
        let part = if self.is_steady { 0 } else { 5 };
        self.sometimes(30, &mut fields, "headers", |m| json!([m.header()]));
        self.sometimes(15, &mut fields, "query_parameters", |m| json!([m.parameter()]));
        self.sometimes(6, &mut fields, "runtime_fraction", |m| json!({"default_value": {"numerator": m.chance.of(&[0, 100]), "denominator": "HUNDRED"}, "runtime_key": "k"}));
        if fields.last().is_none_or(|(name, _)| *name != "runtime_fraction") {
            self.sometimes(
                part,
                &mut fields,
                "runtime_fraction",
                |_| json!({"default_value": {"numerator": 30}}),
            );
        }
        self.sometimes(4, &mut fields, "grpc", |_| json!({}));
        self.sometimes(
            4,
            &mut fields,
            "cookies",
            |_| json!([{"name": "s", "string_match": {"exact": "1"}}]),
        );
        (object(fields), is_whole)
    }

    fn text(&mut self) -> Value {
        let value = self.word(&["1", "abc", "b", "Mobile", "x,y", "4"]);
        let kind = *self.chance.of(&["exact", "prefix", "suffix", "contains", "safe_regex"]);
        if kind == "safe_regex" {
            return json!({"safe_regex": {"regex": self.word(&["[a-z]+", r"\d+", ".*", "(?i)abc|x", "[^1]*"])}});
        }
        let mut fields = vec![(kind, value)];
        if self.chance.percent(30) {
            fields.push(("ignore_case", json!(self.chance.percent(70))));
        }
        object(fields)
    }

    fn header(&mut self) -> Value {
        if self.chance.percent(20) {
            return json!({"name": ":method", "string_match": {"exact": self.word(&["GET", "POST"])}});
        }
        if self.chance.percent(8) {
            return json!({"name": ":authority", "string_match": self.text()});
        }
        if self.chance.percent(8) {
            return json!({"name": ":path", "string_match": {"prefix": self.word(&PATHS)}});
        }
        let mut fields = vec![("name", self.word(&HEADERS))];
        match self.chance.below(5) {
            0 => fields.push(("present_match", json!(self.chance.percent(60)))),
            1 => fields.push(("range_match", json!({"start": self.chance.of(&[-10, 0, 5]), "end": self.chance.of(&["10", "43", "1000"])}))),
            2 => {}
            _ => fields.push(("string_match", self.text())),
        }
        self.sometimes(25, &mut fields, "invert_match", |_| json!(true));
        self.sometimes(15, &mut fields, "treat_missing_header_as_empty", |_| json!(true));
        object(fields)
    }

    fn parameter(&mut self) -> Value {
        let mut fields = vec![("name", self.word(&["q", "v"]))];
        match self.chance.below(3) {
            0 => fields.push(("present_match", json!(self.chance.percent(70)))),
            1 => {}
            _ => fields.push(("string_match", self.text())),
        }
        object(fields)
    }

    fn redirect(&mut self, _is_whole: bool) -> Value {
        let mut fields = Vec::new();
        self.sometimes(40, &mut fields, "https_redirect", |_| json!(true));
        self.sometimes(50, &mut fields, "host_redirect", |m| {
            m.word(&["www.example", "h.example:81"])
        });
        self.sometimes(20, &mut fields, "port_redirect", |m| {
            json!(if m.chance.percent(50) { 443 } else { 8443 })
        });
        match self.chance.below(4) {
            0 => fields.push(("path_redirect", self.word(&["/new", "/new?x=1"]))),
            1 => fields.push(("prefix_rewrite", json!("/p"))),
            _ => {}
        }
        self.sometimes(40, &mut fields, "response_code", |m| {
            m.word(&["FOUND", "PERMANENT_REDIRECT", "SEE_OTHER"])
        });
        self.sometimes(20, &mut fields, "strip_query", |_| json!(true));
        object(fields)
    }

    fn action(&mut self, _is_whole: bool) -> Value {
        let mut fields = Vec::new();
        match self.chance.below(8) {
            0 | 1 => {
                let one = |m: &mut Self| {
                    let mut fields =
                        vec![("name", m.a_cluster()), ("weight", json!(m.chance.below(5)))];
                    m.mutations(10, &mut fields);
                    object(fields)
                };
                let sure = json!({"name": self.a_cluster(), "weight": 2});
                let mut all = vec![one(self), sure];
                // Which of two entries for one cluster was taken cannot be seen.
                if all[0]["name"] == all[1]["name"] {
                    all.remove(0);
                }
                fields.push(("weighted_clusters", json!({ "clusters": all })));
            }
            2 => fields.push(("cluster_header", json!("x-cluster"))),
            _ => fields.push(("cluster", self.a_cluster())),
        }
        match self.chance.below(6) {
            0 => fields.push(("prefix_rewrite", self.word(&["/", "/internal", "/$1"]))),
            1 => fields.push(("regex_rewrite", json!({"pattern": {"regex": self.word(&["^/files/([0-9]+)$", "a", "/(.)"])}, "substitution": self.word(&[r"/f/\1", r"<\0>", "$x"])}))),
            _ => {}
        }
        if fields
            .iter()
            .any(|(name, value)| *name == "regex_rewrite" && value["pattern"]["regex"] == "a")
        {
            fields.pop();
            fields
                .push(("regex_rewrite", json!({"pattern": {"regex": "a"}, "substitution": "b$"})));
        }
        match self.chance.below(6) {
            0 => fields.push(("host_rewrite_literal", json!("up.example"))),
            1 if self.chance.percent(30) => fields.push(("host_rewrite_header", json!("x-host"))),
            _ => {}
        }
        self.sometimes(30, &mut fields, "timeout", |m| m.word(&["0s", "5s", "1.5s"]));
        self.sometimes(15, &mut fields, "retry_policy", |m| m.retry());
        self.sometimes(
            20,
            &mut fields,
            "hash_policy",
            |_| json!([{"header": {"header_name": "x-key"}}]),
        );
        self.sometimes(
            8,
            &mut fields,
            "request_mirror_policies",
            |m| json!([{"cluster": m.a_cluster()}]),
        );
        self.sometimes(8, &mut fields, "idle_timeout", |_| json!("30s"));
        object(fields)
    }

    fn request(&mut self) -> Value {
        let path = *self.chance.of(&PATHS);
        let more = *self.chance.of(&["", "", "x", "/y", "42", "/v1", "//z", "/../a", "/%7e"]);
        let query = *self.chance.of(&["", "", "?q=1", "?q=abc&v", "?x", "?v=x%20y", "?q=2&q=1"]);
        let mut headers = Vec::new();
        for _ in 0..self.chance.below(4) {
            let name = *self.chance.of(&[
                "x-a",
                "X-Canary",
                "X-N",
                "x-in",
                "x-key",
                "x-host",
                "x-l",
                "User-Agent",
            ]);
            headers.push(json!([name, self.word(&VALUES)]));
        }
        if self.chance.percent(50) {
            headers.push(json!(["x-cluster", self.a_cluster()]));
        }
        json!({
            "listener": "10.20.0.6:8080",
            "method": self.chance.of(&["GET", "GET", "GET", "POST", "HEAD", "DELETE"]),
            "host": self.word(&HOSTS),
            "target": format!("{path}{more}{query}"),
            "headers": headers,
        })
    }
}
