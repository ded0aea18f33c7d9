//! Files that people have written, places in them, and what is wrong there.

use std::{fmt, io::Read, path::Path, sync::Arc};

/// The longest file that is read, in bytes.
pub const MAX_FILE: u64 = 16 << 20;

/// Where something is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// As it was given.
    pub file: Arc<str>,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

impl Place {
    /// The beginning of a file.
    pub fn start(file: &Arc<str>) -> Self {
        Self { file: file.clone(), line: 1, column: 1 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Why a configuration cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What is wrong, and what was expected there.
    pub problem: String,
}

impl Problem {
    /// A problem at a place.
    pub fn at(place: &Place, problem: impl Into<String>) -> Self {
        Self { place: place.clone(), problem: problem.into() }
    }
}

/// One file.
#[derive(Debug, Clone)]
pub struct Source {
    /// As it was given.
    pub name: Arc<str>,
    /// What is in it.
    pub text: String,
}

impl Source {
    /// Reads a file of at most [`MAX_FILE`] bytes of UTF-8.
    ///
    /// # Errors
    ///
    /// It cannot be read, is too long, or is not text.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let name: Arc<str> = path.display().to_string().into();
        let start = Place::start(&name);
        let cannot =
            |error: std::io::Error| Problem::at(&start, format!("cannot be read: {error}"));
        let file = std::fs::File::open(path).map_err(cannot)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(cannot)?;
        if bytes.len() as u64 > MAX_FILE {
            let problem = format!("is longer than {MAX_FILE} bytes; is it the right file?");
            return Err(Problem::at(&start, problem));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { name, text }),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let before = &error.as_bytes()[..good];
                let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
                let line = u32::try_from(line).unwrap_or(u32::MAX);
                let place = Place { file: name, line, column: 1 };
                Err(Problem::at(&place, "is not UTF-8; is it the right file?"))
            }
        }
    }

    /// A text that is not in a file.
    pub fn of(name: &str, text: &str) -> Self {
        Self { name: name.into(), text: text.to_owned() }
    }
}
