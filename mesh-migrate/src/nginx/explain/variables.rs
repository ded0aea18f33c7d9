//! Values of variables.

use std::collections::BTreeSet;

use regex::bytes::Captures;

use super::{Directive, Run, access::within};
use crate::nginx::{
    model::{Geo, Key, Map, Split},
    pattern::Pattern,
    template::{Part, Template},
};

/// Maps that use maps.
const MAX_DEPTH: u32 = 32;
/// Of a value that is put together.
const MAX_VALUE: usize = 1 << 20;

/// Variables that somebody sets: nginx starts with no others, and they are empty first.
pub(super) fn known(directive: &Directive, into: &mut BTreeSet<String>) {
    if ["set", "auth_request_set", "set_by_lua_block", "perl_set"]
        .contains(&directive.name.as_str())
    {
        into.insert(directive.arg(0).trim_start_matches('$').to_ascii_lowercase());
    }
    for arg in std::iter::once(&directive.name).chain(&directive.args) {
        for begin in ["(?<", "(?P<"] {
            for rest in arg.split(begin).skip(1) {
                if let Some((name, _)) = rest.split_once('>') {
                    into.insert(name.to_ascii_lowercase());
                }
            }
        }
    }
    directive.inside().iter().for_each(|inner| known(inner, into));
}

