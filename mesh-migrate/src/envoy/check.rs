//! What Envoy refuses although each field is right, and what cannot be known from
//! this file.

use std::collections::BTreeSet;

use super::{
    config::Config,
    parts::{self, Terminal},
    re2,
    tree::Tree,
};
use crate::source::{Place, Problem};

const ELSEWHERE: &str = "this file is not the whole configuration: \
    save /config_dump?include_eds of a running Envoy and give that";

impl Config {
    pub(super) fn check(&self) -> Result<(), Problem> {
        let mut found = None;
        parts::each(&self.root, &mut |tree| {
            if found.is_none() {
                found = wrong(tree).err();
            }
        });
        if let Some(problem) = found {
            return Err(problem);
        }
        if !self.is_dump {
            self.elsewhere()?;
        }
        let mut names = BTreeSet::new();
        for cluster in &self.clusters {
            let name = required(cluster, "name")?;
            if !names.insert(name) && !self.is_dump {
                return Err(Problem::at(
                    &cluster.place,
                    format!("cluster {name:?} is there twice"),
                ));
            }
            self.cluster_is_right(cluster)?;
        }
        for listener in &self.listeners {
            for chain in parts::chains(listener) {
                self.chain_is_right(chain)?;
            }
        }
        Ok(())
    }

    /// What other files or servers say.
    fn elsewhere(&self) -> Result<(), Problem> {
        let Some(dynamic) = self.root.msg("dynamic_resources") else { return Ok(()) };
        match dynamic.one_of(&[
            "lds_config",
            "cds_config",
            "lds_resources_locator",
            "cds_resources_locator",
        ]) {
            Some(field) => {
                let problem = format!("{}: {ELSEWHERE}", field.name);
                Err(Problem::at(&field.place, problem))
            }
            None => Ok(()),
        }
    }

    fn cluster_is_right(&self, cluster: &Tree) -> Result<(), Problem> {
        let name = cluster.text("name").unwrap_or_default();
        if cluster.text("type") == Some("EDS") && self.load_assignment(cluster).is_none() {
            let place = cluster.entry("type").map_or(&cluster.place, |field| &field.place);
            let problem = format!("endpoints of {name:?} come by EDS: {ELSEWHERE}");
            return Err(Problem::at(place, problem));
        }
        let kind = cluster.text("type").unwrap_or("STATIC");
        if kind == "STATIC" && cluster.entry("cluster_type").is_none() {
            let mut addresses = Vec::new();
            if let Some(assignment) = cluster.msg("load_assignment") {
                parts::each(assignment, &mut |tree| {
                    if tree.short() == "SocketAddress" {
                        addresses.push(tree);
                    }
                });
            }
            for address in addresses {
                let text = address.text("address").unwrap_or_default();
                if text.parse::<std::net::IpAddr>().is_err() {
                    let place = address.entry("address").map_or(&address.place, |f| &f.value.place);
                    let problem = format!(
                        "{text:?} is no address, and cluster {name:?} is STATIC; names need STRICT_DNS or LOGICAL_DNS"
                    );
                    return Err(Problem::at(place, problem));
                }
            }
        }
        let assignment = cluster.msg("load_assignment");
        let localities = assignment.into_iter().flat_map(|all| all.messages("endpoints"));
        let count = localities.map(|one| one.list("lb_endpoints").len()).sum::<usize>();
        if kind == "LOGICAL_DNS" && count != 1 {
            let problem = format!("LOGICAL_DNS takes one endpoint, and {name:?} has {count}");
            return Err(Problem::at(&cluster.place, problem));
        }
        Ok(())
    }

    fn chain_is_right(&self, chain: &Tree) -> Result<(), Problem> {
        match parts::terminal(chain) {
            Terminal::Tcp(tcp) => {
                let named = tcp.some_text("cluster").map(|name| (name, &tcp.place));
                let weighted = parts::weighted(tcp);
                let weighted =
                    weighted.iter().filter_map(|(at, name, _)| Some(((*name)?, &at.place)));
                for (name, place) in named.into_iter().chain(weighted) {
                    self.is_there(name, place)?;
                }
                Ok(())
            }
            Terminal::Http(hcm) => {
                if let Some(scoped) = hcm.entry("scoped_routes") {
                    let problem =
                        "routes chosen by scope cannot be read: write route_config or rds";
                    return Err(Problem::at(&scoped.place, problem));
                }
                if let Some(rds) = hcm.entry("rds").filter(|_| self.routes(hcm).is_none()) {
                    return Err(Problem::at(&rds.place, format!("rds: {ELSEWHERE}")));
                }
                match self.routes(hcm) {
                    Some(routes) => self.routes_are_right(routes, hcm.entry("rds").is_none()),
                    None => Err(Problem::at(&hcm.place, "expected route_config or rds")),
                }
            }
            Terminal::Other(_) => Ok(()),
        }
    }

    fn routes_are_right(&self, routes: &Tree, is_static: bool) -> Result<(), Problem> {
        let mut domains = BTreeSet::new();
        for host in routes.messages("virtual_hosts") {
            required(host, "name")?;
            if host.list("domains").is_empty() {
                return Err(Problem::at(
                    &host.place,
                    "expected domains: at least one, \"*\" for all",
                ));
            }
            for domain in host.list("domains") {
                let super::tree::What::Text(text) = &domain.what else { continue };
                if !domains.insert(text.to_ascii_lowercase()) {
                    let problem = format!("domain {text:?} belongs to a virtual host already");
                    return Err(Problem::at(&domain.place, problem));
                }
            }
            for route in host.messages("routes") {
                route_is_right(route)?;
                if is_static && routes.bool("validate_clusters") != Some(false) {
                    self.targets_are_there(route)?;
                }
            }
        }
        Ok(())
    }

