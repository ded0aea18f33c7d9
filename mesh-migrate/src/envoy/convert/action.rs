//! Routes as rules.

use super::{Converter, Within, all, condition, headers, retry, rule};
use crate::{
    envoy::{
        parts, re2, template,
        tree::{Entry, Tree},
    },
    program::{
        Change, Condition, Forward, Key, PathChange, Reply, Rule, Said, Sometimes, Text, Then,
    },
};

/// Clusters that `cluster_header` is written out for.
const MAX_NAMED: usize = 64;
const LATER: &str = "until it is said, its requests go on to later routes";

/// A route and where it stands.
#[derive(Clone, Copy)]
struct Here<'c> {
    route: &'c Tree,
    host: &'c Tree,
    within: Within<'c>,
}

impl<'c> Converter<'c> {
    /// Adds the rules of a route; whether it takes all that its host takes.
    pub(super) fn route(
        &mut self,
        route: &'c Tree,
        host: &'c Tree,
        when: &Condition,
        within: &Within<'c>,
        rules: &mut Vec<Rule>,
    ) -> bool {
        let here = Here { route, host, within: *within };
        let Some(matcher) = route.msg("match") else { return false };
        let own = match condition::condition(matcher, within) {
            Ok(Some(condition)) => condition,
            Ok(None) => {
                let meaning = "its fraction is 0: the route takes nothing, and is left out";
                let place = &matcher.entry("runtime_fraction").map_or(&matcher.place, |f| &f.place);
                self.notes.approximated(place, meaning);
                return false;
            }
            Err(cannot) => {
                let question = format!("{}: {LATER}.", cannot.why);
                let choices =
                    ["leave the route out", "write it in another way", "keep Envoy before us"];
                self.notes.decision(&cannot.field.place, question, &choices);
                self.notes.ask(route, "The route cannot be converted as it is.", &choices);
                return false;
            }
        };
        self.lines(matcher);
        let takes_all = own == Condition::Always;
        let when = all(vec![when.clone(), own]);
        let levels = [within.routes, host, route];
        if parts::have_upgrades(within.routes) {
            let Rule { when: asks, then, place } = super::upgrades(within, Some(route));
            rules.push(Rule { when: all(vec![when.clone(), asks]), then, place });
        }
        let cors = self.cors(levels, within);
        let preflights = cors.as_ref().map(|cors| cors.preflights(&when)).unwrap_or_default();
        let refusals = self.refusals(levels, &when, within);
        if self.asks_for_origins_first(within) {
            rules.extend(preflights.into_iter().chain(refusals));
        } else {
            rules.extend(refusals.into_iter().chain(preflights));
        }
        let then = if let Some(redirect) = route.msg("redirect") {
            let reply = self.redirect(redirect, matcher, within);
            Then::Reply(self.answer(reply, [within.routes, host, route]))
        } else if let Some(direct) = route.msg("direct_response") {
            let reply = self.direct(direct);
            Then::Reply(self.answer(reply, [within.routes, host, route]))
        } else if let Some(action) = route.msg("route") {
            if let Some(header) = action.some_text("cluster_header") {
                self.named(header, here, action, &when, rules);
                return takes_all;
            }
            self.forward(here, action, None)
        } else {
            let question = "The route forwards nothing and answers nothing. Until it is said, 404 is answered.";
            self.notes.ask(route, question, &["404", "leave it out"]);
            Then::Reply(Reply { status: 404, ..Reply::default() })
        };
        rules.extend(cors.iter().flat_map(|cors| cors.answers(&route.place, &when, &then)));
        rules.push(rule(&route.place, when, then));
        takes_all
    }

    /// What is different for headers that Envoy itself sets.
    fn lines(&mut self, matcher: &Tree) {
        for header in matcher.messages("headers") {
            let name = header.text("name").unwrap_or_default().to_ascii_lowercase();
            let own = name.starts_with("x-envoy-")
                || matches!(
                    name.as_str(),
                    "x-request-id" | "x-forwarded-for" | "x-forwarded-proto"
                );
            if let Some(field) = header.entry("name").filter(|_| own) {
                let meaning = "Envoy sets or removes this header before it looks at it; here what the client sent is looked at, and some requests may go to another cluster";
                self.notes.dropped(&field.place, meaning);
            }
        }
    }

