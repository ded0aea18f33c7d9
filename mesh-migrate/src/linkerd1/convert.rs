//! The conversion: a table is for any name, our rules are for those that are known.

mod backwards;
mod candidates;
mod captures;
mod keys;
mod labels;
mod letters;
mod notes;
mod overlaps;
mod pair;
mod policies;
mod pools;
mod routers;
mod rules;
mod tables;
mod universe;
mod uses;

use std::collections::BTreeSet;

use super::{
    config::{Config, Protocol},
    name::Name,
    world::{Files, World},
};
use crate::{
    ledger::{Ledger, Verdict},
    program::Program,
    source::Place,
};

/// What the configuration is with us, and what has become of every line of it.
///
/// `names` are services that are known to be used (`/svc/web`), from metrics of a
/// running Linkerd: they get rules beside those that the table and `world` tell.
pub fn convert(
    config: &Config,
    world: &World,
    files: Files<'_>,
    names: &[Name],
) -> (Program, Ledger) {
    let mut ledger = Ledger::default();
    keys::walk(&mut ledger, &config.root, tables::TOP);
    notes::namers(&mut ledger, config, world);
    let mut pools = pools::Pools::default();
    let mut program = Program::default();
    for router in &config.routers {
        notes::router(&mut ledger, config, world, router);
        let asked = routers::Asked { config, router, world, files, names };
        match router.protocol {
            Protocol::Http | Protocol::H2 => {
                routers::http(&asked, &mut program, &mut pools, &mut ledger);
            }
            Protocol::Rpc(_) | Protocol::Other(_) => {
                routers::rpc(&asked, &mut program, &mut pools, &mut ledger);
            }
        }
    }
    program.pools = pools.pools;
    (program, tidy(&ledger))
}

/// Without `exact` where something else is said about the same.
fn tidy(ledger: &Ledger) -> Ledger {
    let entries = ledger.entries();
    let mut tidy = Ledger::default();
    let others: BTreeSet<&Place> = (entries.iter())
        .filter(|entry| entry.verdict != Verdict::Exact)
        .map(|entry| &entry.place)
        .collect();
    for entry in &entries {
        if entry.verdict != Verdict::Exact || !others.contains(&entry.place) {
            tidy.say_until(&entry.place, entry.last_line, entry.verdict.clone());
        }
    }
    tidy
}
