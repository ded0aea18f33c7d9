//! Delegation tables of Finagle: their grammar, and where each entry is written.
//!
//! ```text
//! dtab   = entry *( ";" entry ) [ ";" ]
//! entry  = prefix "=>" tree
//! tree   = union *( "|" union )
//! union  = wtree *( "&" wtree )
//! wtree  = [ number "*" ] simple
//! simple = path | "!" | "~" | "$" | "(" tree ")"
//! ```

use std::{fmt, sync::Arc};

use super::{
    name::{Name, is_showable, shown, without_blank},
    places::Places,
};
use crate::source::{Place, Problem};

/// Parentheses within each other.
const MAX_NESTING: u32 = 32;

/// A delegation table, in order of the file: the last entry that matches is the first
/// that is asked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dtab {
    /// In order of the file.
    pub entries: Vec<Dentry>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Dentry {
    /// Where it begins.
    pub place: Place,
    /// Its last line.
    pub last_line: u32,
    /// Names that it is for.
    pub prefix: Vec<Element>,
    /// What they become.
    pub tree: Tree,
}

/// A label of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Element {
    /// `*`: any one.
    Any,
    /// This one.
    Label(String),
}

/// What a name becomes.
#[derive(Debug, Clone, PartialEq)]
pub enum Tree {
    /// Another name.
    Leaf(Name),
    /// The first that is not negative.
    Alt(Vec<Tree>),
    /// All, by weight.
    Union(Vec<(f64, Tree)>),
    /// `~`: not here.
    Neg,
    /// `!`: not here, and nowhere.
    Fail,
    /// `$`: here, and nobody is in.
    Empty,
}

impl Dentry {
    /// Whether it is for a name.
    pub fn matches(&self, name: &Name) -> bool {
        let labels = name.labels();
        labels.len() >= self.prefix.len()
            && self.prefix.iter().zip(labels).all(|(element, label)| match element {
                Element::Any => true,
                Element::Label(known) => known == label,
            })
    }

    /// The prefix as it is written.
    pub fn prefix_text(&self) -> String {
        if self.prefix.is_empty() {
            return "/".into();
        }
        let mut text = String::new();
        for element in &self.prefix {
            text.push('/');
            text.push_str(match element {
                Element::Any => "*",
                Element::Label(label) => label,
            });
        }
        text
    }
}

impl fmt::Display for Dentry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} => {}", self.prefix_text(), self.tree)
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = |f: &mut fmt::Formatter<'_>, tree: &Tree| match tree {
            Tree::Alt(_) | Tree::Union(_) => write!(f, "({tree})"),
            _ => write!(f, "{tree}"),
        };
        match self {
            Tree::Leaf(name) => write!(f, "{name}"),
            Tree::Neg => f.write_str("~"),
            Tree::Fail => f.write_str("!"),
            Tree::Empty => f.write_str("$"),
            Tree::Alt(trees) => trees.iter().enumerate().try_for_each(|(at, tree)| {
                f.write_str(if at == 0 { "" } else { " | " })?;
                inner(f, tree)
            }),
            Tree::Union(trees) => trees.iter().enumerate().try_for_each(|(at, (weight, tree))| {
                write!(f, "{}{weight} * ", if at == 0 { "" } else { " & " })?;
                inner(f, tree)
            }),
        }
    }
}

impl Dtab {
    /// A table that stands alone: a file of `application/dtab`, the value of a header.
    ///
    /// # Errors
    ///
    /// It does not follow the grammar.
    pub fn read(file: &str, text: &str) -> Result<Self, Problem> {
        Self::within(&Places::of_text(Arc::from(file), text), text)
    }

    /// A table within a larger file.
    pub(super) fn within(places: &Places<'_>, text: &str) -> Result<Self, Problem> {
        let mut parser = Parser { text, at: 0, nesting: 0 };
        let entries = match parser.dtab() {
            Ok(entries) => entries,
            Err(wrong) => {
                let place = places.of(&[parser.at]).remove(0);
                return Err(Problem::at(&place, wrong));
            }
        };
        let offsets: Vec<usize> = entries.iter().flat_map(|entry| [entry.from, entry.to]).collect();
        let mut found = places.of(&offsets).into_iter();
        let mut at = || found.next().expect("as many places as offsets");
        let entries = entries.into_iter().map(|Found { prefix, tree, .. }| {
            let (place, last) = (at(), at());
            Dentry { last_line: last.line.max(place.line), place, prefix, tree }
        });
        Ok(Self { entries: entries.collect() })
    }

