//! Locations that are looked for again: `rewrite … last`, `try_files`.

use super::{
    At, Condition, Directive, Reply, Rule, Text, Then, Work, all, any,
    leaf::{Here, with_query},
    locations::{Leaf, slashed},
    redirects::redirect_to,
    refusal,
};
use crate::{
    nginx::{
        derivative::{Ends, ends},
        explain::{Url, is_url},
        model::{self, Kind, Location},
        pattern::Pattern,
    },
    program::{PathChange, Said},
};

/// Locations that lead to locations.
const MAX_TURNS: u32 = 8;

/// Statuses of errors that nginx finds itself.
const FOUND: [u16; 17] =
    [400, 401, 403, 404, 405, 408, 411, 412, 413, 414, 415, 416, 421, 500, 502, 503, 504];

/// A path that was put in place of that of the client.
pub(super) struct Moved {
    change: PathChange,
    /// What it begins with.
    head: String,
    /// It is nothing else.
    is_whole: bool,
    /// What the client's path began with, where its end is kept.
    from: Option<String>,
}

impl Moved {
    /// The same path for all.
    pub(super) fn to(path: &str) -> Self {
        let change = PathChange::Whole(path.to_owned());
        Self { change, head: path.to_owned(), is_whole: true, from: None }
    }

    /// What a pattern and its substitution, as `regex` has them, make.
    pub(super) fn by(pattern: &Pattern, substitution: String) -> Self {
        let path = substitution.split('?').next().unwrap_or_default();
        let at = path.find("${");
        let head = path[..at.unwrap_or(path.len())].replace("$$", "$");
        let begins = pattern.text.strip_prefix('^').map(|text| text.trim_end_matches('$'));
        let begins = begins.and_then(|text| text.strip_suffix("(.*)"));
        let is_plain =
            |text: &&str| text.chars().all(|c| c.is_ascii_alphanumeric() || "/-_".contains(c));
        let is_tail = at.is_some_and(|at| path[at..] == *"${1}") && !pattern.ignores_case;
        let from = begins.filter(is_plain).filter(|_| is_tail).map(str::to_owned);
        let is_whole = at.is_none();
        let change = match is_whole && !substitution.contains('?') {
            true => PathChange::Whole(head.clone()),
            false => PathChange::Pattern { pattern: pattern.replacing(), substitution, all: false },
        };
        Self { change, head, is_whole, from }
    }

    /// A condition of the new path in terms of that of the client.
    fn pull(&self, condition: &Condition) -> Option<Condition> {
        let never = || Some(Condition::Any(Vec::new()));
        let each = |parts: &[Condition]| {
            parts.iter().map(|one| self.pull(one)).collect::<Option<Vec<_>>>()
        };
        match condition {
            Condition::Always => Some(Condition::Always),
            Condition::All(parts) => {
                let parts = each(parts)?;
                let is_never = parts.iter().any(|one| *one == Condition::Any(Vec::new()));
                if is_never { never() } else { Some(all(parts)) }
            }
            Condition::Any(parts) => {
                let mut parts = each(parts)?;
                parts.retain(|one| *one != Condition::Any(Vec::new()));
                if parts.contains(&Condition::Always) {
                    Some(Condition::Always)
                } else {
                    Some(any(parts))
                }
            }
            Condition::Not(inner) => Some(match self.pull(inner)? {
                Condition::Always => Condition::Any(Vec::new()),
                Condition::Any(none) if none.is_empty() => Condition::Always,
                other => Condition::Not(Box::new(other)),
            }),
            Condition::Path(text) => self.path(text),
            _ => None,
        }
    }

