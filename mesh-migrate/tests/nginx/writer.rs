//! Statements of nginx, with spaces, quotes and comments wherever they may be.

use std::collections::BTreeSet;

/// Of `listen`.
pub(super) const LISTENS: [&str; 4] = ["10.20.0.4:80", "10.20.0.4:8080", "10.20.0.5:80", "8000"];
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

/// Where choices come from; at their end everything is 0.
pub(super) struct Choices<'b> {
    pub(super) bytes: &'b [u8],
    pub(super) at: usize,
}

impl Choices<'_> {
    pub(super) fn below(&mut self, n: usize) -> usize {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        usize::from(byte) % n.max(1)
    }

    pub(super) fn of<'t>(&mut self, all: &[&'t str]) -> &'t str {
        all[self.below(all.len())]
    }

    /// Once in `n`; never at the end.
    pub(super) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
}

pub(super) struct Writer<'b> {
    pub(super) choose: Choices<'b>,
    pub(super) out: String,
    pub(super) indent: usize,
    /// nginx of this machine must start with it.
    pub(super) runs: bool,
    pub(super) maps: usize,
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

    pub(super) fn line(&mut self, line: &[&str]) {
        self.head(line);
        if self.choose.once_in(12) {
            self.space();
        }
        self.out += if self.choose.once_in(12) { "; " } else { ";\n" };
    }

    pub(super) fn open(&mut self, line: &[&str]) {
        self.head(line);
        // `${` would begin a variable.
        let is_close = self.choose.once_in(8) && !self.out.ends_with('$');
        self.out += if is_close { "{ " } else { " {\n" };
        self.indent += 1;
    }

    pub(super) fn close(&mut self) {
        self.indent -= 1;
        self.out += &"    ".repeat(self.indent);
        self.out += if self.choose.once_in(8) { "} " } else { "}\n" };
    }

    pub(super) fn http(&mut self) {
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
        self.values();
        let servers = 1 + self.choose.below(4);
        let mut defaults = BTreeSet::new();
        for _ in 0..servers {
            self.server(&mut defaults);
        }
        self.close();
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
            9 => self.switch(),
            10 => self.pool(),
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
        match self.choose.below(16) {
            7 if self.maps > 0 => {
                self.open(&["if", "($m0", "=", "u1)"]);
                self.line(&["return", "403", "by map"]);
                self.close();
            }
            8 => {
                self.open(&["if", "($g", "~", "2)"]);
                self.line(&["return", "302", "/by/geo"]);
                self.close();
            }
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
            9 => self.switch(),
            10 => self.pool(),
            _ => {}
        }
        self.handler(is_pattern);
    }

    /// Directives of the rewrite module, in any order.
    fn rewrites(&mut self) {
        for _ in 0..self.choose.below(4) {
            match self.choose.below(14) {
                0 => self.line(&["rewrite", "^/a(.*)$", "/d$1"]),
                1 => self.line(&["rewrite", "^/d/(.*)", "/e/$1?z=$1"]),
                2 => self.line(&["rewrite", "^/x(.*)$", "/y$1?", "last"]),
                3 => self.line(&["rewrite", "/b", "/c", "break"]),
                4 => self.line(&["break"]),
                5 => self.line(&["set", "$args", "n=1"]),
                6 => {
                    self.open(&["if", "($args", "~", "q|z)"]);
                    self.line(&["rewrite", "^", "/hasq", "last"]);
                    self.close();
                }
                7 => {
                    self.open(&["if", "($arg_x)"]);
                    self.line(&["return", "200", "arg=$arg_x $is_args$query_string"]);
                    self.close();
                }
                8 => {
                    self.line(&["set", "$v2", "$uri"]);
                    self.open(&["if", "($v2", "!~", "^/a)"]);
                    self.line(&["return", "200", "v2=$v2;$1"]);
                    self.close();
                }
                9 => self.line(&["rewrite", "^/(?<p>[a-z])/", "/$p-$uri", "permanent"]),
                10 => {
                    self.open(&["if", "($request_uri", "~*", "(png|x)(.?))"]);
                    self.line(&["set", "$v3", "g=$1-$2"]);
                    self.line(&["break"]);
                    self.close();
                    self.line(&["proxy_set_header", "X-V3", "$v3"]);
                }
                11 => self.line(&["rewrite", "^/static/(.*)$", "/a/$1?w=1?", "last"]),
                12 => self.line(&["rewrite", "^(.*)\\.png$", "$1.gif", "redirect"]),
                _ => {
                    self.open(&["if", "($host", "!=", "a.example)"]);
                    self.line(&["rewrite", "^/a/b(.*)", "/ab$1", "break"]);
                    self.close();
                }
            }
        }
    }

    fn handler(&mut self, is_pattern: bool) {
        if self.choose.once_in(4) {
            self.rewrites();
        }
        let to = self.choose.below(28);
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
            24 => self.line(&["proxy_pass", "http://$g"]),
            25 => self.line(&["proxy_pass", "http://$sp"]),
            27 if self.out.contains("$pool") => self.line(&["proxy_pass", "http://$pool"]),
            26 if self.out.contains("(?<rest>") => self.line(&["proxy_pass", "http://u0/n/$rest"]),
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
}