    /// An entry of two texts, as namerd's JSON has them.
    pub(super) fn entry(place: &Place, prefix: &str, dst: &str) -> Result<Dentry, Problem> {
        let mut of_prefix = Parser { text: prefix, at: 0, nesting: 0 };
        let mut of_tree = Parser { text: dst, at: 0, nesting: 0 };
        let read = |parser: &mut Parser<'_>| -> Result<Vec<Element>, String> {
            let prefix = parser.prefix()?;
            parser.end()?;
            Ok(prefix)
        };
        let tree = |parser: &mut Parser<'_>| -> Result<Tree, String> {
            let tree = parser.tree()?;
            parser.end()?;
            Ok(tree)
        };
        let wrong = |wrong: String| Problem::at(place, wrong);
        let prefix = read(&mut of_prefix).map_err(wrong)?;
        let tree = tree(&mut of_tree).map_err(wrong)?;
        Ok(Dentry { place: place.clone(), last_line: place.line, prefix, tree })
    }
}

struct Found {
    from: usize,
    to: usize,
    prefix: Vec<Element>,
    tree: Tree,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    nesting: u32,
}

impl Parser<'_> {
    fn dtab(&mut self) -> Result<Vec<Found>, String> {
        let mut entries = Vec::new();
        loop {
            self.blank();
            if self.peek().is_some() {
                let from = self.at;
                let prefix = self.prefix()?;
                self.blank();
                self.eat('=')?;
                self.eat('>')?;
                let tree = self.tree()?;
                let said = self.text[from..self.at].trim_end();
                let last = said.char_indices().next_back().map_or(0, |(at, _)| at);
                entries.push(Found { from, to: from + last, prefix, tree });
                self.blank();
            }
            if !self.eats(';') {
                break;
            }
        }
        self.end()?;
        Ok(entries)
    }

    fn prefix(&mut self) -> Result<Vec<Element>, String> {
        self.blank();
        self.eat('/')?;
        let mut elements = Vec::new();
        if !self.peek().is_some_and(|c| is_label(c) || c == '*') {
            return Ok(elements);
        }
        loop {
            elements.push(if self.eats('*') {
                Element::Any
            } else {
                Element::Label(self.label()?)
            });
            if !self.eats('/') {
                return Ok(elements);
            }
        }
    }

    fn path(&mut self) -> Result<Name, String> {
        self.eat('/')?;
        let mut labels = Vec::new();
        if self.peek().is_some_and(is_label) {
            loop {
                labels.push(self.label()?);
                if !self.eats('/') {
                    break;
                }
            }
        }
        Ok(Name::of_shown(labels))
    }

    fn label(&mut self) -> Result<String, String> {
        let mut bytes = Vec::new();
        while let Some(c) = self.peek().filter(|c| is_label(*c)) {
            self.at += 1;
            if c == '\\' {
                self.eat('x')?;
                let (high, low) = (self.hex()?, self.hex()?);
                bytes.push(high << 4 | low);
            } else {
                bytes.extend(u8::try_from(c));
            }
        }
        if bytes.is_empty() { Err(self.expected("a label")) } else { Ok(shown(&bytes)) }
    }

    fn hex(&mut self) -> Result<u8, String> {
        let digit = self.peek().and_then(|c| c.to_digit(16));
        let digit = digit.ok_or_else(|| self.expected("a hexadecimal digit"))?;
        self.at += 1;
        Ok(digit as u8)
    }

    fn tree(&mut self) -> Result<Tree, String> {
        let mut trees = vec![self.union()?];
        while self.eats('|') {
            trees.push(self.union()?);
        }
        Ok(if trees.len() == 1 { trees.remove(0) } else { Tree::Alt(trees) })
    }

    fn union(&mut self) -> Result<Tree, String> {
        let mut trees = vec![self.weighted()?];
        self.blank();
        while self.eats('&') {
            trees.push(self.weighted()?);
            self.blank();
        }
        Ok(if trees.len() == 1 { trees.remove(0).1 } else { Tree::Union(trees) })
    }

    fn weighted(&mut self) -> Result<(f64, Tree), String> {
        self.blank();
        let from = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit() || c == '.') {
            self.at += 1;
        }
        if self.at == from {
            return Ok((1.0, self.simple()?));
        }
        let Ok(weight) = self.text[from..self.at].parse::<f64>() else {
            self.at = from;
            return Err(self.expected("a weight, such as 0.5"));
        };
        self.blank();
        self.eat('*')?;
        self.blank();
        Ok((weight, self.simple()?))
    }

    fn simple(&mut self) -> Result<Tree, String> {
        self.blank();
        match self.peek() {
            Some('(') => {
                self.nesting += 1;
                if self.nesting > MAX_NESTING {
                    return Err(format!("parentheses are nested deeper than {MAX_NESTING}"));
                }
                self.at += 1;
                let tree = self.tree()?;
                self.blank();
                self.eat(')')?;
                self.nesting -= 1;
                Ok(tree)
            }
            Some('/') => self.path().map(Tree::Leaf),
            Some('!') => Ok(self.one(Tree::Fail)),
            Some('~') => Ok(self.one(Tree::Neg)),
            Some('$') => Ok(self.one(Tree::Empty)),
            _ => Err(self.expected("a path, '!', '~', '$' or '('")),
        }
    }

    fn one(&mut self, tree: Tree) -> Tree {
        self.at += 1;
        tree
    }

    fn blank(&mut self) {
        self.at = self.text.len() - without_blank(&self.text[self.at..]).len();
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn eats(&mut self, c: char) -> bool {
        let is = self.peek() == Some(c);
        self.at += if is { c.len_utf8() } else { 0 };
        is
    }

    fn eat(&mut self, c: char) -> Result<(), String> {
        if self.eats(c) { Ok(()) } else { Err(self.expected(&format!("'{c}'"))) }
    }

    fn end(&mut self) -> Result<(), String> {
        self.blank();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.expected("';' or the end")),
        }
    }

    fn expected(&self, what: &str) -> String {
        match self.peek() {
            Some(c) => format!("dtab: expected {what}, found {c:?}"),
            None => format!("dtab: expected {what}, found its end"),
        }
    }
}

