//! Log lines: to journald where systemd started us, as `<message> key=value …`
//! and with each key as a field of its own (`journalctl GATEWAY=gw1`);
//! elsewhere to stderr as `<time> <LEVEL> <module>: <message> key=value …`.
//!
//! The filter is `ISTHMUS_LOG`, else `RUST_LOG`, else the default given; the
//! syntax is env_logger's (`info`, `warn,vm_agent=debug`).

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use log::{
    Log, Metadata, Record,
    kv::{Error, Key, Value, VisitSource},
};
use systemd_journal_logger::{JournalLog, connected_to_journal};

/// Installs the logger; to be called once, first thing in `main`.
///
/// # Errors
///
/// A logger is installed already.
pub fn init(default_filter: &str) -> Result<(), log::SetLoggerError> {
    let filter = ["ISTHMUS_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| default_filter.to_owned());
    let stderr = env_logger::Builder::new()
        .parse_filters(&filter)
        .format(|out, record| {
            let line = line(record);
            writeln!(out, "{} {line}", out.timestamp_millis())
        })
        .build();
    log::set_max_level(stderr.filter());
    match journal() {
        Some(journal) => log::set_boxed_logger(Box::new(Journal { filter: stderr, journal })),
        None => log::set_boxed_logger(Box::new(stderr)),
    }
}

/// The journal, if stderr is connected to it and it answers.
fn journal() -> Option<JournalLog> {
    connected_to_journal().then(JournalLog::new).and_then(io::Result::ok)
}

/// Journald takes everything it is given: the filter of env_logger decides.
struct Journal {
    filter: env_logger::Logger,
    journal: JournalLog,
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.matches(record) {
            // `journalctl` shows the message alone: it has to tell the whole.
            // The fields are there too, for those who ask for them by name.
            let text = text(record);
            self.journal.log(&record.to_builder().args(format_args!("{text}")).build());
        }
    }

    fn flush(&self) {}
}

/// One record as one line.
fn line(record: &Record<'_>) -> String {
    format!("{:<5} {}: {}", record.level(), record.target(), text(record))
}

/// Message and fields. Peers choose parts of them: control characters are
/// escaped, so that nobody writes log lines of his own.
fn text(record: &Record<'_>) -> String {
    let mut text = String::new();
    push_escaped(&mut text, &record.args().to_string());
    // A String takes everything.
    let _ = record.key_values().visit(&mut Fields(&mut text));
    text
}

struct Fields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = value.to_string();
        let _ = write!(self.0, " {key}=");
        if value.is_empty() || value.contains([' ', '"', '=']) {
            let _ = write!(self.0, "{value:?}");
        } else {
            push_escaped(self.0, &value);
        }
        Ok(())
    }
}

fn push_escaped(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_line(message: &str, key: &str, value: &str) -> String {
        let pair = (key, value);
        line(
            &Record::builder()
                .level(log::Level::Warn)
                .target("vm_agent::join")
                .args(format_args!("{message}"))
                .key_values(&pair)
                .build(),
        )
    }

    #[test]
    fn one_record_is_one_line() {
        let cases = [
            (("up", "peer", "west"), "WARN  vm_agent::join: up peer=west"),
            (("up", "why", "no answer"), "WARN  vm_agent::join: up why=\"no answer\""),
            (("up", "why", ""), "WARN  vm_agent::join: up why=\"\""),
            (("a\nb", "why", "c\r\nd"), "WARN  vm_agent::join: a\\nb why=c\\r\\nd"),
            (("a\u{1b}[31m", "k", "v"), "WARN  vm_agent::join: a\\u{1b}[31m k=v"),
        ];
        for ((message, key, value), expected) in cases {
            assert_eq!(record_line(message, key, value), expected);
        }
    }
}
