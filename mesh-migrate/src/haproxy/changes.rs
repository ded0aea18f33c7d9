//! What rules change of a request (configuration manual, 4.2).

use super::{
    acl::Method,
    explain::trimmed,
    matching::{self, Value},
    rules::{Action, Part},
    sample,
    seen::Seen,
};

impl Seen {
    /// What a rule changes of the request; `None` where it changes nothing.
    pub(super) fn change(&mut self, action: &Action) -> Option<String> {
        let seen = self;
        match action {
            Action::SetHeader(name, value) => {
                let value = trimmed(seen.format(value));
                seen.headers.retain(|(known, _)| known != name);
                seen.touch(name);
                seen.headers.push((name.clone(), value.clone()));
                Some(format!("{name} is {value:?}"))
            }
            Action::AddHeader(name, value) => {
                let value = trimmed(seen.format(value));
                seen.touch(name);
                seen.headers.push((name.clone(), value.clone()));
                Some(format!("{name} is {value:?}, too"))
            }
            Action::DelHeader(name, method) => Some(seen.remove(name, *method)),
            Action::ReplaceHeader { name, pattern, with, is_value } => {
                let with = seen.format(with);
                seen.replace(name, pattern, &with, *is_value)
            }
            Action::SetMethod(method) => {
                seen.method = seen.format(method);
                Some(format!("the method is {}", seen.method))
            }
            Action::SetUri(part, format) => {
                let to = seen.format(format);
                set_uri(seen, *part, &to);
                Some(format!("the URI is {}", seen.target()))
            }
            Action::ReplaceUri(part, pattern, with) => {
                let with = seen.format(with);
                let of = match part {
                    Part::Path => seen.path.clone(),
                    _ => seen.target(),
                };
                let (to, matched) = replaced(&of, pattern, &with);
                if matched {
                    set_uri(seen, *part, &to);
                }
                matched.then(|| format!("the URI is {}", seen.target()))
            }
            Action::SetVar(name, expression) => {
                let value = seen.value(expression)?;
                let what = format!("{name} is {:?}", value.to_string());
                seen.variables.insert(name.clone(), value);
                Some(what)
            }
            Action::SetVarFormat(name, format) => {
                let value = seen.format(format);
                let what = format!("{name} is {value:?}");
                seen.variables.insert(name.clone(), Value::Text(value));
                Some(what)
            }
            Action::UnsetVar(name) => seen.variables.remove(name).map(|_| format!("no {name}")),
            _ => None,
        }
    }

    fn remove(&mut self, name: &str, method: Method) -> String {
        // Names are in lower case, and an expression is compared with them as it is.
        let ignores_case = method != Method::Regex;
        let gone = |known: &str| matching::compare(method, known, name, ignores_case);
        let names: Vec<String> = self.headers.iter().map(|(name, _)| name.clone()).collect();
        self.headers.retain(|(known, _)| !gone(known));
        for known in names.iter().filter(|known| gone(known)) {
            self.touch(known);
        }
        if method == Method::Exact {
            self.touch(name);
        }
        format!("{name} is removed")
    }

    /// `None` where nothing matches.
    fn replace(&mut self, name: &str, pattern: &str, with: &str, is_value: bool) -> Option<String> {
        let mut changed = false;
        for (_, value) in self.headers.iter_mut().filter(|(known, _)| known == name) {
            let parts: Vec<&str> = match is_value {
                true => value.split(',').collect(),
                false => vec![value],
            };
            let parts = parts.into_iter().map(|part| {
                let (with, matched) = replaced(part.trim(), pattern, with);
                changed |= matched;
                if matched { with } else { part.to_owned() }
            });
            *value = parts.collect::<Vec<_>>().join(",");
        }
        changed.then(|| self.touch(name));
        changed.then(|| format!("{name} is replaced"))
    }
}

/// Where the pattern matches anywhere, the whole text is what it is replaced with.
fn replaced(text: &str, pattern: &str, with: &str) -> (String, bool) {
    let captures = matching::regex(pattern, false);
    let captures = captures.as_ref().and_then(|pattern| pattern.captures(text.as_bytes()));
    match captures {
        Some(captures) => {
            let mut out = Vec::new();
            captures.expand(sample::substitution(with).as_bytes(), &mut out);
            (String::from_utf8_lossy(&out).into_owned(), true)
        }
        None => (text.to_owned(), false),
    }
}

fn set_uri(seen: &mut Seen, part: Part, to: &str) {
    match part {
        Part::Path => seen.path = to.to_owned(),
        Part::Query => seen.query = Some(to.trim_start_matches('?').to_owned()),
        Part::PathAndQuery | Part::Uri => seen.set_target(to),
    }
}