    /// `cluster_header`: a rule for each cluster, and 503 for other names.
    fn named(
        &mut self,
        header: &str,
        here: Here<'c>,
        action: &'c Tree,
        when: &Condition,
        rules: &mut Vec<Rule>,
    ) {
        let names: Vec<&str> =
            self.config.clusters.iter().filter_map(|one| one.text("name")).collect();
        let place = action.entry("cluster_header").map_or(&action.place, |field| &field.place);
        if names.len() > MAX_NAMED {
            let question = format!(
                "The cluster is named by header {header}, and there are {} of them. Until it is said, 503 is answered.",
                names.len()
            );
            self.notes.decision(
                place,
                question,
                &["write a route for each that may be named", "keep Envoy before us"],
            );
        } else {
            self.notes.approximated(place, format!("written out for the {} clusters that there are; of several lines of {header} any may name one", names.len()));
            for name in names {
                let is = Condition::Header(header.to_ascii_lowercase(), Text::Exact(name.into()));
                let then = self.forward(here, action, Some(name));
                rules.push(rule(&here.route.place, all(vec![when.clone(), is]), then));
            }
        }
        let reply = Reply { status: missing(action), ..Reply::default() };
        let reply = self.answer(reply, [here.within.routes, here.host, here.route]);
        rules.push(rule(&here.route.place, when.clone(), Then::Reply(reply)));
    }

    fn forward(&mut self, here: Here<'c>, action: &'c Tree, named: Option<&str>) -> Then {
        let Here { route, host, within } = here;
        let weighted = parts::weighted(action);
        let pools = match named.or_else(|| action.some_text("cluster")) {
            Some(name) => vec![(name.to_owned(), 1)],
            None => self.weights(&weighted, action),
        };
        if pools.is_empty() {
            return Then::Reply(Reply { status: 503, ..Reply::default() });
        }
        if pools.iter().all(|(name, _)| self.config.cluster(name).is_none()) {
            let reply = Reply { status: missing(action), ..Reply::default() };
            self.notes
                .approximated(&action.place, "the cluster is not there: Envoy answers so, too");
            return Then::Reply(self.answer(reply, [within.routes, host, route]));
        }
        let taken: Vec<&Tree> =
            weighted.iter().filter(|(.., weight)| *weight > 0).map(|(one, ..)| *one).collect();
        let mut levels = vec![route, host, within.routes];
        if within.routes.is("most_specific_header_mutations_wins") {
            levels.reverse();
        }
        if let [one] = taken.as_slice() {
            levels.insert(0, one);
        }
        let (request, mut sometimes) = headers::fold_request(&levels, &mut self.notes);
        sometimes.extend(of_trusted(&request, within.hcm));
        let answer = headers::fold(&levels, "response", &mut self.notes);
        let tell = self.clients(route, &request, within.hcm);
        let own = match taken.as_slice() {
            [_] => Vec::new(),
            _ => {
                let of = weighted.iter().enumerate().filter(|(_, (.., weight))| *weight > 0);
                of.filter_map(|(at, (one, ..))| self.own_headers(at, one, [&request, &answer]))
                    .collect()
            }
        };
        let key = self.key(action);
        for (name, _) in &pools {
            self.keys.entry(name.clone()).or_default().push(key.clone());
        }
        let retry = action.msg("retry_policy").or_else(|| host.msg("retry_policy"));
        let (retry, attempt_timeout) = match retry {
            Some(policy) => {
                (retry::retry(policy, &mut self.notes), policy.duration("per_try_timeout"))
            }
            None => (None, None),
        };
        let timeout = action.duration("timeout").unwrap_or(std::time::Duration::from_secs(15));
        Then::Forward(Box::new(Forward {
            host: self.host(action, &taken, &pools),
            path: self.path(action, route.msg("match")),
            mirrors: self.mirrors([action, host, within.routes]),
            own,
            pools,
            strip_query: false,
            tell,
            tell_more: Vec::new(),
            sometimes,
            set: request.set,
            add: request.add,
            remove: request.remove,
            set_answer: answer.set,
            add_answer: answer.add,
            remove_answer: answer.remove,
            request_timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
            attempt_timeout: attempt_timeout.filter(|timeout| !timeout.is_zero()),
            retry,
        }))
    }

    /// What is told of the request, and of its client as `use_remote_address` says.
    fn clients(
        &mut self,
        route: &Tree,
        request: &headers::Changes,
        hcm: &Tree,
    ) -> Vec<(String, Said)> {
        let mut tell = request.tell.clone();
        if !hcm.is("use_remote_address") {
            return tell;
        }
        let address =
            (!hcm.is("skip_xff_append")).then_some(("x-forwarded-for", Said::ForwardedFor));
        let proto = parts::sets_proto(hcm).then_some(("x-forwarded-proto", Said::Scheme));
        for (name, said) in address.into_iter().chain(proto) {
            if !request.names().any(|own| own == name) {
                tell.push((name.to_owned(), said));
            } else if name == "x-forwarded-for" {
                let how = "the client's address is not appended to X-Forwarded-For where it is set or added to";
                self.notes.approximated(&route.place, how);
            }
        }
        tell
    }

