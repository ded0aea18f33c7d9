//! Streams of YAML documents: what is a workload is injected and written anew,
//! all else passes byte by byte.
//!
//! Comments above a document stay; those within a workload that changes are
//! lost. A workload that does not change passes as it is, and so injecting twice
//! gives the same bytes.

mod read;
mod scalar;
mod write;

use std::fmt;

use serde_json::Value;

use crate::{
    field::Field,
    outcome::Outcome,
    settings::Settings,
    workload::{self, inject_document},
};

/// The longest stream, in bytes.
pub const MAX_BYTES: usize = 32 << 20;

/// A stream that cannot be taken; none of it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It is no YAML, or not what Kubernetes reads.
    #[error("{file}:{line}:{column}: {problem}")]
    Text {
        /// The stream's name.
        file: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong.
        problem: String,
    },
    /// A workload cannot be injected.
    #[error("{file}:{line}: {problem}")]
    Refused {
        /// The stream's name.
        file: String,
        /// Of the field.
        line: usize,
        /// Which field, what is wrong and how to mend it.
        problem: String,
    },
    /// Nobody writes that much by hand.
    #[error("{0}: is longer than {MAX_BYTES} bytes; is it the right file?")]
    TooLong(String),
}

/// What became of one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Where it begins, from 1.
    pub line: usize,
    /// `Deployment shop/web`.
    pub name: String,
    /// What became of its pod.
    pub outcome: Outcome,
}

/// Injects every workload of a stream; `file` is how errors name it.
///
/// # Errors
///
/// The first document that cannot be taken.
pub fn inject(
    text: &str,
    file: &str,
    settings: &Settings,
) -> Result<(String, Vec<Note>), TextError> {
    let mut notes = Vec::new();
    let text = each_document(text, file, |chunk, document| {
        let reports = inject_document(&mut document.value, settings)
            .map_err(|refusal| chunk.refused(file, &document.lines, &refusal))?;
        notes.extend(reports.into_iter().map(|report| Note {
            line: chunk.line_of(&report.field, &document.lines),
            name: report.name,
            outcome: report.outcome,
        }));
        Ok(())
    })?;
    Ok((text, notes))
}

/// Takes our parts out of every workload of a stream, which had some in those
/// named.
///
/// # Errors
///
/// The first document that cannot be read.
pub fn uninject(text: &str, file: &str) -> Result<(String, Vec<String>), TextError> {
    let mut names = Vec::new();
    let text = each_document(text, file, |_, document| {
        names.extend(workload::uninject_document(&mut document.value));
        Ok(())
    })?;
    Ok((text, names))
}

struct Document {
    value: Value,
    lines: std::collections::BTreeMap<Field, usize>,
}

fn each_document(
    text: &str,
    file: &str,
    mut change: impl FnMut(&Chunk<'_>, &mut Document) -> Result<(), TextError>,
) -> Result<String, TextError> {
    if text.len() > MAX_BYTES {
        return Err(TextError::TooLong(file.to_owned()));
    }
    let mut out = String::with_capacity(text.len());
    for chunk in chunks(text) {
        let read = read::read(chunk.text).map_err(|mistake| TextError::Text {
            file: file.to_owned(),
            line: chunk.before + mistake.line,
            column: mistake.column,
            problem: mistake.problem,
        })?;
        let Some(value) = read.value else {
            out.push_str(chunk.text);
            continue;
        };
        let mut document = Document { value, lines: read.lines };
        let before = document.value.clone();
        change(&chunk, &mut document)?;
        if document.value == before {
            out.push_str(chunk.text);
        } else {
            out.push_str(chunk.head());
            out.push_str(&write::write(&document.value));
        }
    }
    Ok(out)
}

/// One document as it stands in the stream.
#[derive(Debug, PartialEq, Eq)]
struct Chunk<'t> {
    text: &'t str,
    /// Lines before it.
    before: usize,
}