impl Run<'_, '_> {
    /// The text with its variables; what is wrong if one is not known here.
    pub(super) fn text(&mut self, template: &Template) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        for part in &template.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Variable(name) => out.extend(self.variable(name)?),
            }
            if out.len() > MAX_VALUE {
                return Err(format!("a value is longer than {MAX_VALUE} bytes"));
            }
        }
        Ok(out)
    }

    /// As [`text`](Self::text), of what is written; a variable that is not known stays.
    pub(super) fn shown(&mut self, written: &str) -> String {
        let value = Template::of(written).and_then(|template| self.text(&template));
        value.map_or_else(
            |_| written.to_owned(),
            |value| String::from_utf8_lossy(&value).into_owned(),
        )
    }

    /// A match: numbered groups are those of the last one, named ones stay.
    pub(super) fn captured(&mut self, pattern: &Pattern, found: &Captures<'_>) {
        let group = |at: usize| found.get(at).map(|group| group.as_bytes().to_vec());
        self.captures = (1..found.len()).map(|at| group(at).unwrap_or_default()).collect();
        for (at, name) in pattern.names().enumerate() {
            if let Some(name) = name {
                self.set.insert(name.to_ascii_lowercase(), group(at + 1).unwrap_or_default());
            }
        }
    }

    pub(super) fn variable(&mut self, name: &str) -> Result<Vec<u8>, String> {
        if let Ok(number) = name.parse::<usize>() {
            return Ok(self.captures.get(number.wrapping_sub(1)).cloned().unwrap_or_default());
        }
        if let Some(value) = self.set.get(name).or_else(|| self.maps.get(name)) {
            return Ok(value.clone());
        }
        let model = self.model;
        if let Some(map) = model.http.maps.get(name) {
            let value = self.mapped(map)?;
            self.maps.insert(name.to_owned(), value.clone());
            return Ok(value);
        }
        if let Some(split) = model.http.splits.get(name) {
            let value = self.of_split(split)?;
            self.maps.insert(name.to_owned(), value.clone());
            return Ok(value);
        }
        if let Some(geo) = model.http.geos.get(name) {
            return self.geo(geo);
        }
        match self.built_in(name) {
            Some(value) => Ok(value),
            None if self.known.contains(name) => Ok(Vec::new()),
            None => Err(format!("what ${name} is cannot be known from the configuration")),
        }
    }

    fn of_split(&mut self, split: &Split<'_>) -> Result<Vec<u8>, String> {
        let text = Template::of(split.directive.arg(0)).and_then(|text| self.text(&text))?;
        let Some((value, directive)) = split.of_text(&text) else { return Ok(Vec::new()) };
        let value = self.text(value)?;
        let (share, shown) = (&directive.name, String::from_utf8_lossy(&value));
        self.step(&directive.place, format!("{shown:?} by the hash of the request: {share}"));
        Ok(value)
    }

    fn geo(&mut self, geo: &Geo<'_>) -> Result<Vec<u8>, String> {
        if geo.is_odd {
            let place = &geo.directive.place;
            return Err(format!(
                "the geo of {place} uses more than blocks of the client's address"
            ));
        }
        let source = self.source;
        let block = geo.blocks.iter().find(|(block, ..)| within(block, source) == Some(true));
        let found = block.map(|(_, _, value, directive)| (value, directive));
        let default = || geo.default.as_ref().map(|(value, directive)| (value, directive));
        let Some((value, directive)) = found.or_else(default) else { return Ok(Vec::new()) };
        self.step(&directive.place, format!("{value:?} is chosen for {source}"));
        Ok(value.clone().into_bytes())
    }

    fn built_in(&mut self, name: &str) -> Option<Vec<u8>> {
        if let Some(header) = name.strip_prefix("http_") {
            let header = header.replace('_', "-");
            // Only these are more than the first (`ngx_http_variable_headers`).
            let all = match header.as_str() {
                "cookie" => Some("; "),
                "x-forwarded-for" => Some(", "),
                _ => None,
            };
            if let Some(between) = all {
                return Some(self.http.joined(&header, between).unwrap_or_default().into_bytes());
            }
            return Some(self.http.header(&header).unwrap_or_default().as_bytes().to_vec());
        }
        if let Some(wanted) = name.strip_prefix("arg_") {
            return Some(argument(&self.args, wanted.as_bytes()));
        }
        if let Some(wanted) = name.strip_prefix("cookie_") {
            let cookies = self.http.joined("cookie", "; ").unwrap_or_default();
            return Some(cookie(&cookies, wanted).unwrap_or_default().as_bytes().to_vec());
        }
        let text = match name {
            "host" => self.host.clone().unwrap_or_else(|| self.server.name()),
            "uri" | "document_uri" => return Some(self.uri.clone()),
            "args" | "query_string" => return Some(self.args.clone()),
            "is_args" => if self.args.is_empty() { "" } else { "?" }.to_owned(),
            "request_uri" => self.target.raw.clone(),
            "request_method" => self.method.clone(),
            "scheme" => if self.is_tls { "https" } else { "http" }.to_owned(),
            "https" => if self.is_tls { "on" } else { "" }.to_owned(),
            "remote_addr" => self.source.to_string(),
            "binary_remote_addr" => {
                return Some(match self.source {
                    std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
                    std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
                });
            }
            "server_addr" => self.local.ip().to_string(),
            "server_port" => self.local.port().to_string(),
            "server_name" => self.server.name(),
            "server_protocol" => {
                if self.http.is_http10 { "HTTP/1.0" } else { "HTTP/1.1" }.to_owned()
            }
            "request" => {
                let version = if self.http.is_http10 { "1.0" } else { "1.1" };
                format!("{} {} HTTP/{version}", self.http.method, self.http.target)
            }
            "proxy_add_x_forwarded_for" => match self.http.joined("x-forwarded-for", ", ") {
                Some(before) => format!("{before}, {}", self.source),
                None => self.source.to_string(),
            },
            "content_type" => self.http.header("content-type").unwrap_or_default().to_owned(),
            "remote_user" => String::new(),
            _ => return None,
        };
        Some(text.into_bytes())
    }

    /// Exact, then the longest `*.x`, then the longest `x.*`, then the first pattern.
    fn mapped(&mut self, map: &Map<'_>) -> Result<Vec<u8>, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("the map of {} uses itself", map.directive.place));
        }
        let value = self.text(&map.source)?;
        let chosen = chosen(map, &value)?;
        let of = chosen.map(|(at, _)| map.entries[at].2).or(map.default.as_ref().map(|d| d.1));
        let place = of.unwrap_or(map.directive).place.clone();
        let shown = String::from_utf8_lossy(&value).into_owned();
        self.step(&place, format!("{} is chosen for {shown:?}", map.directive.arg(1)));
        let result = match chosen {
            Some((at, Some(pattern))) => {
                if let Some(found) = pattern.captures(&value) {
                    self.captured(pattern, &found);
                }
                self.text(&map.entries[at].1)?
            }
            Some((at, None)) => self.text(&map.entries[at].1)?,
            None => match &map.default {
                Some((default, _)) => self.text(default)?,
                None => Vec::new(),
            },
        };
        self.depth -= 1;
        Ok(result)
    }
}

