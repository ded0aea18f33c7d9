//! Headers of answers: `add_header`, `proxy_hide_header`.

use super::{
    At, Directive, Rule, Template, Then, Work,
    headers::{said, texts},
    leaf::Here,
};
use crate::{
    nginx::model,
    objects::headers::{is_ours, why_ours},
    program::{Forward, Said},
};

/// Statuses of answers that have the headers of `add_header` without `always`.
const ADDED: [u16; 10] = [200, 201, 204, 206, 301, 302, 303, 304, 307, 308];
const VARIABLE_ANSWER: &str = "its value has variables: answers do not have the header";
const NO_EXPIRES: &str = "Cache-Control alone says how long an answer may be kept, without Expires";
const EXPIRES_UNSAID: &str = "how long answers may be kept the application says: Expires and Cache-Control are not written here";
/// Headers that nginx has once: `add_header` replaces or removes what an application says.
const REPLACED: [&str; 2] = ["last-modified", "etag"];

/// Why no rule of ours can have such a header.
pub(super) fn unsayable(name: &str, value: &str) -> Option<String> {
    let is_token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
    let is_value = |c: u8| (b' '..0x7f).contains(&c) || c == b'\t';
    if name.is_empty() || !name.bytes().all(is_token) {
        Some("no header of HTTP has such a name".to_owned())
    } else if is_ours(name) {
        Some(why_ours(name))
    } else if !value.bytes().all(is_value) {
        Some("its value has a line feed or bytes that are not ASCII".to_owned())
    } else {
        None
    }
}

/// What `expires` says in `Cache-Control`; nothing where it says nothing, or what cannot
/// be said.
fn expires(directive: &Directive) -> Option<String> {
    match directive.arg(0) {
        "max" => Some("max-age=315360000".to_owned()),
        "epoch" => Some("no-cache".to_owned()),
        said if said.starts_with('-') => Some("no-cache".to_owned()),
        said => Some(format!("max-age={}", model::seconds(said)?.as_secs())),
    }
}

/// What a line of `add_header` says.
enum Added {
    Text(String),
    Said(Said),
    /// Variables that an answer cannot have.
    Variable,
}

impl<'m, 'c> Work<'m, 'c> {
    pub(super) fn answer_headers(
        &mut self,
        at: &At<'m, 'c>,
        here: &Here<'m, 'c>,
        forward: &mut Forward,
    ) {
        for directive in model::array(&here.chain, "proxy_hide_header") {
            let name = directive.arg(0).to_ascii_lowercase();
            if let Some(name) = self.of_answer(directive, &name, "") {
                self.exact(directive);
                forward.remove_answer.push(name);
            }
        }
        for directive in model::array(&here.chain, "add_header") {
            match self.added(at, directive) {
                Some((name, Added::Text(value))) => self.adds(directive, name, value, forward),
                Some((_, Added::Said(_) | Added::Variable)) => {
                    self.dropped(directive, VARIABLE_ANSWER);
                }
                None => {}
            }
        }
        self.expires_of_application(here, forward);
        // What nginx adds comes after what it hides; with us what is removed comes last.
        let is_hidden = |name: &str| forward.remove_answer.iter().any(|hidden| hidden == name);
        let hidden = forward.add_answer.extract_if(.., |(name, _)| is_hidden(name));
        forward.set_answer.extend(hidden);
        let set = &forward.set_answer;
        forward.remove_answer.retain(|hidden| !set.iter().any(|(name, _)| name == hidden));
    }

    /// `expires`; how long errors may be kept is not for it to say.
    fn expires_of_application(&mut self, here: &Here<'m, 'c>, forward: &mut Forward) {
        let Some(directive) = model::inherited(&here.chain, "expires") else { return };
        match expires(directive) {
            None if directive.arg(0) == "off" => self.exact(directive),
            Some(kept) if kept == "no-cache" => {
                self.approximated(directive, NO_EXPIRES);
                forward.set_answer.push(("cache-control".to_owned(), kept));
                forward.remove_answer.push("expires".to_owned());
            }
            _ => self.dropped(directive, EXPIRES_UNSAID),
        }
    }

    fn adds(&mut self, directive: &Directive, name: String, value: String, forward: &mut Forward) {
        let is_replaced = REPLACED.contains(&name.as_str());
        if value.is_empty() && !is_replaced {
            return self.exact(directive);
        }
        if directive.arg(2) == "always" {
            self.exact(directive);
        } else {
            self.approximated(directive, "nginx adds it to answers of 200, 201, 204, 206, 301 to 304, 307 and 308 only; with us to all");
        }
        match (is_replaced, value.is_empty()) {
            (true, true) => forward.remove_answer.push(name),
            (true, false) => forward.set_answer.push((name, value)),
            (false, _) => forward.add_answer.push((name, value)),
        }
    }

    /// Its name, or the ledger has why no answer of ours has it.
    fn of_answer(&mut self, directive: &Directive, name: &str, value: &str) -> Option<String> {
        match unsayable(name, value) {
            None => Some(name.to_owned()),
            Some(why) if is_ours(name) => {
                self.approximated(directive, why);
                None
            }
            Some(why) => {
                self.dropped(directive, format!("{why}: answers stay without this"));
                None
            }
        }
    }

    fn added(&mut self, at: &At<'m, 'c>, directive: &Directive) -> Option<(String, Added)> {
        let value = Template::of(directive.arg(1)).map(|value| self.expanded(at, &value)).ok();
        let constant = value.as_ref().and_then(Template::constant);
        let name = directive.arg(0).to_ascii_lowercase();
        let added = match (constant, value.and_then(|value| said(at, &value, None, None))) {
            (Some(text), _) => Added::Text(text),
            (None, Some(said)) => Added::Said(said),
            (None, None) => Added::Variable,
        };
        let text = match &added {
            Added::Text(text) => text.clone(),
            Added::Said(said) => texts(said).collect(),
            Added::Variable => String::new(),
        };
        Some((self.of_answer(directive, &name, &text)?, added))
    }

    /// What `add_header` says of answers that nginx gives itself.
    pub(super) fn own_answers(
        &mut self,
        at: &At<'m, 'c>,
        chain: &[&'c Directive],
        rules: &mut [Rule],
    ) {
        for rule in rules {
            let Then::Reply(reply) = &mut rule.then else { continue };
            let is_added = ADDED.contains(&reply.status);
            if let Some(directive) = model::inherited(chain, "expires") {
                match expires(directive).filter(|_| is_added) {
                    Some(kept) => {
                        self.approximated(directive, NO_EXPIRES);
                        reply.headers.push(("cache-control".to_owned(), kept));
                    }
                    None if is_added && directive.arg(0) != "off" => {
                        self.dropped(directive, EXPIRES_UNSAID);
                    }
                    None => self.exact(directive),
                }
            }
            for directive in model::array(chain, "add_header") {
                let is_added = is_added || directive.arg(2) == "always";
                let Some((name, added)) = self.added(at, directive) else { continue };
                match added {
                    Added::Text(value) => {
                        self.exact(directive);
                        if is_added && !value.is_empty() {
                            reply.headers.push((name, value));
                        }
                    }
                    // A redirect of ours has no such headers.
                    Added::Said(said) if reply.location.is_none() => {
                        self.tells(directive, &said);
                        if is_added {
                            reply.told.push((name, said));
                        }
                    }
                    Added::Said(_) | Added::Variable => self.dropped(directive, VARIABLE_ANSWER),
                }
            }
        }
    }
}
