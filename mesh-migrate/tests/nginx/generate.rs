//! Configurations of nginx out of bytes, and requests to ask about: the same bytes make
//! the same ones, and fewer bytes simpler ones.

use std::collections::BTreeSet;

use mesh_migrate::request::{Http, Kind, Request};

/// Where choices come from; at their end everything is 0.
struct Choices<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Choices<'_> {
    fn below(&mut self, n: usize) -> usize {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        usize::from(byte) % n.max(1)
    }

    fn of<'t>(&mut self, all: &[&'t str]) -> &'t str {
        all[self.below(all.len())]
    }

    /// Once in `n`; never at the end.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
}

/// A configuration and what to ask about it.
pub(crate) struct Generated {
    pub(crate) text: String,
    pub(crate) requests: Vec<Request>,
}

const LISTENS: [&str; 4] = ["10.20.0.4:80", "10.20.0.4:8080", "10.20.0.5:80", "8000"];
const NAMES: [&str; 12] = [
    "a.example",
    "b.example",
    "*.example",
    ".c.example",
    "www.*",
    "~^x[0-9]+\\.example$",
    "~^(?<sub>.+)\\.d\\.example$",
    "_",
    "\"\"",
    "*.b.example",
    "A.EXAMPLE",
    "www.a.*",
];
const HOSTS: [&str; 16] = [
    "a.example",
    "b.example",
    "z.example",
    "c.example",
    "y.c.example",
    "www.x.y",
    "x12.example",
    "q.d.example",
    "none",
    "A.Example",
    "a.example:8080",
    "b.example.",
    "q.b.example",
    "www.a.b",
    "p.q.b.example",
    "_",
];
const PREFIXES: [&str; 12] = [
    "/", "/a", "/a/", "/a/b", "/a/b/", "/ab", "/static/", "/api/v1/", "/api/", "/x y/", "/d/e/f",
    "/a.png",
];
const PATTERNS: [&str; 10] = [
    "\\.png$",
    "^/a/(.*)$",
    "^/api/v[0-9]+/(?<rest>.*)$",
    "/b",
    "^/(a|d)/",
    "b/?$",
    "^/A/",
    "(png|css)$",
    "^/a[^/]",
    "\\d+",
];
const TARGETS: [&str; 30] = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/c?x=1",
    "/ab/c",
    "/static/a.png",
    "/api/v1/u",
    "/api/v12/u/1?y=a%20b",
    "/A/q",
    "/d/e/f",
    "/d/e/f/g",
    "/a.png",
    "/none",
    "/a/c.png?z",
    "/old/x",
    "/old/x?q=1",
    "/api",
    "/static",
    "/a//b",
    "/a/./b/../c",
    "/a%2fb",
    "/x%20y/z",
    "/%61/b",
    "/a/%C3%A4",
    "/../a",
    "/a/b%3fc",
    "/a+b/c?d+e",
    "/old/a%20b?c",
    "/err",
];

struct Writer<'b> {
    choose: Choices<'b>,
    out: String,
    indent: usize,
    /// nginx of this machine must start with it.
    runs: bool,
    maps: usize,
}