    fn weights(
        &mut self,
        weighted: &[(&'c Tree, Option<&'c str>, u32)],
        action: &Tree,
    ) -> Vec<(String, u32)> {
        if weighted.iter().any(|(_, name, _)| name.is_none()) || weighted.is_empty() {
            let question =
                "Where it goes is not said by a cluster's name. Until it is said, 503 is answered.";
            self.notes.ask(
                action,
                question,
                &["write a route for each cluster", "keep Envoy before us"],
            );
            return Vec::new();
        }
        weighted
            .iter()
            .filter_map(|(_, name, weight)| Some(((*name)?.to_owned(), *weight)))
            .collect()
    }

    fn host(&mut self, action: &Tree, taken: &[&Tree], pools: &[(String, u32)]) -> Option<String> {
        let of_cluster = match taken {
            [one] => one.some_text("host_rewrite_literal"),
            _ => None,
        };
        if let Some(host) = of_cluster {
            return Some(host.into());
        }
        if let Some(host) = action.some_text("host_rewrite_literal") {
            return Some(host.into());
        }
        for name in ["host_rewrite_header", "host_rewrite_path_regex", "host_rewrite"] {
            if let Some(field) = action.entry(name) {
                let question = "Host becomes what the request says; a rule of ours knows one name. Until it is said, Host stays.";
                self.notes.decision(
                    &field.place,
                    question,
                    &["Host may stay", "write a route for each name", "keep Envoy before us"],
                );
            }
        }
        let field = action.entry("auto_host_rewrite").filter(|_| action.is("auto_host_rewrite"))?;
        let clusters = pools
            .iter()
            .filter(|(_, weight)| *weight > 0)
            .filter_map(|(name, _)| self.config.cluster(name));
        let names: Vec<_> = clusters.flat_map(|cluster| self.config.hostnames(cluster)).collect();
        match names.as_slice() {
            [first, rest @ ..] if rest.iter().all(|name| name == first) => first.clone(),
            _ => {
                let question = "Host becomes the name of the endpoint, and there are several. Until it is said, Host stays.";
                self.notes.decision(&field.place, question, &["Host may stay", "one name for all"]);
                None
            }
        }
    }

    fn path(&mut self, action: &Tree, matcher: Option<&Tree>) -> Option<PathChange> {
        self.queries(action);
        if let Some(to) = action.some_text("prefix_rewrite") {
            return Some(replaced(matcher, to));
        }
        if let Some(rewrite) = action.msg("regex_rewrite") {
            if rewrite.msg("pattern").is_some_and(re2::asks_for_unicode) {
                let question =
                    "The pattern asks for classes of Unicode. Until it is said, the path stays.";
                self.notes.ask(
                    rewrite,
                    question,
                    &["write a pattern without", "keep Envoy before us"],
                );
                return None;
            }
            return Some(rewritten(rewrite));
        }
        if let Some((pattern, substitution)) = template::of_rewrite(action, matcher) {
            let pattern = format!("^(?:{pattern})$");
            return Some(PathChange::Pattern { pattern, substitution, all: false });
        }
        for name in ["path_rewrite_policy", "path_rewrite"] {
            if let Some(field) = action.entry(name) {
                let question =
                    "The path is made by a format or an extension. Until it is said, it stays.";
                self.notes.decision(
                    &field.place,
                    question,
                    &["write prefix_rewrite or regex_rewrite", "keep Envoy before us"],
                );
            }
        }
        None
    }

    /// What is different for paths that are rewritten to one with a query, or to none.
    pub(super) fn queries(&mut self, of: &Tree) {
        let rewrite = of.msg("regex_rewrite");
        let substitution =
            rewrite.and_then(|one| Some((one.entry("substitution")?, one.text("substitution")?)));
        let prefix = of.entry("prefix_rewrite").zip(of.some_text("prefix_rewrite"));
        let path = of.entry("path_redirect").zip(of.some_text("path_redirect"));
        let mut say = |field: &Entry, how: &str| {
            let verdict = crate::ledger::Verdict::Approximated { how: how.into() };
            self.notes.once(&field.place, verdict);
        };
        for (field, to) in prefix.into_iter().chain(substitution) {
            if to.contains('?') {
                say(
                    field,
                    "the query that is written here takes the place of the request's; Envoy writes that one behind it, with a second ?",
                );
            }
        }
        for (field, to) in prefix.into_iter().chain(path) {
            if !to.starts_with('/') {
                say(field, "what comes out without a / in front is answered 500");
            }
        }
    }

