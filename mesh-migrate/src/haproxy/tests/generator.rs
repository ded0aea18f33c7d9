//! Configurations that HAProxy takes, of choices that are made elsewhere, and requests
//! that they tell apart. It knows nothing of the crate, so that it can be compared with
//! the real HAProxy, too.

/// A configuration with all that is asked of it.
#[derive(Debug, Clone)]
pub(super) struct Written {
    /// `haproxy.cfg`.
    pub config: String,
    /// `hosts.map`, which it may name.
    pub map: String,
    /// `paths.lst`, which it may name.
    pub list: String,
    /// In any order.
    pub requests: Vec<Asked>,
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub listener: &'static str,
    pub source: &'static str,
    pub method: &'static str,
    pub host: &'static str,
    pub target: &'static str,
    pub headers: Vec<(&'static str, &'static str)>,
}

pub(super) const HTTP: &str = "10.20.0.1:8000";
pub(super) const LISTEN: &str = "10.20.0.1:8100";
pub(super) const TCP: &str = "10.20.0.1:9000";
/// Of TLS that passes through: the host of a request is its server name.
pub(super) const TLS: &str = "10.20.0.1:9443";

const HOSTS: &[&str] = &[
    "a.example",
    "A.Example",
    "a.example:8000",
    "b.example",
    "api.b.example",
    "www.c.example:80",
    "what",
];
const PATHS: &[&str] = &[
    "/",
    "/api",
    "/api/v1/x",
    "/API/v1",
    "/v2/items?v=2",
    "/static/img/logo.png",
    "/admin/x?v=1&q=api",
    "/a%20b/c",
    "/health",
    "/v22",
];
const METHODS: &[&str] = &["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS"];
const HEADERS: &[(&str, &str)] = &[
    ("X-User", "42"),
    ("x-user", "alice, bob"),
    ("X-Env", "Prod"),
    ("x-env", "test"),
    ("Cookie", "canary=yes; SRV=s1"),
    ("cookie", "a=1;canary=no"),
    ("User-Agent", "curl/8.0 (x, y)"),
    ("X-Forwarded-For", "192.0.2.1"),
    ("X-N", "7"),
];
const BACKENDS: &[&str] = &["bk_a", "bk_b", "bk_c", "static", "bk_none"];

/// Other files, always the same.
pub(super) const FIXED: &[(&str, &str)] = &[
    ("nets.map", "10.20.9.0/24 in\n10.20.0.0/16 out\n10.20.9.1 out\n"),
    ("paths.map", "/ two\n/api one\n/api/v1 three\n/v2 one\n"),
    ("regs.map", "^/api none\n^/[a-z]+$ some\n.* no\n"),
];

/// The text of such a file.
pub(super) fn fixed(name: &str) -> Option<&'static str> {
    FIXED.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// What TLS asks for: a name without a port.
pub(super) fn server_name(asked: &Asked) -> String {
    asked.host.split(':').next().unwrap_or_default().to_owned()
}

/// Choices, all 0 when they are used up.
pub(super) struct Choices<'a>(pub std::slice::Iter<'a, u16>);

impl Choices<'_> {
    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % n
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn maybe(&mut self) -> bool {
        self.below(2) == 1
    }
}

/// `is_nasty` adds what HAProxy refuses or what no converter can know.
pub(super) fn write(choices: &[u16], is_nasty: bool) -> Written {
    let mut writer = Writer { choices: Choices(choices.iter()), text: String::new(), is_nasty };
    writer.global();
    writer.defaults();
    writer.frontend();
    for (n, name) in BACKENDS[..4].iter().enumerate() {
        writer.backend(n, name);
    }
    if writer.choices.maybe() {
        writer.listen();
    }
    if writer.choices.maybe() {
        writer.tcp();
    }
    if writer.choices.maybe() {
        writer.tls();
    }
    let requests = (0..12).map(|_| writer.asked()).collect();
    let values = ["a", "b", "static", "none", "c"];
    let keys = ["a.example", "b.example", "what", "api.b.example", ".example"];
    let map: String = keys
        .iter()
        .filter_map(|key| {
            let value = writer.choices.one(&values);
            writer.choices.maybe().then(|| format!("{key} {value}\n"))
        })
        .collect();
    let list = "# paths\n/admin\n/v2/\n".to_owned();
    Written { config: writer.text, map, list, requests }
}

