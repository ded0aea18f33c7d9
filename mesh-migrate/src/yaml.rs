//! YAML and JSON as a tree that knows its lines, and reads what it finds strictly.

use std::{collections::BTreeMap, sync::Arc};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};

use crate::source::{Place, Problem, Source};

/// Mappings and sequences within each other.
const MAX_DEPTH: usize = 64;
/// Nodes, copies by alias included.
const MAX_NODES: usize = 500_000;

/// A value and where it begins.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// Its last line.
    pub last_line: u32,
    /// A scalar without quotes: YAML 1.1 reads `no` there as `false`.
    pub is_plain: bool,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Debug, Clone)]
pub enum Value {
    /// Nothing: `null`, `~`, or nothing at all.
    Null,
    /// `true` or `false`, not quoted.
    Bool(bool),
    /// A number, not quoted, as it is written.
    Number(String),
    /// Text.
    Text(String),
    /// In order.
    List(Vec<Node>),
    /// In order; no key is there twice.
    Map(Vec<(Key, Node)>),
}

/// A key and where it is.
#[derive(Debug, Clone)]
pub struct Key {
    /// What it says.
    pub name: String,
    /// Where.
    pub place: Place,
}

impl Node {
    /// What it is, for people.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// The value of a key of a mapping.
    pub fn at(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => {
                entries.iter().find(|(known, _)| known.name == key).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// Entries of a mapping.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn map(&self) -> Result<&[(Key, Node)], Problem> {
        match &self.value {
            Value::Map(entries) => Ok(entries),
            Value::Null => Ok(&[]),
            _ => Err(self.expected("a mapping")),
        }
    }

    /// Elements of a list.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn list(&self) -> Result<&[Node], Problem> {
        match &self.value {
            Value::List(elements) => Ok(elements),
            Value::Null => Ok(&[]),
            _ => Err(self.expected("a list")),
        }
    }

