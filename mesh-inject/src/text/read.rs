//! One document of YAML or JSON as Kubernetes reads it, with the line of each
//! field.

use std::{borrow::Cow, collections::BTreeMap};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::scalar;
use crate::field::Field;

/// Deepest value.
const MAX_DEPTH: usize = 100;
/// Values of one document, those of aliases counted wherever they stand.
const MAX_VALUES: usize = 200_000;

/// What a document says and where.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Document {
    /// `None` where there is nothing but comments.
    pub(super) value: Option<Value>,
    /// From 1.
    pub(super) lines: BTreeMap<Field, usize>,
}

/// A text that is no document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// From 1.
    pub(super) line: usize,
    /// From 1.
    pub(super) column: usize,
    pub(super) problem: String,
}

impl Mistake {
    fn at(span: Span, problem: impl Into<String>) -> Self {
        Self { line: span.start.line(), column: span.start.col() + 1, problem: problem.into() }
    }
}

impl From<ScanError> for Mistake {
    fn from(error: ScanError) -> Self {
        let at = error.marker();
        Self { line: at.line(), column: at.col() + 1, problem: error.info().to_owned() }
    }
}

/// Reads a text with one document at most.
pub(super) fn read(text: &str) -> Result<Document, Mistake> {
    let parser = Parser::new_from_str(text);
    let mut reader = Reader { parser, lines: BTreeMap::new(), anchors: BTreeMap::new(), values: 0 };
    loop {
        match reader.next()? {
            (Event::StreamStart | Event::Nothing, _) => {}
            (Event::StreamEnd, _) => return Ok(Document::default()),
            (Event::DocumentStart(_), _) => break,
            (_, span) => return Err(Mistake::at(span, "a document should begin here")),
        }
    }
    let first = reader.next()?;
    let value = reader.value(first, &Field::root(), 0)?;
    loop {
        match reader.next()? {
            (Event::DocumentEnd | Event::Nothing, _) => {}
            (Event::StreamEnd, _) => break,
            (_, span) => return Err(Mistake::at(span, "write --- between two documents")),
        }
    }
    Ok(Document { value: Some(value).filter(|value| !value.is_null()), lines: reader.lines })
}

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    lines: BTreeMap<Field, usize>,
    anchors: BTreeMap<usize, Anchored>,
    values: usize,
}

/// What stands under an anchor and how many values that is.
struct Anchored {
    value: Value,
    values: usize,
}