/// A line that begins with `---` begins a document, wherever it stands: block
/// scalars and quotes cannot hold one (YAML 1.2, 9.1.2).
fn chunks(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut before, mut at) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line) && at > start {
            chunks.extend(text.get(start..at).map(|text| Chunk { text, before }));
            (start, before) = (at, number);
        }
        at += line.len();
    }
    chunks.extend(
        text.get(start..).filter(|text| !text.is_empty()).map(|text| Chunk { text, before }),
    );
    chunks
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl<'t> Chunk<'t> {
    /// The marker, and comments above what the document says.
    fn head(&self) -> &'t str {
        let mut end = 0;
        for line in self.text.split_inclusive('\n') {
            let rest = if is_marker(line) { line.get(3..).unwrap_or_default() } else { line };
            let rest = rest.trim();
            if !(rest.is_empty() || rest.starts_with('#')) {
                // A document on the line of its marker.
                return if is_marker(line) {
                    "---\n"
                } else {
                    self.text.get(..end).unwrap_or_default()
                };
            }
            end += line.len();
        }
        self.text
    }

    /// Of a field, or of what holds it.
    fn line_of(&self, field: &Field, lines: &std::collections::BTreeMap<Field, usize>) -> usize {
        let mut field = Some(field.clone());
        while let Some(at) = field {
            if let Some(line) = lines.get(&at) {
                return self.before + line;
            }
            field = at.parent();
        }
        self.before + 1
    }

    fn refused(
        &self,
        file: &str,
        lines: &std::collections::BTreeMap<Field, usize>,
        refusal: &crate::Refusal,
    ) -> TextError {
        let line = self.line_of(refusal.field(), lines);
        TextError::Refused { file: file.to_owned(), line, problem: refusal.to_string() }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Injected { changed: true, .. } => write!(f, "{}: injected", self.name),
            Outcome::Injected { changed: false, .. } => write!(f, "{}: unchanged", self.name),
            Outcome::Skipped(skip) => write!(f, "{}: skipped: {skip}", self.name),
            Outcome::Refused(refusal) => write!(f, "{}: {refusal}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new("east.example".parse().unwrap())
    }

    const SERVICE: &str = "# Source: a chart\napiVersion: v1\nkind:   Service   # odd but valid\nmetadata: {name: web}\n";
    const DEPLOYMENT: &str = "---\n# Source: a chart\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\n\
        spec:\n  template:\n    spec:\n      containers: [{name: web, image: web:1}]\n      volumes:\n      - {name: v, secret: {secretName: s, defaultMode: 0400}}\n";

    #[test]
    fn what_is_no_workload_passes_byte_by_byte() {
        let text = format!("{SERVICE}{DEPLOYMENT}--- # end\n\n---\n{{\"kind\": \"X\"}}");
        let (once, notes) = inject(&text, "x.yaml", &settings()).unwrap();
        assert!(
            once.starts_with(SERVICE) && once.ends_with("--- # end\n\n---\n{\"kind\": \"X\"}"),
            "{once}"
        );
        assert_eq!((notes.len(), notes[0].line), (1, 11));
        assert_eq!(notes[0].to_string(), "Deployment shop/web: injected");
        assert!(once.contains("---\n# Source: a chart\napiVersion: apps/v1\n"), "{once}");
        // 0400 as Kubernetes reads it.
        assert!(once.contains("defaultMode: 256"), "{once}");
        let (twice, notes) = inject(&once, "x.yaml", &settings()).unwrap();
        assert_eq!(twice, once);
        assert_eq!(notes[0].to_string(), "Deployment shop/web: unchanged");
    }

    #[test]
    fn what_was_put_in_can_be_taken_out() {
        let (injected, _) = inject(DEPLOYMENT, "x.yaml", &settings()).unwrap();
        let (bare, names) = uninject(&injected, "x.yaml").unwrap();
        assert_eq!(names, ["Deployment shop/web"]);
        let document = read::read(DEPLOYMENT).unwrap().value.unwrap();
        assert_eq!(bare, format!("---\n# Source: a chart\n{}", write::write(&document)));
        assert_eq!(uninject(&bare, "x.yaml").unwrap(), (bare.clone(), Vec::new()));
        assert_eq!(inject(&bare, "x.yaml", &settings()).unwrap().0, injected);
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        let wrong = |text: &str| inject(text, "x.yaml", &settings()).unwrap_err().to_string();
        let broken = format!("{SERVICE}---\na: [1\nb: {{\n");
        assert!(wrong(&broken).starts_with("x.yaml:"), "{}", wrong(&broken));
        assert!(
            wrong("a: 1\n---\nb: 1\nb: 2\n")
                .starts_with("x.yaml:4:1: \"b\" stands here a second time")
        );
        let annotated = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations:\n    isthmus.dev/opaque-ports: mysql\nspec: {}\n";
        let text = format!("{SERVICE}---\n{annotated}");
        let expected = "x.yaml:11: metadata.annotations[\"isthmus.dev/opaque-ports\"]: \"mysql\": \"mysql\" is no port";
        assert!(wrong(&text).starts_with(expected), "{}", wrong(&text));
        let taken = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: a\n    ports:\n    - containerPort: 4191\n";
        assert!(
            wrong(taken).starts_with("x.yaml:7: spec.containers[0].ports[0].containerPort: 4191"),
            "{}",
            wrong(taken)
        );
        assert_eq!(wrong("apiVersion: v1\nkind: Pod\n"), "x.yaml:1: spec: must be an object");
    }

    #[test]
    fn documents_end_where_the_next_begins() {
        let text = "a: |\n  ---\n---\nb\n--- c\n---x\n---";
        let parts: Vec<(&str, usize)> =
            chunks(text).iter().map(|chunk| (chunk.text, chunk.before)).collect();
        assert_eq!(
            parts,
            [("a: |\n  ---\n", 0), ("---\nb\n", 2), ("--- c\n---x\n", 4), ("---", 6)]
        );
        let heads = [
            ("# a\n\nb: 1\n", "# a\n\n"),
            ("--- # x\n#y\nb: 1", "--- # x\n#y\n"),
            ("--- {b: 1}\n", "---\n"),
            ("b: 1", ""),
        ];
        for (text, head) in heads {
            assert_eq!(Chunk { text, before: 0 }.head(), head, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_stream_without_workloads_is_never_changed(text in "[-a-c:{}\\[\\],\"'|# \n0-9.]{0,80}") {
            if let Ok((same, notes)) = inject(&text, "x", &settings()) {
                assert_eq!((same, notes), (text, Vec::new()));
            }
        }
    }
}