    fn path(&self, text: &Text) -> Option<Condition> {
        let constant =
            |holds: bool| Some(if holds { Condition::Always } else { Condition::Any(Vec::new()) });
        let head = self.head.as_str();
        if self.is_whole {
            return constant(match text {
                Text::Exact(path) => head == path,
                Text::Prefix(begin) => head.starts_with(begin.as_str()),
                Text::Present => true,
                Text::Pattern(pattern) => {
                    let whole = format!(r"\A(?:{pattern})\z");
                    let regex = regex::bytes::RegexBuilder::new(&whole).unicode(false).build();
                    regex.ok()?.is_match(head.as_bytes())
                }
            });
        }
        let longer = |wanted: &str| -> Option<String> {
            let rest = wanted.strip_prefix(head)?;
            Some(format!("{}{rest}", self.from.as_deref()?))
        };
        match text {
            Text::Present => constant(true),
            Text::Prefix(begin) if head.starts_with(begin.as_str()) => constant(true),
            Text::Prefix(begin) if !begin.starts_with(head) => constant(false),
            Text::Prefix(begin) => Some(Condition::Path(Text::Prefix(longer(begin)?))),
            Text::Exact(path) if !path.starts_with(head) => constant(false),
            Text::Exact(path) => Some(Condition::Path(Text::Exact(longer(path)?))),
            Text::Pattern(pattern) => match ends(pattern, head, self.from.as_deref())? {
                Ends::All => constant(true),
                Ends::None => constant(false),
                Ends::Same => Some(Condition::Path(text.clone())),
            },
        }
    }

    /// What is sent on where the location's text is replaced by that of the URL.
    fn passed(&self, location: &Location<'_>, url: &Url) -> Option<PathChange> {
        if url.uri.is_empty() || url.uri == location.text {
            return Some(self.change.clone());
        }
        let text = location.text.as_str();
        match &self.change {
            PathChange::Whole(path) => {
                path.strip_prefix(text).map(|rest| PathChange::Whole(format!("{}{rest}", url.uri)))
            }
            PathChange::Pattern { pattern, substitution, all } if !text.contains('$') => {
                let rest = substitution.strip_prefix(text)?;
                Some(PathChange::Pattern {
                    pattern: pattern.clone(),
                    substitution: format!("{}{rest}", url.uri.replace('$', "$$")),
                    all: *all,
                })
            }
            _ => None,
        }
    }
}

/// Whether a variable is a named group of the location.
fn is_group(location: &Location<'_>, name: &str) -> bool {
    let Kind::Regex(Ok(pattern)) = &location.kind else { return false };
    pattern.names().flatten().any(|known| name.to_ascii_lowercase().starts_with(known))
}

