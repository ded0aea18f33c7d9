//! Which names of namers a configuration can lead to, so that only those are asked for.

use std::collections::BTreeSet;

use super::{
    config::{Config, Namer, Router, Transformer, TransformerKind},
    delegate::Traced,
    dtab::{Dtab, Tree},
    explain::{engine, remote},
    name::Name,
    world::{Files, World},
};

/// Names that tables end with. What follows them comes from requests, and may be
/// anything.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Labels as they are shown; `None` is any.
    ends: BTreeSet<Vec<Option<String>>>,
}

impl Reach {
    /// What tables lead to, and what routers and namers name beside them.
    pub fn of<'a>(
        routers: impl IntoIterator<Item = &'a Router>,
        tables: impl IntoIterator<Item = &'a Dtab>,
        namers: &'a [Namer],
    ) -> Self {
        let mut reach = Self::default();
        for router in routers {
            reach.add(&router.dst_prefix);
            reach.table(&router.dtab);
            reach.transformers(&router.interpreter.transformers);
        }
        tables.into_iter().for_each(|table| reach.table(table));
        for namer in namers {
            reach.transformers(&namer.transformers);
            if let Some(name) = namer.node.at("name").and_then(|node| node.text().ok()) {
                let labels = name.split('/').filter(|label| !label.is_empty());
                let label = |label: &str| (!label.contains('{')).then(|| label.to_owned());
                reach.ends.insert(labels.map(label).collect());
            }
        }
        reach
    }

    /// What the table of a router that is kept elsewhere leads to, and which namers are
    /// asked for what when these services are bound.
    pub fn add_asked(
        &mut self,
        config: &Config,
        router: &Router,
        world: &World,
        files: Files<'_>,
        services: &[Name],
    ) {
        // A table that cannot be read is told of when it is needed.
        let first = remote(router, world, files).ok().flatten();
        if let Some(first) = &first {
            self.table(first);
        }
        let engine = engine(config, router, world, files, &[first.as_ref(), Some(&router.dtab)]);
        for service in services {
            self.traced(&engine.bind(service).trace);
        }
    }

    /// Whether a name, or one below it, may come of a request.
    pub fn leads(&self, name: &Name) -> bool {
        self.ends.iter().any(|end| {
            end.iter()
                .zip(name.labels())
                .all(|(end, label)| end.as_ref().is_none_or(|end| end.eq_ignore_ascii_case(label)))
        })
    }

    /// What is known to follow `prefix`: names below it, without it.
    pub fn below(&self, prefix: &Name) -> BTreeSet<Name> {
        let known = |end: &Vec<Option<String>>| {
            let labels: Vec<String> = end.iter().map_while(Clone::clone).collect();
            Name::of_shown(labels).below(prefix)
        };
        self.ends.iter().filter_map(known).collect()
    }

    fn add(&mut self, name: &Name) {
        self.ends.insert(name.labels().iter().cloned().map(Some).collect());
    }

    fn traced(&mut self, trace: &Traced) {
        let name = trace.name.as_ref();
        if let Some(name) = name.filter(|name| name.labels().first().is_some_and(|l| l == "#")) {
            self.add(name);
        }
        trace.below.iter().for_each(|below| self.traced(below));
    }

    fn table(&mut self, table: &Dtab) {
        table.entries.iter().for_each(|entry| self.tree(&entry.tree));
    }

    fn tree(&mut self, tree: &Tree) {
        match tree {
            Tree::Leaf(name) => self.add(name),
            Tree::Alt(trees) => trees.iter().for_each(|tree| self.tree(tree)),
            Tree::Union(trees) => trees.iter().for_each(|(_, tree)| self.tree(tree)),
            Tree::Neg | Tree::Fail | Tree::Empty => {}
        }
    }

    fn transformers(&mut self, transformers: &[Transformer]) {
        for transformer in transformers {
            if let TransformerKind::Replace(name) | TransformerKind::Const(name) = &transformer.kind
            {
                self.add(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::config::Config, *};
    use crate::source::Source;

    #[test]
    fn what_tables_end_with_is_led_to_and_what_is_below() {
        let text = "namers:\n- {kind: io.l5d.rewrite, pattern: '/{a}', name: '/#/m/dc2/{a}'}\n\
                    routers:\n- protocol: http\n  dtab: |\n    /svc => /#/c/dc1 | 2 * /#/s/a/b & ! ;\n";
        let config = Config::read(&Source::of("f", text)).unwrap();
        let reach = Reach::of(&config.routers, [], &config.namers);
        let leads = |name: &str| reach.leads(&Name::read(name).unwrap());
        for name in ["/#/c", "/#/c/dc1", "/#/C/DC1/web", "/#/m/dc2/x/y", "/#/s/a/b", "/svc/web"] {
            assert!(leads(name), "{name}");
        }
        for name in ["/#/c/dc2", "/#/m/dc1", "/#/s/a/c", "/#/x"] {
            assert!(!leads(name), "{name}");
        }
        let below = |name: &str| {
            let below = reach.below(&Name::read(name).unwrap());
            below.iter().map(Name::to_string).collect::<Vec<_>>()
        };
        assert_eq!(below("/#/s"), ["/a/b"]);
        assert_eq!(below("/#/m"), ["/dc2"]);
        assert!(below("/#/x").is_empty());
    }

    #[test]
    fn services_that_are_used_name_what_is_asked_for() {
        let text = "namers:\n- {kind: io.l5d.dnssrv, prefix: /d}\nrouters:\n- protocol: http\n  \
                    interpreter: {kind: io.l5d.consul.interpreter}\n  dtab: /svc => /other ;\n";
        let config = Config::read(&Source::of("f", text)).unwrap();
        let mut world = World::default();
        let table = Dtab::read("t", "/other => /#/d | /#/e ;").unwrap();
        world.dtabs.insert("default".into(), table);
        let mut reach = Reach::of(&config.routers, [], &config.namers);
        let files = |_: &str| panic!("no file is asked for");
        let used = [Name::read("/svc/web.corp/x").unwrap()];
        reach.add_asked(&config, &config.routers[0], &world, &files, &used);
        let below = reach.below(&Name::read("/#/d").unwrap());
        assert_eq!(below.iter().map(Name::to_string).collect::<Vec<_>>(), ["/", "/web.corp/x"]);
    }
}