impl Writer<'_> {
    fn space(&mut self) {
        let space = match self.choose.below(24) {
            21 => "\t",
            22 => "\n   ",
            23 => " # ; } { \"'\n  ",
            _ => " ",
        };
        self.out += space;
    }

    fn word(&mut self, word: &str) {
        let is_plain =
            !word.contains([' ', ';', '{', '}', '"', '\'', '\\', '#', '\n']) && !word.is_empty();
        match self.choose.below(12) {
            10 => self.out += &format!("\"{}\"", word.replace('"', "\\\"")),
            11 => self.out += &format!("'{}'", word.replace('\'', "\\'")),
            _ if is_plain => self.out += word,
            _ => self.out += &format!("\"{}\"", word.replace('"', "\\\"")),
        }
    }

    fn head(&mut self, line: &[&str]) {
        if self.choose.once_in(9) {
            self.out += "\n\t# a comment; with { and }\n";
        }
        self.out += &"    ".repeat(self.indent);
        for (number, word) in line.iter().enumerate() {
            if number > 0 {
                self.space();
                self.word(word);
            } else {
                self.out += word;
            }
        }
    }

    fn line(&mut self, line: &[&str]) {
        self.head(line);
        if self.choose.once_in(12) {
            self.space();
        }
        self.out += if self.choose.once_in(12) { "; " } else { ";\n" };
    }

    fn open(&mut self, line: &[&str]) {
        self.head(line);
        // `${` would begin a variable.
        let is_close = self.choose.once_in(8) && !self.out.ends_with('$');
        self.out += if is_close { "{ " } else { " {\n" };
        self.indent += 1;
    }

    fn close(&mut self) {
        self.indent -= 1;
        self.out += &"    ".repeat(self.indent);
        self.out += if self.choose.once_in(8) { "} " } else { "}\n" };
    }

    fn http(&mut self) {
        self.open(&["http"]);
        self.line(&["access_log", "off"]);
        for path in [
            "proxy_temp_path",
            "client_body_temp_path",
            "fastcgi_temp_path",
            "uwsgi_temp_path",
            "scgi_temp_path",
        ] {
            self.line(&[path, path]);
        }
        self.line(&["server_names_hash_bucket_size", "128"]);
        self.common();
        self.upstreams();
        self.map();
        let servers = 1 + self.choose.below(4);
        let mut defaults = BTreeSet::new();
        for _ in 0..servers {
            self.server(&mut defaults);
        }
        self.close();
    }

    fn upstreams(&mut self) {
        for number in 0..3 {
            let name = format!("u{number}");
            self.open(&["upstream", &name]);
            let method = self.choose.below(8);
            match method {
                1 => self.line(&["least_conn"]),
                2 => self.line(&["ip_hash"]),
                3 => {
                    let key = self.choose.of(&[
                        "$remote_addr",
                        "$request_uri",
                        "$http_x_a",
                        "$cookie_a",
                        "$arg_x",
                        "$uri$args",
                    ]);
                    if self.choose.once_in(2) {
                        self.line(&["hash", key, "consistent"])
                    } else {
                        self.line(&["hash", key])
                    }
                }
                4 => self.line(&["random"]),
                5 => self.line(&["random", "two", "least_conn"]),
                _ => {}
            }
            for member in 0..=self.choose.below(3) {
                let address = format!("10.20.1.{}:9000", 10 * (number + 1) + member);
                let mut line = vec!["server", address.as_str()];
                match self.choose.below(8) {
                    1 => line.push("weight=3"),
                    2 if member > 0 => line.push("down"),
                    3 if member > 0 && !(2..=5).contains(&method) => line.push("backup"),
                    4 => line.extend(["max_fails=3", "fail_timeout=5s"]),
                    5 => line.push("max_conns=100"),
                    _ => {}
                }
                self.line(&line);
            }
            if self.choose.once_in(3) {
                self.line(&["keepalive", "4"]);
            }
            self.close();
        }
    }

    fn map(&mut self) {
        self.maps = self.choose.below(4);
        for number in 0..self.maps {
            let name = format!("$m{number}");
            let source =
                self.choose.of(&["$http_x_a", "$host", "$request_method", "$arg_x", "$cookie_a"]);
            self.open(&["map", source, &name]);
            if source == "$host" {
                self.line(&["hostnames"]);
                self.line(&["a.example", "u1"]);
                self.line(&["*.example", "u2"]);
                self.line(&[".c.example", "u1"]);
            } else {
                self.line(&["b", "u1"]);
                self.line(&["POST", "u2"]);
                if source != "$cookie_a" {
                    self.line(&["~^c", "u2"]);
                    self.line(&["~*^D.$", "u1"]);
                }
            }
            if !self.choose.once_in(6) {
                self.line(&["default", "u0"]);
            }
            self.close();
        }
    }

    fn server(&mut self, defaults: &mut BTreeSet<&'static str>) {
        self.open(&["server"]);
        let first = self.choose.below(LISTENS.len());
        for offset in 0..=self.choose.below(2) {
            let listen = LISTENS[(first + offset) % LISTENS.len()];
            if self.choose.once_in(3) && defaults.insert(listen) {
                self.line(&["listen", listen, "default_server"]);
            } else {
                self.line(&["listen", listen]);
            }
        }
        let mut names = BTreeSet::new();
        for _ in 0..self.choose.below(4) {
            let name = self.choose.of(&NAMES);
            if names.insert(name.to_lowercase()) {
                self.line(&["server_name", name.trim_matches('"')]);
            }
        }
        self.common();
        self.server_rewrites();
        if self.choose.once_in(8) {
            self.line(&["merge_slashes", "off"]);
        }
        if self.choose.once_in(6) {
            let to = self.choose.of(&["/err", "/a/b", "@named", "http://c.example/e"]);
            let code = self.choose.of(&["404", "403", "405"]);
            match self.choose.below(3) {
                1 => self.line(&["error_page", code, "=", to]),
                2 => self.line(&["error_page", code, "=200", to]),
                _ => self.line(&["error_page", code, to]),
            }
        }
        self.open(&["location", "@named"]);
        self.line(&["return", "410", "named"]);
        self.close();
        self.locations("", 0);
        self.close();
    }

    fn server_rewrites(&mut self) {
        match self.choose.below(12) {
            1 => self.line(&["rewrite", "^/old/(.*)$", "/a/$1", "last"]),
            2 => self.line(&["rewrite", "^/old/(.*)$", "/new/$1", "permanent"]),
            3 => self.line(&["rewrite", "^/old/(.*)$", "https://new.example/$1?k=v", "redirect"]),
            4 => self.line(&["set", "$v", "u1"]),
            5 => {
                self.open(&["if", "($host", "=", "b.example)"]);
                self.line(&["return", "301", "https://b2.example$request_uri"]);
                self.close();
            }
            6 if self.choose.once_in(2) => {
                self.line(&["return", "301", "https://$host$request_uri"])
            }
            7 => {
                self.open(&["if", "($http_x_a", "~*", "^(b|q)$)"]);
                self.line(&["return", "403"]);
                self.close();
            }
            8 => self.line(&["rewrite", "^/old/", "/a/b?r=1", "break"]),
            _ => {}
        }
    }

    fn locations(&mut self, parent: &str, depth: usize) {
        let mut known = BTreeSet::new();
        let count = if depth == 0 { 1 + self.choose.below(7) } else { self.choose.below(3) };
        for _ in 0..count {
            let is_pattern = self.choose.below(3) == 2;
            let text =
                if is_pattern { self.choose.of(&PATTERNS) } else { self.choose.of(&PREFIXES) };
            if !is_pattern && !text.starts_with(parent) {
                continue;
            }
            let modifier = match (is_pattern, self.choose.below(5)) {
                (true, 0..=2) => "~",
                (true, _) => "~*",
                (false, 3) => "=",
                (false, 4) => "^~",
                (false, _) => "",
            };
            if !known.insert((is_pattern || modifier == "=", text)) {
                continue;
            }
            match modifier {
                "" => self.open(&["location", text]),
                modifier => self.open(&["location", modifier, text]),
            }
            self.body(is_pattern);
            if !is_pattern && modifier != "=" && depth < 2 && self.choose.once_in(3) {
                self.locations(text, depth + 1);
            }
            self.close();
        }
    }

    fn body(&mut self, is_pattern: bool) {
        self.common();
        match self.choose.below(14) {
            1 => {
                self.open(&["if", "($request_method", "=", "POST)"]);
                self.line(&["return", "405"]);
                self.close();
            }
            2 => {
                self.open(&["if", "($http_x_a", "=", "c)"]);
                self.line(&["proxy_pass", "http://u1"]);
                self.close();
            }
            3 => {
                self.open(&["limit_except", "GET"]);
                self.line(&["deny", "all"]);
                self.close();
            }
            4 => {
                self.line(&["deny", "10.20.0.2"]);
                self.line(&["allow", "10.20.0.0/24"]);
                self.line(&["deny", "all"]);
            }
            5 => self.line(&["internal"]),
            6 => {
                self.open(&["if", "($http_x_a)"]);
                self.line(&["set", "$w", "u2"]);
                self.close();
            }
            _ => {}
        }
        let to = self.choose.below(24);
        match to {
            0..=2 => self.line(&["proxy_pass", "http://u0"]),
            3..=5 if !is_pattern => {
                let to = self.choose.of(&[
                    "http://u0/",
                    "http://u1/v1/",
                    "http://u2/x",
                    "http://10.20.1.99:9000/",
                ]);
                self.line(&["proxy_pass", to]);
            }
            6 => self.line(&["proxy_pass", "http://10.20.1.98:9000"]),
            7 if self.maps > 0 => self.line(&["proxy_pass", "http://$m0"]),
            8 if self.maps > 1 => self.line(&["proxy_pass", "http://$m1$request_uri"]),
            9 if is_pattern => self.line(&["proxy_pass", "http://u0/r/$1"]),
            10 if is_pattern => self.line(&["proxy_pass", "http://u1/r/$1$is_args$args"]),
            11 => {
                self.line(&["set", "$t", "u2"]);
                self.line(&["proxy_pass", "http://$t"]);
            }
            12 => {
                self.line(&["rewrite", "^/a/(.*)$", "/r/$1", "break"]);
                self.line(&["proxy_pass", "http://u1"]);
            }
            13 if !is_pattern => {
                self.line(&["rewrite", "b(.)", "/q$1?n=$1", "break"]);
                self.line(&["proxy_pass", "http://u1/pre/"]);
            }
            14 => {
                self.line(&["rewrite", "^/a(.*)$", "/static$1", "last"]);
                self.line(&["proxy_pass", "http://u2"]);
            }
            15 => self.line(&["rewrite", "^(.*)$", "/moved$1", "permanent"]),
            16 => {
                let text = self.choose.of(&["text", "at $uri", "for $host", "", "$1 $http_x_a"]);
                self.line(&["return", "200", text]);
            }
            17 => {
                let to = self.choose.of(&[
                    "/x",
                    "https://$host$request_uri",
                    "http://c.example/y?z",
                    "https://$server_name/$1",
                    "/q$request_uri",
                    "$scheme://$host/w$uri",
                ]);
                let status = self.choose.of(&["301", "302", "307"]);
                self.line(&["return", status, to]);
            }
            18 => {
                let status = self.choose.of(&["404", "403", "444", "204", "503"]);
                self.line(&["return", status]);
            }
            19 => self.line(&["proxy_pass", "http://u0/w$uri$is_args$args"]),
            20 => self.line(&["proxy_pass", "http://$host/"]),
            21 if !self.runs => self.odd(),
            22 => self.line(&["proxy_pass", "http://u2$request_uri"]),
            _ if self.choose.once_in(2) => self.line(&["proxy_pass", "http://u1"]),
            _ => {}
        }
    }

    /// What this machine's nginx may not know.
    fn odd(&mut self) {
        match self.choose.below(8) {
            0 => self.line(&["fastcgi_pass", "127.0.0.1:9000"]),
            1 => self.line(&["frobnicate", "a b", "on"]),
            2 => {
                self.open(&["frobnicate", "x"]);
                self.line(&["y", "z"]);
                self.close();
            }
            3 => {
                self.head(&["content_by_lua_block"]);
                self.out += " {\n  ngx.say(\"}\") -- }\n  local t = { 1 }\n}\n";
            }
            4 => self.line(&["auth_request", "/auth"]),
            5 => self.line(&["try_files", "$uri", "/index.html"]),
            6 => self.line(&["limit_req", "zone=one", "burst=5"]),
            _ => {
                self.open(&["location", "~", "^(?!/a)"]);
                self.line(&["return", "200", "x"]);
                self.close();
            }
        }
    }

    fn common(&mut self) {
        for _ in 0..self.choose.below(3) {
            match self.choose.below(14) {
                0 => {
                    let value =
                        self.choose.of(&["$host", "$http_host", "up.example", "$proxy_host"]);
                    self.line(&["proxy_set_header", "Host", value]);
                }
                1 => self.line(&["proxy_set_header", "X-Real-IP", "$remote_addr"]),
                2 => self.line(&[
                    "proxy_set_header",
                    "X-Forwarded-For",
                    "$proxy_add_x_forwarded_for",
                ]),
                3 => self.line(&["proxy_set_header", "Connection", ""]),
                4 => self.line(&["proxy_set_header", "X-A", ""]),
                5 => self.line(&["proxy_set_header", "X-Proto", "$scheme"]),
                6 => self.line(&["proxy_set_header", "X-B", "c d;e"]),
                7 => self.line(&["add_header", "X-Answer", "1"]),
                8 => self.line(&["proxy_set_header", "X-A", "$http_x_a"]),
                9 => self.line(&[
                    "proxy_set_header",
                    "x-uri",
                    "$uri-$args-$request_uri-$server_port",
                ]),
                10 if !self.runs => self.odd(),
                11 => self.line(&["proxy_set_header", "X-Forwarded-For", "$remote_addr"]),
                _ => {}
            }
        }
    }

    fn stream(&mut self) {
        self.open(&["stream"]);
        self.open(&["map", "$ssl_preread_server_name", "$s"]);
        self.line(&["hostnames"]);
        self.line(&["a.example", "s1"]);
        self.line(&["*.example", "s0"]);
        self.line(&[".c.example", "s1"]);
        if self.choose.once_in(3) {
            self.line(&["~^x", "10.20.3.9:9443"]);
        }
        if self.choose.once_in(2) {
            self.line(&["default", "s0"]);
        }
        self.close();
        for number in 0..2 {
            let name = format!("s{number}");
            self.open(&["upstream", &name]);
            if self.choose.once_in(3) {
                self.line(&["hash", "$remote_addr"]);
            }
            for member in 0..=self.choose.below(2) {
                let address = format!("10.20.3.{}:9443", 10 * (number + 1) + member);
                self.line(&["server", &address]);
            }
            self.close();
        }
        self.open(&["server"]);
        self.line(&["listen", "10.20.0.6:443"]);
        self.line(&["ssl_preread", "on"]);
        self.line(&["proxy_pass", "$s"]);
        self.close();
        self.open(&["server"]);
        self.line(&["listen", "10.20.0.6:444"]);
        let to = self.choose.of(&["s0", "s1", "10.20.3.8:9443"]);
        self.line(&["proxy_pass", to]);
        self.line(&["proxy_timeout", "3m"]);
        self.close();
        self.close();
    }
}

