//! Any configuration of nginx as a tree of statements; other files come through a
//! function.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::tokens::{End, Tokens};
use crate::source::{MAX_FILE, Place, Problem, Source};

/// Blocks and included files within each other.
const MAX_DEPTH: usize = 64;
/// Of the whole configuration.
const MAX_STATEMENTS: usize = 500_000;
/// Files, each as often as it is included.
const MAX_FILES: usize = 2_000;
/// Of all files together, in bytes.
const MAX_BYTES: u64 = 4 * MAX_FILE;

/// Files that `include` means by a name or a pattern, in order of their names; what is
/// wrong otherwise. A pattern may mean none, a name not.
pub type Reader<'r> = &'r dyn Fn(&str) -> Result<Vec<Source>, String>;

/// One statement.
#[derive(Debug, Clone)]
pub struct Directive {
    /// Of its name.
    pub place: Place,
    /// The line of its `;` or `{`.
    pub head_last: u32,
    /// Its last line.
    pub last_line: u32,
    /// The first word.
    pub name: String,
    /// All others, without quotes.
    pub args: Vec<String>,
    /// What stands between its braces; code of Lua is not read.
    pub block: Option<Vec<Directive>>,
    /// Where it stands there, by name: blocks are asked for names very often.
    by_name: BTreeMap<String, Vec<usize>>,
}

impl Directive {
    /// An argument, or nothing.
    pub fn arg(&self, number: usize) -> &str {
        self.args.get(number).map_or("", String::as_str)
    }

    /// What stands between its braces.
    pub fn inside(&self) -> &[Directive] {
        self.block.as_deref().unwrap_or_default()
    }

    /// Statements of this name right between its braces.
    pub fn all<'d>(&'d self, name: &'d str) -> impl Iterator<Item = &'d Directive> {
        let places = self.by_name.get(name).into_iter().flatten();
        places.filter_map(|at| self.inside().get(*at))
    }

    pub(super) fn named(&self, name: &str) -> Vec<&Directive> {
        let places = self.by_name.get(name).into_iter().flatten();
        places.filter_map(|at| self.inside().get(*at)).collect()
    }

    fn open(&mut self, inside: Vec<Directive>) {
        for (at, inner) in inside.iter().enumerate() {
            self.by_name.entry(inner.name.clone()).or_default().push(at);
        }
        self.block = Some(inside);
    }
}

/// A configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// A block without a name; statements of included files follow their `include`.
    pub root: Directive,
    /// Every file, once, in order of reading.
    pub sources: Vec<Source>,
}

/// Whether a line says nothing: it is empty, a comment, or ends a block.
pub fn is_blank(line: &str) -> bool {
    let rest = line.trim_start_matches([' ', '\t', '\r', '}', '{', ';', '\u{feff}']);
    rest.is_empty() || rest.starts_with('#')
}

/// Reads a configuration: a file, or what `nginx -T` has printed.
///
/// # Errors
///
/// It is none, an included file is not there or includes itself, or it is too large.
pub fn parse(source: &Source, read: Reader<'_>) -> Result<Config, Problem> {
    let Some(files) = dump(source) else {
        return Parser { read, sources: Vec::new(), statements: 0, files: 0, bytes: 0 }
            .main(source);
    };
    let main = files.first().cloned().unwrap_or_else(|| source.clone());
    let folder = folder(&main.name);
    let files: BTreeMap<String, Source> =
        files.into_iter().rev().map(|file| (file.name.to_string(), file)).collect();
    let read = |pattern: &str| {
        let wanted = joined(&folder, pattern);
        let meant = files.iter().filter(|(name, _)| matches(&wanted, name));
        let meant: Vec<Source> = meant.map(|(_, file)| file.clone()).collect();
        if meant.is_empty() && !is_pattern(pattern) {
            return Err(format!("{wanted} is not in this output of nginx -T"));
        }
        Ok(meant)
    };
    Parser { read: &read, sources: Vec::new(), statements: 0, files: 0, bytes: 0 }.main(&main)
}

