//! The parity report: every line of a configuration, and what has become of it.

mod everywhere;
mod html;

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use crate::{
    ledger::{Ledger, Verdict},
    source::Source,
};

/// A whole report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Which format.
    pub from: String,
    /// Statements by what has become of them.
    pub summary: Summary,
    /// What is different for all requests, whatever the lines say.
    pub everywhere: Vec<&'static str>,
    /// In order of files and lines.
    pub files: Vec<File>,
}

/// How many statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Summary {
    /// The same.
    pub exact: usize,
    /// Something like it.
    pub approximated: usize,
    /// Not there.
    pub dropped: usize,
    /// A person must say.
    pub decisions: usize,
}

/// What is said about one file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct File {
    /// As it was given.
    pub name: String,
    /// In order of lines.
    pub statements: Vec<Statement>,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Statement {
    /// From 1.
    pub line: u32,
    /// The last one.
    pub last_line: u32,
    /// What is written in the first of its lines.
    pub text: String,
    /// What has become of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Of one line of the source, in characters.
const MAX_TEXT: usize = 200;

impl Report {
    /// What the ledger says, and a decision about every line that it does not.
    pub fn new(
        from: &str,
        ledger: &Ledger,
        sources: &[Source],
        is_blank: impl Fn(&str) -> bool,
    ) -> Self {
        let mut all = ledger.clone();
        for source in sources {
            for line in ledger.silent_lines(source, &is_blank) {
                let place = crate::source::Place { file: source.name.clone(), line, column: 1 };
                let question = "nobody has looked at this line: what does it do?";
                all.decision(&place, question, &["write it otherwise", "leave it out"]);
            }
        }
        let lines: BTreeMap<&str, Vec<&str>> =
            sources.iter().map(|source| (&*source.name, source.text.lines().collect())).collect();
        let (mut summary, mut files) = (Summary::default(), BTreeMap::<String, Vec<_>>::new());
        for entry in all.entries() {
            summary.count(&entry.verdict);
            let line = usize::try_from(entry.place.line).unwrap_or(usize::MAX);
            let text = lines.get(&*entry.place.file).and_then(|lines| lines.get(line - 1));
            files.entry(entry.place.file.to_string()).or_default().push(Statement {
                line: entry.place.line,
                last_line: entry.last_line,
                text: text.unwrap_or(&"").trim().chars().take(MAX_TEXT).collect(),
                verdict: entry.verdict,
            });
        }
        // As they were given; what is said of others last.
        let mut ordered = Vec::new();
        for source in sources {
            if let Some(statements) = files.remove(&*source.name) {
                ordered.push(File { name: source.name.to_string(), statements });
            }
        }
        ordered.extend(files.into_iter().map(|(name, statements)| File { name, statements }));
        let everywhere = everywhere::of(from);
        Self { from: from.to_owned(), summary, everywhere, files: ordered }
    }

    /// Whether everything is the same.
    pub fn is_exact(&self) -> bool {
        let Summary { exact: _, approximated, dropped, decisions } = self.summary;
        approximated + dropped + decisions == 0
    }

    /// For a terminal: what is not exact, and with `whole` the rest, too.
    pub fn text(&self, whole: bool) -> String {
        let mut text = String::new();
        for file in &self.files {
            for statement in &file.statements {
                if !whole && statement.verdict == Verdict::Exact {
                    continue;
                }
                let Statement { line, text: said, verdict, .. } = statement;
                let _ = writeln!(text, "{}:{line}: {}", file.name, word(verdict));
                let _ = writeln!(text, "    {said}");
                for line in told(verdict) {
                    let _ = writeln!(text, "    → {line}");
                }
            }
        }
        if !self.everywhere.is_empty() {
            let _ = writeln!(text, "For all requests, whatever the lines say:");
            for line in &self.everywhere {
                let _ = writeln!(text, "    → {line}");
            }
        }
        let _ = writeln!(text, "{}", self.summary.text());
        text
    }

    /// For a repository, or an issue.
    pub fn markdown(&self) -> String {
        let mut text = format!("# From {}: parity report\n\n{}\n", self.from, self.summary.text());
        if !self.everywhere.is_empty() {
            text += "\n## For all requests\n\n";
            for line in &self.everywhere {
                let _ = writeln!(text, "- {line}");
            }
        }
        let questions = self.questions();
        if !questions.is_empty() {
            text += "\n## Questions\n\n";
            for (file, statement) in questions {
                let _ =
                    writeln!(text, "- `{file}:{}` `{}`", statement.line, quoted(&statement.text));
                for line in told(&statement.verdict) {
                    let _ = writeln!(text, "  - {line}");
                }
            }
        }
        for file in &self.files {
            let _ = writeln!(
                text,
                "\n## {}\n\n| line | source | verdict | |\n|---|---|---|---|",
                file.name
            );
            for Statement { line, text: said, verdict, .. } in &file.statements {
                let told = told(verdict).join("; ").replace('|', "\\|");
                let said = quoted(said);
                let _ = writeln!(text, "| {line} | `{said}` | {} | {told} |", word(verdict));
            }
        }
        text
    }

    /// One page that needs nothing else.
    pub fn html(&self) -> String {
        html::page(self)
    }

    /// What only a person can answer.
    pub fn questions(&self) -> Vec<(&str, &Statement)> {
        let all = self.files.iter().flat_map(|file| {
            file.statements.iter().map(|statement| (file.name.as_str(), statement))
        });
        all.filter(|(_, said)| matches!(said.verdict, Verdict::Decision { .. })).collect()
    }
}

impl Summary {
    fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Exact => self.exact += 1,
            Verdict::Approximated { .. } => self.approximated += 1,
            Verdict::Dropped { .. } => self.dropped += 1,
            Verdict::Decision { .. } => self.decisions += 1,
        }
    }

    /// In one line.
    pub fn text(&self) -> String {
        let Summary { exact, approximated, dropped, decisions } = self;
        format!(
            "{exact} exact, {approximated} approximated, {dropped} dropped, {decisions} to decide"
        )
    }
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Exact => "exact",
        Verdict::Approximated { .. } => "approximated",
        Verdict::Dropped { .. } => "dropped",
        Verdict::Decision { .. } => "decide",
    }
}

