//! Services that lead to what is known: tables and namers, read from their ends.
//!
//! What is found is tried forwards before anything comes of it: here it is enough to
//! miss little.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    super::{
        config::Namer,
        dtab::{Dentry, Element},
        name::{Name, raw},
    },
    labels::{PROBE, PROBE_METHOD},
    universe::{leaves, raw_labels},
};

/// Services that come of it, at most.
const MAX_FOUND: usize = 3_000;
/// Names that are looked at, at most.
const MAX_SEEN: usize = 20_000;
/// Labels of one.
const MAX_LABELS: usize = 12;
/// Ways to read one label by a pattern.
const MAX_READINGS: usize = 16;

type Labels = Vec<String>;

/// Names below `prefix` that lead to `known` ones, or to one label or two below them.
pub(super) fn leading(
    prefix: &Name,
    entries: &[&Dentry],
    namers: &[Namer],
    known: impl IntoIterator<Item = Labels>,
) -> BTreeSet<Labels> {
    let table = Table::of(entries, namers);
    let prefix = raw_labels(prefix);
    let mut found = BTreeSet::new();
    let mut seen: BTreeSet<Labels> = BTreeSet::new();
    let mut next: VecDeque<Labels> = VecDeque::new();
    let seeds = known.into_iter().flat_map(|name| {
        let more = |count| name.iter().cloned().chain(vec![PROBE.to_owned(); count]).collect();
        [more(0), more(1), more(2)]
    });
    next.extend(seeds.take(MAX_SEEN));
    while let Some(name) = next.pop_front() {
        if seen.len() >= MAX_SEEN || found.len() >= MAX_FOUND {
            break;
        }
        if name.len() > MAX_LABELS || !seen.insert(name.clone()) {
            continue;
        }
        if let Some(below) = name.strip_prefix(prefix.as_slice()).filter(|below| !below.is_empty())
        {
            found.insert(below.to_vec());
        }
        table.before(&name, &mut |before| next.push_back(before));
        for rewritten in table.rewritten(&name) {
            table.before(&rewritten, &mut |before| next.push_back(before));
        }
    }
    found
}

struct Table<'a> {
    /// Ends of entries, and where they begin.
    leaves: Vec<(Labels, &'a [Element])>,
    /// Namers that every Linkerd has, as far as ends of entries name them.
    classes: BTreeSet<String>,
    /// Domains that names are below.
    domains: BTreeSet<String>,
    namers: Vec<Rewrite>,
}

/// `io.l5d.rewrite`.
struct Rewrite {
    prefix: Labels,
    pattern: Labels,
    name: Labels,
}