impl<'m, 'c> Work<'m, 'c> {
    pub(super) fn rewrite(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        (directive, is_last): (&'c Directive, bool),
        when: &Condition,
        rules: &mut Vec<Rule>,
    ) {
        let (to, flag) = (directive.arg(1), directive.arg(2));
        let pattern = match Pattern::of(directive.arg(0), false) {
            Ok(pattern) => pattern,
            Err(wrong) => {
                let question =
                    format!("{wrong}: paths that it takes stay as they are. What does it mean?");
                return self.decision(
                    directive,
                    question,
                    &["another pattern", "a route of its own"],
                );
            }
        };
        let takes = all([when.clone(), Condition::Path(Text::Pattern(pattern.whole()))]);
        if is_url(to) || matches!(flag, "redirect" | "permanent") {
            let status = if flag == "permanent" { 301 } else { 302 };
            let (to, adds) = to.strip_suffix('?').map_or((to, true), |to| (to, false));
            let groups = (Some(&pattern), Some((Said::Path, &pattern)));
            return self.redirects(at, directive, (status, to, adds), groups, takes, rules);
        }
        if flag == "break"
            && here.location.is_some()
            && let Some(substitution) = with_query(to, Some(&pattern))
        {
            if substitution.contains('?') {
                self.approximated(directive, "the query of the client is not appended to its own");
            } else {
                self.exact(directive);
            }
            let path =
                PathChange::Pattern { pattern: pattern.replacing(), substitution, all: false };
            let here = Here { groups: None, ..here.clone() };
            return self.handled(at, &here, &takes, Some(path), rules);
        }
        if flag != "break" {
            let moved = with_query(to, Some(&pattern)).filter(|_| flag == "last" || is_last);
            let has_query = to.contains('?');
            let moved = moved.map(|substitution| Moved::by(&pattern, substitution));
            let is_said =
                moved.is_some_and(|moved| self.again(at, directive, &takes, &moved, rules));
            return match (is_said, has_query) {
                (true, true) => {
                    self.approximated(
                        directive,
                        "the query of the client is not appended to its own",
                    );
                }
                (true, false) => self.exact(directive),
                (false, _) => self.unfollowed(directive, takes, rules),
            };
        }
        self.decision(
            directive,
            "what replaces the path has a query or variables, which cannot be said: until decided such requests are answered 501",
            &["a route for these paths that changes them", "the application takes both paths"],
        );
        rules.push(refusal(directive, takes, 501));
    }

    /// Rules of the locations that take a moved path; whether all of them can be said.
    pub(super) fn again(
        &mut self,
        at: &mut At<'m, 'c>,
        by: &'c Directive,
        takes: &Condition,
        moved: &Moved,
        rules: &mut Vec<Rule>,
    ) -> bool {
        if self.turns >= MAX_TURNS {
            return false;
        }
        let server = at.server;
        let mut found = Vec::new();
        let mut is_covered = false;
        for (when, leaf) in self.level(&server.locations, true).all() {
            let Some(when) = moved.pull(&when) else { return false };
            if when == Condition::Any(Vec::new()) {
                continue;
            }
            is_covered = when == Condition::Always;
            found.push((all([takes.clone(), when]), leaf));
            if is_covered {
                break;
            }
        }
        // What no location takes would go on to rules for the path as it was sent.
        if !is_covered {
            return false;
        }
        self.turns += 1;
        let before = rules.len();
        let is_said = found.into_iter().all(|(when, leaf)| match leaf {
            Leaf::Redirect(location) => {
                let reply = redirect_to(at, 301, slashed(location));
                rules.push(Rule { place: by.place.clone(), when, then: Then::Reply(reply) });
                true
            }
            Leaf::Refused(location) => {
                rules.push(refusal(location.directive, when, 501));
                true
            }
            Leaf::Location(location) => self.moved_to(at, location, &when, moved, rules),
        });
        self.turns -= 1;
        if !is_said {
            rules.truncate(before);
        }
        is_said
    }

    fn moved_to(
        &mut self,
        at: &mut At<'m, 'c>,
        location: &'m Location<'c>,
        when: &Condition,
        moved: &Moved,
        rules: &mut Vec<Rule>,
    ) -> bool {
        let directive = location.directive;
        let changes = |d: &Directive| {
            ["rewrite", "if", "try_files", "limit_except"].contains(&d.name.as_str())
                || d.name.contains("_by_lua")
        };
        // Rules of ours know the path that the client has sent.
        let tells_path = |d: &Directive| {
            d.name != "proxy_pass"
                && d.args.iter().any(|arg| {
                    let mut names = arg.split('$').skip(1).map(|name| name.trim_start_matches('{'));
                    names.any(|name| {
                        ["uri", "document_uri"].iter().any(|path| name.starts_with(path))
                            || name.starts_with(|c: char| c.is_ascii_digit())
                            || is_group(location, name)
                    })
                })
        };
        if directive.inside().iter().any(|d| changes(d) || tells_path(d)) {
            return false;
        }
        let groups = match &location.kind {
            Kind::Regex(_) if directive.all("proxy_pass").any(|d| d.arg(0).contains('$')) => {
                return false;
            }
            Kind::Regex(Ok(pattern)) => Some(pattern),
            _ => None,
        };
        let passed = directive.all("proxy_pass").next().and_then(|pass| Url::of(pass.arg(0)));
        let path = match passed {
            Some(url) => moved.passed(location, &url),
            None => Some(moved.change.clone()),
        };
        let Some(path) = path else { return false };
        self.exact(directive);
        directive.all("internal").for_each(|internal| self.exact(internal));
        let chain = location.chain.clone();
        let (blocks, location) = (vec![directive], Some(location));
        let here = Here { chain, blocks, location, groups, asked: None };
        let before = (at.set.clone(), at.chosen.clone(), self.redirecting(at, &here.chain));
        if !self.rewrites(at, &here, directive, when, rules) {
            self.handled(at, &here.after(directive), when, Some(path), rules);
        }
        (at.set, at.chosen, at.redirects) = before;
        true
    }

    /// Rules of a location with a name (`@…`), for paths as they are by now.
    fn named(
        &mut self,
        at: &mut At<'m, 'c>,
        name: &str,
        (when, path): (&Condition, &Option<PathChange>),
        rules: &mut Vec<Rule>,
    ) -> bool {
        let mut named = at.server.locations.iter();
        let is_it = |l: &&Location<'c>| matches!(l.kind, Kind::Named) && l.directive.arg(0) == name;
        let Some(location) = named.find(is_it).filter(|_| self.turns < MAX_TURNS) else {
            return false;
        };
        self.turns += 1;
        let directive = location.directive;
        self.exact(directive);
        let chain = location.chain.clone();
        let (blocks, location) = (vec![directive], Some(location));
        let here = Here { chain, blocks, location, groups: None, asked: None };
        let before = (at.set.clone(), at.chosen.clone(), self.redirecting(at, &here.chain));
        if !self.rewrites(at, &here, directive, when, rules) {
            self.handled(at, &here.after(directive), when, path.clone(), rules);
        }
        (at.set, at.chosen, at.redirects) = before;
        self.turns -= 1;
        true
    }

    /// `return 418` that `error_page 418 = @name` leads on; other pages stand in for
    /// nobody's answer here.
    pub(super) fn paged(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        returns: &'c Directive,
        when: &Condition,
        rules: &mut Vec<Rule>,
    ) -> bool {
        let status = returns.arg(0);
        let is_error = returns.args.len() == 1 && status.parse::<u16>().is_ok_and(|s| s >= 300);
        let mut pages = model::array(&here.chain, "error_page").into_iter();
        let is_of = |page: &&Directive| page.args.iter().any(|arg| arg == status);
        let Some(page) = pages.find(is_of).filter(|_| is_error && !self.in_page) else {
            return false;
        };
        let name = page.args.last().map_or("", String::as_str);
        if !name.starts_with('@') || !page.args.iter().any(|arg| arg == "=") {
            return false;
        }
        // Errors of a page are told as they are.
        self.in_page = true;
        let is_said = self.named(at, name, (when, &None), rules);
        self.in_page = false;
        if is_said {
            // Errors that nginx finds itself are answered before any page of ours.
            let is_found = |arg: &str| arg.parse().is_ok_and(|status| FOUND.contains(&status));
            match page.args.iter().any(|arg| is_found(arg)) {
                true => self.dropped(page, "only what is returned leads on, and no error of another kind: those stay as they are"),
                false if page.args.len() == 3 => self.exact(page),
                false => self
                    .approximated(page, "only what is returned here leads on, and no other error"),
            }
            self.exact(returns);
        }
        is_said
    }

    /// `try_files`: there are no files, so that what comes last takes everything.
    pub(super) fn tries(
        &mut self,
        at: &mut At<'m, 'c>,
        tries: &'c Directive,
        (when, path): (&Condition, &Option<PathChange>),
        rules: &mut Vec<Rule>,
    ) -> bool {
        let last = tries.args.last().map_or("", String::as_str);
        let how = "files are not served: the last one takes every request";
        if let Some(status) = last.strip_prefix('=').and_then(|status| status.parse().ok()) {
            self.approximated(tries, how);
            let then = Then::Reply(Reply { status, ..Reply::default() });
            rules.push(Rule { place: tries.place.clone(), when: when.clone(), then });
            return true;
        }
        if last.starts_with('@') {
            if !self.named(at, last, (when, path), rules) {
                return false;
            }
            self.approximated(tries, how);
            return true;
        }
        let (target, query) = last.split_once('?').unwrap_or((last, ""));
        let (target, keeps) = match target.strip_suffix("$is_args$args") {
            Some(target) => (target, true),
            None => (target, matches!(query, "$args" | "$query_string")),
        };
        if !target.starts_with('/') || target.contains('$') || target.ends_with('/') {
            return false;
        }
        if !self.again(at, tries, when, &Moved::to(target), rules) {
            return false;
        }
        match keeps {
            true => self.approximated(tries, how),
            false => {
                let how = format!("{how}, with the query of the client");
                self.approximated(tries, how);
            }
        }
        true
    }

    /// What cannot be followed is refused.
    pub(super) fn unfollowed(
        &mut self,
        directive: &Directive,
        when: Condition,
        rules: &mut Vec<Rule>,
    ) {
        let question = "nginx looks for a location again after this: until decided such requests are answered 501";
        let choices =
            ["a route for these paths that changes them", "the application takes both paths"];
        self.decision(directive, question, &choices);
        rules.push(refusal(directive, when, 501));
    }
}
