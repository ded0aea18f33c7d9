//! Files of patterns and of maps (configuration manual, 7.1, and `map` in 7.3.1).

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    sync::Arc,
};

use crate::source::{MAX_FILE, Place, Problem, Source};

/// Files that a configuration may name.
const MAX_FILES: usize = 1000;
/// What one of ours may answer, in bytes.
const MAX_TEXT: usize = 4096;
/// What is in all of them together, in bytes.
const MAX_BYTES: u64 = 4 * MAX_FILE;

/// A file of patterns, or of keys and values.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    /// As the configuration names it.
    pub(super) name: String,
    /// In order; a value is empty where there is none.
    pub(super) entries: Vec<Entry>,
    /// Why it could not be read; it is empty then.
    pub(super) problem: Option<Problem>,
}

/// One line of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where it is.
    pub(super) place: Place,
    /// The whole line, where it is no map.
    pub(super) key: String,
    /// What it leads to.
    pub(super) value: String,
}

/// All that a configuration names, each read once.
pub(super) struct Files<'a> {
    open: &'a dyn Fn(&str) -> Result<Source, Problem>,
    known: RefCell<BTreeMap<(String, bool), Arc<List>>>,
    bytes: Cell<u64>,
}

impl<'a> Files<'a> {
    pub(super) fn new(open: &'a dyn Fn(&str) -> Result<Source, Problem>) -> Self {
        Self { open, known: RefCell::default(), bytes: Cell::new(0) }
    }

    pub(super) fn map(&self, name: &str, place: &Place) -> Result<Arc<List>, Problem> {
        self.list(name, place, true)
    }

    pub(super) fn patterns(&self, name: &str, place: &Place) -> Result<Arc<List>, Problem> {
        self.list(name, place, false)
    }

    /// A file that is answered with; `None` where it cannot be read, or not be answered.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let source = (self.open)(name).ok().filter(|source| source.text.len() <= MAX_TEXT)?;
        self.bytes.set(self.bytes.get() + source.text.len() as u64);
        (self.bytes.get() <= MAX_BYTES).then_some(source.text)
    }

    fn list(&self, name: &str, place: &Place, is_map: bool) -> Result<Arc<List>, Problem> {
        let mut known = self.known.borrow_mut();
        if let Some(list) = known.get(&(name.to_owned(), is_map)) {
            return Ok(list.clone());
        }
        if known.len() == MAX_FILES {
            return Err(Problem::at(place, format!("more than {MAX_FILES} files are named")));
        }
        let list = match (self.open)(name) {
            Ok(source) => {
                self.bytes.set(self.bytes.get() + source.text.len() as u64);
                if self.bytes.get() > MAX_BYTES {
                    let problem =
                        format!("{name} and files before it: more than {MAX_BYTES} bytes");
                    return Err(Problem::at(place, problem));
                }
                List { name: name.to_owned(), entries: entries(&source, is_map), problem: None }
            }
            Err(problem) => {
                List { name: name.to_owned(), entries: Vec::new(), problem: Some(problem) }
            }
        };
        let list = Arc::new(list);
        known.insert((name.to_owned(), is_map), list.clone());
        Ok(list)
    }
}

fn entries(source: &Source, is_map: bool) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, line) in (1u32..).zip(source.text.lines()) {
        // Blanks at the end are part of a pattern.
        let line = line.trim_end_matches('\r').trim_start_matches([' ', '\t']);
        let line = if is_map { line.trim_end_matches([' ', '\t', '\r']) } else { line };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = Place { file: source.name.clone(), line: number, column: 1 };
        let (key, value) = match line.split_once([' ', '\t']) {
            Some((key, value)) if is_map => (key, value.trim_start()),
            _ => (line, ""),
        };
        entries.push(Entry { place, key: key.to_owned(), value: value.to_owned() });
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_entries() {
        let open = |name: &str| match name {
            "no" => Err(Problem::at(&Place::start(&"no".into()), "is not there")),
            _ => Ok(Source::of(name, "# a\n\n a.example \t be a \r\nb\n")),
        };
        let files = Files::new(&open);
        let place = Place::start(&"a.cfg".into());
        let keys = |list: &List| {
            let keys = list.entries.iter().map(|e| (e.place.line, e.key.clone(), e.value.clone()));
            keys.collect::<Vec<_>>()
        };
        let map = files.map("m", &place).unwrap();
        let expected = [(3, "a.example".into(), "be a".into()), (4, "b".into(), String::new())];
        assert_eq!(keys(&map), expected);
        assert_eq!(keys(&files.patterns("m", &place).unwrap())[0].1, "a.example \t be a ");
        assert!(files.map("no", &place).unwrap().problem.is_some());
        for n in 0..997 {
            files.map(&format!("f{n}"), &place).unwrap();
        }
        assert!(files.map("f997", &place).unwrap_err().problem.contains("more than 1000"));
    }
}
