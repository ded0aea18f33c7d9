//! Filters of HTTP that answer before the router does.

use super::{
    Asked, Why,
    access::Asking,
    action::{answered, first},
    matching::{Seen, text_holds},
    parts,
};
use crate::{
    envoy::{
        access::{self, OfRoute, of_route},
        tree::Tree,
    },
    request::Outcome,
};

impl<'c> Asked<'c> {
    /// What one of them answers.
    pub(super) fn before(
        &self,
        hcm: &'c Tree,
        routes: &'c Tree,
        seen: &Seen<'_>,
        is_tls: bool,
        why: &mut Why,
    ) -> Option<Outcome> {
        let levels = self.levels(routes, seen);
        for filter in hcm.messages("http_filters") {
            let own = levels.and_then(|levels| of_route(levels, filter));
            if !access::is_on(filter, own) {
                continue;
            }
            let name = filter.text("name").unwrap_or_default();
            if let Some(check) = parts::health_check(filter)
                && check.messages("headers").all(|matcher| seen.header_holds(matcher))
            {
                why.at(&filter.place, "the filter for health checks answers");
                return Some(answered(200));
            }
            match filter.msg("typed_config").map_or("", Tree::short) {
                "RBAC" => {
                    let config = match own.map(access::said) {
                        Some(OfRoute::Own(own)) => own.msg("rbac"),
                        _ => filter.msg("typed_config"),
                    };
                    let asking = Asking { seen: Some(seen), hcm: Some(hcm), is_tls };
                    match config.map_or(Some(false), |config| self.refuses(config, &asking)) {
                        Some(true) => {
                            why.at(&filter.place, format!("{name} refuses it"));
                            let body = Some("RBAC: access denied".into());
                            return Some(Outcome::Answered {
                                status: 403,
                                headers: Vec::new(),
                                body,
                            });
                        }
                        Some(false) => why.at(&filter.place, format!("{name} admits it")),
                        None => {
                            let what = format!(
                                "{name} asks for what is not known here; this answer is without it"
                            );
                            why.at(&filter.place, what);
                        }
                    }
                }
                "Cors" => {
                    let policy = levels.and_then(|levels| parts::cors(levels, filter));
                    if let Some(outcome) = policy.and_then(|policy| preflight(policy, seen)) {
                        why.at(&filter.place, format!("{name} answers what a browser asks first"));
                        return Some(outcome);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Route configuration, virtual host and route of a request, the last two the same
    /// where no route takes it.
    pub(super) fn levels(&self, routes: &'c Tree, seen: &Seen<'_>) -> Option<[&'c Tree; 3]> {
        let mut quiet = Why::default();
        let host = self.virtual_host(routes, seen.authority, seen.http, &mut quiet)?;
        let route = first(routes, host, seen, &mut quiet).unwrap_or(host);
        Some([routes, host, route])
    }
}

fn preflight(policy: &Tree, seen: &Seen<'_>) -> Option<Outcome> {
    let header = |name: &str| seen.http.header(name).filter(|value| !value.is_empty());
    let (origin, method) = (header("origin")?, header("access-control-request-method")?);
    let part = policy.msg("filter_enabled").and_then(|one| one.msg("default_value"));
    if seen.http.method != "OPTIONS" || part.is_some_and(|part| parts::percent(Some(part)) < 100.0)
    {
        return None;
    }
    let mut origins = policy.messages("allow_origin_string_match");
    if !origins.any(|one| text_holds(one, "*") || text_holds(one, origin)) {
        return None;
    }
    let mut headers = vec![("access-control-allow-origin".to_owned(), origin.to_owned())];
    let mut add =
        |name: &str, value: &str| headers.push((format!("access-control-{name}"), value.into()));
    let is_trusted = policy.is("allow_credentials");
    if is_trusted {
        add("allow-credentials", "true");
    }
    let asked = header("access-control-request-headers").unwrap_or_default();
    for (field, name, asked) in
        [("allow_methods", "allow-methods", method), ("allow_headers", "allow-headers", asked)]
    {
        match policy.some_text(field) {
            Some("*") if is_trusted => add(name, asked),
            Some(value) => add(name, value),
            None => {}
        }
    }
    for (field, name) in [("expose_headers", "expose-headers"), ("max_age", "max-age")] {
        if let Some(value) = policy.some_text(field) {
            add(name, value);
        }
    }
    Some(Outcome::Answered { status: 200, headers, body: None })
}