/// Reads included files from disk, names being relative to the folder of `main`, as
/// nginx has it.
pub fn disk(main: &Path) -> impl Fn(&str) -> Result<Vec<Source>, String> {
    let folder = folder(&main.display().to_string());
    move |pattern| {
        let wanted = joined(&folder, pattern);
        if !is_pattern(&wanted) {
            let source = Source::read(Path::new(&wanted)).map_err(|wrong| wrong.to_string())?;
            return Ok(vec![source]);
        }
        let mut found = vec![if wanted.starts_with('/') { "/".to_owned() } else { String::new() }];
        for part in wanted.split('/').filter(|part| !part.is_empty()) {
            found =
                found.iter().flat_map(|folder| expanded(folder, part)).take(MAX_FILES).collect();
        }
        found.sort();
        let read = |name: &String| Source::read(Path::new(name)).map_err(|wrong| wrong.to_string());
        found.iter().filter(|name| Path::new(name).is_file()).map(read).collect()
    }
}

fn expanded(folder: &str, part: &str) -> Vec<String> {
    if !is_pattern(part) {
        return vec![joined(folder, part)];
    }
    let listed = std::fs::read_dir(if folder.is_empty() { "." } else { folder });
    let names = listed.into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| matches(part, name)).map(|name| joined(folder, &name)).collect()
}

fn folder(file: &str) -> String {
    file.rsplit_once('/')
        .map_or("", |(folder, _)| if folder.is_empty() { "/" } else { folder })
        .into()
}

fn joined(folder: &str, name: &str) -> String {
    match folder {
        _ if name.starts_with('/') => name.to_owned(),
        "" => name.to_owned(),
        _ => format!("{}/{name}", folder.trim_end_matches('/')),
    }
}

fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// As glob(7): `*`, `?` and `[a-z]`, none of which takes `/` or a leading dot.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<&str>, Vec<&str>) =
        (pattern.split('/').collect(), name.split('/').collect());
    let part = |(pattern, name): (&&str, &&str)| {
        let is_hidden = name.starts_with('.') && !pattern.starts_with('.');
        let (pattern, name): (Vec<char>, Vec<char>) =
            (pattern.chars().collect(), name.chars().collect());
        !is_hidden && part_matches(&pattern, &name)
    };
    pattern.len() == name.len() && pattern.iter().zip(&name).all(part)
}

