//! What a rule changes about a request and its answer.

use http::StatusCode;

use super::{
    Extension, HeaderChanges, PathChange, Redirect, Rewrite, RouteMatch, rewrite::BadRewrite,
};
use crate::message::{Fields, RequestHead};

impl HeaderChanges {
    /// Changes `fields` in the order set, add, remove. The request's host is
    /// no field of it: see [`Rewrite`].
    pub fn apply(&self, fields: &mut Fields) {
        for (name, value) in &self.set {
            fields.set(name.as_str(), value.as_bytes());
        }
        for (name, value) in &self.add {
            fields.push(name.as_str(), value.as_bytes());
        }
        for name in &self.remove {
            fields.remove(name.as_str());
        }
    }
}

/// Where a client called us: what a redirect keeps of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Port of the listener, or of the called service.
    pub port: u16,
}

impl Rewrite {
    /// Changes authority and path of a request that fell under `one` (`None`:
    /// a rule without matches).
    pub fn apply(&self, head: &mut RequestHead, one: Option<&RouteMatch>) {
        if let Some(hostname) = &self.hostname {
            head.authority.clear();
            head.authority.push_str(hostname);
        }
        if let Some(change) = &self.path {
            head.target = with_query(change.of(head.path(), one), head.query());
        }
    }
}

impl Redirect {
    /// Status and `Location` of the answer (RFC 9110 section 10.2.2).
    ///
    /// The port is left out where it is the scheme's own.
    ///
    /// # Errors
    ///
    /// What `more` makes of the path is none.
    pub fn answer(
        &self,
        head: &RequestHead,
        one: Option<&RouteMatch>,
        called: Target<'_>,
        more: Option<&Extension>,
    ) -> Result<(StatusCode, String), BadRewrite> {
        let scheme = self.scheme.as_deref().unwrap_or(called.scheme);
        let (host, port) = split_port(&head.authority);
        let host = self.hostname.as_deref().unwrap_or(host);
        let own = if scheme == "https" { 443 } else { 80 };
        let port = match (self.port, &self.scheme) {
            (Some(port), _) => port,
            (None, Some(_)) => own,
            (None, None) => port.unwrap_or(called.port),
        };
        let port = if port == own { String::new() } else { format!(":{port}") };
        let (mut target, decoded) = match &self.path {
            Some(change) => (with_query(change.of(head.path(), one), head.query()), &[][..]),
            None => (head.target.clone(), &*head.decoded),
        };
        let changed = match more {
            Some(more) => more.relocate(&mut target, decoded)?,
            None => false,
        };
        if !changed && self.path.is_none() && !head.sent.is_empty() {
            target.clone_from(&head.sent);
        }
        if host.is_empty() {
            // HTTP/1.0 may name none; a path alone is of the same (RFC 3986 section 4.2).
            return Ok((self.status, target));
        }
        Ok((self.status, format!("{scheme}://{host}{port}{target}")))
    }
}

impl PathChange {
    /// The path that `path` becomes. Without a matched prefix a change of it
    /// replaces nothing but the leading slash (refused where it is written).
    fn of(&self, path: &str, one: Option<&RouteMatch>) -> String {
        match self {
            Self::Full(full) => full.to_string(),
            Self::Prefix(new) => {
                let prefix = one.map_or(Some("/"), RouteMatch::prefix).unwrap_or("/");
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                let rest = path.strip_prefix(prefix).unwrap_or(path);
                let rest = rest.strip_prefix('/').unwrap_or(rest);
                let new = new.strip_suffix('/').unwrap_or(new);
                let changed = match (rest, path.ends_with('/')) {
                    ("", false) => new.to_owned(),
                    (rest, _) => format!("{new}/{rest}"),
                };
                if changed.is_empty() { "/".to_owned() } else { changed }
            }
        }
    }
}

fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    path
}

/// Host and port of an authority; an IPv6 address keeps its brackets.
fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests;
