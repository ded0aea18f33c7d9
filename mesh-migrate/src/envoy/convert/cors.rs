//! Requests of browsers from other origins: rules for what they ask first, and headers of
//! answers.

use super::{Converter, Within, access::NEVER, all, condition, rule};
use crate::{
    envoy::{
        access, parts,
        tree::{Entry, Tree},
    },
    ledger::Verdict,
    program::{Condition, Rule, Text, Then},
};

/// Origins of one policy, at most: each has rules of its own.
const MAX_ORIGINS: usize = 8;

/// What a policy says.
pub(super) struct Cors<'c> {
    policy: &'c Tree,
    origins: Vec<Origin>,
}

/// An origin, and what is answered to it.
struct Origin {
    when: Condition,
    answer: String,
}

/// What cannot be said.
struct Cannot<'t> {
    field: &'t Entry,
    why: &'static str,
}

impl<'c> Converter<'c> {
    /// The filter, if there is one.
    pub(super) fn cors_filter(within: &Within<'c>) -> Option<&'c Tree> {
        within.hcm.messages("http_filters").find(|filter| {
            let config = filter.msg("typed_config").map_or("", Tree::short);
            config == "Cors" && access::is_ever_on(filter, within.routes)
        })
    }

    /// What holds for a route.
    pub(super) fn cors(&mut self, levels: [&'c Tree; 3], within: &Within<'c>) -> Option<Cors<'c>> {
        let filter = Self::cors_filter(within)?;
        let level = levels.into_iter().rev().find(|l| access::at_level(l, filter).is_some());
        let [_, host, route] = levels;
        let older = || {
            let of = [route.msg("route"), Some(host)].into_iter().flatten();
            of.filter_map(|of| of.entry("cors"))
        };
        let field = match level {
            Some(level) => level.entry("typed_per_filter_config"),
            None => older().next(),
        };
        let is_twice =
            levels.iter().filter(|level| access::at_level(level, filter).is_some()).count() > 1
                || (level.is_none() && older().count() > 1);
        if let Some(field) = field {
            let how = "what it does not say is not looked for at the level above";
            let near = Verdict::Approximated { how: how.into() };
            self.notes.once(&field.place, if is_twice { near } else { Verdict::Exact });
        }
        let policy = parts::cors(levels, filter)?;
        let part = policy.msg("filter_enabled").and_then(|one| one.msg("default_value"));
        if part.is_some_and(|part| parts::percent(Some(part)) <= 0.0) {
            return None;
        }
        match origins(policy) {
            Ok(origins) => Some(Cors { policy, origins }),
            Err(cannot) => {
                let question =
                    format!("{}. Until it is said, CORS is not answered here.", cannot.why);
                let choices =
                    ["the application answers it", "name the origins", "keep Envoy before us"];
                self.notes.once(&cannot.field.place, super::notes::decision(question, &choices));
                None
            }
        }
    }
}

impl Cors<'_> {
    /// What browsers ask before they send a request.
    pub(super) fn preflights(&self, when: &Condition) -> Vec<Rule> {
        let asks = Condition::Header(
            "access-control-request-method".into(),
            Text::Pattern("(?s).+".into()),
        );
        let one = |origin: &Origin| {
            let options = Condition::Method(vec!["OPTIONS".into()]);
            let when = all(vec![when.clone(), options, asks.clone(), origin.when.clone()]);
            let mut headers = self.common(origin);
            for (field, name) in [
                ("allow_methods", "allow-methods"),
                ("allow_headers", "allow-headers"),
                ("expose_headers", "expose-headers"),
                ("max_age", "max-age"),
            ] {
                let value = self.policy.some_text(field);
                headers.extend(value.map(|value| (format!("access-control-{name}"), value.into())));
            }
            let reply = crate::program::Reply { status: 200, headers, ..Default::default() };
            rule(&self.policy.place, when, Then::Reply(reply))
        };
        self.origins.iter().map(one).collect()
    }

    /// The same as `then`, for each origin.
    pub(super) fn answers(
        &self,
        place: &crate::source::Place,
        when: &Condition,
        then: &Then,
    ) -> Vec<Rule> {
        let one = |origin: &Origin| {
            let mut headers = self.common(origin);
            let exposed = self.policy.some_text("expose_headers");
            headers.extend(
                exposed.map(|names| ("access-control-expose-headers".into(), names.into())),
            );
            let mut then = then.clone();
            match &mut then {
                Then::Reply(reply) => reply.headers.extend(headers),
                Then::Forward(forward) => forward.set_answer.extend(headers),
            }
            rule(place, all(vec![when.clone(), origin.when.clone()]), then)
        };
        self.origins.iter().map(one).collect()
    }

    fn common(&self, origin: &Origin) -> Vec<(String, String)> {
        let mut headers = vec![("access-control-allow-origin".to_owned(), origin.answer.clone())];
        if self.policy.is("allow_credentials") {
            headers.push(("access-control-allow-credentials".into(), "true".into()));
        }
        headers
    }
}

fn origins(policy: &Tree) -> Result<Vec<Origin>, Cannot<'_>> {
    let is_trusted = policy.is("allow_credentials");
    for name in ["allow_methods", "allow_headers"] {
        if let Some(field) =
            policy.entry(name).filter(|_| is_trusted && policy.text(name) == Some("*"))
        {
            return Err(Cannot {
                field,
                why: "what is asked for is repeated in the answer, and a rule of ours answers one text",
            });
        }
    }
    let Some(field) = policy.entry("allow_origin_string_match") else { return Ok(Vec::new()) };
    let mut origins = Vec::new();
    for one in policy.messages("allow_origin_string_match") {
        let header = |text: Text| Condition::Header("origin".into(), text);
        let is_any = condition::holds(&condition::text(one), "*");
        match one.text("exact").filter(|_| !one.is("ignore_case")) {
            // Whatever is allowed for any origin is so in one word.
            _ if is_any && !is_trusted => {
                let when = header(Text::Pattern("(?s).+".into()));
                return Ok(vec![Origin { when, answer: "*".into() }]);
            }
            Some(exact) if !is_any => {
                let when = header(Text::Exact(exact.into()));
                origins.push(Origin { when, answer: exact.into() });
            }
            _ => {
                let why = "origins are told by a pattern, and the answer names the one that asks, which a rule of ours cannot";
                return Err(Cannot { field, why });
            }
        }
    }
    if origins.len() > MAX_ORIGINS {
        return Err(Cannot {
            field,
            why: "there are many origins, and each needs rules of its own",
        });
    }
    origins.retain(|origin| origin.when != NEVER);
    Ok(origins)
}
