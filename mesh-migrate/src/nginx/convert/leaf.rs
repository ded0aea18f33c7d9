//! Rules of a server: what it and its locations do, step by step.

use std::rc::Rc;

use super::{
    At, Condition, Directive, Reply, Rule, Server, Template, Then, Work, all,
    locations::{Leaf, slashed},
    redirects::redirect_to,
    refusal,
};
use crate::{
    nginx::{
        model::{self, Kind, Location},
        pattern::Pattern,
        template::Part,
    },
    program::{PathChange, Said},
};

/// Directives of files: none are served here.
const FILES: [&str; 6] = ["try_files", "alias", "root", "index", "autoindex", "random_index"];
/// Handlers of other protocols, and programs.
const OTHERS: [&str; 11] = [
    "fastcgi_pass",
    "uwsgi_pass",
    "scgi_pass",
    "grpc_pass",
    "memcached_pass",
    "stub_status",
    "empty_gif",
    "js_content",
    "content_by_lua",
    "content_by_lua_file",
    "content_by_lua_block",
];
/// Who may: letting everybody through instead would be wrong.
pub(super) const GATES: [&str; 9] = [
    "auth_request",
    "auth_basic",
    "auth_jwt",
    "access_by_lua",
    "access_by_lua_file",
    "access_by_lua_block",
    "secure_link",
    "satisfy",
    "js_access",
];

/// Where directives are looked for.
#[derive(Clone)]
pub(super) struct Here<'m, 'c> {
    pub(super) chain: Vec<&'c Directive>,
    /// Where a handler may stand.
    pub(super) blocks: Vec<&'c Directive>,
    pub(super) location: Option<&'m Location<'c>>,
    /// Whose groups `$1` means.
    pub(super) groups: Option<&'m Pattern>,
    /// The same, of a condition: of what, and the pattern.
    pub(super) asked: Option<Rc<(Said, Pattern)>>,
}

impl<'c> Here<'_, 'c> {
    pub(super) fn find(&self, name: &str) -> Option<&'c Directive> {
        let in_block = |block: &&'c Directive| -> Option<&'c Directive> {
            let block: &'c Directive = block;
            block.named(name).into_iter().next()
        };
        self.blocks.iter().rev().find_map(in_block)
    }

    /// What `$1` is a group of.
    pub(super) fn of_groups(&self) -> Option<(Said, &Pattern)> {
        match &self.asked {
            Some(asked) => Some((asked.0.clone(), &asked.1)),
            None => self.groups.map(|groups| (Said::Path, groups)),
        }
    }

    /// After the directives of a block: a pattern among them has taken the groups.
    pub(super) fn after(&self, block: &Directive) -> Self {
        let is_pattern =
            |d: &Directive| d.name == "rewrite" || d.name == "if" && d.arg(1).contains('~');
        let groups = self.groups.filter(|_| !block.inside().iter().any(is_pattern));
        Self { groups, ..self.clone() }
    }

    pub(super) fn with(&self, block: &'c Directive) -> Self {
        let mut inner = self.clone();
        inner.chain.push(block);
        inner.blocks.push(block);
        inner
    }
}

impl<'m, 'c> Work<'m, 'c> {
    /// Rules of a server, without its hosts; the last one takes everything.
    pub(super) fn server(&mut self, at: &mut At<'m, 'c>) -> Vec<Rule> {
        let server: &'m Server<'c> = at.server;
        let directive = server.directive;
        self.exact(directive);
        let mut rules = Vec::new();
        self.redirecting(at, &server.chain);
        let here = Here {
            chain: server.chain.clone(),
            blocks: vec![directive],
            location: None,
            groups: None,
            asked: None,
        };
        let ends = self.rewrites(at, &here, directive, &Condition::Always, &mut rules);
        let mut inner = Vec::new();
        for (when, leaf) in self.level(&server.locations, true).all() {
            match leaf {
                Leaf::Location(location) => self.location(at, location, &when, &mut inner),
                Leaf::Refused(location) => inner.push(refusal(location.directive, when, 501)),
                Leaf::Redirect(location) => {
                    let reply = match model::inherited(&location.chain, "internal") {
                        Some(_) => Reply { status: 404, ..Reply::default() },
                        None => redirect_to(at, 301, slashed(location)),
                    };
                    let place = location.directive.place.clone();
                    let mut rule = [Rule { place, when, then: Then::Reply(reply) }];
                    self.own_answers(at, &location.chain, &mut rule);
                    inner.extend(rule);
                }
            }
        }
        for named in server.locations.iter().filter(|l| matches!(l.kind, Kind::Named)) {
            let key = (named.directive.place.clone(), named.directive.head_last);
            if self.verdicts.contains_key(&key) {
                continue;
            }
            self.dropped(
                named.directive,
                "only error_page and try_files lead here, which are not converted",
            );
        }
        if !inner.last().is_some_and(|rule| rule.when == Condition::Always) {
            self.content(at, &here, &Condition::Always, None, &mut inner);
        }
        if !ends {
            rules.append(&mut inner);
        }
        rules
    }

