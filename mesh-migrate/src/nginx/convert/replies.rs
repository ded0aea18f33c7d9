//! `return`, and conditions on variables.

use super::{
    At, Condition, Directive, Reply, Rule, Template, Text, Then, Work, all,
    answers::unsayable,
    headers::{argument, cookie, header, said as said_of},
    hosts,
    leaf::Here,
};
use crate::{
    nginx::{
        model::{self, Key},
        pattern::Pattern,
        template::Part,
    },
    program::Said,
};

/// What a value must be.
pub(super) enum Test<'p> {
    Equals(&'p str, /* any case */ bool),
    Below(&'p str),
    Tail(&'p str),
    Matches(&'p Pattern),
}

impl Test<'_> {
    fn holds(&self, value: &str) -> bool {
        match self {
            Self::Equals(text, true) => value.eq_ignore_ascii_case(text),
            Self::Equals(text, false) => value == *text,
            Self::Below(text) => value.len() > text.len() && value.ends_with(text),
            Self::Tail(text) => value.len() > text.len() && value.starts_with(text),
            Self::Matches(pattern) => pattern.is_match(value.as_bytes()),
        }
    }
}

impl<'m, 'c> Work<'m, 'c> {
    /// With what `set` and the listener make of its variables.
    pub(super) fn expanded(&self, at: &At<'_, '_>, template: &Template) -> Template {
        let mut out: Vec<Part> = Vec::new();
        let mut push = |part: Part| match (out.last_mut(), part) {
            (Some(Part::Text(before)), Part::Text(text)) => *before += &text,
            (_, part) => out.push(part),
        };
        for part in &template.0 {
            let Part::Variable(name) = part else {
                push(part.clone());
                continue;
            };
            let text = match name.as_str() {
                name if at.set.contains_key(name) => {
                    at.set
                        .get(name)
                        .into_iter()
                        .flat_map(|value| value.0.clone())
                        .for_each(&mut push);
                    continue;
                }
                "scheme" => if at.is_tls { "https" } else { "http" }.to_owned(),
                "server_port" => at.address.port().to_string(),
                "server_name" => at.server.name(),
                "server_addr" if !at.address.ip().is_unspecified() => at.address.ip().to_string(),
                _ => {
                    push(part.clone());
                    continue;
                }
            };
            push(Part::Text(text));
        }
        Template(out)
    }

    pub(super) fn returns(
        &mut self,
        at: &At<'m, 'c>,
        here: &Here<'m, 'c>,
        directive: &'c Directive,
        when: &Condition,
        rules: &mut Vec<Rule>,
    ) {
        let (status, text) = match (directive.arg(0).parse::<u16>(), directive.args.get(1)) {
            (Ok(status), text) => (status, text.map_or("", String::as_str)),
            (Err(_), _) => (302, directive.arg(0)),
        };
        if matches!(status, 301 | 302 | 303 | 307 | 308) && !text.is_empty() {
            let (groups, own) = (here.groups, here.of_groups());
            let template = Template::of(text).unwrap_or(Template(Vec::new()));
            let has_map = template.variables().any(|name| self.choices(at, name).is_some());
            if let Ok(targets) = self.targets(at, &template)
                && has_map
            {
                for (condition, target, by) in
                    targets.into_iter().filter(|(_, to, _)| !to.0.is_empty())
                {
                    // The groups are those of the entry.
                    let of_path =
                        template.variable().and_then(|name| self.model.http.maps.get(name));
                    let of_path = of_path.filter(|map| map.source.variable() == Some("uri"));
                    let entry = of_path
                        .into_iter()
                        .flat_map(|map| &map.entries)
                        .find(|entry| by.is_some_and(|by| std::ptr::eq(by, entry.2)));
                    let groups = match entry {
                        Some((Key::Regex(Ok(pattern)), ..)) => Some(pattern),
                        _ => None,
                    };
                    let to = target.written();
                    let when = all([when.clone(), condition]);
                    let own = groups.map(|groups| (Said::Path, groups));
                    self.redirects(at, directive, (status, &to, false), (groups, own), when, rules);
                }
                return;
            }
            return self.redirects(
                at,
                directive,
                (status, text, false),
                (groups, own),
                when.clone(),
                rules,
            );
        }
        let mut reply = self.text(at, here, directive, (status, text));
        if status == 444 {
            let how = "nginx closes the connection; with us the answer is 403 without a text";
            self.approximated(directive, how);
            reply.status = 403;
        }
        rules.push(Rule {
            place: directive.place.clone(),
            when: when.clone(),
            then: Then::Reply(reply),
        });
    }

    /// What `return` says, where it redirects nobody.
    fn text(
        &mut self,
        at: &At<'m, 'c>,
        here: &Here<'m, 'c>,
        directive: &Directive,
        (status, text): (u16, &str),
    ) -> Reply {
        let mut reply = Reply { status, ..Reply::default() };
        let body = Template::of(text).map(|text| self.expanded(at, &text));
        match body.as_ref().map(Template::constant) {
            Ok(Some(body)) => {
                self.exact(directive);
                reply.body = if status == 204 { String::new() } else { body };
            }
            Ok(None) if status != 204 => {
                reply.text = body.ok().and_then(|body| said_of(at, &body, None, here.of_groups()));
                match &reply.text {
                    Some(said) => self.tells(directive, said),
                    None => {
                        let how = "the text has variables that an answer of ours cannot hold: it is empty";
                        self.approximated(directive, how);
                    }
                }
            }
            _ => self.exact(directive),
        }
        let has_text = !reply.body.is_empty() || reply.text.is_some();
        // An answer without a text has a type, too, where it could have one.
        let has_type = has_text || (200..300).contains(&status) && status != 204;
        let said = model::inherited(&here.chain, "default_type").filter(|_| has_type);
        let is_plain = |said: &&Directive| {
            !said.arg(0).contains('$') && unsayable("content-type", said.arg(0)).is_none()
        };
        let kind = match said.filter(is_plain) {
            Some(said) => {
                self.exact(said);
                Some(said.arg(0))
            }
            None => (has_type && !has_text).then_some("text/plain"),
        };
        let kind = kind.map(|kind| ("content-type".to_owned(), kind.to_owned()));
        reply.headers.extend(kind);
        reply
    }

    /// The condition of an `if`.
    pub(super) fn holds(
        &self,
        at: &At<'m, 'c>,
        directive: &Directive,
    ) -> Result<Condition, String> {
        let said = directive.args.join(" ");
        let wrong = || format!("the condition {said} cannot be said");
        let inner = said.strip_prefix('(').and_then(|s| s.strip_suffix(')')).ok_or_else(wrong)?;
        let mut words = inner.trim().splitn(3, ' ');
        let variable = words.next().and_then(|v| v.strip_prefix('$')).ok_or_else(wrong)?;
        let (operator, operand) = (words.next().unwrap_or(""), words.next().unwrap_or("").trim());
        let name = Part::Variable(variable.to_ascii_lowercase());
        let subject = self.expanded(at, &Template(vec![name]));
        let compare = |subject: &Template| self.compare(at, subject, operator, operand);
        if let Some(name) = subject.variable()
            && let Some(found) = self.of_choices(at, name, &|value| compare(value).ok().flatten())
        {
            return found;
        }
        compare(&subject)?.ok_or_else(wrong)
    }

    fn compare(
        &self,
        at: &At<'m, 'c>,
        subject: &Template,
        operator: &str,
        operand: &str,
    ) -> Result<Option<Condition>, String> {
        let not = |condition: Condition| Condition::Not(Box::new(condition));
        Ok(match operator {
            "" if subject.0.len() > 1 && subject.constant().is_none() => {
                let is_text = |part: &Part| matches!(part, Part::Text(text) if text != "0");
                subject.0.iter().any(is_text).then_some(Condition::Always)
            }
            "" => {
                let empty = self.test(at, subject, &Test::Equals("", false));
                let zero = self.test(at, subject, &Test::Equals("0", false));
                empty.zip(zero).map(|(empty, zero)| not(Condition::Any(vec![empty, zero])))
            }
            "=" | "!=" => {
                let operand = Template::of(operand).map(|operand| self.expanded(at, &operand))?;
                let Some(operand) = operand.constant() else { return Ok(None) };
                let equal = self.test(at, subject, &Test::Equals(&operand, false));
                if operator == "=" { equal } else { equal.map(not) }
            }
            "~" | "~*" | "!~" | "!~*" => {
                let pattern = Pattern::of(operand, operator.ends_with('*'))?;
                let matches = self.test(at, subject, &Test::Matches(&pattern));
                if operator.starts_with('!') { matches.map(not) } else { matches }
            }
            _ => None,
        })
    }

    /// A condition on one variable, or on what is known already.
    pub(super) fn test(
        &self,
        at: &At<'_, '_>,
        subject: &Template,
        test: &Test<'_>,
    ) -> Option<Condition> {
        if let Some(value) = subject.constant() {
            let holds = test.holds(&value);
            return Some(if holds { Condition::Always } else { Condition::Any(Vec::new()) });
        }
        let inner = |any_part: &str| match test {
            Test::Equals(text, _) => regex::escape(text),
            Test::Below(text) => format!("{any_part}{}", regex::escape(text)),
            Test::Tail(text) => format!("{}{any_part}", regex::escape(text)),
            Test::Matches(pattern) => pattern.whole(),
        };
        let any_case = |inner: String| match test {
            Test::Equals(_, false) | Test::Matches(_) => inner,
            _ => format!("(?i){inner}"),
        };
        let text = match test {
            Test::Equals(text, false) => Text::Exact((*text).to_owned()),
            _ => Text::Pattern(any_case(inner(".+"))),
        };
        let Some(name) = subject.variable() else { return said(at, subject, text) };
        // What is absent is empty.
        let text = match (text, test) {
            (Text::Exact(_), Test::Equals("", _)) => Text::Pattern("(?:)".into()),
            (text, _) => text,
        };
        let single = name
            .strip_prefix("http_")
            .filter(|name| !name.is_empty() && *name != "host")
            .map(|name| Some(header(name)))
            .or_else(|| name.strip_prefix("arg_").map(argument))
            .or_else(|| name.strip_prefix("cookie_").map(cookie));
        if let Some(said) = single {
            return Some(Condition::Said(said?, text));
        }
        match (name, test) {
            // In lower case, whatever the client sends.
            ("host", Test::Matches(_)) => said(at, subject, text),
            ("host", _) => {
                let named = match test {
                    Test::Equals("", _) => Condition::Any(Vec::new()),
                    _ => hosts::host(&inner("[^:]+")),
                };
                let absent = Condition::Header("host".into(), Text::Present);
                let absent = Condition::Not(Box::new(absent));
                // The server's name stands in for it.
                let is_absent = test.holds(&at.server.name());
                Some(if is_absent { Condition::Any(vec![named, absent]) } else { named })
            }
            ("uri" | "document_uri", _) => Some(Condition::Path(text)),
            ("request_method", _) => method(test),
            ("remote_addr", Test::Equals(address, _)) => address
                .parse::<std::net::IpAddr>()
                .is_ok()
                .then(|| Condition::Source(vec![(*address).to_owned()])),
            ("scheme", _) => None,
            _ => said(at, subject, text),
        }
    }
}

/// What is made of several variables, or of one that is neither header nor parameter.
fn said(at: &At<'_, '_>, subject: &Template, text: Text) -> Option<Condition> {
    let said = said_of(at, subject, None, None)?;
    (!said.tells_client()).then_some(Condition::Said(said, text))
}

fn method(test: &Test<'_>) -> Option<Condition> {
    Some(Condition::Method(match test {
        Test::Equals(method, true) => vec![method.to_ascii_uppercase()],
        Test::Equals(method, false) => vec![(*method).to_owned()],
        // There are more methods than one can name.
        Test::Matches(pattern) => {
            return Some(Condition::Said(Said::Method, Text::Pattern(pattern.whole())));
        }
        Test::Below(_) | Test::Tail(_) => return None,
    }))
}
