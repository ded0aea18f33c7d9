//! What the registries know that a configuration of Linkerd 1.x points to: asked where
//! its namers and interpreters say, for what its tables lead to. What does not answer
//! is noted for the report, and the plan goes on.

mod ask;
mod consul;
mod dnssrv;
mod k8s;
mod marathon;
mod namerd;
mod serversets;
mod tables;
mod zookeeper;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use mesh_migrate::{
    linkerd1::{
        config::{Config, InterpreterKind, Namer, Router},
        name::Name,
        reach::Reach,
        world::{Files, Known, World},
    },
    request::Endpoint,
    source::Place,
};

use self::ask::Wrong;
use crate::failure::{Exit, Failure};

/// Names of one registry, at most.
const MAX_NAMES: usize = 50_000;
/// Reasons that are told for one of them.
const MAX_REASONS: usize = 3;

/// What one registry says.
#[derive(Debug, Default)]
struct Names {
    known: BTreeMap<Name, Known>,
    /// Why something is not there.
    lost: BTreeSet<String>,
}

impl Names {
    /// A name with its endpoints: the same for the same, in whatever order they came.
    fn add(&mut self, name: Name, mut endpoints: Vec<(Endpoint, f64)>) {
        endpoints.sort_by(|(a, one), (b, other)| a.cmp(b).then(other.total_cmp(one)));
        endpoints.dedup_by(|(a, _), (b, _)| a == b);
        self.put(name, Some(endpoints));
    }

    /// A name that there is, and nobody says where.
    fn add_unknown(&mut self, name: Name) {
        self.put(name, None);
    }

    fn put(&mut self, name: Name, known: Known) {
        if self.known.len() < MAX_NAMES {
            self.known.insert(name, known);
        } else {
            self.lose(format!("there are more than {MAX_NAMES} names"));
        }
    }

    fn lose(&mut self, why: impl Display) {
        self.lost.insert(why.to_string());
    }

    fn reasons(&self) -> Option<String> {
        let some: Vec<&str> = self.lost.iter().take(MAX_REASONS).map(String::as_str).collect();
        let more = self.lost.len().saturating_sub(MAX_REASONS);
        let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
        (!some.is_empty()).then(|| some.join("; ") + &rest)
    }
}

/// Everything that was asked.
#[derive(Default)]
struct Run {
    world: World,
    answered: usize,
    /// Where who did not answer at all is written, and why.
    silent: Vec<(Place, String)>,
}

/// Asks everybody. `used` are services that are known to be used; `files` opens what the
/// configuration names.
pub(super) async fn read(
    config: &Config,
    used: &[Name],
    files: Files<'_>,
) -> Result<World, Failure> {
    let mut run = Run::default();
    run.tables(config).await;
    let local = |router: &&Router| !matches!(router.interpreter.kind, InterpreterKind::Namerd(_));
    let routers: Vec<&Router> = config.routers.iter().filter(local).collect();
    let mut reach = Reach::of(routers.iter().copied(), [], &config.namers);
    for router in routers {
        reach.add_asked(config, router, &run.world, files, used);
    }
    // Of two with one prefix, the later one is asked first.
    for namer in config.namers.iter().rev().filter(|namer| reach.leads(&namer.prefix)) {
        run.namer(namer, &reach).await;
    }
    run.namerd(config, used).await;
    run.finish()
}

impl Run {
    /// Tables that are kept elsewhere, each once.
    async fn tables(&mut self, config: &Config) {
        for router in &config.routers {
            let (InterpreterKind::Store(key) | InterpreterKind::Namerd(key), Some(node)) =
                (&router.interpreter.kind, &router.interpreter.node)
            else {
                continue;
            };
            if self.world.dtabs.contains_key(key) || self.world.unread.contains_key(key) {
                continue;
            }
            match Box::pin(tables::read(&router.interpreter.kind, node)).await {
                Ok((table, note)) => {
                    self.answered += 1;
                    self.world.dtabs.insert(key.clone(), table);
                    self.world.unread.extend(note.map(|note| (key.clone(), note)));
                }
                Err(wrong) => self.silent(key.clone(), &node.place, wrong.to_string()),
            }
        }
    }

