//! Which virtual host: "VirtualHost.domains".

use super::{Asked, Why, parts};
use crate::{envoy::tree::Tree, request::Http};

impl<'c> Asked<'c> {
    /// The authority as routes see it, after the connection manager.
    pub(super) fn authority(&self, hcm: &Tree, http: &Http, why: &mut Why) -> Option<String> {
        let sent = http.host.as_deref().or_else(|| {
            let http1 = hcm.msg("http_protocol_options").filter(|_| http.is_http10)?;
            http1.some_text("default_host_for_http_10")
        })?;
        let only = if hcm.is("strip_any_host_port") {
            Some(None)
        } else {
            hcm.is("strip_matching_host_port").then_some(Some(self.local.port()))
        };
        let mut host = sent.to_owned();
        if hcm.is("strip_trailing_host_dot") {
            host = without_trailing_dot(&host);
        }
        if let Some(only) = only.filter(|_| http.method != "CONNECT") {
            host = parts::without_port(&host, only).to_owned();
        }
        if host != sent {
            why.at(&hcm.place, format!("Host {sent} is taken as {host}"));
        }
        Some(host)
    }

    /// Exact, longest `*suffix`, longest `prefix*`, `*`; there is no second choice.
    pub(super) fn virtual_host(
        &self,
        routes: &'c Tree,
        authority: &str,
        http: &Http,
        why: &mut Why,
    ) -> Option<&'c Tree> {
        let mut host = authority;
        if let Some(name) = routes.some_text("vhost_header") {
            host = http.header(name).unwrap_or_default();
            why.at(&routes.place, format!("the virtual host is chosen by header {name}"));
        }
        if routes.is("ignore_port_in_host_matching") {
            host = parts::without_port(host, None);
        }
        let host = host.to_ascii_lowercase();
        let mut best: Option<((u8, usize), &Tree, &str)> = None;
        for tree in routes.messages("virtual_hosts") {
            for domain in tree.texts("domains") {
                let Some(rank) = rank(&domain.to_ascii_lowercase(), &host) else { continue };
                if best.as_ref().is_none_or(|(known, ..)| rank > *known) {
                    best = Some((rank, tree, domain));
                }
            }
        }
        let Some((_, tree, domain)) = best else {
            why.at(&routes.place, format!("no virtual host takes {host}"));
            return None;
        };
        let name = tree.text("name").unwrap_or_default();
        why.at(&tree.place, format!("virtual host {name}: {host} is of {domain}"));
        Some(tree)
    }
}

fn rank(domain: &str, host: &str) -> Option<(u8, usize)> {
    if domain == "*" {
        return Some((0, 0));
    }
    if let Some(suffix) = domain.strip_prefix('*') {
        let takes = host.len() > suffix.len() && host.ends_with(suffix);
        return takes.then_some((2, suffix.len()));
    }
    if let Some(prefix) = domain.strip_suffix('*') {
        let takes = host.len() > prefix.len() && host.starts_with(prefix);
        return takes.then_some((1, prefix.len()));
    }
    (domain == host).then_some((3, 0))
}

fn without_trailing_dot(host: &str) -> String {
    let name = parts::without_port(host, None);
    match name.strip_suffix('.') {
        Some(bare) => format!("{bare}{}", &host[name.len()..]),
        None => host.to_owned(),
    }
}