    fn location(
        &mut self,
        at: &mut At<'m, 'c>,
        location: &'m Location<'c>,
        when: &Condition,
        rules: &mut Vec<Rule>,
    ) {
        let directive = location.directive;
        self.exact(directive);
        let groups = match &location.kind {
            Kind::Regex(Ok(pattern)) => Some(pattern),
            _ => None,
        };
        let here = Here {
            asked: None,
            chain: location.chain.clone(),
            blocks: vec![directive],
            location: Some(location),
            groups,
        };
        if let Some(internal) = model::inherited(&location.chain, "internal") {
            self.exact(internal);
            let reply = Reply { status: 404, ..Reply::default() };
            let mut rule = [Rule {
                place: internal.place.clone(),
                when: when.clone(),
                then: Then::Reply(reply),
            }];
            self.own_answers(at, &here.chain, &mut rule);
            rules.extend(rule);
            return;
        }
        self.limits(location, when, rules);
        let before = (at.set.clone(), at.chosen.clone(), self.redirecting(at, &here.chain));
        if !self.rewrites(at, &here, directive, when, rules) {
            self.handled(at, &here.after(directive), when, None, rules);
        }
        (at.set, at.chosen, at.redirects) = before;
    }

    /// `limit_except`: other methods come by no directive around it.
    fn limits(&mut self, location: &'m Location<'c>, when: &Condition, rules: &mut Vec<Rule>) {
        for limit in location.directive.all("limit_except") {
            let mut methods: Vec<String> =
                limit.args.iter().map(|m| m.to_ascii_uppercase()).collect();
            if methods.iter().any(|method| method == "GET") {
                methods.push("HEAD".into());
            }
            let others = all([when.clone(), Condition::Not(Box::new(Condition::Method(methods)))]);
            let is_plain =
                matches!(limit.inside(), [deny] if deny.name == "deny" && deny.arg(0) == "all");
            if is_plain {
                self.exact(limit);
                self.exact(&limit.inside()[0]);
                rules.push(Rule {
                    place: limit.place.clone(),
                    when: others,
                    then: Then::Reply(Reply { status: 403, ..Reply::default() }),
                });
            } else {
                self.decision(limit, "other methods have rules of their own here: until decided they are answered 501", &["a route for these methods"]);
                self.inside_of(limit, "what is around it is not converted");
                rules.push(refusal(limit, others, 501));
            }
        }
    }

    /// Directives of `ngx_http_rewrite_module`; whether nothing comes after them.
    pub(super) fn rewrites(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        block: &'c Directive,
        when: &Condition,
        rules: &mut Vec<Rule>,
    ) -> bool {
        let mut here = here.clone();
        for (number, directive) in block.inside().iter().enumerate() {
            match directive.name.as_str() {
                "set" => self.set(at, directive),
                "return" => {
                    let before = rules.len();
                    if self.paged(at, &here, directive, when, rules) {
                        return true;
                    }
                    self.returns(at, &here, directive, when, rules);
                    self.own_answers(at, &here.chain, &mut rules[before..]);
                    return true;
                }
                "break" => {
                    self.exact(directive);
                    return false;
                }
                "rewrite" => {
                    let before = rules.len();
                    let is_rewriting = |d: &Directive| {
                        ["set", "return", "break", "rewrite", "if"].contains(&d.name.as_str())
                    };
                    let is_last = !block.inside()[number + 1..].iter().any(is_rewriting);
                    self.rewrite(at, &here, (directive, is_last), when, rules);
                    self.own_answers(at, &here.chain, &mut rules[before..]);
                    here.groups = None;
                }
                "if" => {
                    let is_rewriting = |d: &Directive| {
                        ["set", "return", "break", "rewrite", "if"].contains(&d.name.as_str())
                    };
                    let is_last = !block.inside()[number + 1..].iter().any(is_rewriting);
                    // `$1` is of that pattern then, or nothing.
                    let mut inner = here.clone();
                    if directive.arg(1).contains('~') {
                        here.groups = None;
                        inner.groups = None;
                        inner.asked = self.asked(at, directive);
                    }
                    self.condition(at, &inner, directive, (when, is_last), rules);
                }
                name if name.contains("_by_lua")
                    && (name.starts_with("rewrite") || name.starts_with("set")) =>
                {
                    let question = format!(
                        "{name} is a program: until something says what it does these requests are answered 501"
                    );
                    self.decision(
                        directive,
                        question,
                        &["routes of ours", "the application does it"],
                    );
                    rules.push(refusal(directive, when.clone(), 501));
                    return true;
                }
                _ => {}
            }
        }
        false
    }

