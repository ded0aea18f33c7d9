//! Files as sections of statements, conditional blocks evaluated (configuration
//! manual, 2.4 "Conditional blocks").

use std::{collections::BTreeMap, sync::Arc};

use crate::source::{Place, Problem, Source};

use super::words::{Variables, Word, words};

/// Statements of all files.
const MAX_STATEMENTS: usize = 500_000;
/// `.if` within each other: as many as HAProxy allows.
const MAX_DEPTH: usize = 16;
/// What `.if` may ask, in bytes: its parts are within each other.
const MAX_CONDITION: usize = 1024;
/// What `version_atleast()` compares with.
pub(super) const VERSION: [u32; 3] = [2, 6, 12];

/// What begins a section, and whether a name must follow.
const SECTIONS: &[(&str, bool)] = &[
    ("global", false),
    ("defaults", false),
    ("frontend", true),
    ("backend", true),
    ("listen", true),
    ("userlist", true),
    ("peers", true),
    ("resolvers", true),
    ("mailers", true),
    ("cache", true),
    ("program", true),
    ("ring", true),
    ("http-errors", true),
    ("fcgi-app", true),
    ("log-forward", true),
    ("log-profile", true),
    ("crt-store", false),
    ("traces", false),
    ("acme", true),
];

/// One line that says something.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    /// Where it begins.
    pub(super) place: Place,
    /// `no` stood before it.
    pub(super) is_negated: bool,
    /// Never empty; without `no`.
    pub(super) words: Vec<Word>,
}

impl Statement {
    /// The text of a word, empty beyond the last.
    pub(super) fn at(&self, n: usize) -> &str {
        self.words.get(n).map_or("", |word| &word.text)
    }

    /// Words from the n-th on.
    pub(super) fn from(&self, n: usize) -> &[Word] {
        self.words.get(n..).unwrap_or_default()
    }

    /// That something was expected in place of the n-th word.
    pub(super) fn expected(&self, n: usize, what: &str) -> Problem {
        match self.words.get(n) {
            Some(word) => {
                let problem = format!("{:?}, and expected was {what}", word.text);
                Problem::at(&word.place, problem)
            }
            None => {
                let problem = format!("`{}` ends where {what} was expected", self.at(0));
                Problem::at(&self.place, problem)
            }
        }
    }
}

/// A section.
#[derive(Debug, Clone)]
pub(super) struct Section {
    /// Its first line: keyword, name, `from`.
    pub(super) head: Statement,
    /// In order.
    pub(super) statements: Vec<Statement>,
}

/// All sections, in order of the files, and what else is in them.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    /// In order.
    pub(super) sections: Vec<Section>,
    /// `.if` and its kin, and what was made of each.
    pub(super) directives: Vec<(Place, String)>,
    /// Lines that a false `.if` has left out.
    pub(super) skipped: Vec<Place>,
    /// Variables that nobody knows.
    pub(super) unknown: Vec<(Place, String)>,
}

pub(super) fn read(
    sources: &[Source],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Tree, Problem> {
    let variables = Variables { outside: variable, set: BTreeMap::new(), unknown: Vec::new() };
    let mut reader = Reader { variables, tree: Tree::default(), blocks: Vec::new(), count: 0 };
    for source in sources {
        reader.file(source)?;
    }
    reader.tree.unknown = reader.variables.unknown;
    Ok(reader.tree)
}

struct Block {
    place: Place,
    is_read: bool,
    /// Of this or an earlier branch.
    was_true: bool,
    has_else: bool,
}

struct Reader<'a> {
    variables: Variables<'a>,
    tree: Tree,
    blocks: Vec<Block>,
    count: usize,
}

