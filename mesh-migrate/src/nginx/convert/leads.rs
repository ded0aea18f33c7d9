//! Where redirects lead, as texts that are made of the request.

use std::net::SocketAddr;

use super::{At, Directive, Template, Work, headers};
use crate::{
    nginx::{model, pattern::Pattern},
    program::{Said, SaidChange},
};

/// How a redirect to a path alone is told.
#[derive(Clone, Copy)]
pub(super) struct Redirects {
    /// With scheme and host before it.
    is_absolute: bool,
    /// And the port of the listener.
    has_port: bool,
    /// The host is the server's own name.
    by_name: bool,
}

impl Redirects {
    pub(super) fn of(chain: &[&Directive]) -> Self {
        Self {
            is_absolute: model::is_on(chain, "absolute_redirect", true),
            has_port: model::is_on(chain, "port_in_redirect", true),
            by_name: model::is_on(chain, "server_name_in_redirect", false),
        }
    }
}

impl At<'_, '_> {
    /// What stands before the path of a redirect: scheme, host if it is not the client's,
    /// and port if it is not the usual one. Nothing where the path is told alone.
    pub(super) fn before_path(&self) -> Option<(&'static str, Option<String>, Option<u16>)> {
        let Redirects { is_absolute, has_port, by_name } = self.redirects;
        let (scheme, usual) = if self.is_tls { ("https", 443) } else { ("http", 80) };
        let port = Some(self.address.port()).filter(|port| *port != usual && has_port);
        let name = Some(self.server.name()).filter(|name| by_name && !name.is_empty());
        is_absolute.then_some((scheme, name, port))
    }
}

impl<'c> Work<'_, 'c> {
    /// How redirects are told from here on; what was so until now.
    pub(super) fn redirecting(
        &mut self,
        at: &mut At<'_, '_>,
        chain: &[&'c Directive],
    ) -> Redirects {
        for name in ["absolute_redirect", "port_in_redirect", "server_name_in_redirect"] {
            if let Some(directive) = model::inherited(chain, name) {
                self.exact(directive);
            }
        }
        std::mem::replace(&mut at.redirects, Redirects::of(chain))
    }
}

/// What is empty.
const UNSAID: &str = "^$";
/// Where the server has no name that could stand there.
pub(super) const UNNAMED: &str =
    "the host is as the client names it; nothing stands in for one that is not named (HTTP/1.0)";

/// Where a redirect leads, as a text.
pub(super) fn leads(
    at: &At<'_, '_>,
    to: &Template,
    groups: Option<(Said, &Pattern)>,
) -> Option<Said> {
    let said = headers::said(at, to, None, groups)?;
    let begins = |text: &str| match &said {
        Said::Joined(parts) => matches!(parts.first(), Some(Said::Text(t)) if t.starts_with(text)),
        _ => false,
    };
    if begins("http://") || begins("https://") {
        return Some(said);
    }
    if !begins("/") {
        return None;
    }
    let Some((scheme, name, port)) = at.before_path() else { return Some(said) };
    let port = port.map(|port| Said::Text(format!(":{port}")));
    // nginx takes the address that the client has come to.
    let ip = at.address.ip();
    let stands_in = match at.address {
        _ if ip.is_unspecified() => String::new(),
        SocketAddr::V4(_) => ip.to_string(),
        SocketAddr::V6(_) => format!("[{ip}]"),
    };
    let host = name.map_or_else(|| named(Said::Hostname, &stands_in), Said::Text);
    let before = [Said::Text(format!("{scheme}://")), host].into_iter();
    Some(Said::Joined(before.chain(port).chain([said]).collect()))
}

/// Whether nothing stands in for a host that is not named.
pub(super) fn is_bare(said: &Said) -> bool {
    match said {
        Said::Hostname => true,
        Said::Changed(_, SaidChange::Replace { pattern, .. }) if pattern == UNSAID => false,
        Said::Changed(said, _) => is_bare(said),
        Said::Joined(parts) => parts.iter().any(is_bare),
        _ => false,
    }
}

/// With the name of the server for a host that a client does not name (HTTP/1.0).
pub(super) fn named(said: Said, name: &str) -> Said {
    if name.is_empty() {
        return said;
    }
    let substitution = name.replace('$', "$$");
    let change = SaidChange::Replace { pattern: UNSAID.into(), substitution, all: false };
    said.clone().changed(change).unwrap_or(said)
}
