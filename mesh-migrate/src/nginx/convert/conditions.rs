//! `if`: what is done where a condition holds, and where none of ours can say it.

use super::{
    At, Condition, Directive, Rule, Template, Work, all, leaf::Here, refusal, replies::Test,
};
use crate::nginx::{pattern::Pattern, template::Part};

impl<'m, 'c> Work<'m, 'c> {
    pub(super) fn condition(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        directive: &'c Directive,
        (when, is_last): (&Condition, bool),
        rules: &mut Vec<Rule>,
    ) {
        let holds = match self.holds(at, directive) {
            Ok(holds) => holds,
            Err(wrong) => {
                let meant = self.meant(at, directive);
                let when = all([when.clone(), meant]);
                return self.unsaid(directive, &wrong, &when, rules);
            }
        };
        let when = all([when.clone(), holds]);
        self.exact(directive);
        let variable = directive.arg(0).trim_start_matches("($").trim_end_matches(')');
        self.used(&variable.to_ascii_lowercase());
        let inner = here.with(directive);
        let (before, chosen) = (at.set.clone(), at.chosen.clone());
        let ends = self.rewrites(at, &inner, directive, &when, rules);
        let sets: Vec<String> = directive
            .all("set")
            .map(|set| set.arg(0).trim_start_matches('$').to_ascii_lowercase())
            .collect();
        let after = std::mem::replace(&mut at.set, before);
        at.chosen = chosen;
        if ends {
            return;
        }
        let only_sets = directive.inside().iter().all(|inner| inner.name == "set");
        let goes_on = here.location.is_none() || !is_last;
        if goes_on && only_sets && sets.iter().all(|name| after.contains_key(name)) {
            for name in &sets {
                self.choose(at, name, &when, &after[name]);
            }
            return;
        }
        if here.location.is_none() || !is_last {
            let does_nothing = directive
                .inside()
                .iter()
                .all(|inner| ["set", "rewrite"].contains(&inner.name.as_str()));
            if !does_nothing || !sets.is_empty() {
                let question = "nginx goes on after this with what was set here, which cannot be said: until decided such requests are answered 501";
                self.decision(
                    directive,
                    question,
                    &["a route of its own for them", "they are like all others"],
                );
                rules.push(refusal(directive, when, 501));
            }
        } else if !sets.is_empty() || directive.inside().iter().any(|inner| inner.name != "rewrite")
        {
            let (set, chosen) = (at.set.clone(), at.chosen.clone());
            let mut at_inner = At { set, chosen, forwarded: Vec::new(), ..*at };
            directive.all("set").for_each(|set| self.set(&mut at_inner, set));
            self.handled(&mut at_inner, &inner.after(directive), &when, None, rules);
            at.forwarded.append(&mut at_inner.forwarded);
        }
    }

    /// Who may be meant by a condition on a pattern that cannot be read.
    fn meant(&self, at: &At<'m, 'c>, directive: &Directive) -> Condition {
        let said = directive.args.join(" ");
        let inner = said.strip_prefix('(').and_then(|said| said.strip_suffix(')'));
        let mut words = inner.unwrap_or_default().trim().splitn(3, ' ');
        let meant = (|| {
            let variable = words.next()?.strip_prefix('$')?.to_ascii_lowercase();
            let operator = words.next().filter(|operator| ["~", "~*"].contains(operator))?;
            let loose = Pattern::loose(words.next()?.trim(), operator == "~*")?;
            let subject = self.expanded(at, &Template(vec![Part::Variable(variable)]));
            let is_chosen = subject.variable().is_some_and(|name| self.choices(at, name).is_some());
            self.test(at, &subject, &Test::Matches(&loose)).filter(|_| !is_chosen)
        })();
        meant.unwrap_or(Condition::Always)
    }

    /// A condition that cannot be said: what it refuses is refused to all, unless a file on
    /// this host is a switch that normally is not thrown.
    fn unsaid(
        &mut self,
        directive: &'c Directive,
        wrong: &str,
        when: &Condition,
        rules: &mut Vec<Rule>,
    ) {
        let around = "the condition around it is not converted";
        let status = |d: &Directive| d.arg(0).parse::<u16>().ok().filter(|status| *status >= 400);
        let refused = directive.all("return").find_map(status);
        let is_switch = refused.is_none_or(|status| status >= 500);
        if let Some(file) = file_of(directive).filter(|_| is_switch) {
            let question = format!(
                "{file} is asked of the disk, which rules of ours do not: requests are taken as if this never held. Who switches it with us?"
            );
            self.decision(
                directive,
                question,
                &["a rule of ours while it is needed", "the application does it", "nobody"],
            );
            return self.inside_of(directive, around);
        }
        let Some(status) = refused else {
            let question =
                format!("{wrong}: requests are taken as if it never held. Which ones are meant?");
            self.decision(directive, question, &["a route of ours", "none"]);
            return self.inside_of(directive, around);
        };
        let question = format!(
            "{wrong}: until decided all requests that it may be about are answered {status}. Which ones are meant?"
        );
        self.decision(directive, question, &["a route of ours", "none"]);
        rules.push(refusal(directive, when.clone(), status));
        self.inside_of(directive, around);
    }
}

/// The test of a file (`-f`, `!-e` and so on), as it is written, if the condition is one.
fn file_of(directive: &Directive) -> Option<String> {
    let said = directive.args.join(" ");
    let inner = said.strip_prefix('(')?.strip_suffix(')')?.trim();
    let test = inner.strip_prefix('!').unwrap_or(inner).trim_start();
    let is_test = ["-f", "-d", "-e", "-x"].iter().any(|flag| test.starts_with(flag));
    // What hangs on the request is no switch.
    (is_test && !test.contains('$')).then(|| inner.to_owned())
}
