//! What becomes of a request of HTTP: connection manager, route, action.

use super::{
    Asked, Why,
    arrival::{METHODS, target, without_internal},
    matching::{Seen, Takes, cookie},
    mutation::Headers,
    parts,
    redirect::{location, replaced, status},
};
use crate::{
    envoy::{re2, template, tree::Tree},
    request::{Forwarded, Http, Outcome},
};

/// Requests that its codec does not take.
fn unread(hcm: &Tree, http: &Http, why: &mut Why) -> Option<u16> {
    let http1 = hcm.msg("http_protocol_options");
    if http.is_http10 && !http1.is_some_and(|http1| http1.is("accept_http_10")) {
        why.at(&hcm.place, "HTTP/1.0 is not accepted (accept_http_10)");
        return Some(426);
    }
    let custom = http1.is_some_and(|http1| http1.is("allow_custom_methods"));
    if !custom && !METHODS.contains(&http.method.as_str()) {
        let what = format!("{} is no method of HTTP (allow_custom_methods)", http.method);
        why.at(&hcm.place, what);
        return Some(400);
    }
    None
}

impl<'c> Asked<'c> {
    pub(super) fn http(&self, hcm: &'c Tree, http: &Http, is_tls: bool, why: &mut Why) -> Outcome {
        if let Some(status) = unread(hcm, http, why) {
            return answered(status);
        }
        let sent_host = http.host.as_deref();
        let absolute = crate::paths::absolute(http);
        let http = absolute.as_ref().unwrap_or(http);
        let Some(authority) = self.authority(hcm, http, why) else {
            why.at(&hcm.place, "a request without Host");
            return answered(400);
        };
        if !http.target.starts_with('/') && http.method != "CONNECT" && http.target != "*" {
            why.at(&hcm.place, "a target that begins with no /: not read here");
            return answered(404);
        }
        let target = match target(hcm, &http.target, why) {
            Ok(target) => target,
            Err(outcome) => return outcome,
        };
        for filter in hcm.messages("http_filters") {
            let config = filter.msg("typed_config").map_or("", Tree::short);
            let is_known = ["Router", "RBAC", "Cors"].contains(&config);
            let routes = self.config.routes(hcm);
            let is_on =
                routes.is_none_or(|routes| crate::envoy::access::is_ever_on(filter, routes));
            if !is_known && is_on && parts::health_check(filter).is_none() {
                let name = filter.text("name").unwrap_or_default();
                why.at(&filter.place, format!("{name} is asked before; this answer is without it"));
            }
        }
        let sent = http.header("x-forwarded-proto").filter(|_| !parts::sets_proto(hcm));
        let is_https = sent.map_or(is_tls, |proto| proto.eq_ignore_ascii_case("https"));
        let scheme = if is_https { "https" } else { "http" };
        let sets_proto = parts::sets_proto(hcm);
        let Some(routes) = self.config.routes(hcm) else { return answered(404) };
        let http = match without_internal(hcm, http, routes, why) {
            Ok(http) => http,
            Err(outcome) => return outcome,
        };
        let http = &http;
        let makes_id = hcm.bool("generate_request_id") != Some(false);
        let seen =
            Seen { http, makes_id, sent_host, authority: &authority, target, scheme, sets_proto };
        if parts::is_upgrade(http) {
            let route = self.levels(routes, &seen).map(|[.., route]| route);
            let to = http.header("upgrade").unwrap_or_default().to_ascii_lowercase();
            if !parts::upgrades(hcm, route).contains(&to) {
                why.at(&hcm.place, "another protocol, which upgrade_configs does not switch on");
                return answered(403);
            }
        }
        if let Some(outcome) = self.before(hcm, routes, &seen, is_tls, why) {
            return outcome;
        }
        let Some(host) = self.virtual_host(routes, &authority, http, why) else {
            return answered(404);
        };
        if host.entry("matcher").is_some() {
            why.at(&host.place, "its matcher chooses the route; it is not known here");
            return answered(404);
        }
        let tls = host.text("require_tls").unwrap_or("NONE");
        if tls != "NONE" && !is_https {
            why.at(&host.place, format!("require_tls {tls}: plaintext is sent to https"));
            return redirected(301, format!("https://{authority}{}", seen.target));
        }
        let Some(route) = first(routes, host, &seen, why) else {
            why.at(&host.place, "no route takes it, and there is no other virtual host");
            return answered(404);
        };
        self.action(hcm, [routes, host, route], &seen, why)
    }

