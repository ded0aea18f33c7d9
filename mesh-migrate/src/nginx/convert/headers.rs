//! `proxy_set_header`, `add_header` and their kin.

use std::collections::BTreeSet;

use super::leads::named;
use super::{
    At, Directive, Forwarded, Template, Work, answers::unsayable, leaf::Here, pass::ENCODED,
};
use crate::{
    nginx::{
        explain::Url,
        model::{self, Name},
        pattern::Pattern,
        template::Part,
    },
    objects::headers::{is_ours, why_ours},
    program::{Forward, Said, SaidChange},
};

/// What a header of a request becomes.
enum Becomes {
    Set(String),
    Told(Said),
    Removed,
    /// As the client sends it.
    Kept,
    Unsaid(&'static str),
}

impl<'m, 'c> Work<'m, 'c> {
    pub(super) fn headers(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        url: &Url,
        forward: &mut Forward,
    ) {
        let mut has_host = false;
        let mut kept = BTreeSet::new();
        let mut xff = Forwarded::Keep;
        let said = model::array(&here.chain, "proxy_set_header");
        // Very many of them in very many locations are too many rules, too.
        self.rules += said.len() / 64;
        for directive in said {
            let name = directive.arg(0).to_ascii_lowercase();
            let value = Template::of(directive.arg(1)).map(|value| self.expanded(at, &value));
            let value = value.unwrap_or(Template(vec![Part::Text(directive.arg(1).to_owned())]));
            match name.as_str() {
                "host" if std::mem::replace(&mut has_host, true) => {
                    self.approximated(directive, "Host is sent once, as an earlier line has it");
                }
                "x-forwarded-for" if xff != Forwarded::Keep => {
                    self.approximated(
                        directive,
                        "X-Forwarded-For is sent once, as an earlier line has it",
                    );
                }
                "host" => {
                    self.host(directive, &value, url, forward);
                }
                "x-forwarded-for" if value.variable() == Some("proxy_add_x_forwarded_for") => {
                    self.exact(directive);
                    forward.tell.push((name, Said::ForwardedFor));
                    xff = Forwarded::Append;
                }
                "x-forwarded-for" if value.variable() == Some("remote_addr") => {
                    self.exact(directive);
                    forward.tell.push((name, Said::Client));
                    xff = Forwarded::Replace;
                }
                "connection" | "upgrade" | "te" | "keep-alive" | "transfer-encoding"
                | "content-length" => {
                    self.hop(directive, &name, &value);
                }
                name if is_ours(name) => self.approximated(directive, why_ours(name)),
                _ => {
                    let is_kept =
                        self.header(at, directive, &name, (&value, here.of_groups()), url, forward);
                    if is_kept && !kept.insert(name) {
                        self.approximated(
                            directive,
                            "the client's own is sent once, as an earlier line has it",
                        );
                    }
                }
            }
        }
        // One that the client sends stays beside others of its name.
        forward.remove.retain(|name| !kept.contains(name));
        let beside = forward.set.extract_if(.., |(name, _)| kept.contains(name));
        forward.add.extend(beside);
        if !has_host {
            forward.host = Some(url.host().to_owned());
        }
        at.forwarded.push(xff);
        self.answer_headers(at, here, forward);
    }

    /// Whether the client's own stays.
    fn header(
        &mut self,
        at: &At<'m, 'c>,
        directive: &Directive,
        name: &str,
        (value, groups): (&Template, Option<(Said, &Pattern)>),
        url: &Url,
        forward: &mut Forward,
    ) -> bool {
        let becomes = becomes(at, name, value, url, groups);
        let wrong = match &becomes {
            Becomes::Set(text) => unsayable(name, text),
            Becomes::Told(said) => texts(said).find_map(|text| unsayable(name, text)),
            Becomes::Removed | Becomes::Kept | Becomes::Unsaid(_) => unsayable(name, ""),
        };
        if let Some(wrong) = wrong {
            // One that the client sends must not pass for nginx' word.
            if unsayable(name, "").is_none() {
                forward.remove.push(name.to_owned());
            }
            self.dropped(directive, format!("applications do not get it: {wrong}"));
            return false;
        }
        let is_told = forward.tell.iter().any(|(known, _)| known == name);
        let is_set = forward.set.iter().any(|(known, _)| known == name);
        if is_told && matches!(becomes, Becomes::Told(_) | Becomes::Set(_))
            || is_set && matches!(becomes, Becomes::Told(_))
        {
            self.approximated(directive, "it is sent once, as an earlier line has it");
            return false;
        }
        match becomes {
            Becomes::Set(value) => {
                self.exact(directive);
                forward.set.push((name.to_owned(), value));
            }
            Becomes::Told(said) => {
                self.tells(directive, &said);
                forward.tell.push((name.to_owned(), said));
            }
            Becomes::Removed => {
                self.exact(directive);
                forward.remove.push(name.to_owned());
            }
            Becomes::Kept => {
                self.exact(directive);
                return true;
            }
            Becomes::Unsaid(meaning) => {
                // One that the client sends must not pass for nginx' word.
                forward.remove.push(name.to_owned());
                self.dropped(directive, meaning);
            }
        }
        false
    }