impl<'a> Table<'a> {
    fn of(entries: &[&'a Dentry], namers: &[Namer]) -> Self {
        let mut table = Self {
            leaves: Vec::new(),
            classes: BTreeSet::new(),
            domains: BTreeSet::new(),
            namers: namers.iter().filter_map(Rewrite::of).collect(),
        };
        for entry in entries {
            for leaf in leaves(&entry.tree) {
                let leaf = raw_labels(leaf);
                if let [dollar, class, more @ ..] = leaf.as_slice()
                    && dollar == "$"
                {
                    table.classes.insert(class.clone());
                    let domain = more.first().filter(|_| class.contains(".subdomainOf"));
                    table.domains.extend(domain.cloned());
                }
                table.leaves.push((leaf, &entry.prefix));
            }
        }
        table
    }

    /// Names that entries make this one of.
    fn before(&self, name: &[String], add: &mut dyn FnMut(Labels)) {
        for (leaf, prefix) in &self.leaves {
            let Some(rest) = name.strip_prefix(leaf.as_slice()) else { continue };
            let label = |element: &Element| match element {
                Element::Any => PROBE.to_owned(),
                Element::Label(label) => raw(label),
            };
            add(prefix.iter().map(label).chain(rest.iter().cloned()).collect());
        }
    }

    /// Names of namers that rewrite, of which they make this one.
    fn rewritten(&self, name: &[String]) -> Vec<Labels> {
        let mut found: Vec<Labels> =
            self.namers.iter().flat_map(|namer| namer.before(name)).collect();
        for class in &self.classes {
            self.built_in(class, name, &mut found);
        }
        found
    }

    fn built_in(&self, class: &str, name: &[String], found: &mut Vec<Labels>) {
        let short = class.strip_prefix("io.buoyant.").unwrap_or(class);
        let short = short.strip_prefix("http.").unwrap_or(short);
        let (short, has_prefix) = match short.strip_suffix("Pfx") {
            Some(short) => (short, true),
            None => (short, false),
        };
        let Some((prefix, rest)) = name.split_at_checked(usize::from(has_prefix)) else { return };
        let mut add = |domain: Option<&String>, first: String, rest: &[String]| {
            let head = ["$".to_owned(), class.to_owned()];
            let head = head.into_iter().chain(domain.cloned()).chain(prefix.iter().cloned());
            found.push(head.chain([first]).chain(rest.iter().cloned()).collect());
        };
        match (short, rest) {
            ("domainToPath", _) => {
                for count in 1..=rest.len() {
                    let (domain, rest) = rest.split_at(count);
                    let host: Vec<&str> = domain.iter().rev().map(String::as_str).collect();
                    add(None, host.join("."), rest);
                }
            }
            ("subdomainOf", [sub, rest @ ..]) => {
                for domain in &self.domains {
                    add(Some(domain), format!("{sub}.{domain}"), rest);
                }
            }
            ("hostport", [host, port, rest @ ..]) | ("porthost", [port, host, rest @ ..]) => {
                add(None, format!("{host}:{port}"), rest);
            }
            ("anyMethod", rest) => add(None, PROBE_METHOD.to_owned(), rest),
            ("anyHost", rest) => add(None, PROBE.to_owned(), rest),
            _ => {}
        }
    }
}

impl Rewrite {
    fn of(namer: &Namer) -> Option<Self> {
        if namer.kind != "io.l5d.rewrite" {
            return None;
        }
        let labels = |key: &str| {
            let text = namer.node.at(key)?.text().ok()?;
            let labels = text.split('/').filter(|label| !label.is_empty());
            Some(labels.map(str::to_owned).collect::<Labels>())
        };
        let head = std::iter::once("#".to_owned());
        let prefix = raw_labels(&namer.prefix);
        let prefix = match prefix.first().is_some_and(|first| first == "#") {
            true => prefix,
            false => head.chain(prefix).collect(),
        };
        Some(Self { prefix, pattern: labels("pattern")?, name: labels("name")? })
    }

    /// What is behind the pattern is lost: the name must be all of it.
    fn before(&self, name: &[String]) -> Vec<Labels> {
        if self.name.len() != name.len() {
            return Vec::new();
        }
        let mut readings: Vec<BTreeMap<&str, &str>> = vec![BTreeMap::new()];
        for (template, label) in self.name.iter().zip(name) {
            let longer = readings.iter().flat_map(|known| read(template, label, known));
            readings = longer.take(MAX_READINGS).collect();
        }
        let spoken = |values: &BTreeMap<&str, &str>| {
            let label = |part: &String| spoken(part, values);
            self.prefix.iter().cloned().chain(self.pattern.iter().map(label)).collect()
        };
        readings.iter().map(spoken).collect()
    }
}

/// Values of the variables of a template that make it this label, beside `known` ones.
fn read<'t>(
    template: &'t str,
    label: &'t str,
    known: &BTreeMap<&'t str, &'t str>,
) -> Vec<BTreeMap<&'t str, &'t str>> {
    let hole = template.split_once('{').and_then(|(before, after)| {
        let (name, after) = after.split_once('}')?;
        Some((before, name, after))
    });
    let Some((before, name, after)) = hole else {
        return if template == label { vec![known.clone()] } else { Vec::new() };
    };
    let Some(rest) = label.strip_prefix(before) else { return Vec::new() };
    let mut readings = Vec::new();
    for end in rest.char_indices().map(|(at, c)| at + c.len_utf8()) {
        let (value, rest) = rest.split_at(end);
        if readings.len() >= MAX_READINGS {
            break;
        }
        if known.get(name).is_some_and(|known| *known != value) {
            continue;
        }
        let mut known = known.clone();
        known.insert(name, value);
        readings.extend(read(after, rest, &known));
    }
    readings
}

