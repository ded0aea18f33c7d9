//! What the connection manager makes of a request before it asks for a route.

use super::{
    Why,
    action::{answered, redirected},
};
use crate::{
    envoy::tree::Tree,
    paths,
    request::{Http, Outcome},
};

/// Those that the parser of HTTP/1 takes.
pub(super) const METHODS: [&str; 34] = [
    "ACL",
    "BIND",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "MSEARCH",
    "M-SEARCH",
    "NOTIFY",
    "OPTIONS",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNLOCK",
    "UNSUBSCRIBE",
];

/// Headers that clients outside may not send. Nobody counts as inside unless
/// `internal_address_config` says so.
pub(super) fn without_internal(
    hcm: &Tree,
    http: &Http,
    routes: &Tree,
    why: &mut Why,
) -> Result<Http, Outcome> {
    let common = hcm.msg("common_http_protocol_options");
    let action = common.and_then(|common| common.text("headers_with_underscores_action"));
    let has_underscore = |(name, _): &(String, String)| name.contains('_');
    if action == Some("REJECT_REQUEST") && http.headers.iter().any(has_underscore) {
        why.at(&hcm.place, "a header with _ in its name (headers_with_underscores_action)");
        return Err(answered(400));
    }
    let drops = action == Some("DROP_HEADER");
    let is_internal = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.starts_with("x-envoy-")
            || routes.texts("internal_only_headers").any(|own| own.eq_ignore_ascii_case(&name))
    };
    let goes_on =
        |header: &&(String, String)| !(is_internal(&header.0) || drops && has_underscore(header));
    let headers = http.headers.iter().filter(goes_on).cloned().collect();
    Ok(Http { headers, ..http.clone() })
}

/// `path_with_escaped_slashes_action`, `normalize_path`, `merge_slashes`.
pub(super) fn target(hcm: &Tree, sent: &str, why: &mut Why) -> Result<String, Outcome> {
    if sent.contains('#') || !sent.is_ascii() {
        why.at(&hcm.place, "a path with a fragment, or with what is not ASCII");
        return Err(answered(400));
    }
    let (path, query) = sent.split_at(sent.find('?').unwrap_or(sent.len()));
    let mut path = path.to_owned();
    let lower = path.to_ascii_lowercase();
    let escaped = ["%2f", "%5c"].iter().any(|escape| lower.contains(escape));
    match hcm.text("path_with_escaped_slashes_action") {
        Some("REJECT_REQUEST") if escaped => {
            why.at(&hcm.place, "an escaped slash in the path");
            return Err(answered(400));
        }
        Some(action @ ("UNESCAPE_AND_REDIRECT" | "UNESCAPE_AND_FORWARD")) if escaped => {
            for (from, to) in [("%2f", "/"), ("%2F", "/"), ("%5c", "/"), ("%5C", "/")] {
                path = path.replace(from, to);
            }
            why.at(&hcm.place, format!("{action}: {path}"));
            if action == "UNESCAPE_AND_REDIRECT" {
                return Err(redirected(307, format!("{path}{query}")));
            }
        }
        _ => {}
    }
    if hcm.is("normalize_path") {
        path = paths::normalized(&path);
    }
    if hcm.is("merge_slashes") {
        path = paths::merged(path);
    }
    let target = format!("{path}{query}");
    if target != sent {
        why.at(&hcm.place, format!("the path is taken as {path}"));
    }
    Ok(target)
}