/// What there is to say about it, line by line.
fn told(verdict: &Verdict) -> Vec<String> {
    match verdict {
        Verdict::Exact => Vec::new(),
        Verdict::Approximated { how } => vec![how.clone()],
        Verdict::Dropped { meaning } => vec![meaning.clone()],
        Verdict::Decision { question, choices } if choices.is_empty() => vec![question.clone()],
        Verdict::Decision { question, choices } => {
            vec![question.clone(), format!("either {}", choices.join(", or "))]
        }
    }
}

/// Inside backticks and a table.
fn quoted(text: &str) -> String {
    text.replace('`', "'").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Place;

    fn report() -> Report {
        let source = Source::of("a.cfg", "one\n\ntwo <b>|\nthree\n");
        let mut ledger = Ledger::default();
        let at = |line| Place { file: source.name.clone(), line, column: 1 };
        ledger.exact(&at(1));
        ledger.approximated(&at(3), "nearly <the> same");
        Report::new("haproxy", &ledger, &[source], |line| line.trim().is_empty())
    }

    #[test]
    fn a_line_that_nobody_has_looked_at_is_a_question() {
        let report = report();
        let counts = Summary { exact: 1, approximated: 1, dropped: 0, decisions: 1 };
        assert_eq!(report.summary, counts);
        assert!(!report.is_exact());
        let (file, question) = report.questions()[0];
        assert_eq!((file, question.line, question.text.as_str()), ("a.cfg", 4, "three"));
    }

    #[test]
    fn every_form_has_every_line() {
        let report = report();
        let text = report.text(false);
        assert!(text.contains("a.cfg:3: approximated\n    two <b>|\n    → nearly <the> same\n"));
        assert!(!text.contains("a.cfg:1"), "what is exact is told when asked for");
        assert!(report.text(true).contains("a.cfg:1: exact"));
        assert!(
            report.markdown().contains("| 3 | `two <b>\\|` | approximated | nearly <the> same |")
        );
        let html = report.html();
        assert!(html.contains("two &lt;b&gt;|") && !html.contains("<b>|"));
        assert!(html.contains("nearly &lt;the&gt; same"));
        let first = report.everywhere[0];
        for form in [&text, &report.markdown(), &html] {
            assert!(form.contains(first), "{form}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["everywhere"][0], first);
        assert_eq!(json["files"][0]["statements"][1]["verdict"], "approximated");
    }
}