/// A label of a pattern with these values; one that nothing is known of may be any.
fn spoken(part: &str, values: &BTreeMap<&str, &str>) -> String {
    if part == "*" {
        return PROBE.to_owned();
    }
    let mut text = String::new();
    let mut rest = part;
    while let Some((before, name, after)) = rest.split_once('{').and_then(|(before, after)| {
        after.split_once('}').map(|(name, after)| (before, name, after))
    }) {
        text.push_str(before);
        text.push_str(values.get(name).copied().unwrap_or(PROBE));
        rest = after;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{linkerd1::config::Config, source::Source};

    fn found(namers: &str, dtab: &str, known: &[&str]) -> Vec<String> {
        let text = format!("namers: {namers}\nrouters:\n- protocol: http\n  dtab: |\n    {dtab}\n");
        let config = Config::read(&Source::of("f", &text)).unwrap();
        let entries: Vec<&Dentry> = config.routers[0].dtab.entries.iter().collect();
        let known = known.iter().map(|name| raw_labels(&Name::read(name).unwrap()));
        let found = leading(&config.routers[0].dst_prefix, &entries, &config.namers, known);
        let plain = found.into_iter().filter(|name| !name.iter().any(|l| l.contains(PROBE)));
        plain.map(|name| name.join("/")).collect()
    }

    #[test]
    fn names_are_read_from_their_ends() {
        let rewrite =
            "[{kind: io.l5d.rewrite, prefix: /v, pattern: '/{v}/{n}', name: '/#/f/{n}-{v}'}]";
        let known = ["/#/f/web-v1", "/#/f/my-mail-v2"];
        assert_eq!(
            found(rewrite, "/svc/v1 => /#/v/v1 ; /svc/v2 => /#/v/v2 | /svc/v1 ;", &known),
            ["v1/web", "v2/my-mail", "v2/web"]
        );
        let table = "/svc => /$/io.buoyant.http.domainToPathPfx/h ; /h/example => /#/f ;";
        assert_eq!(
            found("[]", table, &["/#/f/a/b"]),
            ["a.example/b", "b.a.example", "example/a/b"]
        );
        let table = "/svc => /$/io.buoyant.http.subdomainOfPfx/corp/s ; /s => /#/f ;";
        assert_eq!(found("[]", table, &["/#/f/a"]), ["a.corp"]);
        let table = "/svc => /$/io.buoyant.porthostPfx/p ; /p/80 => /#/f ;";
        assert_eq!(found("[]", table, &["/#/f/a"]), ["a:80"]);
        let circle = "/svc => /a ; /a => /b ; /b => /a/x ; /b => /#/f ;";
        assert_eq!(found("[]", circle, &["/#/f/x"]), ["x"]);
    }

    #[test]
    fn a_label_may_be_read_in_several_ways() {
        let read = |template, label| read(template, label, &BTreeMap::new()).len();
        assert_eq!(read("{a}-{b}", "x-y-z"), 2);
        assert_eq!(read("{a}-{a}", "x-x"), 1);
        assert_eq!(read("{a}-{a}", "x-y"), 0);
        assert_eq!(read("v{a}", "x"), 0);
        let values = BTreeMap::from([("a", "x")]);
        assert_eq!(spoken("p-{a}-{b}", &values), format!("p-x-{PROBE}"));
    }
}