fn part_matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    loop {
        let taken = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some('[') if n < name.len() => one_of(&pattern[p..], name[n]),
            Some('?') if n < name.len() => Some(1),
            Some(c) if name.get(n) == Some(c) => Some(1),
            None if n == name.len() => return true,
            _ => None,
        };
        match (taken, star) {
            (Some(length), _) => (p, n) = (p + length, n + 1),
            (None, Some((after, from))) if from < name.len() => {
                star = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

/// Characters of the pattern that took the name's one.
fn one_of(pattern: &[char], c: char) -> Option<usize> {
    let end = pattern.iter().skip(2).position(|&p| p == ']')? + 2;
    let (not, set) = match &pattern[1..end] {
        ['!' | '^', set @ ..] => (true, set),
        set => (false, set),
    };
    let mut is_in = false;
    let mut at = 0;
    while at < set.len() {
        if at + 2 < set.len() && set[at + 1] == '-' {
            is_in |= (set[at]..=set[at + 2]).contains(&c);
            at += 3;
        } else {
            is_in |= set[at] == c;
            at += 1;
        }
    }
    (is_in != not).then_some(end + 1)
}

/// Files in the output of `nginx -T`; nothing if it is none.
fn dump(source: &Source) -> Option<Vec<Source>> {
    let marked = |line: &str| -> Option<Arc<str>> {
        let line = line.trim_end_matches(['\r', '\n']);
        Some(line.strip_prefix("# configuration file ")?.strip_suffix(':')?.into())
    };
    let says = |line: &&str| !line.trim().is_empty() && !line.starts_with("nginx: ");
    marked(source.text.lines().find(says)?)?;
    let mut files: Vec<Source> = Vec::new();
    for line in source.text.split_inclusive('\n') {
        match (marked(line), files.last_mut()) {
            (Some(name), _) => files.push(Source { name, text: String::new() }),
            (None, Some(file)) => file.text.push_str(line),
            (None, None) => {}
        }
    }
    Some(files)
}

struct Parser<'r> {
    read: Reader<'r>,
    sources: Vec<Source>,
    statements: usize,
    files: usize,
    bytes: u64,
}

impl Parser<'_> {
    fn main(mut self, source: &Source) -> Result<Config, Problem> {
        let place = Place::start(&source.name);
        let mut inside = Vec::new();
        let mut open = Vec::new();
        self.file(source, &mut open, 0, &mut inside)?;
        let (name, args, by_name) = (String::new(), Vec::new(), BTreeMap::new());
        let mut root =
            Directive { place, head_last: 1, last_line: 1, name, args, block: None, by_name };
        root.open(inside);
        Ok(Config { root, sources: self.sources })
    }

    fn file(
        &mut self,
        source: &Source,
        open: &mut Vec<Arc<str>>,
        depth: usize,
        into: &mut Vec<Directive>,
    ) -> Result<(), Problem> {
        self.files += 1;
        self.bytes += source.text.len() as u64;
        if !self.sources.iter().any(|known| known.name == source.name) {
            self.sources.push(source.clone());
        }
        open.push(source.name.clone());
        let mut tokens = Tokens::of(&source.name, &source.text);
        self.block(&mut tokens, open, depth, None, into)?;
        open.pop();
        Ok(())
    }

    /// Statements until the block or the file ends; the last line.
    fn block(
        &mut self,
        tokens: &mut Tokens<'_>,
        open: &mut Vec<Arc<str>>,
        depth: usize,
        begin: Option<&Place>,
        into: &mut Vec<Directive>,
    ) -> Result<u32, Problem> {
        loop {
            let statement = tokens.statement()?;
            let mut words = statement.words.into_iter();
            match (statement.end, begin) {
                (End::File, None) => return Ok(statement.last_line),
                (End::File, Some(begin)) => {
                    let problem = format!(
                        "the file ends within the block of line {}; `}}` was expected",
                        begin.line
                    );
                    return Err(Problem::at(&statement.place, problem));
                }
                (End::Close, Some(_)) => return Ok(statement.last_line),
                (End::Close, None) => {
                    let problem = "found `}` where no block is open";
                    return Err(Problem::at(&statement.place, problem));
                }
                (End::Semicolon | End::Open, _) => {}
            }
            self.statements += 1;
            if self.statements > MAX_STATEMENTS {
                let problem = format!("more than {MAX_STATEMENTS} statements");
                return Err(Problem::at(&statement.place, problem));
            }
            let mut directive = Directive {
                name: words.next().unwrap_or_default(),
                args: words.collect(),
                place: statement.place,
                head_last: statement.last_line,
                last_line: statement.last_line,
                block: None,
                by_name: BTreeMap::new(),
            };
            if statement.end == End::Open {
                if depth >= MAX_DEPTH {
                    let problem = format!("blocks deeper than {MAX_DEPTH}");
                    return Err(Problem::at(&directive.place, problem));
                }
                let mut inside = Vec::new();
                directive.last_line = if directive.name.ends_with("_by_lua_block") {
                    tokens.lua()?
                } else {
                    self.block(tokens, open, depth + 1, Some(&directive.place), &mut inside)?
                };
                directive.open(inside);
            }
            let is_include = directive.name == "include" && directive.block.is_none();
            into.push(directive);
            if is_include {
                self.include(open, depth, into)?;
            }
        }
    }

    /// What the `include` that was read last means.
    fn include(
        &mut self,
        open: &mut Vec<Arc<str>>,
        depth: usize,
        into: &mut Vec<Directive>,
    ) -> Result<(), Problem> {
        let Some(Directive { place, args, .. }) = into.last().cloned() else { return Ok(()) };
        let [pattern] = args.as_slice() else {
            let problem = format!("include has {} arguments; one was expected", args.len());
            return Err(Problem::at(&place, problem));
        };
        let files = (self.read)(pattern)
            .map_err(|wrong| Problem::at(&place, format!("include {pattern}: {wrong}")))?;
        for file in files {
            if open.contains(&file.name) {
                let way = open.iter().map(|name| &**name).collect::<Vec<_>>().join(" -> ");
                let problem = format!("{} includes itself: {way} -> {}", file.name, file.name);
                return Err(Problem::at(&place, problem));
            }
            if open.len() >= MAX_DEPTH || self.files >= MAX_FILES || self.bytes > MAX_BYTES {
                let problem = format!(
                    "too much is included: at most {MAX_FILES} files, {MAX_DEPTH} within each other, {MAX_BYTES} bytes"
                );
                return Err(Problem::at(&place, problem));
            }
            self.file(&file, open, depth + 1, into)?;
        }
        Ok(())
    }
}