impl Reader<'_> {
    fn file(&mut self, source: &Source) -> Result<(), Problem> {
        for (number, line) in (1u32..).zip(source.text.lines()) {
            let start = Place { file: Arc::clone(&source.name), line: number, column: 1 };
            let trimmed = line.trim_start();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let is_directive = trimmed.starts_with('.');
            if !is_directive && !self.blocks.iter().all(|block| block.is_read) {
                self.tree.skipped.push(start);
                continue;
            }
            let words = words(line, &start, &mut self.variables)?;
            if let Some(first) = words.first() {
                self.count += 1;
                if self.count > MAX_STATEMENTS {
                    let problem = format!("more than {MAX_STATEMENTS} statements");
                    return Err(Problem::at(&first.place, problem));
                }
                if is_directive { self.directive(&words)? } else { self.statement(words)? }
            }
        }
        match self.blocks.pop() {
            Some(open) => Err(Problem::at(&open.place, "`.if` without `.endif` in this file")),
            None => Ok(()),
        }
    }

    fn statement(&mut self, mut words: Vec<Word>) -> Result<(), Problem> {
        let place = words[0].place.clone();
        let is_negated = words[0].text == "no" && words.len() > 1;
        if is_negated {
            words.remove(0);
        }
        let statement = Statement { place, is_negated, words };
        let section = SECTIONS.iter().find(|(keyword, _)| *keyword == statement.at(0));
        if let Some((keyword, named)) = section.filter(|_| !is_negated) {
            if *named && statement.at(1).is_empty() {
                return Err(statement.expected(1, &format!("the name of the {keyword}")));
            }
            self.tree.sections.push(Section { head: statement, statements: Vec::new() });
            return Ok(());
        }
        let Some(section) = self.tree.sections.last_mut() else {
            return Err(statement.expected(0, "a section, as `global`, `defaults` or `frontend`"));
        };
        if section.head.at(0) == "global" {
            let (name, value) = (statement.at(1).to_owned(), statement.at(2).to_owned());
            match statement.at(0) {
                "setenv" => {
                    self.variables.set.insert(name, Some(value));
                }
                "presetenv" if self.variables.value(&name).is_none() => {
                    self.variables.set.insert(name, Some(value));
                }
                "unsetenv" => {
                    for word in statement.from(1) {
                        self.variables.set.insert(word.text.clone(), None);
                    }
                }
                _ => {}
            }
        }
        section.statements.push(statement);
        Ok(())
    }

    fn directive(&mut self, words: &[Word]) -> Result<(), Problem> {
        let place = &words[0].place;
        let text: Vec<&str> = words[1..].iter().map(|word| word.text.as_str()).collect();
        let text = text.join(" ");
        let wrong = |problem: &str| Err(Problem::at(place, problem));
        let said = match words[0].text.as_str() {
            ".if" => {
                if self.blocks.len() == MAX_DEPTH {
                    return wrong(&format!("`.if` more than {MAX_DEPTH} deep"));
                }
                let outer = self.blocks.iter().all(|block| block.is_read);
                let is_true = outer && self.holds(place, &text)?;
                let place = place.clone();
                let block = Block { place, is_read: is_true, was_true: is_true, has_else: false };
                self.blocks.push(block);
                if is_true { "is taken as true" } else { "is taken as false" }
            }
            keyword @ (".elif" | ".else") => {
                let outer = self.blocks.iter().rev().skip(1).all(|block| block.is_read);
                let untold = match self.blocks.last() {
                    None => return wrong(&format!("`{keyword}` without `.if`")),
                    Some(block) if block.has_else => {
                        return wrong(&format!("`{keyword}` after `.else`"));
                    }
                    Some(block) => outer && !block.was_true,
                };
                let is_true = untold && (keyword == ".else" || self.holds(place, &text)?);
                if let Some(block) = self.blocks.last_mut() {
                    block.is_read = is_true;
                    block.was_true |= is_true;
                    block.has_else = keyword == ".else";
                }
                if is_true { "is read" } else { "is not read" }
            }
            ".endif" => {
                if self.blocks.pop().is_none() {
                    return wrong("`.endif` without `.if`");
                }
                "ends it"
            }
            ".notice" | ".warning" | ".diag" | ".alert" => "is a message at start",
            other => {
                let problem = format!(
                    "{other:?}, and expected was `.if`, `.elif`, `.else`, `.endif` or a message"
                );
                return wrong(&problem);
            }
        };
        self.tree.directives.push((place.clone(), said.to_owned()));
        Ok(())
    }

    /// `!`, `&&` before `||`, parentheses; predicates as of 2.6.
    fn holds(&self, place: &Place, text: &str) -> Result<bool, Problem> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Problem::at(place, "`.if` without a condition"));
        }
        if text.len() > MAX_CONDITION {
            return Err(Problem::at(place, format!("longer than {MAX_CONDITION} bytes")));
        }
        if let Some((left, right)) = split(text, "||") {
            return Ok(self.holds(place, left)? | self.holds(place, right)?);
        }
        if let Some((left, right)) = split(text, "&&") {
            return Ok(self.holds(place, left)? & self.holds(place, right)?);
        }
        let negations = text.len() - text.trim_start_matches(['!', ' ']).len();
        if negations > 0 {
            let is_odd = text[..negations].matches('!').count() % 2 == 1;
            return Ok(self.holds(place, &text[negations..])? ^ is_odd);
        }
        if let Ok(number) = text.parse::<i64>() {
            return Ok(number != 0);
        }
        let called = text.strip_suffix(')').and_then(|text| text.split_once('('));
        match called {
            Some(("", inner)) => self.holds(place, inner),
            Some((predicate, arguments)) => {
                let arguments: Vec<&str> = arguments.split(',').map(unquoted).collect();
                self.predicate(place, predicate, &arguments)
            }
            None if text == "true" || text == "false" => Ok(text == "true"),
            None => Err(Problem::at(place, format!("{text:?} is no condition of `.if`"))),
        }
    }

    fn predicate(&self, place: &Place, name: &str, of: &[&str]) -> Result<bool, Problem> {
        let second = of.get(1).copied().unwrap_or_default();
        Ok(match name {
            "defined" => self.variables.value(of[0]).is_some(),
            "streq" => of[0] == second,
            "strneq" => of[0] != second,
            "strstr" => of[0].contains(second),
            "version_atleast" => VERSION >= version(of[0]),
            "version_before" => VERSION < version(of[0]),
            "feature" => of[0] != "QUIC",
            "enabled" | "openssl_version_atleast" => true,
            "openssl_version_before" | "awslc_api_atleast" => false,
            _ => {
                let problem = format!("{name:?} is no predicate of `.if` that is known");
                return Err(Problem::at(place, problem));
            }
        })
    }
}

/// At the first operator outside parentheses.
fn split<'t>(text: &'t str, operator: &str) -> Option<(&'t str, &'t str)> {
    let mut depth = 0i32;
    for (at, char) in text.char_indices() {
        match char {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && text[at..].starts_with(operator) => {
                return Some((&text[..at], &text[at + operator.len()..]));
            }
            _ => {}
        }
    }
    None
}

fn unquoted(text: &str) -> &str {
    let text = text.trim();
    let inner = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(text)
}

fn version(text: &str) -> [u32; 3] {
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    [parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0)]
}
