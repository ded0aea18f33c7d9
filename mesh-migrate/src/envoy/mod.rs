//! Envoy's static bootstrap (API v3), and `/config_dump` of a running Envoy.
//!
//! - `schema`: which messages and fields there are; `tree`: a file read by it.
//! - [`config`]: listeners, clusters and routes, wherever they stand.
//! - [`explain`]: what Envoy does with one request.
//! - [`convert`]: what of it a program can say, and what becomes of every line.
//!
//! Documentation: "API v3 reference" and "Architecture overview" of Envoy 1.40.

mod access;
mod check;
pub mod config;
pub mod convert;
pub mod explain;
mod notes;
mod parts;
mod re2;
mod schema;
mod template;
#[cfg(test)]
mod tests;
pub mod tree;

/// Whether a line of YAML or JSON says nothing: a comment, or only what opens and
/// closes things, or names what follows.
pub fn is_blank(line: &str) -> bool {
    let line = line.split_once(" #").map_or(line, |(before, _)| before).trim();
    let anchor = line.trim_start_matches([' ', '-']).strip_prefix('&');
    if anchor.is_some_and(|name| !name.contains([' ', ':', '{', '['])) {
        return true;
    }
    let opens = |c: char| "{}[],- \"'".contains(c);
    line.is_empty() || line.starts_with('#') || line.chars().all(opens) || line == "..."
}

#[cfg(test)]
mod blank {
    #[test]
    fn lines_that_say_nothing() {
        for line in ["", "# x", "  ]}", "---", "...", "- &cluster", "{ # flow", "\",", "] "] {
            assert!(super::is_blank(line), "{line}");
        }
        for line in ["a:", "- x", "- &a b", "- *a", "{a: 1}", "- &a {b: 1}"] {
            assert!(!super::is_blank(line), "{line}");
        }
    }
}
