//! Delegation: how a name becomes endpoints, step by step (`Dtab`, `Namer.bind` of
//! Finagle; what the dtab playground shows).

use std::fmt;

use super::{
    config::{Namer, Transformer},
    dtab::{Dentry, Tree},
    name::Name,
    namers::{BoundName, Found, Origin, built_in, configured, elsewhere},
    transform::apply,
    world::{Files, World},
};
use crate::{request::Step, source::Place};

/// Lookups within each other, as in Finagle, which refuses the answer of one more.
const MAX_DEPTH: u32 = 100;
/// Trees within each other on the way: the stack is finite.
const MAX_NESTING: u32 = 400;
/// Entries and labels looked at for one name, and what else costs as much as so many.
const MAX_WORK: usize = 1_000_000;
/// Entries and alternatives that are told of though nobody asked them.
const MAX_NOT_ASKED: usize = 20;
const NOT_ASKED: &str = "not asked";
/// One label, which every step of the way copies.
const LABEL: usize = 10;
/// One lookup.
const LOOKUP: usize = 100;
/// A pattern to compile, or a file to read.
const SLOW_NAMER: usize = 3_000;

/// What a name is bound to.
#[derive(Debug, Clone, PartialEq)]
pub enum Bound {
    /// Not here.
    Neg,
    /// Not here, and nowhere.
    Fail,
    /// Here, and nobody is in.
    Empty,
    /// Endpoints.
    Leaf(Box<BoundName>),
    /// A branch by chance for each request.
    Union(Vec<(f64, Bound)>),
}

impl Bound {
    pub(super) fn map(self, f: &dyn Fn(BoundName) -> Bound) -> Self {
        match self {
            Self::Leaf(bound) => f(*bound),
            Self::Union(trees) => {
                Self::Union(trees.into_iter().map(|(weight, tree)| (weight, tree.map(f))).collect())
            }
            other => other,
        }
    }

    /// Its leaves, with their shares.
    pub fn leaves(&self) -> Vec<(f64, &Self)> {
        let Self::Union(trees) = self else { return vec![(1.0, self)] };
        let all: f64 = trees.iter().map(|(weight, _)| weight).sum();
        let share = |weight: f64| if all > 0.0 { weight / all } else { 1.0 / trees.len() as f64 };
        let flat = trees.iter().flat_map(|(weight, tree)| {
            let share = share(*weight);
            tree.leaves().into_iter().map(move |(part, leaf)| (share * part, leaf))
        });
        flat.collect()
    }
}

/// How a name was delegated: a tree to print.
#[derive(Debug, Clone, PartialEq)]
pub struct Traced {
    /// What was looked up; absent for `~`, `!`, `$` and groups.
    pub name: Option<Name>,
    /// The entry that led here, and where it is.
    pub entry: Option<(Place, String)>,
    /// The share of a union.
    pub weight: Option<f64>,
    /// What came of it.
    pub found: String,
    /// What it became.
    pub below: Vec<Traced>,
}

impl Traced {
    fn of(name: Option<Name>, found: impl Into<String>) -> Self {
        Self { name, entry: None, weight: None, found: found.into(), below: Vec::new() }
    }

    /// Steps in order, each with its line.
    pub(super) fn steps(&self, steps: &mut Vec<Step>) {
        if let (Some((place, entry)), Some(name)) = (&self.entry, &self.name) {
            steps.push(Step { place: Some(place.clone()), what: format!("{entry}: asks {name}") });
        }
        if self.below.is_empty() {
            let name = self.name.as_ref().map_or_else(String::new, |name| format!("{name}: "));
            let place = self.entry.as_ref().map(|(place, _)| place.clone());
            steps.push(Step { place, what: format!("{name}{}", self.found) });
        }
        self.below.iter().for_each(|below| below.steps(steps));
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        write!(f, "{:1$}", "", depth.min(60) * 2)?;
        if let Some(weight) = self.weight {
            write!(f, "{weight} * ")?;
        }
        if let Some(name) = &self.name {
            write!(f, "{name}")?;
        }
        if !self.found.is_empty() {
            write!(f, "{}{}", if self.name.is_some() { "  " } else { "" }, self.found)?;
        }
        if let Some((place, entry)) = &self.entry {
            write!(f, "  ({entry}, {place})")?;
        }
        f.write_str("\n")?;
        self.below.iter().try_for_each(|below| below.print(f, depth + 1))
    }
}

impl fmt::Display for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print(f, 0)
    }
}