struct Writer<'a> {
    choices: Choices<'a>,
    text: String,
    is_nasty: bool,
}

impl Writer<'_> {
    fn line(&mut self, line: &str) {
        let indent = self.choices.one(&["    ", "\t", "  "]);
        let end = self.choices.one(&["", "", "", "  ", " # why", "\t#"]);
        self.text += &format!("{indent}{line}{end}\n");
        if self.choices.below(12) == 11 {
            self.text += self.choices.one(&["\n", "# between\n", "   # \"open\n", "  \t\n"]);
        }
        if self.is_nasty && self.choices.below(6) == 5 {
            let nasty = [
                "frobnicate all \"the things\" # now",
                "option no-such-thing",
                "http-request lua.check arg",
                "http-request set-header X-R %[rand(10)] if { rand(2) 1 }",
                "filter compression",
                "http-request deny if { http_auth(users) } !{ lua.x -m found }",
                "stick-table type ip size 1m expire 1h store http_req_rate(10s)",
                "http-request track-sc0 src",
                "http-request deny deny_status 429 if { sc_http_req_rate(0) gt 100 }",
                "acl weird path_reg (?<!a)b\\1",
                "http-request replace-header x-user (.*) \"<\\1>\"",
                "errorfile 503 /etc/haproxy/errors/503.http",
                "unknown-$directive ${NOT} '$x'",
                "tcp-request content reject if { src -f none.lst }",
                "http-response set-header X-T 1 if { status 200 }",
                "use_backend %[req.hdr(x-env)]_%[path] if TRUE",
                "http-request auth realm x unless { http_auth(users) }",
                "option forwardfor except 127.0.0.0/8 header X-Client",
            ];
            let nasty = self.choices.one(&nasty);
            self.text += &format!("    {nasty}\n");
        }
    }

    fn global(&mut self) {
        self.text += "global\n";
        self.line("maxconn 100");
        if self.is_nasty && self.choices.maybe() {
            self.text += ".if defined(NOBODY)\n  lua-load x.lua\n.else\n  nbthread 1\n.endif\n";
            self.line("stats socket /run/x.sock mode 600 level admin");
        }
    }

    fn defaults(&mut self) {
        let name = self.choices.one(&["", " d1"]);
        self.text += &format!("defaults{name}\n");
        self.line("mode http");
        for name in ["connect", "client", "server"] {
            let time = self.choices.one(&["2s", "2000", "3s"]);
            self.line(&format!("timeout {name} {time}"));
        }
        if self.choices.maybe() {
            self.line("option forwardfor");
        }
        if self.choices.maybe() {
            self.line("option httplog");
        }
        if self.choices.maybe() {
            self.line("retries 0");
        }
        if self.choices.maybe() {
            self.line("default-server weight 2");
        }
    }

    fn test(&mut self) -> String {
        let host = |c: &mut Self| c.choices.one(&["a.example", "b.example", "A.Example", "what"]);
        match self.choices.below(48) {
            0 => format!("hdr(host) {}", host(self)),
            1 => format!("hdr(host) -i {} {}", host(self), host(self)),
            2 => "hdr_beg(host) -i api.".to_owned(),
            3 => "hdr_end(host) .example".to_owned(),
            4 => "hdr_dom(host) -i b.example".to_owned(),
            5 => "hdr_reg(host) -i ^(api\\.)?b\\.example$".to_owned(),
            6 => "hdr_sub(host) example".to_owned(),
            7 => format!("req.hdr(host),lower,field(1,:) {}", host(self)),
            8 => format!("req.hdr(host),host_only -i {}", host(self)),
            9 => "path /api /health".to_owned(),
            10 => "path_beg /api /v2/".to_owned(),
            11 => "path_beg -i /api".to_owned(),
            12 => "path_end .png /x".to_owned(),
            13 => "path_sub api".to_owned(),
            14 => "path_dir img v1".to_owned(),
            15 => "path_reg ^/v[0-9]+(/|$)".to_owned(),
            16 => "path_beg -f paths.lst".to_owned(),
            17 => "path_len gt 4".to_owned(),
            18 => "method POST PUT".to_owned(),
            19 => "hdr(x-user) 42 bob".to_owned(),
            20 => "req.hdr(x-env) -m found".to_owned(),
            21 => "hdr(x-env) -i prod".to_owned(),
            22 => "hdr_cnt(x-user) gt 0".to_owned(),
            23 => "req.cook(canary) -m str yes".to_owned(),
            24 => "url_param(v) 2".to_owned(),
            25 => "src 10.20.9.0/24".to_owned(),
            26 => "base_beg a.example/api".to_owned(),
            27 => "url_beg /v2".to_owned(),
            28 => "ssl_fc".to_owned(),
            29 => "hdr_sub(user-agent) -i CURL".to_owned(),
            30 => "dst_port 8000".to_owned(),
            31 => "query -m sub v=2".to_owned(),
            32 => "hdr_val(x-n) gt 5".to_owned(),
            33 => "path,lower -m beg /api/v".to_owned(),
            34 => "url_end v=2 .png".to_owned(),
            35 => "url_reg -i ^/api.*x$".to_owned(),
            36 => "hdr_len(host) 4 9".to_owned(),
            37 => "req.hdr(x-user,-1) bob".to_owned(),
            38 => "cook_beg(canary) n".to_owned(),
            39 => "url_param(v) -m found".to_owned(),
            40 => "src,map_ip(nets.map,0) -m str in".to_owned(),
            41 => "path,map_beg(paths.map) -m str one".to_owned(),
            42 => "path,map_reg(regs.map,none) -m beg n".to_owned(),
            43 => "path,field(-1,/) x logo.png".to_owned(),
            44 => "path,word(1,/) api".to_owned(),
            45 => "base example/ a.example:8000/".to_owned(),
            46 => "hdr_dir(host) what".to_owned(),
            _ => "req.fhdr(x-user) -m beg alice".to_owned(),
        }
    }

    fn literal(&mut self) -> String {
        let negated = self.choices.one(&["", "", "!"]);
        match self.choices.below(8) {
            0 => format!("{negated}one"),
            1 => format!("{negated}two"),
            2 => format!("{negated}{}", self.choices.one(&["METH_GET", "TRUE", "HTTP_1.1"])),
            3 => format!("{negated}{}", self.choices.one(&["FALSE", "METH_POST", "LOCALHOST"])),
            _ => format!("{negated}{{ {} }}", self.test()),
        }
    }

    fn condition(&mut self) -> String {
        let mut text = self.choices.one(&["if", "if", "unless"]).to_owned();
        text += &format!(" {}", self.literal());
        if self.choices.maybe() {
            let between = self.choices.one(&["", "or ", "|| "]);
            text += &format!(" {between}{}", self.literal());
        }
        text
    }

    fn maybe_condition(&mut self) -> String {
        if self.choices.below(4) == 0 { String::new() } else { self.condition() }
    }

    fn acls(&mut self) {
        for name in ["one", "two", "one"] {
            let test = self.test();
            self.line(&format!("acl {name} {test}"));
        }
    }

    fn rule(&mut self) {
        let action = match self.choices.below(36) {
            0 => "deny".to_owned(),
            1 => "deny deny_status 404".to_owned(),
            2 => "return status 200 content-type text/plain string \"hi there\"".to_owned(),
            3 => "redirect location https://x.example/y?z code 301".to_owned(),
            4 => "redirect scheme https code 307".to_owned(),
            5 => "redirect prefix https://x.example".to_owned(),
            6 => "redirect prefix /base drop-query append-slash".to_owned(),
            7 => "redirect location https://w.example%[path]".to_owned(),
            8 => "redirect location https://%[hdr(host),field(1,:)]%[capture.req.uri]".to_owned(),
            9 => "set-header X-Edge one".to_owned(),
            10 => "set-header X-User 'the one'".to_owned(),
            11 => "add-header X-User more".to_owned(),
            12 => "del-header x-env".to_owned(),
            13 => "set-header Host inner.example".to_owned(),
            14 => "set-path /whole".to_owned(),
            15 => "set-path /pre%[path]".to_owned(),
            16 => "set-path %[path,regsub(^/v2/,/)]".to_owned(),
            17 => "set-path '%[path,regsub(\"/([a-z]+)/\",\"/<\\1>/\",g)]'".to_owned(),
            18 => "replace-path ^/api/(.*) /\\1".to_owned(),
            19 => "replace-path (/[a-z]+)/(.*) /\\2\\1".to_owned(),
            20 => "set-var(txn.v) req.hdr(host),lower,field(1,:)".to_owned(),
            21 => "set-var(txn.v) str(b)".to_owned(),
            22 => "set-header X-Real %[src]".to_owned(),
            23 => "del-header x- -m beg".to_owned(),
            24 => "replace-header x-user ([a-z]+) <\\1>".to_owned(),
            25 => "replace-value x-user (bob|42) <\\1>".to_owned(),
            26 => "set-query a=%[path]".to_owned(),
            27 => "set-pathq /p?z=1".to_owned(),
            28 => "set-uri /u%[path]".to_owned(),
            29 => "replace-uri ^/api/(.*) /\\1".to_owned(),
            30 => "replace-pathq (.*)v=([0-9]) \\1w=\\2".to_owned(),
            31 => "return status 418 hdr X-A %HM content-type a/b lf-string %HP%HQ".to_owned(),
            32 => "set-header X-W %[path,word(-1,/)]:%[req.hdr(host),concat(<,txn.v,>)]".to_owned(),
            33 => "set-method PATCH".to_owned(),
            34 => "set-header X-L %[req.hdr(x-user),length]:%[path,ltrim(/),upper]".to_owned(),
            _ => "allow".to_owned(),
        };
        let condition = match action.as_str() {
            "deny" | "allow" => self.condition(),
            action if action.starts_with('r') && !action.starts_with("replace") => self.condition(),
            _ => self.maybe_condition(),
        };
        self.line(&format!("http-request {action} {condition}"));
    }

    fn frontend(&mut self) {
        self.text += "frontend fe\n";
        self.line(&format!("bind {HTTP}"));
        self.acls();
        if self.choices.below(4) == 3 {
            self.line("monitor-uri /health");
        }
        for _ in 0..self.choices.below(4) {
            self.rule();
        }
        if self.choices.below(3) == 2 {
            let expression = self.choices.one(&[
                "req.hdr(host),lower,field(1,:),map_str(hosts.map,none)",
                "req.hdr(host),lower,map_end(hosts.map)",
                "path,field(2,/),lower",
                "req.hdr(host),host_only,map_dom(hosts.map,a)",
            ]);
            self.line(&format!("http-request set-var(txn.be) {expression}"));
            self.line("use_backend bk_%[var(txn.be)] if { var(txn.be) -m found } one");
        }
        if self.choices.below(4) == 3 {
            let condition = self.condition();
            self.line(&format!("redirect prefix https://r.example {condition}"));
        }
        for _ in 0..self.choices.below(5) {
            let to = self.choices.one(&BACKENDS[..4]);
            let condition = self.condition();
            self.line(&format!("use_backend {to} {condition}"));
        }
        if self.choices.below(4) == 3 {
            let condition = self.maybe_condition();
            self.line(&format!("use_backend bk_%[req.hdr(x-env),lower] {condition}"));
        }
        if self.choices.below(5) > 0 {
            let to = self.choices.one(&BACKENDS[..4]);
            self.line(&format!("default_backend {to}"));
        }
    }

    fn servers(&mut self, n: usize) {
        for server in 1..=self.choices.below(4) {
            let weight = self.choices.one(&["", "", " weight 3", " weight 0"]);
            let more = self.choices.one(&["", "", "", " backup", " disabled", " cookie s1"]);
            self.line(&format!("server s{server} 10.20.{}.{server}:8080{weight}{more}", n + 1));
        }
    }

    fn balance(&mut self) {
        let kinds = "roundrobin|static-rr|leastconn|first|source|uri|uri depth 1|hdr(x-user)|\
                     url_param v|random";
        let balance = self.choices.one(&kinds.split('|').collect::<Vec<_>>());
        self.line(&format!("balance {balance}"));
    }

    fn backend(&mut self, n: usize, name: &str) {
        self.text += &format!("backend {name}\n");
        self.acls();
        self.balance();
        for _ in 0..self.choices.below(3) {
            self.rule();
        }
        for line in [
            "cookie SRV insert indirect",
            "option allbackups",
            "http-response set-header X-A b",
            "option httpchk GET /health",
            "stats uri /static",
        ] {
            if self.choices.below(6) == 5 {
                self.line(line);
            }
        }
        self.servers(n);
        if self.text.contains(&format!("server s1 10.20.{}.1:", n + 1)) && self.choices.maybe() {
            let condition = self.condition();
            self.line(&format!("use-server s1 {condition}"));
        }
    }

    fn listen(&mut self) {
        self.text += "listen both\n";
        self.line(&format!("bind {LISTEN}"));
        self.acls();
        self.balance();
        for _ in 0..self.choices.below(3) {
            self.rule();
        }
        if self.choices.maybe() {
            let condition = self.condition();
            self.line(&format!("use_backend static {condition}"));
        }
        self.servers(5);
    }

    fn tcp(&mut self) {
        self.text += "defaults tcpd\n";
        self.line("mode tcp");
        for name in ["connect", "client", "server"] {
            self.line(&format!("timeout {name} 2s"));
        }
        self.text += "listen raw\n";
        self.line(&format!("bind {TCP}"));
        self.balance();
        self.servers(6);
        self.text = self.text.replace("\tbalance url_param v", "\tbalance source");
    }

    fn tls(&mut self) {
        self.text += "defaults tls\n";
        self.line("mode tcp");
        for name in ["connect", "client", "server"] {
            self.line(&format!("timeout {name} \"${{NO-2s}}\""));
        }
        self.text += "frontend tls from tls\n";
        self.line(&format!("bind {TLS}"));
        self.line("tcp-request inspect-delay 2s");
        if self.choices.maybe() {
            self.line("tcp-request connection reject if { src 10.20.8.0/24 }");
        }
        self.line("tcp-request content accept if { req.ssl_hello_type 1 }");
        for _ in 0..self.choices.below(4) {
            let test = self.choices.one(&[
                "req.ssl_sni a.example what",
                "req.ssl_sni -i b.example",
                "req_ssl_sni -i A.Example",
                "req.ssl_sni -m end .b.example",
                "req.ssl_sni -m end -i .example",
                "req.ssl_sni,lower a.example",
                "req.ssl_sni -m beg api",
                "src 10.20.9.0/24",
            ]);
            let to = self.choices.one(&["tls_a", "tls_b", "tls_c"]);
            self.line(&format!("use_backend {to} if {{ {test} }}"));
        }
        self.line("default_backend tls_c");
        for (n, name) in ["tls_a", "tls_b", "tls_c"].into_iter().enumerate() {
            self.text += &format!("backend {name} from tls\n");
            if self.choices.below(6) == 5 {
                self.line("disabled");
            }
            self.line(&format!("server s1 10.20.{}.1:8443", n + 20));
        }
    }

    fn asked(&mut self) -> Asked {
        let listener = self.choices.one(&[HTTP, HTTP, HTTP, LISTEN, TCP, TLS]);
        let headers = (0..self.choices.below(4)).map(|_| self.choices.one(HEADERS)).collect();
        Asked {
            listener,
            source: self.choices.one(&["10.20.9.1", "10.20.8.1"]),
            method: self.choices.one(METHODS),
            host: self.choices.one(HOSTS),
            target: self.choices.one(PATHS),
            headers,
        }
    }
}
