//! Certificates of `bind` lines (configuration manual, 5.1, `crt` and `crt-list`).

use std::sync::Arc;

use crate::source::Problem;

use super::{
    list::{Files, List},
    tree::Statement,
};

/// What one `crt` or `crt-list` names.
#[derive(Debug, Clone)]
pub(super) enum Certificates {
    /// A file, or a directory of them, for the names in it.
    At(String),
    /// A list of files, and for which names.
    Listed(Arc<List>),
}

/// One line of a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line<'l> {
    /// The file.
    pub(super) path: &'l str,
    /// Parameters of its own.
    pub(super) parameters: Vec<&'l str>,
    /// Names that it is for; those in it where there are none.
    pub(super) names: Vec<&'l str>,
    /// Names that it is not for, though one of `names` stands for them.
    pub(super) but: Vec<&'l str>,
}

/// Of a `bind` line, in order.
pub(super) fn of(statement: &Statement, files: &Files<'_>) -> Result<Vec<Certificates>, Problem> {
    let mut found = Vec::new();
    for pair in statement.from(2).windows(2) {
        let [name, value] = pair else { continue };
        match name.text.as_str() {
            "crt" => found.push(Certificates::At(value.text.clone())),
            "crt-list" => {
                let list = files.patterns(&value.text, &statement.place)?;
                found.push(Certificates::Listed(list));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// `<file> [<parameters>] [!]<name> …`, where the brackets are written.
pub(super) fn line(text: &str) -> Line<'_> {
    let (path, rest) = text.split_once([' ', '\t', '[']).unwrap_or((text, ""));
    let mut line = Line { path, ..Line::default() };
    let opened = text[path.len()..].trim_start();
    let names = match opened.strip_prefix('[') {
        None => rest,
        Some(inside) => {
            let (parameters, names) = inside.split_once(']').unwrap_or((inside, ""));
            line.parameters = parameters.split_whitespace().collect();
            names
        }
    };
    for name in names.split_whitespace() {
        match name.strip_prefix('!') {
            Some(name) => line.but.push(name),
            None => line.names.push(name),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_list() {
        let cases = [
            ("a.pem", ("a.pem", "", "", "")),
            ("a.pem  a.example\t*.b.example", ("a.pem", "", "a.example *.b.example", "")),
            ("a.pem *.b.example !c.b.example", ("a.pem", "", "*.b.example", "c.b.example")),
            (
                "a.pem [alpn h2  verify none] x.example",
                ("a.pem", "alpn h2 verify none", "x.example", ""),
            ),
            ("a.pem[alpn h2]", ("a.pem", "alpn h2", "", "")),
            ("a.pem [alpn h2", ("a.pem", "alpn h2", "", "")),
            ("[", ("", "", "", "")),
        ];
        for (text, wanted) in cases {
            let line = line(text);
            let (parameters, names, but) =
                (line.parameters.join(" "), line.names.join(" "), line.but.join(" "));
            assert_eq!((line.path, &*parameters, &*names, &*but), wanted, "{text}");
        }
    }
}
