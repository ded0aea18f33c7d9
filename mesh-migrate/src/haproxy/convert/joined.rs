//! What converters make of constants with variables, and what is joined to a sample that
//! may not be there.

use super::super::{
    acl::{self, Method, Test},
    matching::Value,
    sample::Call,
    seen::{Seen, is_arithmetic},
};
use super::{
    fetches,
    logic::any,
    said,
    state::{Front, State, Symbol},
    text::{Leaf, Unsaid},
};
use crate::program::{Condition, Said, SaidChange};

impl State {
    /// What a converter makes of a sample that is known: something else for each request
    /// where a variable is.
    pub(super) fn of_known(
        &self,
        front: &Front,
        call: &Call,
        value: Value,
    ) -> Result<Symbol, Unsaid> {
        let mut none = Seen::of_nothing();
        for name in variables(call) {
            match self.variable(front, name)? {
                Symbol::Known(known) => {
                    none.variables.extend(known.map(|known| (name.to_owned(), known)));
                }
                other => return self.joined(call, &value, other),
            }
        }
        let value = none.convert(call, value);
        none.unknown.pop().map_or(Ok(Symbol::Known(value)), Err)
    }

    fn variable(&self, front: &Front, name: &str) -> Result<Symbol, Unsaid> {
        let of_process = front.variables.get(name).map(|text| Value::Text(text.clone()));
        self.variables.get(name).cloned().unwrap_or(Ok(Symbol::Known(of_process)))
    }

    /// A constant and a variable that is another each time.
    fn joined(&self, call: &Call, value: &Value, variable: Symbol) -> Result<Symbol, Unsaid> {
        let number = value.int();
        let with = |name: &str, number: i64| Call {
            name: name.to_owned(),
            arguments: vec![number.to_string()],
            map: None,
        };
        let more = match (call.name.as_str(), number) {
            ("concat", _) => {
                let text = Said::Text(value.to_string());
                let said = said::one(self, text, call);
                return said.map(|said| Symbol::Said(said, Vec::new())).ok_or_else(|| {
                    format!("the variable {} is another each time", call.argument(1))
                });
            }
            ("add", Some(number)) => vec![with("add", number)],
            ("sub", Some(number)) => vec![with("mul", -1), with("add", number)],
            (name, _) => return Err(format!("`{name}` with what each request says")),
        };
        Ok(match variable {
            Symbol::Of(fetch, before) => Symbol::Of(fetch, [before, more].concat()),
            Symbol::Said(said, before) => Symbol::Said(said, [before, more].concat()),
            known @ Symbol::Known(_) => known,
        })
    }
}

/// Variables that a converter reads.
fn variables(call: &Call) -> Vec<&str> {
    let is_variable = |text: &&str| !text.is_empty() && text.parse::<i64>().is_err();
    let named: &[&str] = match call.name.as_str() {
        "concat" => return vec![call.argument(1)],
        "bytes" => &[call.argument(0), call.argument(1)],
        name if is_arithmetic(name) => &[call.argument(0)],
        _ => &[],
    };
    named.iter().copied().filter(is_variable).collect()
}

/// Whether there may be no sample.
fn is_optional(said: &Said) -> bool {
    match said {
        Said::Header(_) | Said::Headers(_) | Said::Cookie(_) | Said::Parameter(_) | Said::Query => {
            true
        }
        Said::Changed(of, _) => is_optional(of),
        _ => false,
    }
}

/// Whether a converter finds nothing in some texts.
fn may_find_nothing(said: &Said, call: &Call) -> bool {
    let is_first = |last: u8| (1..=last).any(|n| call.argument(0) == n.to_string());
    match call.name.as_str() {
        // Something stands before the slash of each path, and behind it.
        "field" if *said == Said::Path && call.argument(1) == "/" => !is_first(2),
        "field" => !is_first(1) && call.argument(0) != "-1",
        name => matches!(name, "word" | "bytes"),
    }
}

/// Whether something is joined to a sample that may not be there: nothing comes of that
/// then.
pub(super) fn joins_nothing(said: &Said, converters: &[Call]) -> bool {
    let mut is_open = is_optional(said);
    converters.iter().any(|call| {
        is_open |= may_find_nothing(said, call);
        is_open && call.name == "concat"
    })
}

/// The same text behind what may not be there, and nothing where it is not.
pub(super) fn behind(state: &State, said: Said, call: &Call) -> Option<Said> {
    let Some(Said::Text(text)) = said::one(state, Said::Text(String::new()), call).map(only) else {
        return None;
    };
    let substitution = format!("${{1}}{}", text.replace('$', "$$"));
    let pattern = "(?s)^(.+)$".to_owned();
    said.changed(SaidChange::Replace { pattern, substitution, all: false })
}

/// Texts beside each other in one.
fn only(said: Said) -> Said {
    let Said::Joined(parts) = &said else { return said };
    let texts = parts.iter().map(|part| match part {
        Said::Text(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect::<Option<String>>().map_or(said, Said::Text)
}

/// What is compared: nothing where something is joined to what may not be there.
pub(super) fn told(state: &State, said: Said, converters: &[Call]) -> Option<Said> {
    let is_told = !joins_nothing(&said, converters);
    is_told.then(|| said::converted(state, said, converters)).flatten()
}

/// Whether a header that is this may have several values, of which each is compared.
pub(super) fn has_values(fetch: &Call, said: &Said) -> bool {
    let is_header = acl::canonical(&fetch.name) == "req.hdr" && fetch.argument(1).is_empty();
    is_header && !fetch.argument(0).eq_ignore_ascii_case("host") && may_have_commas(said)
}

fn may_have_commas(said: &Said) -> bool {
    match said {
        Said::Client | Said::Host | Said::Hostname | Said::Scheme | Said::Method => false,
        Said::Text(text) => text.contains(','),
        Said::Joined(parts) => parts.iter().any(may_have_commas),
        Said::Changed(of, _) => may_have_commas(of),
        _ => true,
    }
}

/// When one of the values is like this.
pub(super) fn of_values(
    test: &Test,
    said: &Said,
    converters: &[Call],
) -> Result<Condition, Unsaid> {
    if said.tells_client() {
        return Err("a text with the client's address in it is not compared".to_owned());
    }
    if !converters.is_empty() {
        return Err("values of a header that has been set are not converted one by one".to_owned());
    }
    let is = |pattern: String| {
        let leaf = Leaf { method: test.method, ignores_case: test.ignores_case, pattern };
        match fetches::header("", &leaf)? {
            Condition::Header(_, text) => Ok(Condition::Said(said.clone(), text)),
            known => Ok(known),
        }
    };
    match test.method {
        Method::Length => is(test.all_patterns().collect::<Vec<_>>().join(" ")),
        _ => {
            let all = test.all_patterns().map(|pattern| is(pattern.to_owned()));
            all.collect::<Result<Vec<_>, _>>().map(any)
        }
    }
}
