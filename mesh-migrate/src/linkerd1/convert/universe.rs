//! Names that requests may have: a table is for any name, rules are for some. They come
//! from its labels, from what discovery knows, and from the caller; a label that nobody
//! has stands for all others.

use std::{cell::Cell, collections::BTreeSet};

use super::{
    super::{
        config::{Config, Router},
        dtab::{Dentry, Element, Tree},
        name::{Name, raw},
        world::World,
    },
    backwards,
    candidates::Candidate,
    captures,
    labels::{ODD, PROBE, deep},
    overlaps,
};

/// Labels that are tried, at most.
const MAX_LABELS: usize = 3_000;
/// Labels of a name that are tried in any order, two by two.
const MAX_REORDERED: usize = 5;
/// Segments of a path that are tried alone, at most.
const MAX_SEGMENTS: usize = 8;
/// Names of several labels that are tried, at most.
pub(super) const MAX_NAMES: usize = 3_000;

/// Labels of everything that is known.
pub(super) struct Universe {
    /// One label each, `PROBE` in them for any.
    pub labels: BTreeSet<String>,
    /// Names below the prefix of the router that are tried first: those of the table and of
    /// the caller, and those that lead to what is known.
    pub names: BTreeSet<Vec<String>>,
    /// Labels as they follow each other.
    runs: BTreeSet<Vec<String>>,
    /// Whether there were more.
    pub is_cut: Cell<bool>,
}

impl Universe {
    pub(super) fn of(
        config: &Config,
        router: &Router,
        entries: &[&Dentry],
        world: &World,
        asked: &[Name],
    ) -> Self {
        let mut runs: BTreeSet<Vec<String>> = BTreeSet::new();
        let mut domains = BTreeSet::new();
        let mut names = BTreeSet::new();
        let mut has_ports = false;
        let mut add = |labels: Vec<String>| {
            has_ports |= labels
                .iter()
                .any(|label| label.ends_with("hostPfx") || label.ends_with("hostportPfx"));
            if let Some(at) = labels.iter().position(|label| label.contains("subdomainOf")) {
                domains.extend(labels.get(at + 1).cloned());
            }
            // Names of namers begin with `#` or `$` and who they are.
            let is_namer = labels.first().is_some_and(|first| first == "#" || first == "$");
            runs.insert(labels.into_iter().skip(if is_namer { 2 } else { 0 }).collect());
        };
        for entry in entries {
            let labels = prefix_labels(entry);
            let below = below(&labels, &router.dst_prefix);
            names.extend(below.filter(|below| !below.is_empty()));
            add(labels);
            leaves(&entry.tree).into_iter().for_each(|name| add(raw_labels(name)));
        }
        for name in world.names.keys().filter_map(|name| Name::read(name).ok()) {
            add(raw_labels(&name));
        }
        for namer in &config.namers {
            let pattern = namer.node.at("pattern").and_then(|node| node.text().ok());
            if let Some(pattern) = pattern.and_then(|pattern| Name::read(&pattern).ok()) {
                add(raw_labels(&pattern));
            }
        }
        for name in asked {
            let labels = name.below(&router.dst_prefix).unwrap_or_else(|| name.clone());
            names.insert(raw_labels(&labels));
            add(raw_labels(&labels));
        }
        let is_cut = Cell::new(false);
        for namer in &config.namers {
            let spoken = captures::labels(namer, &runs);
            runs.extend(spoken.into_iter().map(|label| vec![label]));
        }
        let ends = world.names.keys().filter_map(|name| Name::read(name).ok());
        let ends =
            ends.map(|name| raw_labels(&name)).chain(entries.iter().map(|e| prefix_labels(e)));
        let leading = backwards::leading(&router.dst_prefix, entries, &config.namers, ends);
        let begins =
            names.iter().flat_map(|n: &Vec<String>| (1..=n.len()).map(|to| n[..to].to_vec()));
        let mut names = overlaps::with_common(begins.collect());
        names.extend(leading.iter().flat_map(|n| (1..=n.len()).map(|to| n[..to].to_vec())));
        let mut universe = Self { labels: BTreeSet::new(), names, runs: BTreeSet::new(), is_cut };
        universe.spell(&leading, &runs, &domains, has_ports);
        universe.runs = runs;
        universe
    }

    /// Labels of names that lead to what is known; others, runs of them as domains or with
    /// ports, and both below the domains of `subdomainOf`.
    fn spell(
        &mut self,
        leading: &BTreeSet<Vec<String>>,
        runs: &BTreeSet<Vec<String>>,
        domains: &BTreeSet<String>,
        has_ports: bool,
    ) {
        let joined = |run: &[String], by: &str| {
            run.iter().rev().map(String::as_str).collect::<Vec<_>>().join(by)
        };
        let mut plain = BTreeSet::new();
        for labels in runs.iter().take(MAX_LABELS) {
            plain.extend(labels.iter().take(MAX_LABELS).cloned());
            for length in 2..=4 {
                plain.extend(labels.windows(length).take(MAX_LABELS).map(|run| joined(run, ".")));
            }
            if labels.len() <= MAX_REORDERED {
                // Namers that rewrite put them in another order.
                let others = |a: &String| {
                    let a = a.clone();
                    labels.iter().filter(move |b| **b != a).cloned().collect::<Vec<_>>()
                };
                plain.extend(labels.iter().flat_map(|a| {
                    others(a).into_iter().map(|b| format!("{a}.{b}")).collect::<Vec<_>>()
                }));
            }
            if has_ports {
                let pairs = labels.windows(2).take(MAX_LABELS);
                plain.extend(
                    pairs.flat_map(|pair| [joined(pair, ":"), format!("{}:{}", pair[0], pair[1])]),
                );
            }
            if plain.len() > MAX_LABELS {
                break;
            }
        }
        let subs = || plain.iter().cloned().chain([PROBE.to_owned(), deep()]);
        let below =
            domains.iter().flat_map(|domain| subs().map(move |sub| format!("{sub}.{domain}")));
        // Classes of names that namers tell apart: with dots, with a port, no host.
        let classes = [deep(), format!("{PROBE}:80"), ODD.to_owned(), PROBE.to_owned()];
        // A name of one label, or a method and a host behind their version.
        let leading = leading.iter().flat_map(|name| match name.as_slice() {
            [label] => vec![label.clone()],
            [_, method, host, ..] => vec![method.clone(), host.clone()],
            _ => Vec::new(),
        });
        let all = classes.into_iter().chain(leading).chain(plain.iter().cloned()).chain(below);
        let mut all = all.filter(|label| is_speakable(label));
        self.labels = all.by_ref().take(MAX_LABELS).collect();
        self.is_cut.set(all.next().is_some() || runs.len() > MAX_LABELS);
    }

