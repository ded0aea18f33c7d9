//! Upstreams, values of variables, and `stream`.

use super::writer::Writer;

impl Writer<'_> {
    pub(super) fn upstreams(&mut self) {
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

    pub(super) fn map(&mut self) {
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

    pub(super) fn values(&mut self) {
        self.open(&["geo", "$g"]);
        self.line(&["default", "u0"]);
        self.line(&["10.20.0.0/24", "u1"]);
        if self.choose.once_in(2) {
            self.line(&["10.20.0.1", "u2"]);
        }
        self.close();
        self.open(&["split_clients", "${remote_addr}", "$sp"]);
        self.line(&["20%", "u1"]);
        self.line(&["0.5%", "u0"]);
        self.line(&["*", "u2"]);
        self.close();
    }

    fn set_if(&mut self, condition: &[&str], variable: &str, value: &str) {
        self.open(&[&["if"], condition].concat());
        self.line(&["set", variable, value]);
        self.close();
    }

    /// Refused by one condition, and let in again by another.
    pub(super) fn switch(&mut self) {
        self.line(&["set", "$b", "0"]);
        self.set_if(&["($http_x_a", "~", "^(b|c)$)"], "$b", "1");
        self.set_if(&["($request_method", "=", "POST)"], "$b", "0");
        if self.choose.once_in(2) {
            self.set_if(&["($arg_x)"], "$b", "1");
        }
        let test: &[&str] = if self.choose.once_in(2) { &["($b", "=", "1)"] } else { &["($b)"] };
        self.open(&[&["if"], test].concat());
        self.line(&["return", "403"]);
        self.close();
    }

    /// An upstream by two conditions, of which both may hold.
    pub(super) fn pool(&mut self) {
        self.line(&["set", "$pool", "u0"]);
        self.set_if(&["($http_x_a)"], "$pool", "u1");
        self.set_if(&["($request_method", "!=", "GET)"], "$pool", "u2");
    }

    pub(super) fn stream(&mut self) {
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
        if self.choose.once_in(4) {
            self.line(&["deny", "10.20.0.1"]);
        }
        self.close();
        self.close();
    }
}