    fn targets_are_there(&self, route: &Tree) -> Result<(), Problem> {
        let Some(action) = route.msg("route") else { return Ok(()) };
        if let Some(field) = action.entry("cluster") {
            self.is_there(action.text("cluster").unwrap_or_default(), &field.value.place)?;
        }
        for (at, name, _) in parts::weighted(action) {
            if let Some(name) = name {
                self.is_there(name, &at.place)?;
            }
        }
        Ok(())
    }

    fn is_there(&self, name: &str, place: &Place) -> Result<(), Problem> {
        if self.cluster(name).is_some() {
            return Ok(());
        }
        let all = self.clusters.iter().filter_map(|cluster| cluster.text("name"));
        let nearest = all.min_by_key(|known| super::schema::distance(known, name));
        let hint = nearest.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default();
        Err(Problem::at(place, format!("there is no cluster {name:?}{hint}")))
    }
}

fn required<'t>(tree: &'t Tree, field: &str) -> Result<&'t str, Problem> {
    let expected = || Problem::at(&tree.place, format!("{} needs {field:?}", tree.short()));
    tree.some_text(field).ok_or_else(expected)
}

fn route_is_right(route: &Tree) -> Result<(), Problem> {
    let Some(matcher) = route.msg("match") else {
        return Err(Problem::at(&route.place, "Route needs \"match\""));
    };
    let paths = [
        "prefix",
        "path",
        "safe_regex",
        "connect_matcher",
        "path_separated_prefix",
        "path_match_policy",
    ];
    if matcher.one_of(&paths).is_none() {
        let problem = format!("RouteMatch needs one of {}", paths.join(", "));
        return Err(Problem::at(&matcher.place, problem));
    }
    let actions =
        ["route", "redirect", "direct_response", "filter_action", "non_forwarding_action"];
    if route.one_of(&actions).is_none() {
        let problem = format!("Route needs one of {}", actions.join(", "));
        return Err(Problem::at(&route.place, problem));
    }
    let Some(action) = route.msg("route") else { return Ok(()) };
    let targets = [
        "cluster",
        "cluster_header",
        "weighted_clusters",
        "cluster_specifier_plugin",
        "inline_cluster_specifier_plugin",
    ];
    if action.one_of(&targets).is_none() {
        let problem = format!("RouteAction needs one of {}", targets.join(", "));
        return Err(Problem::at(&action.place, problem));
    }
    let weights = parts::weighted(action);
    if action.entry("weighted_clusters").is_some() {
        let sum: u64 = weights.iter().map(|(.., weight)| u64::from(*weight)).sum();
        if sum == 0 || sum > u64::from(u32::MAX) {
            let problem =
                format!("weights of weighted_clusters make {sum}; expected 1 to 4294967295");
            return Err(Problem::at(&action.place, problem));
        }
    }
    if action.entry("prefix_rewrite").is_some() && action.entry("regex_rewrite").is_some() {
        let problem = "prefix_rewrite and regex_rewrite exclude each other";
        return Err(Problem::at(&action.place, problem));
    }
    Ok(())
}

fn wrong(tree: &Tree) -> Result<(), Problem> {
    match tree.message {
        "envoy.type.matcher.v3.RegexMatcher" => {
            let pattern = re2::pattern(Some(tree));
            let place = tree.entry("regex").map_or(&tree.place, |field| &field.value.place);
            let built = re2::compile(&pattern, true);
            built.map(|_| ()).map_err(|why| Problem::at(place, format!("{pattern:?} {why}")))
        }
        "envoy.config.route.v3.RouteMatch" => {
            let ends = |text: &str| text.ends_with('/') || text.contains(['?', '#']);
            match tree.entry("path_separated_prefix") {
                Some(field) if tree.text("path_separated_prefix").is_some_and(ends) => {
                    let problem = "a path_separated_prefix ends with no / and has neither ? nor #";
                    Err(Problem::at(&field.value.place, problem))
                }
                _ => Ok(()),
            }
        }
        "envoy.config.route.v3.DirectResponseAction" => match tree.whole("status").unwrap_or(0) {
            200..=599 => Ok(()),
            status => {
                let problem = format!("expected a status from 200 to 599, and this is {status}");
                Err(Problem::at(&tree.place, problem))
            }
        },
        "envoy.config.core.v3.HeaderValueOption" => {
            let header = tree.msg("header");
            let key = header.and_then(|header| header.entry("key")).filter(|_| {
                let name = header.and_then(|header| header.text("key")).unwrap_or_default();
                name.starts_with(':') || name.eq_ignore_ascii_case("host")
            });
            match key {
                Some(field) => {
                    let problem = "host and headers that begin with : are not changed so; Host is changed by host_rewrite_literal";
                    Err(Problem::at(&field.value.place, problem))
                }
                None => Ok(()),
            }
        }
        "envoy.type.matcher.v3.StringMatcher" => {
            match tree.entry("ignore_case").filter(|_| tree.entry("safe_regex").is_some()) {
                Some(field) if tree.is("ignore_case") => {
                    let problem =
                        "ignore_case has no effect on safe_regex: write (?i) in the pattern";
                    Err(Problem::at(&field.place, problem))
                }
                _ => Ok(()),
            }
        }
        "envoy.config.core.v3.SocketAddress" => {
            let port = tree.whole("port_value").unwrap_or(0);
            if port > 65535 {
                return Err(Problem::at(&tree.place, format!("port {port} is above 65535")));
            }
            required(tree, "address").map(|_| ())
        }
        _ => Ok(()),
    }
}