    /// Whether the table itself says such a name, or leads from it to what is known, and
    /// does not only say labels of it.
    pub(super) fn is_of_table(&self, one: &Candidate) -> bool {
        let plain = |label: String| if label == deep() { PROBE.to_owned() } else { label };
        let mut labels: Vec<String> = raw_labels(&one.below).into_iter().map(plain).collect();
        while !self.names.contains(&labels) {
            if labels.pop().is_none_or(|label| label != PROBE) {
                return false;
            }
        }
        true
    }

    /// Names of the table and those that lead to what is known, then others of one label
    /// and of two.
    pub(super) fn any_length(&self) -> Vec<Vec<String>> {
        let own = self.names.iter().filter(|name| name.len() <= MAX_SEGMENTS);
        let own = own.take(MAX_NAMES).flat_map(|name| overlaps::cut_or_padded(name, name.len()));
        let mut seen = BTreeSet::new();
        let all = own.chain(self.of_length(1, &[])).chain(self.of_length(2, &[]));
        all.filter(|name| seen.insert(name.clone())).collect()
    }

    /// Names of `count` labels, or of `more` as well.
    pub(super) fn of_length(&self, count: usize, more: &[&str]) -> Vec<Vec<String>> {
        let labels = || self.labels.iter().map(String::as_str).chain(more.iter().copied());
        let all = labels().count().checked_pow(u32::try_from(count).unwrap_or(u32::MAX));
        if count > MAX_SEGMENTS {
            self.is_cut.set(true);
            let known = self.names.iter().filter(|name| name.len() >= count);
            return known.map(|name| name[..count].to_vec()).take(MAX_NAMES).collect();
        }
        let padded = self.names.iter().flat_map(|name| overlaps::cut_or_padded(name, count));
        let names: BTreeSet<Vec<String>> = padded.collect();
        if count != 1 && all.is_none_or(|all| all > MAX_NAMES) {
            // All together are too many: those that follow each other somewhere, and each
            // alone in each place.
            let runs = self.runs.iter().flat_map(|run| run.windows(count)).map(<[_]>::to_vec);
            let fillings = [PROBE.to_owned(), deep()];
            let alone = (0..count).flat_map(|place| {
                let of = |other: &String, label: &str| {
                    let mut name = vec![other.clone(); count];
                    label.clone_into(&mut name[place]);
                    name
                };
                let each =
                    |other: &String| labels().map(|label| of(other, label)).collect::<Vec<_>>();
                fillings.iter().flat_map(each).collect::<Vec<_>>()
            });
            let others: BTreeSet<_> = runs.chain(alone).filter(|n| !names.contains(n)).collect();
            self.is_cut.set(true);
            return names.into_iter().chain(others).take(MAX_NAMES).collect();
        }
        let mut all = vec![Vec::new()];
        for _ in 0..count {
            let longer = all.iter().flat_map(|name: &Vec<String>| {
                labels().map(|label| {
                    let name = name.iter().map(String::as_str).chain([label]);
                    name.map(str::to_owned).collect::<Vec<_>>()
                })
            });
            all = longer.collect();
        }
        let others: Vec<_> = all.into_iter().filter(|name| !names.contains(name)).collect();
        names.into_iter().chain(others).collect()
    }
}

fn is_speakable(label: &str) -> bool {
    !label.is_empty() && !["#", "$", "%"].contains(&label)
}

fn prefix_labels(entry: &Dentry) -> Vec<String> {
    let label = |element: &Element| match element {
        Element::Any => PROBE.to_owned(),
        Element::Label(label) => raw(label),
    };
    entry.prefix.iter().map(label).collect()
}

/// What is below the router's prefix, whose labels a `*` may stand for.
fn below(labels: &[String], prefix: &Name) -> Option<Vec<String>> {
    let fits = |(label, of): (&String, &String)| label == PROBE || *label == raw(of);
    let is = labels.len() >= prefix.len() && labels.iter().zip(prefix.labels()).all(fits);
    is.then(|| labels[prefix.len()..].to_vec())
}

pub(super) fn leaves(tree: &Tree) -> Vec<&Name> {
    match tree {
        Tree::Leaf(name) => vec![name],
        Tree::Alt(trees) => trees.iter().flat_map(leaves).collect(),
        Tree::Union(trees) => trees.iter().flat_map(|(_, tree)| leaves(tree)).collect(),
        Tree::Neg | Tree::Fail | Tree::Empty => Vec::new(),
    }
}

pub(super) fn raw_labels(name: &Name) -> Vec<String> {
    name.labels().iter().map(|label| raw(label)).collect()
}