    /// The most specific list that is there holds alone.
    fn mirrors(&mut self, levels: [&Tree; 3]) -> Vec<(String, f64)> {
        let field = "request_mirror_policies";
        let own = levels.into_iter().find(|level| !level.list(field).is_empty());
        let all = own.into_iter().flat_map(|level| level.messages(field));
        all.filter_map(|one| {
            let cluster = one.some_text("cluster")?;
            let fraction = one.msg("runtime_fraction");
            let part = fraction.map_or(100.0, |one| parts::percent(one.msg("default_value")));
            Some((cluster.to_owned(), part))
        })
        .collect()
    }

    /// The first hash policy that there is a key for.
    fn key(&mut self, action: &Tree) -> Option<Key> {
        let policies: Vec<&Tree> = action.messages("hash_policy").collect();
        for other in policies.iter().skip(1) {
            self.notes.ask(
                other,
                "A second thing to hash; here the first decides alone.",
                &["the first is enough", "keep Envoy before us"],
            );
        }
        let policy = policies.first()?;
        if let Some(header) = policy.msg("header") {
            if let Some(field) = header.entry("regex_rewrite") {
                self.notes.dropped(&field.place, "all of the header is hashed");
            }
            return Some(Key::Header(header.text("header_name")?.to_ascii_lowercase()));
        }
        if let Some(cookie) = policy.msg("cookie") {
            return Some(Key::Cookie(cookie.text("name")?.to_owned(), cookie.duration("ttl")));
        }
        if let Some(parameter) = policy.msg("query_parameter") {
            return Some(Key::Query(parameter.text("name")?.to_owned()));
        }
        policy.msg("connection_properties").filter(|of| of.is("source_ip")).map(|_| Key::Source)
    }

    fn answer(&mut self, mut reply: Reply, levels: [&Tree; 3]) -> Reply {
        let [routes, host, route] = levels;
        let mut order = vec![route, host, routes];
        if routes.is("most_specific_header_mutations_wins") {
            order.reverse();
        }
        let changes = headers::fold(&order, "response", &mut self.notes);
        reply.headers.extend(changes.set.into_iter().chain(changes.add));
        reply
    }

    fn direct(&mut self, direct: &Tree) -> Reply {
        let status = direct.count("status").and_then(|status| u16::try_from(status).ok());
        let body = direct.msg("body");
        let text = body.and_then(|b| b.text("inline_string").or_else(|| b.text("inline_bytes")));
        for name in ["filename", "environment_variable"] {
            if let Some(field) = body.and_then(|body| body.entry(name)) {
                let question = "The body stands elsewhere. Until it is said, it is empty.";
                self.notes.decision(&field.place, question, &["write it here", "it may be empty"]);
            }
        }
        if let Some(field) = direct.entry("body_format") {
            let question =
                "The body is made by a format. Until it is said, it is what `body` says.";
            self.notes.decision(&field.place, question, &["as it is", "keep Envoy before us"]);
        }
        let body = text.unwrap_or_default().to_owned();
        Reply { status: status.unwrap_or(200), body, ..Reply::default() }
    }
}

/// Whom Envoy trusts has said how the client came; who has not comes as it is seen.
fn of_trusted(request: &headers::Changes, hcm: &Tree) -> Option<Sometimes> {
    const PROTO: &str = "x-forwarded-proto";
    let asks = hcm.is("use_remote_address") && !parts::sets_proto(hcm);
    let is_free = !request.names().any(|name| name == PROTO);
    (asks && is_free).then(|| Sometimes {
        when: Condition::Not(Box::new(Condition::Header(PROTO.into(), Text::Present))),
        name: PROTO.into(),
        change: Change::Set(Said::Scheme),
    })
}

fn missing(action: &Tree) -> u16 {
    match action.text("cluster_not_found_response_code") {
        Some("NOT_FOUND") => 404,
        Some("INTERNAL_SERVER_ERROR") => 500,
        _ => 503,
    }
}

/// `prefix_rewrite`: the prefix that matched, or the whole path.
pub(super) fn replaced(matcher: Option<&Tree>, to: &str) -> PathChange {
    let has_case = matcher.is_none_or(|one| one.bool("case_sensitive").unwrap_or(true));
    let prefix = matcher.and_then(|m| m.text("prefix").or_else(|| m.text("path_separated_prefix")));
    match prefix {
        Some(from) if has_case => PathChange::Prefix { from: from.into(), to: to.into() },
        Some(from) => PathChange::Pattern {
            pattern: format!("^(?i:{})", re2::literal(from)),
            substitution: to.replace('$', "$$"),
            all: false,
        },
        None => PathChange::Whole(to.into()),
    }
}

pub(super) fn rewritten(rewrite: &Tree) -> PathChange {
    PathChange::Pattern {
        pattern: re2::pattern(rewrite.msg("pattern")),
        substitution: re2::substitution(rewrite.text("substitution").unwrap_or_default()),
        all: true,
    }
}