fn is_label(c: char) -> bool {
    c == '\\' || u8::try_from(c).is_ok_and(is_showable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let dtab = Dtab::read("d", text).map_err(|problem| problem.to_string())?;
        Ok(dtab.entries.iter().map(Dentry::to_string).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn the_grammar() {
        let cases = [
            ("", ""),
            (" # nothing\n", ""),
            ("/=>/;", "/ => /"),
            ("/a=>/b|/c&/d", "/a => /b | (1 * /c & 1 * /d)"),
            ("/*/a => .5*/b & 2. * (~|!) ; /x=>$", "/*/a => 0.5 * /b & 2 * (~ | !); /x => $"),
            ("/a # x\n => # y\n /b#c", "/a => /b#c"),
            (r"/a\x20 => /\x41", r"/\x61\x20 => /A"),
            ("/svc => ((/a))", "/svc => /a"),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_has_a_place() {
        let cases = [
            ("/a => ", "d:1:7: dtab: expected a path, '!', '~', '$' or '(', found its end"),
            ("/a -> /b", "d:1:4: dtab: expected '=', found '-'"),
            ("/a => /b\n/c => /d", "d:2:1: dtab: expected ';' or the end, found '/'"),
            ("/a => /b;\n ;", "d:2:2: dtab: expected '/', found ';'"),
            ("/a => 1 /b", "d:1:9: dtab: expected '*', found '/'"),
            ("/a => . * /b", "d:1:7: dtab: expected a weight, such as 0.5, found '.'"),
            ("/a => /b/", "d:1:10: dtab: expected a label, found its end"),
            ("/a => (/b", "d:1:10: dtab: expected ')', found its end"),
            ("/a => /b/*", "d:1:10: dtab: expected a label, found '*'"),
            ("/é => /b", "d:1:2: dtab: expected '=', found 'é'"),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), Err(expected.to_owned()), "{text:?}");
        }
        let deep = format!("/a => {}/b{}", "(".repeat(40), ")".repeat(40));
        assert!(read(&deep).unwrap_err().contains("deeper than 32"));
    }

    #[test]
    fn entries_know_their_lines() {
        let dtab = Dtab::read("d", "# x\n/a => /b ;\n\n  /c =>\n /d | /e ;").unwrap();
        let lines: Vec<_> = dtab.entries.iter().map(|e| (e.place.line, e.last_line)).collect();
        assert_eq!(lines, [(2, 2), (4, 5)]);
        assert_eq!(dtab.entries[1].place.column, 3);
    }
}
