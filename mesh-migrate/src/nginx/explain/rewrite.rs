//! The directives of `ngx_http_rewrite_module`, in order: `set`, `rewrite`, `return`,
//! `break`, `if`.

use super::{Directive, Problem, Run, answered, bad, redirect};
use crate::{
    nginx::{
        pattern::Pattern,
        template::{Part, Template},
        uri,
    },
    request::Outcome,
};

/// What comes after a directive.
pub(super) enum Flow {
    Next,
    /// No more of them.
    Stop,
    Answer(Outcome),
}

/// Whether it is a URL that `rewrite` and `return` redirect to.
pub(in crate::nginx) fn is_url(text: &str) -> bool {
    ["http://", "https://", "$scheme"].iter().any(|begin| text.starts_with(begin))
}

impl<'c> Run<'_, 'c> {
    /// Those of a server or a location; an answer, if one of them gives it.
    pub(super) fn rewrite(&mut self, block: &'c Directive) -> Result<Option<Outcome>, Problem> {
        match self.rewrites(block)? {
            Flow::Answer(outcome) => Ok(Some(outcome)),
            Flow::Next | Flow::Stop => Ok(None),
        }
    }

    fn rewrites(&mut self, block: &'c Directive) -> Result<Flow, Problem> {
        for directive in block.inside() {
            let flow = match directive.name.as_str() {
                "set" => self.set(directive)?,
                "rewrite" => self.replace(directive)?,
                "return" => self.returns(directive)?,
                "if" => self.condition(directive)?,
                "break" => {
                    if self.is_changed {
                        (self.is_changed, self.has_location) = (false, false);
                    }
                    self.step(&directive.place, "break");
                    Flow::Stop
                }
                name if name.contains("_by_lua")
                    && (name.starts_with("rewrite") || name.starts_with("set")) =>
                {
                    return Err(bad(
                        &directive.place,
                        format!("{name} is a program, which is not run"),
                    ));
                }
                _ => Flow::Next,
            };
            if !matches!(flow, Flow::Next) {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn value(&mut self, directive: &Directive, text: &str) -> Result<Vec<u8>, Problem> {
        let value = Template::of(text).and_then(|template| self.text(&template));
        value.map_err(|wrong| bad(&directive.place, wrong))
    }

    fn set(&mut self, directive: &Directive) -> Result<Flow, Problem> {
        let value = self.value(directive, directive.arg(1))?;
        let shown = String::from_utf8_lossy(&value).into_owned();
        self.step(&directive.place, format!("{} is {shown:?}", directive.arg(0)));
        let name = directive.arg(0).trim_start_matches('$').to_ascii_lowercase();
        if name == "args" {
            (self.args, self.has_unparsed) = (value, false);
        } else {
            self.set.insert(name, value);
        }
        Ok(Flow::Next)
    }

    fn returns(&mut self, directive: &Directive) -> Result<Flow, Problem> {
        let (status, text) = match (directive.arg(0).parse::<u16>(), directive.args.get(1)) {
            (Ok(status), text) => (status, text.cloned()),
            (Err(_), _) => (302, directive.args.first().cloned()),
        };
        if status == 444 {
            self.step(&directive.place, "ends the connection without an answer");
            return Ok(Flow::Answer(Outcome::Closed));
        }
        self.step(&directive.place, format!("returns {status}"));
        let Some(text) = text else {
            let outcome = if status < 400 { answered(status) } else { self.special(status)? };
            return Ok(Flow::Answer(outcome));
        };
        let text = self.value(directive, &text)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        if status >= 400 && text.is_empty() {
            return self.special(status).map(Flow::Answer);
        }
        if matches!(status, 301 | 302 | 303 | 307 | 308) {
            return Ok(Flow::Answer(redirect(status, self.absolute(&text))));
        }
        let status = self.error.unwrap_or(status);
        let body = Some(text).filter(|text| !text.is_empty() && status != 204);
        Ok(Flow::Answer(Outcome::Answered { status, headers: Vec::new(), body }))
    }

    fn replace(&mut self, directive: &Directive) -> Result<Flow, Problem> {
        let wrong = |wrong: String| bad(&directive.place, wrong);
        let (to, flag) = (directive.arg(1), directive.arg(2));
        let uri = self.uri.clone();
        let pattern = match Pattern::of(directive.arg(0), false) {
            Ok(pattern) => pattern,
            Err(_) if Pattern::cannot_match(directive.arg(0), false, &uri) => {
                self.captures.clear();
                return Ok(Flow::Next);
            }
            Err(unread) => return Err(wrong(unread)),
        };
        let Some(found) = pattern.captures(&uri) else {
            // A pattern that does not match leaves no groups, of an earlier one either.
            self.captures.clear();
            return Ok(Flow::Next);
        };
        self.captured(&pattern, &found);
        let redirects = is_url(to) || matches!(flag, "redirect" | "permanent");
        let (to, adds) = to.strip_suffix('?').map_or((to, true), |to| (to, false));
        let template = Template::of(to).map_err(wrong)?;
        let (text, args) = self.replacement(&template, redirects).map_err(wrong)?;
        if redirects {
            let mut text = uri::unescaped_redirect(&text);
            if adds && !self.args.is_empty() {
                text.push(if to.contains('?') { b'&' } else { b'?' });
                text.extend_from_slice(&self.args);
            }
            let text = String::from_utf8_lossy(&text).into_owned();
            let status = if flag == "permanent" { 301 } else { 302 };
            self.step(&directive.place, format!("rewritten to {text}: {status}"));
            return Ok(Flow::Answer(redirect(status, self.absolute(&text))));
        }
        match args {
            Some(mut args) => {
                if adds && !self.args.is_empty() {
                    args.push(b'&');
                    args.extend_from_slice(&self.args);
                }
                self.args = args;
            }
            None if !adds => self.args.clear(),
            None => {}
        }
        (self.is_internal, self.has_unparsed) = (true, false);
        let stops = flag == "break";
        if stops {
            self.has_location = false;
        }
        self.is_changed = !stops;
        if text.is_empty() {
            self.step(&directive.place, "the rewritten URI is empty: 500");
            return self.special(500).map(Flow::Answer);
        }
        self.uri = text;
        let shown = String::from_utf8_lossy(&self.uri).into_owned();
        self.step(&directive.place, format!("rewritten to {shown}"));
        Ok(if stops || flag == "last" { Flow::Stop } else { Flow::Next })
    }

    /// What replaces the URI, and the arguments after its `?`. Groups of a URI that was
    /// encoded are encoded again where arguments or a redirect come of them.
    fn replacement(
        &mut self,
        template: &Template,
        redirects: bool,
    ) -> Result<(Vec<u8>, Option<Vec<u8>>), String> {
        let mut uri = Vec::new();
        let mut args: Option<Vec<u8>> = None;
        let encodes = self.target.is_quoted || self.target.has_plus;
        for part in &template.0 {
            match part {
                Part::Text(text) => {
                    let mut text = text.as_str();
                    if let (false, None, Some((before, after))) =
                        (redirects, &args, text.split_once('?'))
                    {
                        uri.extend_from_slice(before.as_bytes());
                        (args, text) = (Some(Vec::new()), after);
                    }
                    args.as_mut().unwrap_or(&mut uri).extend_from_slice(text.as_bytes());
                }
                Part::Variable(name) => {
                    let value = self.variable(name)?;
                    let is_group = name.bytes().all(|byte| byte.is_ascii_digit());
                    let value = match is_group && encodes && (redirects || args.is_some()) {
                        true => uri::escaped_args(&value),
                        false => value,
                    };
                    args.as_mut().unwrap_or(&mut uri).extend(value);
                }
            }
        }
        Ok((uri, args))
    }

    fn condition(&mut self, directive: &'c Directive) -> Result<Flow, Problem> {
        let holds = self.holds(directive).map_err(|wrong| bad(&directive.place, wrong))?;
        let said = directive.args.join(" ");
        if !holds {
            self.step(&directive.place, format!("if {said} does not hold"));
            return Ok(Flow::Next);
        }
        self.step(&directive.place, format!("if {said} holds"));
        // The last `if` that holds gives the directives, not what an earlier one has.
        let depth = self.location.map_or(self.server.chain.len(), |location| location.chain.len());
        let is_inner = self.chain.len() > depth
            && self.chain.last().is_some_and(|last| {
                last.inside().iter().any(|inner| std::ptr::eq(inner, directive))
            });
        if !is_inner {
            self.chain.truncate(depth);
        }
        self.chain.push(directive);
        self.handlers.push(directive);
        self.rewrites(directive)
    }

    fn holds(&mut self, directive: &Directive) -> Result<bool, String> {
        let wrong = || format!("the condition {:?} cannot be read", directive.args.join(" "));
        let mut words: Vec<&str> = directive.args.iter().map(String::as_str).collect();
        let (Some(first), true) = (words.first_mut(), directive.arg(0).starts_with('(')) else {
            return Err(wrong());
        };
        *first = &first[1..];
        let last = words.last_mut().ok_or_else(wrong)?;
        *last = last.strip_suffix(')').ok_or_else(wrong)?;
        let last = words.len() - 1;
        let is_bracket = |at: usize| at == 0 || at == last;
        // `( $a = "" )`: what stands in quotes may be empty, a bracket alone is none.
        let words: Vec<&str> = match words.len() {
            0..=3 => words,
            _ => (0..words.len())
                .filter(|at| !(is_bracket(*at) && words[*at].is_empty()))
                .map(|at| words[at])
                .collect(),
        };
        let (variable, rest) = words.split_first().ok_or_else(wrong)?;
        if variable.starts_with(['-', '!']) {
            return Err(format!("{variable} asks the disk, which is not read"));
        }
        let value = Template::of(variable).and_then(|template| self.text(&template))?;
        match rest {
            [] => Ok(!value.is_empty() && value != b"0"),
            [operator @ ("=" | "!="), other] => {
                let other = Template::of(other).and_then(|template| self.text(&template))?;
                Ok((value == other) == (*operator == "="))
            }
            [operator @ ("~" | "~*" | "!~" | "!~*"), pattern] => {
                let ignores_case = operator.ends_with('*');
                let pattern = match Pattern::of(pattern, ignores_case) {
                    Ok(pattern) => pattern,
                    Err(_) if Pattern::cannot_match(pattern, ignores_case, &value) => {
                        self.captures.clear();
                        return Ok(operator.starts_with('!'));
                    }
                    Err(unread) => return Err(unread),
                };
                let found = pattern.captures(&value);
                match &found {
                    Some(found) => self.captured(&pattern, found),
                    None => self.captures.clear(),
                }
                Ok(found.is_some() != operator.starts_with('!'))
            }
            _ => Err(wrong()),
        }
    }
}
