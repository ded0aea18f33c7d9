//! Where redirects lead, as texts that are made of the request.

use std::net::SocketAddr;

use super::{At, Template, headers};
use crate::{
    nginx::pattern::Pattern,
    program::{Said, SaidChange},
};

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
    let (scheme, usual) = if at.is_tls { ("https", 443) } else { ("http", 80) };
    let port = Some(at.address.port()).filter(|port| *port != usual);
    let port = port.map(|port| Said::Text(format!(":{port}")));
    // nginx takes the address that the client has come to.
    let ip = at.address.ip();
    let stands_in = match at.address {
        _ if ip.is_unspecified() => String::new(),
        SocketAddr::V4(_) => ip.to_string(),
        SocketAddr::V6(_) => format!("[{ip}]"),
    };
    let host = named(Said::Hostname, &stands_in);
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