/// Tables, namers and transformers that are asked.
pub(super) struct Engine<'a> {
    /// The last is asked first.
    pub entries: Vec<&'a Dentry>,
    /// In order of the file; `None` where namerd has others.
    pub namers: Option<&'a [Namer]>,
    /// Of the interpreter.
    pub transformers: &'a [Transformer],
    pub world: &'a World,
    pub files: Files<'a>,
    /// Whether somebody reads how: entries are not spelled out otherwise.
    pub is_told: bool,
}

/// What came of a name.
pub(super) struct Delegated {
    /// An error ends binding: 502.
    pub bound: Result<Bound, String>,
    pub trace: Traced,
    /// Places in `entries` that were used.
    pub used: Vec<usize>,
    /// What it cost.
    pub work: usize,
}

impl Engine<'_> {
    /// Binds a name.
    pub(super) fn bind(&self, name: &Name) -> Delegated {
        let mut run =
            Run { engine: self, work: 0, nesting: 0, is_too_much: false, used: Vec::new() };
        let (mut bound, trace) = run.name(name, 0);
        for transformer in self.transformers {
            bound = bound.and_then(|tree| apply(transformer, tree, self.world));
        }
        run.used.sort_unstable();
        run.used.dedup();
        Delegated { bound, trace, used: run.used, work: run.work }
    }
}

struct Run<'e, 'a> {
    engine: &'e Engine<'a>,
    work: usize,
    nesting: u32,
    /// It has met a limit that is ours, and not one of Finagle: nothing follows of it.
    is_too_much: bool,
    used: Vec<usize>,
}

type Step1 = (Result<Bound, String>, Traced);

impl Run<'_, '_> {
    fn name(&mut self, name: &Name, depth: u32) -> Step1 {
        self.work += self.engine.entries.len() + name.len() * LABEL + LOOKUP;
        let limit = if depth >= MAX_DEPTH {
            Some(format!("delegated more than {MAX_DEPTH} times: entries lead to each other"))
        } else if self.work > MAX_WORK || self.nesting > MAX_NESTING {
            self.is_too_much = true;
            Some("the table branches too much to be followed".to_owned())
        } else {
            None
        };
        if let Some(wrong) = limit {
            return (Err(wrong.clone()), Traced::of(Some(name.clone()), format!("error: {wrong}")));
        }
        self.nesting += 1;
        let found = self.lookup(name, depth);
        self.nesting -= 1;
        found
    }

    fn lookup(&mut self, name: &Name, depth: u32) -> Step1 {
        let engine = self.engine;
        let mut matching = (engine.entries.iter().enumerate().rev())
            .filter(|(_, entry)| entry.matches(name))
            .map(|(at, entry)| (at, *entry))
            .peekable();
        let Some((at, first)) = matching.peek().copied() else {
            return self.namers(name, depth);
        };
        // One entry that says `~` counts as none: the table itself is then negative.
        if first.tree == Tree::Neg && matching.clone().nth(1).is_none() {
            self.used.push(at);
            return self.namers(name, depth);
        }
        let mut trace = Traced::of(Some(name.clone()), "");
        let mut result = Ok(Bound::Neg);
        for (at, entry) in matching.by_ref() {
            self.used.push(at);
            let (_, rest) = name.split(entry.prefix.len());
            let (bound, mut below) = self.tree(&entry.tree, &rest, depth);
            below.entry = Some((entry.place.clone(), self.said(entry)));
            trace.below.push(below);
            result = bound;
            if result != Ok(Bound::Neg) {
                break;
            }
        }
        let others = if engine.is_told { MAX_NOT_ASKED } else { 0 };
        trace.below.extend(matching.take(others).map(|(_, entry)| Traced {
            entry: Some((entry.place.clone(), entry.to_string())),
            ..Traced::of(None, NOT_ASKED)
        }));
        (result, trace)
    }

    fn said(&self, entry: &Dentry) -> String {
        if self.engine.is_told { entry.to_string() } else { String::new() }
    }

    fn tree(&mut self, tree: &Tree, rest: &Name, depth: u32) -> Step1 {
        match tree {
            Tree::Leaf(name) => self.name(&name.join(rest), depth + 1),
            Tree::Neg => (Ok(Bound::Neg), Traced::of(None, "~ negative")),
            Tree::Fail => (Ok(Bound::Fail), Traced::of(None, "! fails")),
            Tree::Empty => (Ok(Bound::Empty), Traced::of(None, "$ empty")),
            Tree::Alt(trees) => self.alt(trees, rest, depth),
            Tree::Union(trees) => self.union(trees, rest, depth),
        }
    }