/// A configuration and requests; `runs`: nginx 1.22 starts with it.
pub(crate) fn generate(bytes: &[u8], runs: bool) -> Generated {
    let choose = Choices { bytes, at: 0 };
    let mut writer = Writer { choose, out: String::new(), indent: 0, runs, maps: 0 };
    writer.line(&["worker_processes", "1"]);
    writer.open(&["events"]);
    writer.close();
    writer.http();
    let has_stream = writer.choose.once_in(3);
    if has_stream {
        writer.stream();
    }
    let mut requests = Vec::new();
    let listeners: Vec<&str> =
        LISTENS.iter().copied().filter(|listen| writer.out.contains(listen)).collect();
    for _ in 0..16 {
        requests.push(request(&mut writer.choose, &listeners));
    }
    if has_stream {
        for name in ["a.example", "q.example", "y.c.example", "x.y", ""] {
            let listener = ["10.20.0.6:443", "10.20.0.6:444"][writer.choose.below(2)];
            let server_name = Some(name.to_owned()).filter(|name| !name.is_empty());
            requests.push(Request {
                listener: Some(listener.into()),
                source: "10.20.0.1".parse().unwrap(),
                kind: Kind::Connection { server_name },
            });
        }
    }
    Generated { text: writer.out, requests }
}

