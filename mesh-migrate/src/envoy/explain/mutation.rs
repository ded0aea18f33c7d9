//! What becomes of headers: "Custom request/response headers".

use std::collections::BTreeSet;

use crate::{envoy::tree::Tree, request::Http};

/// Headers of one request, as they are changed.
pub(super) struct Headers {
    all: Vec<(String, String)>,
    touched: BTreeSet<String>,
    /// Values that only a running Envoy knows.
    pub(super) unknown: Vec<String>,
    source: String,
    protocol: &'static str,
}

impl Headers {
    pub(super) fn of(http: &Http, source: std::net::IpAddr) -> Self {
        let all = http.headers.iter();
        let mut all: Vec<_> =
            all.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        all.push((":method".into(), http.method.clone()));
        all.push((":path".into(), http.target.clone()));
        all.push((":authority".into(), http.host.clone().unwrap_or_default()));
        let protocol = if http.is_http10 { "HTTP/1.0" } else { "HTTP/1.1" };
        let source = source.to_string();
        Self { all, touched: BTreeSet::new(), unknown: Vec::new(), source, protocol }
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.all.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// One level: removals, then what overwrites, then what is appended. Values and
    /// conditions are of what is there after the removals.
    pub(super) fn apply(&mut self, level: &Tree) {
        self.apply_of(level, ["request_headers_to_remove", "request_headers_to_add"]);
    }

    fn apply_of(&mut self, level: &Tree, [remove, add]: [&str; 2]) {
        for name in level.texts(remove) {
            let name = name.to_ascii_lowercase();
            self.all.retain(|(known, _)| *known != name);
            self.touched.insert(name);
        }
        let (mut overwrites, mut appends) = (Vec::new(), Vec::new());
        for option in level.messages(add) {
            let Some((name, value)) = self.header(option) else { continue };
            let is_there = self.first(&name).is_some();
            match option.text("append_action").unwrap_or("APPEND_IF_EXISTS_OR_ADD") {
                "ADD_IF_ABSENT" if is_there => {}
                "ADD_IF_ABSENT" => appends.push((name, value)),
                "OVERWRITE_IF_EXISTS" if !is_there => {}
                "OVERWRITE_IF_EXISTS" | "OVERWRITE_IF_EXISTS_OR_ADD" => {
                    overwrites.push((name, value));
                }
                _ if option.bool("append") == Some(false) => overwrites.push((name, value)),
                _ => appends.push((name, value)),
            }
        }
        for (name, value) in overwrites {
            self.set(&name, value);
        }
        for (name, value) in appends {
            self.touched.insert(name.clone());
            self.all.push((name, value));
        }
    }

    /// What the levels add to an answer of Envoy itself, whose headers are not there yet.
    pub(super) fn of_answer(
        levels: &[&Tree],
        http: &Http,
        source: std::net::IpAddr,
    ) -> Vec<(String, String)> {
        let mut headers = Self::of(http, source);
        headers.all.clear();
        for level in levels {
            headers.apply_of(level, ["response_headers_to_remove", "response_headers_to_add"]);
        }
        headers.all
    }

    fn header(&mut self, option: &Tree) -> Option<(String, String)> {
        let header = option.msg("header")?;
        let name = header.text("key").unwrap_or_default().to_ascii_lowercase();
        let raw = header.some_text("value").or_else(|| header.text("raw_value"));
        let value = self.format(raw.unwrap_or_default());
        (!value.is_empty() || option.is("keep_empty_value")).then_some((name, value))
    }

    /// Command operators: those that a request alone answers, others stay as they are.
    fn format(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            out.push_str(before);
            let Some((operator, after)) = after.split_once('%') else { break };
            rest = after;
            let known = operator.strip_prefix("REQ(").and_then(|name| name.strip_suffix(')'));
            match (operator, known) {
                ("", _) => out.push('%'),
                (_, Some(names)) => {
                    let mut names = names.split('?').map(str::to_ascii_lowercase);
                    out.push_str(names.find_map(|name| self.first(&name)).unwrap_or_default());
                }
                ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", _) => out.push_str(&self.source),
                ("PROTOCOL", _) => out.push_str(self.protocol),
                _ => {
                    self.unknown.push(operator.to_owned());
                    out.push_str(&format!("%{operator}%"));
                }
            }
        }
        out.push_str(rest);
        out
    }

    /// `X-Forwarded-For` where the connection manager appends to it.
    pub(super) fn forwarded_for(&mut self) {
        let name = "x-forwarded-for".to_owned();
        let value = match self.first(&name) {
            Some(before) => format!("{before},{}", self.source),
            None => self.source.clone(),
        };
        self.all.retain(|(known, _)| *known != name);
        self.all.push((name.clone(), value));
        self.touched.insert(name);
    }

    /// Another value of a header, whatever was there.
    pub(super) fn set(&mut self, name: &str, value: String) {
        self.all.retain(|(known, _)| known != name);
        self.all.push((name.to_owned(), value));
        self.touched.insert(name.to_owned());
    }

    /// Those that were changed, in order of names, lines of one joined.
    pub(super) fn changed(&self) -> Vec<(String, Option<String>)> {
        let value = |name: &String| {
            let lines = self.all.iter().filter(|(known, _)| known == name);
            let lines: Vec<&str> = lines.map(|(_, value)| value.as_str()).collect();
            (!lines.is_empty()).then(|| lines.join(", "))
        };
        self.touched.iter().map(|name| (name.clone(), value(name))).collect()
    }
}