    fn alt(&mut self, trees: &[Tree], rest: &Name, depth: u32) -> Step1 {
        let mut trace = Traced::of(None, "the first that is not negative:");
        self.nesting += 1;
        let mut result = Ok(Bound::Neg);
        let mut left = trees.iter();
        for tree in left.by_ref() {
            let (bound, below) = self.tree(tree, rest, depth);
            trace.below.push(below);
            result = bound;
            if result != Ok(Bound::Neg) {
                break;
            }
        }
        let others = if self.engine.is_told { MAX_NOT_ASKED } else { 0 };
        let not_asked =
            left.take(others).map(|tree| Traced::of(None, format!("{tree} {NOT_ASKED}")));
        trace.below.extend(not_asked);
        self.nesting -= 1;
        (result, trace)
    }

    /// Branches that are negative or fail are left out; one that is empty stays. Those
    /// that end with an error count only where all do; what is then left alone is all
    /// there is, even if it fails.
    fn union(&mut self, trees: &[(f64, Tree)], rest: &Name, depth: u32) -> Step1 {
        let mut trace = Traced::of(None, "by weight:");
        self.nesting += 1;
        let mut found = Vec::new();
        let mut wrong = None;
        for (weight, tree) in trees {
            let (bound, mut below) = self.tree(tree, rest, depth);
            below.weight = Some(*weight);
            trace.below.push(below);
            match bound {
                Ok(bound) => found.push((*weight, bound)),
                Err(error) if self.is_too_much => {
                    found.clear();
                    wrong = Some(error);
                    break;
                }
                Err(error) => wrong = wrong.or(Some(error)),
            }
        }
        self.nesting -= 1;
        if let Some(error) = wrong.filter(|_| found.is_empty()) {
            return (Err(error), trace);
        }
        if found.len() > 1 {
            found.retain(|(_, bound)| !matches!(bound, Bound::Neg | Bound::Fail));
        }
        let result = match found.len() {
            0 => Bound::Neg,
            1 => found.remove(0).1,
            _ => Bound::Union(found),
        };
        (Ok(result), trace)
    }

    /// Later namers are asked first; then those that every Linkerd has.
    fn namers(&mut self, name: &Name, depth: u32) -> Step1 {
        let mut reasons = Vec::new();
        for (at, namer) in self.engine.namers.unwrap_or_default().iter().enumerate().rev() {
            let Some(below) = name.below(&namer.prefix) else { continue };
            if matches!(namer.kind.as_str(), "io.l5d.fs" | "io.l5d.rewrite") {
                self.work += SLOW_NAMER;
            }
            match configured(at, namer, &below, self.engine.world, self.engine.files) {
                Found::Neg(reason) => reasons.push(reason),
                found => return self.found(name, found, &namer.transformers, depth),
            }
        }
        if self.engine.namers.is_none() && name.labels().first().is_some_and(|first| first == "#") {
            return self.found(name, elsewhere(name, self.engine.world), &[], depth);
        }
        match built_in(name) {
            Found::Neg(reason) => {
                reasons.push(reason);
                let reason = reasons.swap_remove(0);
                (Ok(Bound::Neg), Traced::of(Some(name.clone()), format!("negative: {reason}")))
            }
            Found::Bound(mut bound) => {
                // Discovery may say where a name of DNS is.
                let known = self.engine.world.names.get(&bound.id.to_string());
                if let (Origin::Dns, Some(known @ Some(_))) = (&bound.from, known) {
                    bound.endpoints.clone_from(known);
                }
                self.found(name, Found::Bound(bound), &[], depth)
            }
            found => self.found(name, found, &[], depth),
        }
    }

    fn found(&mut self, name: &Name, found: Found, by: &[Transformer], depth: u32) -> Step1 {
        let mut trace = Traced::of(Some(name.clone()), "");
        let mut result = match found {
            Found::Name(next) => {
                let (bound, below) = self.name(&next, depth + 1);
                trace.below.push(below);
                return (bound, trace);
            }
            Found::Bound(bound) => Ok(Bound::Leaf(bound)),
            Found::Neg(reason) => {
                trace.found = format!("negative: {reason}");
                Ok(Bound::Neg)
            }
            Found::Fail => Ok(Bound::Fail),
            Found::Empty => Ok(Bound::Empty),
            Found::Error(wrong) => Err(wrong),
        };
        for transformer in by {
            result = result.and_then(|tree| apply(transformer, tree, self.engine.world));
        }
        match &result {
            Ok(Bound::Leaf(bound)) => {
                trace.found = format!("is bound: {}", bound.id);
                if !bound.residual.is_empty() {
                    trace.found += &format!(", residual {}", bound.residual);
                }
            }
            Ok(Bound::Fail) => trace.found = "! fails".into(),
            Ok(Bound::Empty) => trace.found = "$ empty".into(),
            Ok(Bound::Neg | Bound::Union(_)) => {}
            Err(wrong) => trace.found = format!("error: {wrong}"),
        }
        (result, trace)
    }
}
