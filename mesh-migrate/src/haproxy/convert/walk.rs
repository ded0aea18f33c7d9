//! Rules in the order in which HAProxy goes through them, all ways at once.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    program::{Condition, Pool, Reply, Rule, Said, TcpRule, Text, Then},
    source::Place,
};

use super::super::{
    Config,
    acl::Condition as Written,
    pages,
    proxy::{Proxy, Switch},
    rules::{self, Action},
    sample::Part,
};
use super::{
    logic::{all, known},
    notes::Notes,
    replies,
    sometimes::Looked,
    state::{Front, Read, State},
    unavailable,
};

/// Rules of one listener.
const MAX_RULES: usize = 20_000;
/// Until there are so many, conditional changes are followed both ways.
const MAX_SPLIT_RULES: usize = 400;
/// Conditional changes within each other that are followed both ways.
const MAX_SPLITS: usize = 12;

/// What comes next for a request.
#[derive(Clone, Copy)]
enum Step<'c> {
    Monitor,
    Rule(&'c rules::Rule),
    /// Of a list of rules: where `allow` leads.
    EndOfList,
    Statistics,
    Switch(&'c Switch),
    Default,
    UseServer(&'c Switch),
    Servers,
}

pub(super) struct Walk<'c, 'n> {
    pub(super) config: &'c Config,
    pub(super) front: &'n Front,
    pub(super) looked: &'n Looked,
    pub(super) notes: &'n mut Notes,
    pub(super) rules: Vec<Rule>,
    pub(super) connections: Vec<TcpRule>,
    /// Backends that requests come to.
    pub(super) entered: BTreeSet<String>,
    /// Pools of one server, for `use-server`.
    pub(super) single: BTreeMap<String, Pool>,
    frontend: Option<&'c Proxy>,
    splits: usize,
}

impl<'c, 'n> Walk<'c, 'n> {
    pub(super) fn new(
        config: &'c Config,
        front: &'n Front,
        looked: &'n Looked,
        notes: &'n mut Notes,
    ) -> Self {
        Self {
            config,
            front,
            looked,
            notes,
            rules: Vec::new(),
            connections: Vec::new(),
            entered: BTreeSet::new(),
            single: BTreeMap::new(),
            frontend: None,
            splits: 0,
        }
    }

    pub(super) fn front(&mut self, proxy: &'c Proxy) {
        self.frontend = Some(proxy);
        let mut steps = Vec::new();
        for list in &proxy.tcp_request {
            steps.extend(list.iter().map(Step::Rule));
            steps.push(Step::EndOfList);
        }
        if !proxy.is_tcp {
            steps.push(Step::Monitor);
            http(proxy, &mut steps);
        }
        steps.extend(proxy.switches.iter().map(Step::Switch));
        steps.push(Step::Default);
        self.steps(proxy, &steps, State::default());
    }

    pub(super) fn frontend(&self) -> Option<&'c Proxy> {
        self.frontend
    }

    /// A backend by itself.
    pub(super) fn back(&mut self, proxy: &'c Proxy) {
        self.enter(proxy, State::default());
    }

    fn enter(&mut self, backend: &'c Proxy, state: State) {
        if backend.is_disabled {
            return self.nobody(backend, &state);
        }
        self.entered.insert(backend.name.clone());
        let mut steps = Vec::new();
        let is_new = self.frontend.is_none_or(|f| f.name != backend.name || !f.is_backend);
        if is_new {
            for list in &backend.tcp_request {
                steps.extend(list.iter().map(Step::Rule));
                steps.push(Step::EndOfList);
            }
            if !backend.is_tcp && !self.front.is_tcp {
                http(backend, &mut steps);
            }
        }
        steps.extend(backend.use_servers.iter().map(Step::UseServer));
        steps.push(Step::Servers);
        self.steps(backend, &steps, state);
    }

    /// All requests of this state come to a rule.
    fn steps(&mut self, proxy: &'c Proxy, steps: &[Step<'c>], mut state: State) {
        for (at, step) in steps.iter().enumerate() {
            if self.rules.len().max(self.connections.len()) > MAX_RULES {
                let question =
                    format!("more than {MAX_RULES} rules come of it: others are left out");
                return self.notes.decision(&proxy.place, question, &["write rules by hand"]);
            }
            let rest = &steps[at + 1..];
            let is_done = match *step {
                Step::EndOfList => false,
                Step::Monitor => self.monitor(proxy, &state),
                Step::Rule(rule) => self.rule(proxy, rule, rest, &mut state),
                Step::Statistics => self.statistics(proxy, &state),
                Step::Switch(switch) => self.switch(proxy, switch, &mut state),
                Step::Default => {
                    self.default(proxy, &state);
                    true
                }
                Step::UseServer(switch) => self.use_server(proxy, switch, &mut state),
                Step::Servers => {
                    self.servers(proxy, &state);
                    true
                }
            };
            if is_done {
                return;
            }
        }
    }

    /// The condition of a line; what cannot be said of it is taken as `or`.
    pub(super) fn when(
        &mut self,
        proxy: &Proxy,
        state: &State,
        when: Option<&Written>,
        or: bool,
    ) -> Read {
        match when {
            Some(when) => state.condition(self.front, proxy, when, or),
            None => Read { condition: Condition::Always, unsaid: Vec::new() },
        }
    }

    pub(super) fn unsaid(&mut self, place: &Place, unsaid: &[String], refuses: bool) {
        for why in unsaid {
            let question = match refuses {
                true => format!("{why}: all that this line may be about is refused"),
                false => format!("{why}: this line is left out where it hangs on that"),
            };
            let choices = ["write a rule by hand", "leave it so"];
            self.notes.decision(place, question, &choices);
        }
    }

    /// Whether no request goes on.
    fn rule(
        &mut self,
        proxy: &'c Proxy,
        rule: &'c rules::Rule,
        rest: &[Step<'c>],
        state: &mut State,
    ) -> bool {
        let refuses = match &rule.action {
            Action::Answer(reply) => reply.status >= 400,
            Action::Close | Action::Auth(_) => !self.front.is_tcp,
            _ => false,
        };
        let is_repeated = rule.action != Action::Unrepeated;
        let Read { condition, unsaid } =
            self.when(proxy, state, rule.when.as_ref(), refuses || !is_repeated);
        let is_last = matches!(rest.first(), Some(Step::EndOfList) | None);
        let is_nothing = match &rule.action {
            Action::Aside(_) => true,
            Action::Allow => is_last,
            Action::Unrepeated => !self.config.proxies.iter().any(super::forward::repeats_answers),
            _ => false,
        };
        if is_nothing {
            return false;
        }
        let is_all = known(&condition) == Some(true) && state.when.is_empty();
        match is_repeated {
            true if refuses && is_all && !unsaid.is_empty() => {
                self.refuses_all(&rule.place, &unsaid, rest);
            }
            true => self.unsaid(&rule.place, &unsaid, refuses),
            false => self.unrepeated(&rule.place, &unsaid),
        }
        if known(&condition) == Some(false) {
            return false;
        }
        if self.front.is_tcp && matches!(rule.action, Action::Close) {
            return self.close(rule, &condition, state);
        }
        if let Some(reply) = replies::of(self, &rule.place, &rule.action, state) {
            self.answer(&rule.place, state, &condition, reply);
            return self.goes_on(condition, state);
        }
        if known(&condition) == Some(true) {
            return self.apply(proxy, rule, rest, state);
        }
        if super::sometimes::take(self, rule, &condition, state) {
            return false;
        }
        if self.splits >= MAX_SPLITS || self.rules.len() > MAX_SPLIT_RULES {
            if !is_repeated {
                let why = "too many combinations of conditions come before it".to_owned();
                self.unrepeated(&rule.place, &[why]);
                return self.apply(proxy, rule, rest, state);
            }
            let question = "too many combinations of conditions come before it: it is left out";
            self.notes.decision(&rule.place, question, &["write a rule by hand", "leave it so"]);
            return false;
        }
        let mut other = state.with(&condition);
        self.splits += 1;
        if !self.apply(proxy, rule, rest, &mut other) {
            self.steps(proxy, rest, other);
        }
        self.splits -= 1;
        self.goes_on(condition, state)
    }

    /// A line of which it is not known whom it refuses: no request comes to those behind it.
    fn refuses_all(&mut self, place: &Place, unsaid: &[String], rest: &[Step<'c>]) {
        for why in unsaid {
            let question =
                format!("{why}: until it is said, all requests that come to this line are refused");
            self.notes.decision(place, question, &["write a rule by hand", "leave out the line"]);
        }
        let how = format!(
            "no request that comes to line {0} comes here: until it is said whom line {0} refuses, \
             it refuses all of them",
            place.line
        );
        for step in rest {
            match step {
                Step::Rule(rule) => self.notes.approximated(&rule.place, how.clone()),
                Step::Switch(switch) | Step::UseServer(switch) => {
                    self.notes.approximated(&switch.place, how.clone());
                }
                _ => {}
            }
        }
    }

    /// Of a line that says what is not to be repeated.
    fn unrepeated(&mut self, place: &Place, unsaid: &[String]) {
        for why in unsaid {
            let how = format!("{why}: nothing that this line may be about is repeated");
            self.notes.approximated(place, how);
        }
    }

    /// Where requests that meet the condition have been dealt with.
    pub(super) fn goes_on(&mut self, condition: Condition, state: &mut State) -> bool {
        super::logic::facts(&condition, false, &mut state.facts);
        known(&condition) == Some(true)
    }

    /// A rule that changes something, of all requests of this state.
    fn apply(
        &mut self,
        proxy: &'c Proxy,
        rule: &'c rules::Rule,
        rest: &[Step<'c>],
        state: &mut State,
    ) -> bool {
        if rule.action != Action::Allow {
            super::action::apply(self, rule, state);
            return false;
        }
        let end = rest.iter().position(|step| matches!(step, Step::EndOfList));
        self.steps(proxy, &rest[end.unwrap_or(rest.len())..], state.clone());
        true
    }

    fn close(&mut self, rule: &rules::Rule, condition: &Condition, state: &mut State) -> bool {
        self.connection(&rule.place, state, condition, Vec::new());
        self.goes_on(condition.clone(), state)
    }

    pub(super) fn answer(&mut self, place: &Place, state: &State, when: &Condition, reply: Reply) {
        self.emit(place, state, when, Then::Reply(reply));
    }

    pub(super) fn emit(&mut self, place: &Place, state: &State, when: &Condition, then: Then) {
        let when = all(state.when.iter().cloned().chain([when.clone()]));
        if known(&when) != Some(false) {
            self.rules.push(Rule { place: place.clone(), when, then });
        }
    }

    fn monitor(&mut self, proxy: &'c Proxy, state: &State) -> bool {
        let Some((place, uri)) = &proxy.monitor else { return false };
        let path = Condition::Said(Said::Target, Text::Exact(uri.clone()));
        for fails in &proxy.monitor_fails {
            let read = state.condition(self.front, proxy, fails, false);
            let question = "how many servers are well is not asked: the monitor is not told";
            self.notes.decision(&fails.place, question, &["leave it so"]);
            let failed = self.of_monitor(503);
            self.answer(place, state, &all([path.clone(), read.condition]), failed);
        }
        let ready = self.of_monitor(200);
        self.answer(place, state, &path, ready);
        false
    }

    fn of_monitor(&self, status: u16) -> Reply {
        let (headers, body) = pages::page(self.config, status).unwrap_or_default();
        Reply { status, headers, body, ..Reply::default() }
    }

    fn statistics(&mut self, proxy: &'c Proxy, state: &State) -> bool {
        let Some((place, uri)) = &proxy.stats else { return false };
        let meaning = format!("{uri} is answered with 404: ours has `meshctl top` and /metrics");
        self.notes.dropped(place, meaning);
        let path = match uri.split_once('?') {
            Some((path, _)) => Text::Exact(path.to_owned()),
            None => Text::Prefix(uri.clone()),
        };
        let reply = Reply { status: 404, ..Reply::default() };
        let when = match state.path {
            None if uri.starts_with('/') => {
                super::logic::given(Condition::Path(path), &state.facts)
            }
            _ => super::logic::NEVER,
        };
        let methods = ["GET", "HEAD", "POST"].map(str::to_owned).to_vec();
        let when = all([when, super::logic::given(Condition::Method(methods), &state.facts)]);
        self.answer(place, state, &when, reply);
        false
    }

    fn switch(&mut self, proxy: &'c Proxy, switch: &'c Switch, state: &mut State) -> bool {
        let Read { condition, unsaid } = self.when(proxy, state, switch.when.as_ref(), false);
        self.unsaid(&switch.place, &unsaid, false);
        if known(&condition) == Some(false) {
            return false;
        }
        let mut inside = state.with(&condition);
        inside.place = Some(switch.place.clone());
        match self.front_constant(&inside, switch) {
            Some(name) => match self.config.backend(&name) {
                Some(backend) => self.enter_at(backend, inside),
                None => {
                    let what = format!("there is no backend {name:?}: the default takes it");
                    self.notes.approximated(&switch.place, what);
                    self.default(proxy, &inside);
                }
            },
            None => self.dynamic(proxy, switch, inside),
        }
        self.goes_on(condition, state)
    }

    pub(super) fn front_constant(&self, state: &State, switch: &Switch) -> Option<String> {
        state.constant(self.front, &switch.to).ok()
    }

    /// `use_backend bk_%[…]`: one rule for each backend whose name it may be.
    fn dynamic(&mut self, proxy: &'c Proxy, switch: &'c Switch, mut state: State) {
        let (before, expression, after) = match switch.to.parts.as_slice() {
            [Part::Sample(expression)] => ("", expression, ""),
            [Part::Text(before), Part::Sample(expression)] => (before.as_str(), expression, ""),
            [Part::Sample(expression), Part::Text(after)] => ("", expression, after.as_str()),
            [Part::Text(before), Part::Sample(expression), Part::Text(after)] => {
                (before.as_str(), expression, after.as_str())
            }
            _ => {
                let question = "this name cannot be foreseen: the default backend takes all of it";
                self.notes.decision(&switch.place, question, &["write rules by hand"]);
                return self.default(proxy, &state);
            }
        };
        for backend in self.config.proxies.iter().filter(|proxy| proxy.is_backend) {
            let middle = backend.name.strip_prefix(before).and_then(|n| n.strip_suffix(after));
            let Some(middle) = middle else { continue };
            match state.is_text(self.front, expression, middle) {
                Ok(condition) if known(&condition) == Some(false) => {}
                Ok(condition) => {
                    self.enter_at(backend, state.with(&condition));
                    super::logic::facts(&condition, false, &mut state.facts);
                }
                Err(why) => {
                    let others = match &proxy.default_backend {
                        Some((_, name)) => format!("they go to {name}"),
                        None => "they are answered 503".to_owned(),
                    };
                    let question = format!(
                        "{why}: requests for {} are not told apart: {others}, if to no other",
                        backend.name
                    );
                    let choices = ["write a rule by hand", "leave it so"];
                    self.notes.decision(&switch.place, question, &choices);
                }
            }
        }
        self.default(proxy, &state);
    }

    fn enter_at(&mut self, backend: &'c Proxy, state: State) {
        if known(&all(state.when.iter().cloned())) != Some(false) {
            self.enter(backend, state);
        }
    }

    fn default(&mut self, proxy: &'c Proxy, state: &State) {
        if let Some((place, name)) = &proxy.default_backend {
            if let Some(backend) = self.config.backend(name) {
                let place = Some(place.clone());
                return self.enter(backend, State { place, ..state.clone() });
            }
            self.notes.approximated(place, format!("there is no backend {name:?}: 503"));
        } else if proxy.is_backend {
            return self.enter(proxy, state.clone());
        }
        self.nobody(proxy, state);
    }

    /// Nobody takes what comes here.
    pub(super) fn nobody(&mut self, proxy: &Proxy, state: &State) {
        let place = state.place.as_ref().unwrap_or(&proxy.place);
        match self.front.is_tcp {
            true => self.connection(place, state, &Condition::Always, Vec::new()),
            false => self.answer(place, state, &Condition::Always, unavailable()),
        }
    }
}

fn http<'c>(proxy: &'c Proxy, steps: &mut Vec<Step<'c>>) {
    steps.extend(proxy.http_request.iter().map(Step::Rule));
    steps.extend([Step::EndOfList, Step::Statistics]);
    steps.extend(proxy.redirects.iter().map(Step::Rule));
    steps.push(Step::EndOfList);
}
