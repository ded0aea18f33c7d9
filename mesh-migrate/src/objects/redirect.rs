//! Redirects.

use serde_json::{Map, Value, json};

use super::{
    Making,
    headers::fields,
    object,
    route::{full, rewrite, template},
};
use crate::{
    program::{Location, PathChange, Reply, Said},
    source::Place,
};

type Keys = Map<String, Value>;

impl Making<'_> {
    /// As a redirect of Gateway API, or, where it is told without scheme and host, as an
    /// answer.
    pub(super) fn redirected(
        &mut self,
        place: &Place,
        reply: &Reply,
        location: &Location,
        (route, policy): (&mut Keys, &mut Keys),
    ) {
        let is_bare =
            location.scheme.is_none() && location.host.is_none() && location.port.is_none();
        if is_bare && let Some(to) = bare(location) {
            let own = reply.headers.iter();
            let own =
                own.map(|(name, value)| json!({ "name": name, "value": value.replace('%', "%%") }));
            let headers: Vec<Value> =
                own.chain([json!({ "name": "location", "value": to })]).collect();
            let reply = json!({ "status": reply.status, "headers": headers, "templates": true });
            policy.insert("reply".into(), reply);
            return;
        }
        if is_bare {
            self.ledger.approximated(place, "where it leads is written with scheme and host");
        }
        let whole = location.path.as_ref().and_then(full);
        if let (Some(change), None) = (&location.path, &whole) {
            policy.insert("rewrite".into(), rewrite(change));
        }
        let redirect = object([
            ("scheme", location.scheme.as_deref().map(Into::into)),
            ("hostname", location.host.as_deref().map(Into::into)),
            ("port", location.port.map(Into::into)),
            ("path", whole),
            ("statusCode", Some(reply.status.into())),
        ]);
        let mut filters = vec![json!({ "type": "RequestRedirect", "requestRedirect": redirect })];
        if !reply.headers.is_empty() {
            let modifier = json!({ "add": fields(&reply.headers) });
            filters.push(
                json!({ "type": "ResponseHeaderModifier", "responseHeaderModifier": modifier }),
            );
        }
        route.insert("filters".into(), filters.into());
        if location.strip_query {
            policy.insert("stripQuery".into(), true.into());
        }
    }
}

/// A location without scheme and host, as a text of our policy; nothing where its path is
/// changed in a way that such texts have no words for.
fn bare(location: &Location) -> Option<String> {
    let keeps_query = !location.strip_query;
    let of = if keeps_query { "target" } else { "path" };
    let changed = |pattern: &str, to: &str, all: &str| {
        let is_plain = |text: &str| !text.contains(['~', '}', '\n']);
        (is_plain(pattern) && is_plain(to)).then(|| format!("%{{{of}|s~{pattern}~{to}~{all}}}"))
    };
    match &location.path {
        None => Some(format!("%{{{of}}}")),
        Some(PathChange::Whole(to)) if !keeps_query => Some(template(&Said::Text(to.clone()))),
        Some(PathChange::Whole(to)) if to.contains('?') => None,
        Some(PathChange::Whole(to)) => changed(r"^[^?]*", &to.replace('$', "$$"), ""),
        Some(PathChange::Prefix { from, to }) => {
            changed(&format!("^{}", regex::escape(from)), &to.replace('$', "$$"), "")
        }
        // It would see the query, too.
        Some(PathChange::Pattern { .. }) if keeps_query => None,
        Some(PathChange::Pattern { pattern, substitution, all }) => {
            changed(pattern, substitution, if *all { "g" } else { "" })
        }
    }
}
