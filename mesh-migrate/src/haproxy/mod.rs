//! HAProxy, as of version 2.6.
//!
//! - `words`, `tree`: lines as words, files as sections.
//! - `sample`, `acl`, `rules`, `server`, `certificates`, `list`: what is in them.
//! - `proxy`: sections as proxies, with what their `defaults` say.
//! - `seen`, `converters`, `matching`: what HAProxy sees of a request.
//! - `explain`, `changes`, `choice`: what it does with it.
//! - `convert`: what is told to ours, and what becomes of every line.

mod acl;
mod certificates;
mod changes;
mod choice;
mod convert;
mod converters;
mod explain;
mod list;
mod matching;
mod pages;
mod proxy;
mod rules;
mod sample;
mod seen;
mod server;
mod tree;
mod words;

pub use convert::convert;
pub use explain::explain;

use std::collections::BTreeMap;

use crate::source::{Problem, Source};

/// What there is beside the files themselves.
pub struct Outside<'a> {
    /// Opens a file that the configuration names: a map, a list of patterns.
    pub file: &'a dyn Fn(&str) -> Result<Source, Problem>,
    /// The value of a variable of the environment that HAProxy runs in.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

/// A configuration.
#[derive(Debug, Clone)]
pub struct Config {
    tree: tree::Tree,
    proxies: Vec<proxy::Proxy>,
    /// Variables of the process that do not change.
    variables: BTreeMap<String, String>,
}

impl Config {
    fn backend(&self, name: &str) -> Option<&proxy::Proxy> {
        self.proxies.iter().find(|proxy| proxy.is_backend && proxy.name == name)
    }
}

/// Reads the files of one process, in the order of its `-f`.
///
/// Directives that are not known are kept. A list of patterns or a map that cannot be
/// opened is empty, which the ledger says.
///
/// # Errors
///
/// What is written is no configuration: an unended quote, a rule that has no
/// condition after `if`, an ACL that is not there; or a limit is passed.
pub fn read(sources: &[Source], outside: &Outside<'_>) -> Result<Config, Problem> {
    let tree = tree::read(sources, outside.variable)?;
    let files = list::Files::new(outside.file);
    let proxies = proxy::proxies(&tree, &files)?;
    let variables = variables(&tree, &files);
    Ok(Config { tree, proxies, variables })
}

/// `set-var` and `set-var-fmt` of `global`, where they are the same for all requests.
fn variables(tree: &tree::Tree, files: &list::Files<'_>) -> BTreeMap<String, String> {
    let global = tree.sections.iter().filter(|section| section.head.at(0) == "global");
    let mut seen = seen::Seen::of_nothing();
    for statement in global.flat_map(|section| &section.statements) {
        let (name, text) = (statement.at(1).to_owned(), statement.at(2));
        let value = match statement.at(0) {
            "set-var" => sample::expression(text, &statement.place, files)
                .ok()
                .and_then(|expression| seen.value(&expression)),
            "set-var-fmt" => sample::format(text, &statement.place, files)
                .ok()
                .map(|format| matching::Value::Text(seen.format(&format))),
            _ => continue,
        };
        if let Some(value) = value.filter(|_| seen.unknown.is_empty()) {
            seen.variables.insert(name, value);
        }
        seen.unknown.clear();
    }
    seen.variables.into_iter().map(|(name, value)| (name, value.to_string())).collect()
}

/// Whether a line says nothing.
pub fn is_blank(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

#[cfg(test)]
mod tests;