    pub(super) fn set(&mut self, at: &mut At<'m, 'c>, directive: &Directive) {
        let name = directive.arg(0).trim_start_matches('$').to_ascii_lowercase();
        let value = Template::of(directive.arg(1)).map(|value| self.expanded(at, &value));
        let has_groups =
            |value: &Template| value.variables().any(|v| v.bytes().all(|b| b.is_ascii_digit()));
        let is_of_itself = |value: &Template| {
            at.chosen.contains_key(&name) && value.variables().any(|variable| variable == name)
        };
        match value {
            Ok(value) if !has_groups(&value) && name != "args" && !is_of_itself(&value) => {
                self.exact(directive);
                at.chosen.remove(&name);
                at.set.insert(name, value);
            }
            _ => {
                at.set.remove(&name);
                let meaning = match name.as_str() {
                    "args" => "the query stays as the client sends it".to_owned(),
                    name => format!("${name} is not known with us: what uses it says so"),
                };
                self.dropped(directive, meaning);
            }
        }
    }

    pub(super) fn inside_of(&mut self, directive: &Directive, meaning: &str) {
        for inner in directive.inside() {
            self.dropped(inner, meaning);
            self.inside_of(inner, meaning);
        }
    }

    /// Who may, and then the handler.
    pub(super) fn handled(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        when: &Condition,
        path: Option<PathChange>,
        rules: &mut Vec<Rule>,
    ) {
        for name in GATES {
            let Some(gate) = model::inherited(&here.chain, name)
                .filter(|gate| gate.arg(0) != "off" && gate.arg(0) != "all")
            else {
                continue;
            };
            let asks = |other: &str| {
                let gate = model::inherited(&here.chain, other);
                other != "satisfy" && gate.is_some_and(|gate| gate.arg(0) != "off")
            };
            if name == "satisfy" && !GATES.iter().any(|other| asks(other)) {
                self.exact(gate);
                continue;
            }
            let question = format!(
                "{name} decides who may, which is not converted: until decided these requests are answered 501, so that nobody comes in who should not"
            );
            self.decision(
                gate,
                question,
                &["a policy of ours", "everybody may", "the application decides"],
            );
            rules.push(refusal(gate, when.clone(), 501));
            return;
        }
        let before = rules.len();
        self.access(here, when, rules);
        self.own_answers(at, &here.chain, &mut rules[before..]);
        if let Some(tries) = here.find("try_files")
            && self.tries(at, tries, (when, &path), rules)
        {
            return;
        }
        self.content(at, here, when, path, rules);
    }

    fn content(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        when: &Condition,
        path: Option<PathChange>,
        rules: &mut Vec<Rule>,
    ) {
        if let Some(pass) = here.find("proxy_pass") {
            return self.pass(at, here, pass, (when, path), rules);
        }
        if let Some(other) = OTHERS.iter().find_map(|name| here.find(name)) {
            let meaning = format!("{} is not spoken: these requests are answered 501", other.name);
            self.dropped(other, meaning);
            return rules.push(refusal(other, when.clone(), 501));
        }
        let files = FILES.iter().filter_map(|name| model::inherited(&here.chain, name));
        for file in files.collect::<Vec<_>>() {
            self.dropped(file, "no files are served: these requests are answered 404");
        }
        let directive = here.blocks.last().copied().unwrap_or(at.server.directive);
        let reply = |status| Then::Reply(Reply { status, ..Reply::default() });
        let gets = Condition::Method(vec!["GET".into(), "HEAD".into(), "POST".into()]);
        let place = directive.place.clone();
        let is_other = all([when.clone(), Condition::Not(Box::new(gets))]);
        rules.push(Rule { place: place.clone(), when: is_other, then: reply(405) });
        rules.push(Rule { place, when: when.clone(), then: reply(404) });
    }
}

/// What `regex` replaces by; nothing if there is a query, or a variable that is no group.
pub(super) fn substitution(to: &str, groups: Option<&Pattern>) -> Option<String> {
    with_query(to, groups).filter(|to| !to.contains('?'))
}

/// The same, maybe with a query; nothing if it takes that of the client away.
pub(super) fn with_query(to: &str, groups: Option<&Pattern>) -> Option<String> {
    let template = Template::of(to).ok()?;
    let named = |name: &str| {
        let mut names = groups.into_iter().flat_map(Pattern::names).flatten();
        names.find(|known| known.eq_ignore_ascii_case(name))
    };
    let count = groups.map_or(0, |groups| groups.names().count());
    let mut out = String::new();
    for part in &template.0 {
        match part {
            Part::Text(text) => out += text,
            // A group that there is not says nothing.
            Part::Variable(group) if group.parse().is_ok_and(|group: usize| group > count) => {}
            Part::Variable(group) if group.parse::<u8>().is_ok() => {
                out = format!("{out}${{{group}}}");
            }
            Part::Variable(group) => out = format!("{out}${{{}}}", named(group)?),
        }
    }
    (!out.ends_with('?')).then_some(out)
}