fn request(choose: &mut Choices<'_>, listeners: &[&str]) -> Request {
    let listener = match choose.of(listeners) {
        "8000" => "10.20.0.9:8000",
        listener => listener,
    };
    let host = Some(choose.of(&HOSTS).to_owned());
    let is_http10 = choose.once_in(12);
    let mut headers = Vec::new();
    if choose.once_in(2) {
        headers
            .push(("X-A".to_owned(), choose.of(&["b", "c", "cc", "dx", "POST", "q"]).to_owned()));
    }
    if choose.once_in(4) {
        headers.push(("Cookie".to_owned(), choose.of(&["a=b", "z=1; a=POST", "b=b"]).to_owned()));
    }
    if choose.once_in(6) {
        headers.push(("X-Forwarded-For".to_owned(), "1.2.3.4".to_owned()));
    }
    if choose.once_in(8) {
        headers.push(("x_under".to_owned(), "1".to_owned()));
    }
    Request {
        listener: Some(listener.into()),
        source: "10.20.0.1".parse().unwrap(),
        kind: Kind::Http(Http {
            method: choose.of(&["GET", "GET", "GET", "POST", "HEAD", "PUT"]).to_owned(),
            host: if is_http10 && choose.once_in(2) { None } else { host },
            target: choose.of(&TARGETS).to_owned(),
            headers,
            is_http10,
        }),
    }
}