    async fn namer(&mut self, namer: &Namer, reach: &Reach) {
        let mut names = Names::default();
        let asked = match namer.kind.as_str() {
            // Files are read when they are needed, and rewriting asks nobody.
            "io.l5d.fs" | "io.l5d.rewrite" => return,
            "io.l5d.consul" => Box::pin(consul::read(namer, reach, &mut names)).await,
            "io.l5d.k8s" | "io.l5d.k8s.ns" | "io.l5d.k8s.external" => {
                Box::pin(k8s::read(namer, reach, &mut names)).await
            }
            "io.l5d.marathon" => Box::pin(marathon::read(namer, reach, &mut names)).await,
            "io.l5d.serversets" => Box::pin(serversets::read(namer, reach, &mut names)).await,
            "io.l5d.dnssrv" => Box::pin(dnssrv::read(namer, reach, &mut names)).await,
            kind => {
                let why = format!("nobody here knows how {kind} asks");
                self.unread(namer.prefix.to_string(), why);
                return;
            }
        };
        self.took(namer.prefix.to_string(), &namer.node.place, names, asked);
    }

    async fn namerd(&mut self, config: &Config, used: &[Name]) {
        let mut done = BTreeSet::new();
        for router in &config.routers {
            let (InterpreterKind::Namerd(key), Some(node)) =
                (&router.interpreter.kind, &router.interpreter.node)
            else {
                continue;
            };
            // Whoever has not given the table is not asked again.
            let Some(table) = self.world.dtabs.get(key) else { continue };
            if !done.insert(key) {
                continue;
            }
            let is_here =
                |router: &&Router| router.interpreter.kind == InterpreterKind::Namerd(key.clone());
            let reach = Reach::of(config.routers.iter().filter(is_here), [table], &[]);
            let mut names = Names::default();
            let asked = Box::pin(namerd::read(key, node, &reach, used, &mut names)).await;
            self.took(key.clone(), &node.place, names, asked);
        }
    }

    /// What one of them has said, as far as it has.
    fn took(&mut self, key: String, place: &Place, mut names: Names, asked: Result<(), Wrong>) {
        if let Err(wrong) = asked {
            names.lose(wrong);
            if names.known.is_empty() {
                self.silent(key, place, names.reasons().unwrap_or_default());
                return;
            }
        }
        self.answered += 1;
        if let Some(why) = names.reasons() {
            self.unread(key, why);
        }
        for (name, known) in names.known {
            let entry = self.world.names.entry(name.to_string()).or_insert(Some(Vec::new()));
            if entry.as_ref().is_some_and(Vec::is_empty) {
                *entry = known;
            }
        }
    }

    fn silent(&mut self, key: String, place: &Place, why: String) {
        self.silent.push((place.clone(), why.clone()));
        self.unread(key, why);
    }

    /// Two namers may have one prefix.
    fn unread(&mut self, key: String, why: String) {
        let said = self.world.unread.entry(key).or_default();
        *said = if said.is_empty() { why } else { format!("{said}; {why}") };
    }

    fn finish(self) -> Result<World, Failure> {
        if self.answered == 0 && !self.silent.is_empty() {
            let all = self.silent.iter().map(|(place, why)| format!("\n  {place}: {why}"));
            return Err(Failure::new(format!(
                "--discover: nobody has answered:{}",
                all.collect::<String>()
            ))
            .exit(Exit::Unreachable)
            .remedy("plan where they answer, or give what they know: --discovery FILE"));
        }
        Ok(self.world)
    }
}

#[cfg(test)]
mod tests {
    use mesh_migrate::linkerd1::world::endpoint;

    use super::*;

    #[test]
    fn order_of_answers_changes_nothing() {
        let name = || Name::of(["a"]);
        let (one, two) = ((endpoint("10.0.0.1", 1), 1.0), (endpoint("10.0.0.2", 1), 3.0));
        let (mut a, mut b) = (Names::default(), Names::default());
        a.add(name(), vec![one.clone(), two.clone(), (endpoint("10.0.0.2", 1), 1.0)]);
        b.add(name(), vec![two.clone(), one.clone()]);
        assert_eq!(a.known, b.known);
        assert_eq!(a.known[&name()].as_ref().unwrap(), &[one, two]);
    }

    #[test]
    fn reasons_are_few() {
        let mut names = Names::default();
        assert_eq!(names.reasons(), None);
        (0..5).for_each(|at| names.lose(format!("r{at}")));
        assert_eq!(names.reasons().unwrap(), "r0; r1; r2; and 2 more");
    }
}
