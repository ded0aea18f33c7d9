//! Services of Consul as names of a mesh.
//!
//! [`follow`] watches which services there are, and the instances of those that a
//! rule lets in, and tells an [`Import`] whenever it is another one. Nothing
//! vanishes before its own list says so, believably: a name that is no longer in the
//! list of names is still watched until then.
//!
//! Never imported: what an Isthmus has exported, Consul's own service unless a rule
//! names it, and proxies of Consul's service mesh, which want its certificates.

mod convert;
mod instance;
mod rule;
mod tasks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU16,
};

use mesh_core::ServiceName;
use tokio::{
    sync::watch as channel,
    time::{Duration, Instant, sleep},
};

use self::{convert::note, rule::watched, tasks::Tasks};
pub use self::{
    convert::{Snapshot, convert},
    rule::{AddressOf, ImportRule, Pattern},
};
use crate::{
    client::Client,
    watch::{Pace, Why},
    wire::ServiceEntry,
};

/// How many services are watched where nothing is said: each is a connection that
/// waits, and Consul takes 200 from one address (`http_max_conns_per_client`).
pub const MAX_SERVICES: usize = 150;
/// What comes together is told together.
const SETTLES: Duration = Duration::from_millis(50);
/// The meta key of what an Isthmus has written, and its value.
pub const MANAGED_BY: (&str, &str) = ("managed-by", "isthmus");

/// All that is imported.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Import {
    /// By the name that the mesh knows.
    pub services: BTreeMap<ServiceName, Imported>,
    /// What a rule lets in and the mesh cannot take, or Consul does not tell.
    pub skipped: BTreeSet<Skipped>,
    /// Every list has been answered once. Before that nothing may be removed that
    /// an earlier run has imported.
    pub complete: bool,
    /// Lists of names that are not as of the last answer, by datacenter.
    pub stale: BTreeMap<Option<String>, Stale>,
}

/// One service.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Where clients ask for it: the rule's, or the one that most instances have,
    /// and of those the lowest.
    pub port: NonZeroU16,
    /// By id; none that Consul does not have.
    pub instances: Vec<Instance>,
    /// Not as of the last answer: what was known last.
    pub stale: Option<Stale>,
}

/// Since when and why what was known last is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// When it began.
    pub since: Instant,
    /// Why.
    pub why: Why,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// `<datacenter>/<node>/<id>`.
    pub id: String,
    /// Where it listens.
    pub address: Host,
    /// Its own, which may not be the service's.
    pub port: NonZeroU16,
    /// Worst of its node's and its own checks.
    pub health: Health,
    /// Consul's, for its health; that of a passing one where it is critical.
    pub weight: u32,
    /// As registered.
    pub tags: Vec<String>,
    /// As registered.
    pub meta: BTreeMap<String, String>,
    /// Name of the node in Consul.
    pub node: String,
    /// The datacenter.
    pub dc: String,
}

/// Where an instance or a node is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// An address.
    Ip(std::net::IpAddr),
    /// A name to resolve, possibly to several addresses.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Health in Consul, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// All checks pass, or there are none.
    Passing,
    /// Consul's DNS still names it.
    Warning,
    /// Some check fails.
    Critical,
    /// Somebody drains it.
    Maintenance,
}

/// What is not imported although a rule lets it in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    /// The service, as Consul calls it, or one of its instances.
    pub what: String,
    /// Why, and how to mend it.
    pub why: String,
}

/// Follows Consul for ever by `rules`, at most `most` services; the first rule that
/// lets a service in counts.
pub async fn follow(
    client: &Client,
    rules: &[ImportRule],
    pace: &Pace,
    most: usize,
    tell: &channel::Sender<Import>,
) -> std::convert::Infallible {
    let mut tasks = Tasks::new(client.clone(), pace.clone(), rules);
    loop {
        let snapshot = tasks.snapshot();
        let (wanted, mut skipped) = watched(rules, &snapshot.names, most);
        tasks.want(&wanted, rules);
        let mut import = convert(rules, &snapshot);
        import.skipped.append(&mut skipped);
        for ((_, service), why) in tasks.unknown(&wanted) {
            import.complete = false;
            if let Some(why) = why {
                note(&mut import.skipped, service, why.to_string());
            }
        }
        tell.send_if_modified(|told| {
            let changed = *told != import;
            *told = import;
            changed
        });
        tasks.changed().await;
        sleep(SETTLES).await;
    }
}

/// Whether an Isthmus has written it.
fn is_ours(entry: &ServiceEntry) -> bool {
    entry.service.meta.get(MANAGED_BY.0).is_some_and(|value| value == MANAGED_BY.1)
}

#[cfg(test)]
mod tests;
