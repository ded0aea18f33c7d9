//! Where clients are sent to, and what becomes of a path.

use super::{matching::Seen, parts};
use crate::envoy::{re2, tree::Tree};

/// 301 where none is said.
pub(in crate::envoy) fn status(redirect: &Tree) -> u16 {
    match redirect.text("response_code") {
        Some("FOUND") => 302,
        Some("SEE_OTHER") => 303,
        Some("TEMPORARY_REDIRECT") => 307,
        Some("PERMANENT_REDIRECT") => 308,
        _ => 301,
    }
}

/// "RedirectAction".
pub(super) fn location(redirect: &Tree, matcher: Option<&Tree>, seen: &Seen<'_>) -> String {
    let scheme = match redirect.some_text("scheme_redirect") {
        Some(scheme) => scheme,
        None if redirect.is("https_redirect") => "https",
        None => seen.scheme,
    };
    let port = redirect.count("port_redirect").filter(|port| *port > 0);
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let host = match redirect.some_text("host_redirect") {
        Some(host) => host,
        None => {
            let bare = parts::without_port(seen.authority, None);
            let own = &seen.authority[bare.len()..];
            let is_default = matches!((seen.scheme, own), ("http", ":80") | ("https", ":443"));
            let drops = !port.is_empty() || (scheme != seen.scheme && is_default);
            if drops { bare } else { seen.authority }
        }
    };
    let path = seen.path();
    let mut query = &seen.target[path.len()..];
    let mut to = if let Some(to) = redirect.some_text("path_redirect") {
        if to.contains('?') {
            return format!("{scheme}://{host}{port}{to}");
        }
        to.to_owned()
    } else if let Some(to) = redirect.some_text("prefix_rewrite") {
        replaced(matcher, path, to)
    } else if let Some(rewrite) = redirect.msg("regex_rewrite") {
        re2::replace(rewrite, path)
    } else {
        path.to_owned()
    };
    if redirect.is("strip_query") {
        query = "";
    }
    to.push_str(query);
    format!("{scheme}://{host}{port}{to}")
}

/// What matched is replaced: a prefix, or the whole path.
pub(super) fn replaced(matcher: Option<&Tree>, path: &str, to: &str) -> String {
    let prefix = matcher.and_then(|m| m.text("prefix").or_else(|| m.text("path_separated_prefix")));
    match prefix.and_then(|prefix| path.get(prefix.len()..)) {
        Some(rest) => format!("{to}{rest}"),
        None => to.to_owned(),
    }
}