    fn action(&self, hcm: &Tree, levels: [&'c Tree; 3], seen: &Seen<'_>, why: &mut Why) -> Outcome {
        let [.., route] = levels;
        let added = || self.added(levels, seen);
        if let Some(redirect) = route.msg("redirect") {
            let matcher = route.msg("match");
            why.at(&redirect.place, "redirect");
            return with(redirected(status(redirect), location(redirect, matcher, seen)), added());
        }
        if let Some(direct) = route.msg("direct_response") {
            return with(response(direct, why), added());
        }
        match route.msg("route") {
            Some(action) => self.forward(hcm, levels, action, seen, why),
            None => {
                why.at(&route.place, "a route without an action of forwarding");
                answered(404)
            }
        }
    }

    /// Headers of an answer of Envoy itself.
    fn added(&self, levels: [&'c Tree; 3], seen: &Seen<'_>) -> Vec<(String, String)> {
        let mut order: Vec<&Tree> = levels.into_iter().rev().collect();
        if levels[0].is("most_specific_header_mutations_wins") {
            order.reverse();
        }
        Headers::of_answer(&order, seen.http, self.source)
    }

    fn forward(
        &self,
        hcm: &Tree,
        levels: [&'c Tree; 3],
        action: &Tree,
        seen: &Seen<'_>,
        why: &mut Why,
    ) -> Outcome {
        let missing = match action.text("cluster_not_found_response_code") {
            Some("NOT_FOUND") => 404,
            Some("INTERNAL_SERVER_ERROR") => 500,
            _ => 503,
        };
        let weighted = parts::weighted(action);
        let pools = pools(action, &weighted, seen, why);
        if pools.iter().all(|(name, _)| self.config.cluster(name).is_none()) {
            let names: Vec<_> = pools.iter().map(|(name, _)| name.as_str()).collect();
            why.at(&action.place, format!("there is no cluster {:?}", names.join(", ")));
            return with(answered(missing), self.added(levels, seen));
        }
        let mut forwarded = self.forwarded(pools, why);
        forwarded.is_sticky &= action.messages("hash_policy").any(|policy| hashes(policy, seen));
        if forwarded.endpoints.is_empty() {
            why.at(&action.place, "no healthy upstream");
            return answered(503);
        }
        forwarded.headers = self.headers(hcm, levels, action, &weighted, seen, why);
        forwarded.target = Some(self.rewritten(levels[2], action, seen, why));
        told(action, levels[1], why);
        Outcome::Forwarded(Forwarded { ..forwarded })
    }

    /// Route, virtual host, route configuration; the most specific goes first, so
    /// that the least specific has the last word, unless it is turned round.
    fn headers(
        &self,
        hcm: &Tree,
        levels: [&Tree; 3],
        action: &Tree,
        weighted: &[(&Tree, Option<&str>, u32)],
        seen: &Seen<'_>,
        why: &mut Why,
    ) -> Vec<(String, Option<String>)> {
        let mut headers = Headers::of(seen.http, self.source);
        if hcm.is("use_remote_address") && !hcm.is("skip_xff_append") {
            headers.forwarded_for();
        }
        let is_free = seen.http.header("x-forwarded-proto").is_none();
        if seen.sets_proto || is_free && hcm.is("use_remote_address") {
            headers.set("x-forwarded-proto", seen.scheme.to_owned());
        }
        let mut order: Vec<&Tree> = levels.into_iter().rev().collect();
        if levels[0].is("most_specific_header_mutations_wins") {
            order.reverse();
        }
        // A cluster among weighted ones comes first in both orders.
        let taken: Vec<_> = weighted.iter().filter(|(.., weight)| *weight > 0).collect();
        match taken.as_slice() {
            [(one, ..)] => order.insert(0, one),
            several => several.iter().for_each(|(one, ..)| {
                if one.one_of(&["request_headers_to_add", "request_headers_to_remove"]).is_some() {
                    why.at(&one.place, "with this cluster other headers are changed, too");
                }
            }),
        }
        order.into_iter().for_each(|level| headers.apply(level));
        for operator in std::mem::take(&mut headers.unknown) {
            why.say(format!("%{operator}% is known while Envoy runs"));
        }
        let host = host(action, &taken, seen).or_else(|| self.endpoint_name(action, &taken, why));
        if let Some(host) = host {
            headers.set("host", host);
        } else if seen.sent_host != Some(seen.authority) {
            headers.set("host", seen.authority.to_owned());
        }
        headers.changed()
    }

    /// `auto_host_rewrite`: the name of the endpoint, where it has one.
    fn endpoint_name(
        &self,
        action: &Tree,
        weighted: &[&(&Tree, Option<&str>, u32)],
        why: &mut Why,
    ) -> Option<String> {
        if !action.is("auto_host_rewrite") {
            return None;
        }
        let of_weights = weighted.iter().filter_map(|(_, name, _)| *name);
        let named = action.some_text("cluster").into_iter().chain(of_weights);
        let names = named.filter_map(|name| self.config.cluster(name));
        let names: Vec<_> = names.flat_map(|cluster| self.config.hostnames(cluster)).collect();
        match names.as_slice() {
            [first, rest @ ..] if rest.iter().all(|name| name == first) => first.clone(),
            _ => {
                why.at(&action.place, "Host becomes the name of the endpoint that is chosen");
                None
            }
        }
    }

    fn rewritten(&self, route: &Tree, action: &Tree, seen: &Seen<'_>, why: &mut Why) -> String {
        let path = seen.path();
        let new = if let Some(to) = action.some_text("prefix_rewrite") {
            replaced(route.msg("match"), path, to)
        } else if let Some(rewrite) = action.msg("regex_rewrite") {
            re2::replace(rewrite, path)
        } else if let Some((pattern, to)) = template::of_rewrite(action, route.msg("match"))
            && let Ok(regex) = re2::compile(&pattern, true)
        {
            let bytes = regex.replace(path.as_bytes(), to.as_bytes());
            String::from_utf8_lossy(&bytes).into_owned()
        } else {
            for unknown in ["path_rewrite_policy", "path_rewrite"] {
                if let Some(field) = action.entry(unknown) {
                    why.at(&field.place, "the path is rewritten in a way that is not known here");
                }
            }
            return seen.target.clone();
        };
        why.at(&action.place, format!("path {path} becomes {new}"));
        format!("{new}{}", &seen.target[path.len()..])
    }
}

pub(super) fn answered(status: u16) -> Outcome {
    Outcome::Answered { status, headers: Vec::new(), body: None }
}

fn with(outcome: Outcome, added: Vec<(String, String)>) -> Outcome {
    match outcome {
        Outcome::Answered { status, mut headers, body } => {
            headers.extend(added);
            Outcome::Answered { status, headers, body }
        }
        other => other,
    }
}

pub(super) fn redirected(status: u16, location: String) -> Outcome {
    Outcome::Answered { status, headers: vec![("location".into(), location)], body: None }
}

/// The first route that takes it.
pub(super) fn first<'c>(
    routes: &Tree,
    host: &'c Tree,
    seen: &Seen<'_>,
    why: &mut Why,
) -> Option<&'c Tree> {
    let ignores = routes.is("ignore_path_parameters_in_path_matching");
    for (number, route) in host.messages("routes").enumerate() {
        let Some(matcher) = route.msg("match") else { continue };
        let name = route.some_text("name").map(|name| format!(" {name}")).unwrap_or_default();
        match seen.takes(matcher, ignores) {
            Takes::Yes => {
                why.at(&route.place, format!("route {}{name} takes it", number + 1));
                return Some(route);
            }
            Takes::Sometimes(part) => {
                why.at(&route.place, format!("route {}{name} takes {part}% of these", number + 1));
                if part >= 50.0 {
                    return Some(route);
                }
            }
            Takes::Unknown(field) => {
                let what = format!(
                    "route {}{name} takes it if {field} holds, which is not known here: it is taken not to",
                    number + 1
                );
                why.at(&route.place, what);
            }
            Takes::No => {}
        }
    }
    None
}

fn response(direct: &Tree, why: &mut Why) -> Outcome {
    let status =
        direct.count("status").and_then(|status| u16::try_from(status).ok()).unwrap_or(200);
    why.at(&direct.place, format!("answers {status}"));
    let body = direct.msg("body");
    if body.is_some_and(|body| body.one_of(&["filename", "environment_variable"]).is_some()) {
        why.at(&direct.place, "its body stands elsewhere");
    }
    let text = |body: &Tree| {
        body.text("inline_string").or_else(|| body.text("inline_bytes")).map(String::from)
    };
    let body = body.and_then(text).filter(|body| !body.is_empty());
    Outcome::Answered { status, headers: Vec::new(), body }
}

fn pools(
    action: &Tree,
    weighted: &[(&Tree, Option<&str>, u32)],
    seen: &Seen<'_>,
    why: &mut Why,
) -> Vec<(String, f64)> {
    if let Some(header) = action.some_text("cluster_header") {
        let name = seen.http.header(header).unwrap_or_default();
        why.at(&action.place, format!("header {header} says cluster {name:?}"));
        return vec![(name.to_owned(), 1.0)];
    }
    if let Some(name) = action.some_text("cluster") {
        why.at(&action.place, format!("cluster {name}"));
        return vec![(name.to_owned(), 1.0)];
    }
    let all: f64 = weighted.iter().map(|(.., weight)| f64::from(*weight)).sum();
    let mut pools = Vec::new();
    for (at, name, weight) in weighted.iter().filter(|(.., weight)| *weight > 0) {
        let named = || seen.http.header(at.some_text("cluster_header")?);
        let name = name.or_else(named).unwrap_or_default();
        why.at(&at.place, format!("cluster {name}, {weight} of {all}"));
        pools.push((name.to_owned(), f64::from(*weight) / all));
    }
    pools
}

/// `host_rewrite_specifier`.
fn host(
    action: &Tree,
    weighted: &[&(&Tree, Option<&str>, u32)],
    seen: &Seen<'_>,
) -> Option<String> {
    let of_cluster = match weighted {
        [(one, ..)] => one.some_text("host_rewrite_literal"),
        _ => None,
    };
    if let Some(host) = of_cluster.or_else(|| action.some_text("host_rewrite_literal")) {
        return Some(host.to_owned());
    }
    if let Some(name) = action.some_text("host_rewrite_header") {
        return seen.http.header(name).filter(|value| !value.is_empty()).map(String::from);
    }
    action.msg("host_rewrite_path_regex").map(|rewrite| re2::replace(rewrite, seen.path()))
}

/// Whether a hash policy finds something in the request.
fn hashes(policy: &Tree, seen: &Seen<'_>) -> bool {
    if let Some(header) = policy.msg("header") {
        return seen.http.header(header.text("header_name").unwrap_or_default()).is_some();
    }
    if let Some(of) = policy.msg("cookie") {
        let name = of.text("name").unwrap_or_default();
        return of.entry("ttl").is_some() || cookie(seen.http, name).is_some();
    }
    if let Some(parameter) = policy.msg("query_parameter") {
        let name = parameter.text("name").unwrap_or_default();
        let query = seen.target.split_once('?').map_or("", |(_, query)| query);
        return query.split('&').any(|pair| pair.split('=').next() == Some(name));
    }
    policy.msg("connection_properties").is_some_and(|of| of.is("source_ip"))
}

/// Timeouts, retries and copies: they do not choose, but they act.
fn told(action: &Tree, host: &Tree, why: &mut Why) {
    match action.duration("timeout") {
        Some(timeout) if timeout.is_zero() => why.at(&action.place, "timeout: none"),
        Some(timeout) => why.at(&action.place, format!("timeout {timeout:?}")),
        None => why.at(&action.place, "timeout 15s, which is the default"),
    }
    let of_host = host.msg("retry_policy").map(|policy| (policy, " of the virtual host"));
    if let Some((policy, whose)) = action.msg("retry_policy").map(|p| (p, "")).or(of_host) {
        let on = policy.text("retry_on").unwrap_or_default();
        let times = policy.count("num_retries").unwrap_or(1);
        why.at(&policy.place, format!("retry_policy{whose}: {on}, {times} more"));
    }
    for mirror in action.messages("request_mirror_policies") {
        let to = mirror.text("cluster").unwrap_or_default();
        why.at(&mirror.place, format!("a copy goes to {to}"));
    }
}