/// The entry of a map that takes a value, and its pattern.
pub(in crate::nginx) fn chosen<'m>(
    map: &'m Map<'_>,
    value: &[u8],
) -> Result<Option<(usize, Option<&'m Pattern>)>, String> {
    let mut low = value.to_ascii_lowercase();
    if map.hostnames && low.last() == Some(&b'.') {
        low.pop();
    }
    let mut best: Option<((u8, usize), usize)> = None;
    for (at, (key, ..)) in map.entries.iter().enumerate() {
        let rank = match key {
            Key::Exact(text) if text.as_bytes() == low => (3, 0),
            Key::Both(text) if text.as_bytes() == low => (3, 0),
            Key::Both(text) if low.ends_with(format!(".{text}").as_bytes()) => (2, text.len() + 1),
            Key::Below(text) if low.len() > text.len() && low.ends_with(text.as_bytes()) => {
                (2, text.len())
            }
            Key::Tail(text) if low.len() > text.len() && low.starts_with(text.as_bytes()) => {
                (1, text.len())
            }
            _ => continue,
        };
        if best.is_none_or(|(known, _)| rank > known) {
            best = Some((rank, at));
        }
    }
    if let Some((_, at)) = best {
        return Ok(Some((at, None)));
    }
    for (at, (key, _, directive)) in map.entries.iter().enumerate() {
        if let Key::Regex(pattern) = key {
            let pattern = match pattern {
                Ok(pattern) => pattern,
                Err(_) if is_elsewhere(directive, value) => continue,
                Err(unread) => return Err(unread.clone()),
            };
            if pattern.is_match(value) {
                return Ok(Some((at, Some(pattern))));
            }
        }
    }
    Ok(None)
}

/// Whether a pattern that cannot be read surely does not take the value.
fn is_elsewhere(entry: &Directive, value: &[u8]) -> bool {
    let pattern = entry.name.trim_start_matches('~');
    let (pattern, ignores_case) = match pattern.strip_prefix('*') {
        Some(pattern) => (pattern, true),
        None => (pattern, false),
    };
    Pattern::cannot_match(pattern, ignores_case, value)
}

/// The first of this name (`ngx_http_parse_multi_header_lines`): a name stands behind `;`
/// or `,`, and a value ends at `;` alone.
fn cookie<'c>(cookies: &'c str, wanted: &str) -> Option<&'c str> {
    let mut starts =
        std::iter::once(0).chain(cookies.match_indices([';', ',']).map(|(at, _)| at + 1));
    starts.find_map(|at| {
        let (known, value) = cookies[at..].split_once('=')?;
        let is_wanted = known.trim_matches(' ').eq_ignore_ascii_case(wanted);
        is_wanted.then(|| value.split(';').next().unwrap_or_default().trim_start_matches(' '))
    })
}

/// `$arg_name`: names in any case, the first one.
fn argument(args: &[u8], wanted: &[u8]) -> Vec<u8> {
    for pair in args.split(|byte| *byte == b'&') {
        let at = pair.iter().position(|byte| *byte == b'=');
        if let Some(at) = at.filter(|at| pair[..*at].eq_ignore_ascii_case(wanted)) {
            return pair[at + 1..].to_vec();
        }
    }
    Vec::new()
}
