//! Tables that namerd keeps (`GET /api/1/dtabs/<namespace>`), and its configuration.

use std::collections::BTreeMap;

use super::{
    config::{Namer, read_namers, text},
    dtab::{Dentry, Dtab},
    places::Lines,
};
use crate::{
    source::{Problem, Source},
    yaml::{self, Node, Value},
};

/// A table as namerd gives it: `application/dtab`, or `application/json`, which is a
/// list of `{prefix, dst}`.
///
/// # Errors
///
/// It is neither.
pub fn read_dtab(source: &Source) -> Result<Dtab, Problem> {
    if !source.text.trim_start().starts_with('[') {
        return Dtab::read(&source.name, &source.text);
    }
    let root = yaml::parse(source)?;
    let entry = |node: &Node| -> Result<Dentry, Problem> {
        node.map()?;
        let needs = |key: &str| {
            let wrong = || Problem::at(&node.place, format!("an entry needs `{key}`"));
            text(node, key)?.ok_or_else(wrong)
        };
        Dtab::entry(&node.place, &needs("prefix")?, &needs("dst")?)
    };
    Ok(Dtab { entries: root.list()?.iter().map(entry).collect::<Result<_, _>>()? })
}

/// A configuration of namerd.
#[derive(Debug, Clone, Default)]
pub struct Namerd {
    /// In order of the file.
    pub namers: Vec<Namer>,
    /// Tables of `io.l5d.inMemory`, by namespace; other stores hold them elsewhere.
    pub dtabs: BTreeMap<String, Dtab>,
}

impl Namerd {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It is no YAML, or a value of the wrong kind.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        let root = yaml::parse(source)?;
        let lines = Lines::of(source);
        root.map()?;
        let mut dtabs = BTreeMap::new();
        if let Some(spaces) = root.at("storage").and_then(|storage| storage.at("namespaces")) {
            for (key, node) in spaces.map()? {
                let empty = matches!(node.value, Value::Null);
                let value = if empty { String::new() } else { node.text()? };
                let dtab = Dtab::within(&lines.within(node, &value), &value)?;
                dtabs.insert(key.name.clone(), dtab);
            }
        }
        Ok(Self { namers: read_namers(root.at("namers"))?, dtabs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_table() {
        let json = r#"[{"prefix": "/svc", "dst": "/#/io.l5d.fs | !"},
          {"prefix": "/*/a", "dst": "$"}]"#;
        let of_json = read_dtab(&Source::of("n", json)).unwrap();
        let plain = "/svc => /#/io.l5d.fs | ! ;\n/*/a => $";
        let of_plain = read_dtab(&Source::of("n", plain)).unwrap();
        let said = |dtab: &Dtab| dtab.entries.iter().map(Dentry::to_string).collect::<Vec<_>>();
        assert_eq!(said(&of_json), said(&of_plain));
        assert_eq!(of_json.entries[1].place.line, 2);
        let wrong = r#"[{"prefix": "svc", "dst": "$"}]"#;
        let wrong = read_dtab(&Source::of("n", wrong)).unwrap_err().to_string();
        assert_eq!(wrong, "n:1:2: dtab: expected '/', found 's'");
    }

    #[test]
    fn a_configuration() {
        let text = "storage:\n  kind: io.l5d.inMemory\n  namespaces:\n    default: |\n      /svc => /a;\nnamers:\n- {kind: io.l5d.fs, rootDir: d}\n";
        let namerd = Namerd::read(&Source::of("n", text)).unwrap();
        assert_eq!(namerd.namers.len(), 1);
        assert_eq!(namerd.dtabs["default"].entries[0].place.line, 5);
    }
}
