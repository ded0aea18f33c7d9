//! What commands print: one document for machines, or a table for people.

use std::{
    convert::Infallible,
    io::{IsTerminal, Write},
    path::PathBuf,
    str::FromStr,
};

use clap::ValueEnum;
use serde::Serialize;

use crate::failure::Failure;

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub enum Format {
    /// Aligned columns for a person.
    #[default]
    Table,
    /// The table with every column.
    Wide,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// What `-o` says: a form, or, where something is written, where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A form.
    As(Format),
    /// A directory.
    Into(PathBuf),
}

impl FromStr for Output {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Format::from_str(text, false).map_or_else(|_| Self::Into(text.into()), Self::As))
    }
}

impl Output {
    /// The form.
    ///
    /// # Errors
    ///
    /// It is none, and this command writes to no directory.
    pub fn format(&self) -> Result<Format, Failure> {
        match self {
            Self::As(format) => Ok(*format),
            Self::Into(directory) => Err(Failure::usage(format!(
                "invalid value '{}' for '--output <FORMAT>': table, wide, json or yaml",
                directory.display()
            ))),
        }
    }
}

impl Format {
    /// Whether a program reads it: nothing else may go to stdout.
    pub fn is_document(self) -> bool {
        matches!(self, Format::Json | Format::Yaml)
    }
}

/// What a command has to say, in both forms.
pub trait Show: Serialize {
    /// For a person; `wide` asks for every column. Ends with a newline or is
    /// empty.
    fn text(&self, wide: bool, paint: Paint) -> String;
}

/// Prints `what` on stdout in the wanted form.
pub fn print<T: Show>(format: Format, what: &T) -> Result<(), Failure> {
    let text = match format {
        Format::Json => {
            let mut json = serde_json::to_string_pretty(what).map_err(Failure::new)?;
            json.push('\n');
            json
        }
        Format::Yaml => serde_yaml_ng::to_string(what).map_err(Failure::new)?,
        Format::Table | Format::Wide => what.text(format == Format::Wide, Paint::stdout()),
    };
    write_stdout(&text)
}

/// Writes to stdout; a reader that went away (`| head`) is no failure.
pub fn write_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(Failure::from),
    }
}

/// Colour, where somebody looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Never.
    pub const PLAIN: Paint = Paint { on: false };
    /// Always.
    pub const COLOUR: Paint = Paint { on: true };

    /// On a terminal, unless `NO_COLOR` is set (no-color.org).
    pub fn stdout() -> Self {
        Self::when(std::io::stdout().is_terminal())
    }

    /// Like [`Paint::stdout`], for errors and progress.
    pub fn stderr() -> Self {
        Self::when(std::io::stderr().is_terminal())
    }

    fn when(terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { on: terminal && !refused }
    }

    /// Good.
    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Wants attention.
    pub fn warn(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// Wrong.
    pub fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// Of less weight.
    pub fn faint(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Aligned columns with two spaces between; the last is not padded.
#[derive(Debug, Clone)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; empty cells are shown as `-`.
    pub fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        let dash = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
        self.rows.push(cells.into_iter().map(dash).collect());
    }

    /// The lines, headings first.
    pub fn render(&self, paint: Paint) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|title| width(title)).collect();
        for row in &self.rows {
            for (column, cell) in widths.iter_mut().zip(row) {
                *column = (*column).max(width(cell));
            }
        }
        let header: Vec<String> = self.header.iter().map(|title| paint.bold(title)).collect();
        let mut text = line(&header, &widths);
        for row in &self.rows {
            text.push_str(&line(row, &widths));
        }
        text
    }
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let mut text = String::new();
    for (index, (cell, column)) in cells.iter().zip(widths).enumerate() {
        text.push_str(cell);
        if index + 1 < cells.len() {
            text.push_str(&" ".repeat(column.saturating_sub(width(cell)) + 2));
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Characters shown, without escape sequences.
fn width(text: &str) -> usize {
    let mut count = 0;
    let mut escape = false;
    for c in text.chars() {
        match (escape, c) {
            (false, '\x1b') => escape = true,
            (true, 'm') => escape = false,
            (false, _) => count += 1,
            (true, _) => {}
        }
    }
    count
}

/// `n thing` or `n things`.
pub fn count(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_with_and_without_colour() {
        for paint in [Paint::PLAIN, Paint::COLOUR] {
            let mut table = Table::new(&["NAME", "STATE", "AGE"]);
            table.row(["orders.shop".into(), paint.good("up"), "3s".into()]);
            table.row(["x".into(), String::new(), "12s".into()]);
            let text = table.render(paint);
            let plain: Vec<String> = text.lines().map(strip).collect();
            assert_eq!(
                plain,
                ["NAME         STATE  AGE", "orders.shop  up     3s", "x            -      12s",]
            );
        }
    }

    fn strip(line: &str) -> String {
        let mut text = String::new();
        let mut escape = false;
        for c in line.chars() {
            match (escape, c) {
                (false, '\x1b') => escape = true,
                (true, 'm') => escape = false,
                (false, c) => text.push(c),
                (true, _) => {}
            }
        }
        text
    }

    #[test]
    fn plurals() {
        assert_eq!(count(1, "service"), "1 service");
        assert_eq!(count(0, "service"), "0 services");
    }
}