    fn host(&mut self, directive: &Directive, value: &Template, url: &Url, forward: &mut Forward) {
        match (value.constant(), value.variable()) {
            (Some(text), _) if text.is_empty() => {
                self.approximated(directive, "nginx sends no Host; with us it is the client's");
            }
            (Some(text), _) => {
                self.exact(directive);
                forward.host = Some(text);
            }
            (_, Some("http_host")) => self.exact(directive),
            (_, Some("proxy_host")) => {
                self.exact(directive);
                forward.host = Some(url.host().to_owned());
            }
            (_, Some("host")) => {
                let how = "Host stays as the client sends it: a port stays, and so do capitals";
                self.approximated(directive, how);
            }
            _ => self.approximated(
                directive,
                "Host stays as the client sends it: its value has variables that cannot be said",
            ),
        }
    }

    fn hop(&mut self, directive: &Directive, name: &str, value: &Template) {
        // `map $http_upgrade $connection_upgrade` is what nginx' manual has for WebSocket.
        value.variable().into_iter().for_each(|name| self.used(name));
        if name == "connection" && value.0.is_empty() {
            return self.exact(directive);
        }
        let how = match name {
            "connection" | "upgrade" => {
                "connections to applications are kept, and upgrades pass, whatever is written here"
            }
            _ => "it belongs to one connection, and is made anew for the next",
        };
        self.approximated(directive, how);
    }
}

impl<'m, 'c> Work<'m, 'c> {
    /// Notes what is different where a value tells the path.
    pub(super) fn tells(&mut self, directive: &Directive, said: &Said) {
        match said.has_path() {
            true => self.approximated(directive, ENCODED),
            false => self.exact(directive),
        }
    }
}

/// What is text in it.
pub(super) fn texts(said: &Said) -> impl Iterator<Item = &str> {
    let parts = match said {
        Said::Joined(parts) => parts.as_slice(),
        said => std::slice::from_ref(said),
    };
    parts.iter().filter_map(|part| match part {
        Said::Text(text) => Some(text.as_str()),
        _ => None,
    })
}

fn becomes(
    at: &At<'_, '_>,
    name: &str,
    value: &Template,
    url: &Url,
    groups: Option<(Said, &Pattern)>,
) -> Becomes {
    if let Some(text) = value.constant() {
        return if text.is_empty() { Becomes::Removed } else { Becomes::Set(text) };
    }
    let own = format!("http_{}", name.replace('-', "_"));
    match value.variable() {
        Some(variable) if variable == own => Becomes::Kept,
        Some("proxy_host") => Becomes::Set(url.host().to_owned()),
        Some("remote_addr" | "realip_remote_addr") => Becomes::Told(Said::Client),
        Some("http_host") => Becomes::Told(Said::Host),
        Some("scheme") => Becomes::Told(Said::Scheme),
        Some("request_method") => Becomes::Told(Said::Method),
        Some("request_uri") => Becomes::Told(Said::Target),
        Some("proxy_add_x_forwarded_for") => Becomes::Told(Said::ForwardedFor),
        Some("request_id") => {
            Becomes::Unsaid("applications do not get it: requests have traceparent with us")
        }
        _ => match said(at, value, Some(url), groups) {
            Some(said) => Becomes::Told(said),
            None => Becomes::Unsaid(
                "applications do not get it: its value has variables that a header of ours cannot have",
            ),
        },
    }
}

/// A text with variables that each request has; groups are those of a pattern that the
/// path has matched.
pub(super) fn said(
    at: &At<'_, '_>,
    value: &Template,
    url: Option<&Url>,
    groups: Option<(Said, &Pattern)>,
) -> Option<Said> {
    let mut parts = value
        .0
        .iter()
        .map(|part| said_part(at, part, url, groups.as_ref()))
        .collect::<Option<Vec<_>>>()?;
    if parts.len() == 1 { parts.pop() } else { Some(Said::Joined(parts)) }
}

fn said_part(
    at: &At<'_, '_>,
    part: &Part,
    url: Option<&Url>,
    groups: Option<&(Said, &Pattern)>,
) -> Option<Said> {
    let name = match part {
        Part::Text(text) => return Some(Said::Text(text.clone())),
        Part::Variable(name) => name.as_str(),
    };
    let replaced = |said: Said, pattern: String, substitution: String| {
        said.changed(SaidChange::Replace { pattern, substitution, all: false })
    };
    Some(match name {
        "remote_addr" | "realip_remote_addr" => Said::Client,
        // Without a last dot.
        "host" => {
            let host = replaced(Said::Hostname, r"\.$".into(), String::new())?;
            return Some(named(host, &at.server.name()));
        }
        "http_host" => Said::Host,
        "scheme" => Said::Scheme,
        "request_method" => Said::Method,
        "request_uri" => Said::Target,
        "args" | "query_string" => Said::Query,
        "is_args" => {
            return replaced(Said::Target, r"^[^?]*(?:(\?).+|.*)$".into(), "$1".into());
        }
        // Where it goes on, another path may be sent.
        "uri" | "document_uri" if url.is_none() => Said::Path,
        "proxy_host" => Said::Text(url?.host().to_owned()),
        "content_type" => Said::Header("content-type".into()),
        name => {
            if let Some((of, pattern)) = groups
                && let Some(group) = group(pattern, name)
            {
                return replaced(of.clone(), pattern.replacing(), format!("${{{group}}}"));
            }
            if let Some(said) = of_server_name(at, name) {
                return said;
            }
            let is_plain = |name: &&str| !name.is_empty();
            if let Some(name) = name.strip_prefix("arg_").filter(is_plain) {
                return argument(name);
            } else if let Some(name) = name.strip_prefix("cookie_").filter(is_plain) {
                return cookie(name);
            } else {
                header(name.strip_prefix("http_").filter(is_plain)?)
            }
        }
    })
}

/// A named group of a pattern among the names of the server: it is empty where another of
/// them, or none, has brought the request here. Nothing for other variables.
fn of_server_name(at: &At<'_, '_>, name: &str) -> Option<Option<Said>> {
    let names = || at.server.names.iter().map(|(name, _)| name);
    let mut patterns = names().filter_map(|name| match name {
        Name::Regex(Ok(pattern)) => Some(pattern),
        _ => None,
    });
    let group_of =
        |pattern: &&Pattern| name.parse::<u8>().is_err() && group(pattern, name).is_some();
    let pattern = patterns.clone().find(group_of)?;
    let is_only = patterns.next().is_some() && patterns.next().is_none();
    let is_taken_before = |name: &Name| match name {
        Name::Exact(text) => pattern.is_match(text.as_bytes()),
        Name::Regex(_) => false,
        Name::Both(_) | Name::Below(_) | Name::Tail(_) => true,
    };
    if !is_only || names().any(is_taken_before) {
        return Some(None);
    }
    let group = group(pattern, name)?;
    let last_dot =
        SaidChange::Replace { pattern: r"\.$".into(), substitution: String::new(), all: false };
    let change = SaidChange::Replace {
        pattern: format!("(?:{})|^(?s:.*)$", pattern.replacing()),
        substitution: format!("${{{group}}}"),
        all: false,
    };
    Some(Said::Hostname.changed(last_dot).and_then(|host| host.changed(change)))
}

/// `$http_…`: lists of addresses and cookies are all of theirs, others the first.
pub(super) fn header(name: &str) -> Said {
    let name = name.replace('_', "-");
    match name.as_str() {
        "cookie" | "x-forwarded-for" => Said::Headers(name),
        _ => Said::Header(name),
    }
}

/// The first parameter of this name, in any case, as it is sent
/// (`ngx_http_arg`).
pub(super) fn argument(name: &str) -> Option<Said> {
    let name = regex::escape(name);
    let pattern = format!("(?s)^(?:|.*?&)(?i:{name})=([^&]*).*$|^.*$");
    Said::Query.changed(SaidChange::Replace { pattern, substitution: "$1".into(), all: false })
}

/// The first cookie of this name, in any case, up to a semicolon; names stand behind commas, too
/// (`ngx_http_parse_multi_header_lines`).
pub(super) fn cookie(name: &str) -> Option<Said> {
    let name = regex::escape(name);
    let pattern = format!("(?s)^(?:|.*?[;,]) *(?i:{name}) *= *([^;]*).*$|^.*$");
    let change = SaidChange::Replace { pattern, substitution: "$1".into(), all: false };
    Said::Headers("cookie".into()).changed(change)
}

/// A group of the pattern, as a substitution names it; names are in lower case here.
fn group(groups: &Pattern, name: &str) -> Option<String> {
    match name.parse::<usize>() {
        Ok(number) => (number > 0 && number <= groups.names().count()).then(|| number.to_string()),
        Err(_) => groups
            .names()
            .flatten()
            .find(|known| known.eq_ignore_ascii_case(name))
            .map(str::to_owned),
    }
}
