//! Headers that change under a condition, where no rule looks at them afterwards: they
//! change with the rules that follow, and no rule is split for them.

use std::{collections::BTreeSet, sync::LazyLock};

use regex::Regex;

use super::super::{
    Config,
    acl::Method,
    rules::{self, Action},
    sample::Format,
    tree::Statement,
};
use super::{action, names, state::State, walk::Walk};
use crate::{
    objects::headers::{MAX_CONDITIONAL, alternatives},
    program::{Change, Condition, Said, Sometimes},
};

/// Headers that something other than a rule for headers looks at, or writes.
const OTHERS: [&str; 4] = ["host", "cookie", "authorization", "x-forwarded-for"];

/// What some line may look at.
#[derive(Debug)]
pub(super) struct Looked {
    /// Names of headers.
    names: BTreeSet<String>,
    /// Some line looks at headers without naming them.
    at_all: bool,
    /// Words in which variables may be named.
    words: String,
}

impl Looked {
    /// As far as the words of all lines say.
    pub(super) fn of(config: &Config) -> Self {
        static FETCH: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"hdrs?[a-z_.]*\([ \t]*([^,) \t]+)").expect("a pattern"));
        static UNNAMED: LazyLock<Regex> = LazyLock::new(|| {
            let name = r"[sf]?hdr(?:s|s_bin|_names|_cnt|_ip|_val)?(?:\([ \t]*\))?";
            let pattern = format!(r"(?:^|[\[,(. \t]){name}(?:$|[\],) \t])");
            Regex::new(&pattern).expect("a pattern")
        });
        let mut looked =
            Self { names: OTHERS.map(str::to_owned).into(), at_all: false, words: String::new() };
        let sections = config.tree.sections.iter();
        let statements = || sections.clone().flat_map(|section| &section.statements);
        let mut words = statements().flat_map(|statement| &statement.words);
        let has_captures = words.any(|word| word.text.contains("capture.re"));
        for statement in statements().filter(|statement| has_captures || !only_logs(statement)) {
            // `hdr` alone stands before the name of a header that is written.
            for word in statement.words.iter().filter(|word| word.text != "hdr") {
                let text = word.text.to_ascii_lowercase();
                let named = FETCH.captures_iter(&text).filter_map(|found| found.get(1));
                for name in named {
                    // Arguments may stand in quotes.
                    let name = name.as_str().trim_matches(['\'', '"', '\\']);
                    looked.at_all |= !names::is_token(name);
                    looked.names.insert(name.to_owned());
                }
                looked.at_all |= UNNAMED.is_match(&text);
                if !["set-var(", "set-var-fmt(", "unset-var("]
                    .iter()
                    .any(|s| word.text.starts_with(s))
                {
                    looked.words.push_str(&word.text);
                    looked.words.push('\n');
                }
            }
            // `capture request header` and `option forwardfor header`.
            let mut words = statement.words.iter().skip_while(|word| word.text != "header");
            looked.names.extend(words.nth(1).map(|word| word.text.to_ascii_lowercase()));
        }
        looked
    }

    fn at(&self, name: &str) -> bool {
        self.at_all || self.names.contains(name)
    }

    fn at_variable(&self, name: &str) -> bool {
        self.words.contains(name)
    }
}

/// Whether a line is about our own log, which has no such things.
fn only_logs(statement: &Statement) -> bool {
    let is_capture = statement.at(0).starts_with("http-") && statement.at(1) == "capture";
    let logs = ["capture", "log-format", "log-format-sd", "error-log-format"];
    is_capture || logs.contains(&statement.at(0))
}

/// Whether a rule of ours has no room for it, or would do it more than once.
fn is_too_much(rule: &rules::Rule, condition: &Condition, state: &State) -> bool {
    let own = alternatives(condition);
    let others: usize = state.sometimes.iter().map(|one| alternatives(&one.when)).sum();
    others.saturating_add(own) > MAX_CONDITIONAL
        || own > 1 && matches!(rule.action, Action::AddHeader(..))
}

/// Whether the change is one of those.
pub(super) fn take(
    walk: &mut Walk<'_, '_>,
    rule: &rules::Rule,
    condition: &Condition,
    state: &mut State,
) -> bool {
    let (name, value) = match &rule.action {
        Action::SetVar(name, _) | Action::SetVarFormat(name, _) | Action::UnsetVar(name)
            if !walk.looked.at_variable(name) =>
        {
            return true;
        }
        Action::SetHeader(name, value) | Action::AddHeader(name, value) => (name, Some(value)),
        Action::DelHeader(name, Method::Exact) => (name, None),
        _ => return false,
    };
    if walk.looked.at(name) || names::why_not(name).is_some() || is_too_much(rule, condition, state)
    {
        return false;
    }
    let change = match value {
        None => Change::Remove,
        Some(value) => match said(walk, value, state) {
            Some(said) => {
                action::tells_first(walk, &rule.place, &said);
                match rule.action {
                    Action::AddHeader(..) => Change::Add(said),
                    _ => Change::Set(said),
                }
            }
            None => return false,
        },
    };
    let one = Sometimes { when: condition.clone(), name: name.clone(), change };
    state.sometimes.push(one);
    true
}

fn said(walk: &Walk<'_, '_>, value: &Format, state: &State) -> Option<Said> {
    let constant = state.constant(walk.front, value).ok().map(Said::Text);
    constant.filter(names::is_value).or_else(|| action::told(walk, value, state))
}

/// What has changed a header before under a condition counts no more: it is something
/// else now, or is not there.
pub(super) fn replaced(state: &mut State, name: &str) {
    state.sometimes.retain(|one| one.name != name);
}

/// A value is added after what changes under a condition; whether something does.
pub(super) fn adds(state: &mut State, name: &str, said: &Said) -> bool {
    let is_there = state.sometimes.iter().any(|one| one.name == name);
    if is_there {
        let change = Change::Add(said.clone());
        let one = Sometimes { when: Condition::Always, name: name.to_owned(), change };
        state.sometimes.push(one);
    }
    is_there
}
