//! Where redirects lead, as texts that are made of the request.

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
    let said = headers::said(to, None, groups)?;
    let begins = |text: &str| match &said {
        Said::Joined(parts) => matches!(parts.first(), Some(Said::Text(t)) if t.starts_with(text)),
        _ => false,
    };
    if begins("http://") || begins("https://") {
        return Some(named(said, &at.server.name()));
    }
    if !begins("/") {
        return None;
    }
    let (scheme, usual) = if at.is_tls { ("https", 443) } else { ("http", 80) };
    let port = Some(at.address.port()).filter(|port| *port != usual);
    let port = port.map(|port| Said::Text(format!(":{port}")));
    let before = [Said::Text(format!("{scheme}://")), Said::Hostname].into_iter();
    let whole = Said::Joined(before.chain(port).chain([said]).collect());
    Some(named(whole, &at.server.name()))
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
fn named(said: Said, name: &str) -> Said {
    match said {
        Said::Joined(parts) => {
            Said::Joined(parts.into_iter().map(|part| named(part, name)).collect())
        }
        said if is_bare(&said) && !name.is_empty() => {
            let substitution = name.replace('$', "$$");
            let change = SaidChange::Replace { pattern: UNSAID.into(), substitution, all: false };
            said.clone().changed(change).unwrap_or(said)
        }
        said => said,
    }
}
