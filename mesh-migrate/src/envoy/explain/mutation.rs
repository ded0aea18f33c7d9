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
}

impl Headers {
    pub(super) fn of(http: &Http, source: std::net::IpAddr) -> Self {
        let all = http.headers.iter();
        let all = all.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        Self { all, touched: BTreeSet::new(), unknown: Vec::new(), source: source.to_string() }
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.all.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// One level: removals go before additions.
    pub(super) fn apply(&mut self, level: &Tree) {
        for name in level.texts("request_headers_to_remove") {
            let name = name.to_ascii_lowercase();
            self.all.retain(|(known, _)| *known != name);
            self.touched.insert(name);
        }
        for option in level.messages("request_headers_to_add") {
            self.add(option);
        }
    }

    fn add(&mut self, option: &Tree) {
        let Some(header) = option.msg("header") else { return };
        let name = header.text("key").unwrap_or_default().to_ascii_lowercase();
        let raw =
            header.some_text("value").or_else(|| header.text("raw_value")).unwrap_or_default();
        let value = self.format(raw);
        if value.is_empty() && !option.is("keep_empty_value") {
            return;
        }
        let is_there = self.first(&name).is_some();
        let append = option.text("append_action").unwrap_or("APPEND_IF_EXISTS_OR_ADD");
        let (keeps, adds) = match append {
            "ADD_IF_ABSENT" => (true, !is_there),
            "OVERWRITE_IF_EXISTS_OR_ADD" => (false, true),
            "OVERWRITE_IF_EXISTS" => (!is_there, is_there),
            _ => (option.bool("append").unwrap_or(true), true),
        };
        if !keeps {
            self.all.retain(|(known, _)| *known != name);
        }
        if adds {
            self.touched.insert(name.clone());
            self.all.push((name, value));
        }
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
                (_, Some(name)) if !name.contains(['?', ':']) => {
                    out.push_str(self.first(&name.to_ascii_lowercase()).unwrap_or_default());
                }
                ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", _) => out.push_str(&self.source),
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