type Spanned<'t> = (Event<'t>, Span);

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Spanned<'t>, Mistake> {
        match self.parser.next_event() {
            Some(event) => Ok(event?),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn value(&mut self, from: Spanned<'t>, at: &Field, depth: usize) -> Result<Value, Mistake> {
        let (event, span) = from;
        if depth > MAX_DEPTH {
            return Err(Mistake::at(span, format!("more than {MAX_DEPTH} levels deep")));
        }
        self.count(1, span)?;
        self.lines.entry(at.clone()).or_insert(span.start.line());
        let before = self.values;
        let (value, anchor) = match event {
            Event::Alias(anchor) => {
                let anchored = self.anchors.get(&anchor);
                let Some(Anchored { value, values }) = anchored else {
                    return Err(Mistake::at(span, "an alias within what it stands for"));
                };
                let (value, values) = (value.clone(), *values);
                self.count(values, span)?;
                return Ok(value);
            }
            Event::Scalar(text, style, anchor, tag) => {
                (scalar_of(&text, style, tag.as_deref(), span)?, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.sequence(at, depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.mapping(at, depth)?, anchor),
            _ => return Err(Mistake::at(span, "a value should stand here")),
        };
        if anchor > 0 {
            let values = self.values - before;
            self.anchors.insert(anchor, Anchored { value: value.clone(), values });
        }
        Ok(value)
    }

    fn count(&mut self, values: usize, span: Span) -> Result<(), Mistake> {
        self.values = self.values.saturating_add(values);
        if self.values > MAX_VALUES {
            return Err(Mistake::at(span, format!("more than {MAX_VALUES} values")));
        }
        Ok(())
    }

    fn sequence(&mut self, at: &Field, depth: usize) -> Result<Value, Mistake> {
        let mut list = Vec::new();
        loop {
            let next = self.next()?;
            if matches!(next.0, Event::SequenceEnd) {
                return Ok(Value::Array(list));
            }
            list.push(self.value(next, &at.index(list.len()), depth + 1)?);
        }
    }

    fn mapping(&mut self, at: &Field, depth: usize) -> Result<Value, Mistake> {
        let (mut map, mut merged) = (Map::new(), Vec::new());
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let key = key(&event, span)?;
            let field = key.as_ref().map_or_else(|| at.key("<<"), |key| at.key(key));
            self.lines.insert(field.clone(), span.start.line());
            let next = self.next()?;
            let value = self.value(next, &field, depth + 1)?;
            match key {
                None => merged.push((value, span)),
                Some(key) if map.contains_key(&key) => {
                    return Err(Mistake::at(span, format!("{key:?} stands here a second time")));
                }
                Some(key) => {
                    map.insert(key, value);
                }
            }
        }
        for (value, span) in merged {
            merge(&mut map, value, span)?;
        }
        Ok(Value::Object(map))
    }
}

/// `<<`: what is written beside it wins, and so does the first of several.
fn merge(map: &mut Map<String, Value>, from: Value, span: Span) -> Result<(), Mistake> {
    let all = match from {
        Value::Array(list) => list,
        one => vec![one],
    };
    for one in all {
        let Value::Object(one) = one else {
            return Err(Mistake::at(span, "<< takes mappings"));
        };
        for (key, value) in one {
            map.entry(key).or_insert(value);
        }
    }
    Ok(())
}

/// A key is text for Kubernetes, whatever YAML makes of it; `None` is `<<`.
fn key(event: &Event<'_>, span: Span) -> Result<Option<String>, Mistake> {
    let Event::Scalar(text, style, _, tag) = event else {
        return Err(Mistake::at(span, "a key must be text"));
    };
    if text == "<<" && *style == ScalarStyle::Plain && tag.is_none() {
        return Ok(None);
    }
    match scalar_of(text, *style, tag.as_deref(), span)? {
        Value::String(text) => Ok(Some(text)),
        Value::Null => Err(Mistake::at(span, "a key must be text")),
        other => Ok(Some(other.to_string())),
    }
}

fn scalar_of(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    span: Span,
) -> Result<Value, Mistake> {
    let kind = match tag {
        None if style == ScalarStyle::Plain => return Ok(scalar::plain(text)),
        None => return Ok(text.into()),
        Some(tag) if tag.is_yaml_core_schema() => Cow::Borrowed(tag.suffix.as_str()),
        Some(tag) => Cow::Owned(tag.to_string()),
    };
    let value = scalar::plain(text);
    let fits = match &*kind {
        "str" | "binary" => return Ok(text.into()),
        "int" | "float" => value.is_number(),
        "bool" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    };
    if fits { Ok(value) } else { Err(Mistake::at(span, format!("{text:?} is no !!{kind}"))) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(text: &str) -> Value {
        read(text).unwrap_or_else(|mistake| panic!("{text}: {mistake:?}")).value.unwrap_or_default()
    }

    #[test]
    fn documents_mean_what_kubernetes_reads() {
        let cases = [
            (
                "a: 0644\nb: '0644'\nc: \"yes\"\nd: yes",
                json!({"a": 420, "b": "0644", "c": "yes", "d": true}),
            ),
            ("{\"a\": [1, \"x\", null], \"b\": {}}", json!({"a": [1, "x", null], "b": {}})),
            ("a: |\n  one\n  two\nb: >-\n  one\n  two", json!({"a": "one\ntwo\n", "b": "one two"})),
            (
                "a: &x {k: 1}\nb: *x\nc: {<<: *x, k: 2, l: 3}",
                json!({"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 2, "l": 3}}),
            ),
            ("c:\n  <<: [{k: 1}, {k: 2, l: 2}]", json!({"c": {"k": 1, "l": 2}})),
            ("1: a\ntrue: b\n'<<': c", json!({"1": "a", "true": "b", "<<": "c"})),
            ("a: !!str 5\nb: !!int '5'", json!({"a": "5", "b": 5})),
            ("# nothing", Value::Null),
            ("---\n", Value::Null),
            ("", Value::Null),
        ];
        for (text, expected) in cases {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn a_mistake_has_its_place() {
        let cases = [
            ("a: 1\na: 2", (2, 1), "\"a\" stands here a second time"),
            ("a: [1\nb: 2", (2, 1), ""),
            ("a:\n  - !x 1", (2, 5), "\"1\" is no !!!x"),
            ("a: 1\n--- \nb: 2", (2, 1), "write --- between two documents"),
            ("? [a]\n: 1", (1, 3), "a key must be text"),
            ("a: &x [*x]", (1, 8), "an alias within what it stands for"),
            ("<<: 5", (1, 1), "<< takes mappings"),
            ("a: \"\\q\"", (1, 4), ""),
        ];
        for (text, (line, column), problem) in cases {
            let mistake = read(text).unwrap_err();
            assert!(mistake.problem.contains(problem), "{text}: {mistake:?}");
            if !problem.is_empty() {
                assert_eq!((mistake.line, mistake.column), (line, column), "{text}: {mistake:?}");
            }
        }
    }

    #[test]
    fn every_field_has_its_line() {
        let text =
            "kind: Pod\nspec:\n  containers:\n  - name: a\n    ports:\n    - {containerPort: 1}\n";
        let lines = read(text).unwrap().lines;
        let port = Field::of(&["spec", "containers"]).index(0).key("ports").index(0);
        assert_eq!(lines[&port.key("containerPort")], 6);
        assert_eq!(lines[&Field::of(&["spec"])], 2);
    }

    #[test]
    fn bombs_do_not_go_off() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let before = vec![format!("*a{}", level - 1); 10].join(", ");
            text += &format!("a{level}: &a{level} [{before}]\n");
        }
        assert!(read(&text).unwrap_err().problem.contains("more than 200000 values"));
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(read(&deep).is_err());
        let deep = format!("a: {}", "- ".repeat(5000));
        assert!(read(&deep).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[-a-c:{}\\[\\],\"'|>&*!#%? \n0-9.~<]{0,80}") {
            let _ = read(&text);
        }
    }
}
