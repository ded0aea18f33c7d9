//! Where the characters of a value of YAML are written.

use std::sync::Arc;

use crate::{
    source::{Place, Source},
    yaml::Node,
};

/// Lines of a file.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    file: Arc<str>,
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn of(source: &'a Source) -> Self {
        Self::of_text(source.name.clone(), &source.text)
    }

    fn of_text(file: Arc<str>, text: &'a str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let starts = std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect();
        Self { file, text, starts }
    }

    fn offset(&self, place: &Place) -> usize {
        let line = (place.line as usize).saturating_sub(1);
        let Some(start) = self.starts.get(line) else { return self.text.len() };
        let before = self.text[*start..].chars().take((place.column as usize).saturating_sub(1));
        start + before.map(char::len_utf8).sum::<usize>()
    }

    /// Of offsets that ascend: a file may be one long line.
    fn places(&self, offsets: &[usize]) -> Vec<Place> {
        let mut last = (0, 0, 0);
        let mut place = |offset: usize| {
            let line = self.starts.partition_point(|start| *start <= offset).max(1);
            let (known, from, column) = last;
            let start = self.starts[line - 1];
            let (from, column) = if known == line { (from, column) } else { (start, 0) };
            let column = column + self.text[from..offset].chars().count();
            last = (line, offset, column);
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            Place { file: self.file.clone(), line: number(line), column: number(column) + 1 }
        };
        offsets.iter().map(|offset| place(*offset)).collect()
    }

    /// Places in the text of a node.
    pub(super) fn within(&'a self, node: &Node, value: &'a str) -> Places<'a> {
        Places { lines: Whole::Part(self), start: self.offset(&node.place), value }
    }
}

/// Places of one value.
pub(super) struct Places<'a> {
    lines: Whole<'a>,
    start: usize,
    value: &'a str,
}

enum Whole<'a> {
    Part(&'a Lines<'a>),
    Own(Lines<'a>),
}

impl<'a> Places<'a> {
    /// Of a text that is a file of its own.
    pub(super) fn of_text(file: Arc<str>, text: &'a str) -> Self {
        Self { lines: Whole::Own(Lines::of_text(file, text)), start: 0, value: text }
    }

    /// Where these offsets of the value are, which ascend. YAML folds lines, cuts
    /// indentation and escapes: both texts are walked together, and what only the file
    /// has is passed over.
    pub(super) fn of(&self, offsets: &[usize]) -> Vec<Place> {
        let lines = match &self.lines {
            Whole::Part(lines) => lines,
            Whole::Own(lines) => return lines.places(offsets),
        };
        let mut said = lines.text[self.start..].char_indices();
        let mut wanted = offsets.iter().peekable();
        let mut found = Vec::with_capacity(offsets.len());
        let mut last = self.start;
        for (at, c) in self.value.char_indices().filter(|(_, c)| !c.is_whitespace()) {
            if wanted.peek().is_none() {
                break;
            }
            let Some((there, _)) = said.find(|(_, other)| *other == c) else { break };
            last = self.start + there;
            while wanted.next_if(|offset| **offset <= at).is_some() {
                found.push(last);
            }
        }
        found.extend(wanted.map(|_| last));
        lines.places(&found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    #[test]
    fn every_style_of_yaml() {
        let cases = [
            ("d: |\n  /a => /b ;\n\n  /c => /d ;\n", (4, 3)),
            ("d: >-\n  /a => /b ;\n  /c => /d ;\n", (3, 3)),
            ("d: /a => /b ;\n   /c => /d\n", (2, 4)),
            ("d: '/a => /b ;\n   /c => /d'\n", (2, 4)),
            ("d: \"/a => /b ;\\n/c => /d\"\n", (1, 17)),
            ("{\"d\": \"/a => /b ; /c => /d\"}\n", (1, 19)),
        ];
        for (text, expected) in cases {
            let source = Source::of("f", text);
            let root = yaml::parse(&source).unwrap();
            let node = root.at("d").unwrap();
            let value = node.text().unwrap();
            let lines = Lines::of(&source);
            let at = value.find("/c").unwrap();
            let place = lines.within(node, &value).of(&[at]).remove(0);
            assert_eq!((place.line, place.column), expected, "{text:?}");
        }
    }
}