    /// Text, or a number or `true` as they are written.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn text(&self) -> Result<String, Problem> {
        match &self.value {
            Value::Text(text) | Value::Number(text) => Ok(text.clone()),
            Value::Bool(value) => Ok(value.to_string()),
            _ => Err(self.expected("text")),
        }
    }

    /// A number, quoted or not.
    ///
    /// # Errors
    ///
    /// It is something else, or none of this type.
    pub fn number<T: std::str::FromStr>(&self) -> Result<T, Problem> {
        match &self.value {
            Value::Number(text) | Value::Text(text) => {
                text.parse().map_err(|_| self.expected("a number that is not out of range"))
            }
            _ => Err(self.expected("a number")),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn bool(&self) -> Result<bool, Problem> {
        match &self.value {
            Value::Bool(value) => Ok(*value),
            _ => Err(self.expected("true or false")),
        }
    }

    /// That something else was expected here.
    pub fn expected(&self, what: &str) -> Problem {
        Problem::at(&self.place, format!("expected {what}, and this is {}", self.kind()))
    }
}

/// The only document of a file.
///
/// # Errors
///
/// It is no YAML, has several documents, a key twice, is too deep, or, with its
/// aliases, too large.
pub fn parse(source: &Source) -> Result<Node, Problem> {
    let mut reader = Reader {
        file: source.name.clone(),
        parser: Parser::new_from_str(&source.text),
        anchors: BTreeMap::new(),
        nodes: 0,
        last: 1,
    };
    reader.document()
}

struct Reader<'a> {
    file: Arc<str>,
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    last: u32,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Place), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let place = self.place(span.start.line(), span.start.col());
                self.last = self.last.max(u32::try_from(span.end.line()).unwrap_or(u32::MAX));
                Ok((event, place))
            }
            Some(Err(error)) => Err(self.scan(&error)),
            None => Ok((Event::StreamEnd, self.place(1, 0))),
        }
    }

    fn place(&self, line: usize, column: usize) -> Place {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Place { file: self.file.clone(), line: number(line), column: number(column) + 1 }
    }

    fn scan(&self, error: &ScanError) -> Problem {
        let at = error.marker();
        Problem::at(&self.place(at.line(), at.col()), format!("no YAML: {}", error.info()))
    }

    fn document(&mut self) -> Result<Node, Problem> {
        let mut root = None;
        loop {
            let (event, place) = self.next()?;
            match event {
                Event::StreamEnd => {
                    let empty = Node {
                        place: Place::start(&self.file),
                        last_line: 1,
                        is_plain: true,
                        value: Value::Null,
                    };
                    return Ok(root.unwrap_or(empty));
                }
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                Event::DocumentStart(_) => {
                    if root.is_some() {
                        return Err(Problem::at(&place, "a second document; one was expected"));
                    }
                }
                event => root = Some(self.node(event, place, 0)?),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, place: Place, depth: usize) -> Result<Node, Problem> {
        self.nodes += 1;
        if depth > MAX_DEPTH {
            return Err(Problem::at(&place, format!("deeper than {MAX_DEPTH}")));
        }
        if self.nodes > MAX_NODES {
            return Err(Problem::at(&place, format!("more than {MAX_NODES} values")));
        }
        let is_plain = matches!(&event, Event::Scalar(_, ScalarStyle::Plain, ..));
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, _) => (anchor, scalar(&text, style)),
            Event::SequenceStart(anchor, _) => (anchor, self.sequence(depth)?),
            Event::MappingStart(anchor, _) => (anchor, self.mapping(depth)?),
            Event::Alias(id) => {
                let known = self.anchors.get(&id).cloned();
                let known = known.ok_or_else(|| Problem::at(&place, "an alias of nothing"))?;
                self.nodes += count(&known);
                if self.nodes > MAX_NODES {
                    return Err(Problem::at(&place, format!("more than {MAX_NODES} values")));
                }
                return Ok(Node { place, ..known });
            }
            _ => return Err(Problem::at(&place, "a value was expected")),
        };
        let node = Node { last_line: self.last.max(place.line), place, is_plain, value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut elements = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(elements)),
                (event, place) => elements.push(self.node(event, place, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Problem> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut known = std::collections::BTreeSet::new();
        loop {
            let (event, place) = self.next()?;
            let name = match event {
                Event::MappingEnd => return Ok(Value::Map(entries)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(Problem::at(&place, "a key was expected: text")),
            };
            if !known.insert(name.clone()) {
                return Err(Problem::at(&place, format!("{name:?} is there twice")));
            }
            let (event, at) = self.next()?;
            let value = self.node(event, at, depth + 1)?;
            entries.push((Key { name, place }, value));
        }
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(elements) => elements.iter().map(count).sum(),
        Value::Map(entries) => entries.iter().map(|(_, value)| count(value)).sum(),
        _ => 0,
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if text.parse::<f64>().is_ok() && text.bytes().any(|b| b.is_ascii_digit()) => {
            Value::Number(text.to_owned())
        }
        _ => Value::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        parse(&Source::of("a.yaml", text)).unwrap_err().to_string()
    }

    #[test]
    fn everything_knows_its_line() {
        let text = "a: 1\nb:\n  - x\n  - {c: 'true', d: true}\n";
        let root = parse(&Source::of("a.yaml", text)).unwrap();
        assert_eq!(root.at("a").unwrap().number::<u16>().unwrap(), 1);
        let list = root.at("b").unwrap();
        let second = &list.list().unwrap()[1];
        assert_eq!((second.place.line, second.place.column), (4, 5));
        assert_eq!(second.at("c").unwrap().text().unwrap(), "true");
        assert!(second.at("c").unwrap().bool().is_err());
        assert!(second.at("d").unwrap().bool().unwrap());
    }

    #[test]
    fn json_is_yaml() {
        let root = parse(&Source::of("a.json", "{\"a\": [1, \"two\"]}")).unwrap();
        assert_eq!(root.at("a").unwrap().list().unwrap().len(), 2);
    }

    #[test]
    fn what_is_wrong_has_a_place() {
        assert!(problem("a: 1\na: 2\n").starts_with("a.yaml:2:1: \"a\" is there twice"));
        assert!(problem("a: [1,\n").starts_with("a.yaml:2:1: no YAML"), "{}", problem("a: [1,\n"));
        assert!(problem(&"[".repeat(100)).contains("deeper than 64"));
        let mut bomb = String::from("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n");
        for n in 1..10 {
            let before = format!("*a{},", n - 1).repeat(10);
            bomb += &format!("a{n}: &a{n} [{before}]\n");
        }
        assert!(problem(&bomb).contains("more than 500000 values"));
    }
}
