//! What operators see of the Consuls.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_api::v1::{ConsulErrors, ConsulInfo};
use mesh_consul::{
    Client, Config,
    export::Exports,
    import::{Import, Stale},
};
use mesh_core::NodeId;
use tokio::{sync::watch, time::Instant};

/// Those of a configuration. Clones share what is known.
#[derive(Debug, Clone, Default)]
pub struct Consuls(Arc<[Arc<Beside>]>);

/// One of them. Who follows it writes here, and who is asked reads.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) config: Config,
    /// What it has.
    pub(super) import: watch::Sender<Import>,
    /// What it was given.
    pub(super) exports: watch::Sender<Exports>,
    written: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    asked_by: Option<Asked>,
    services: usize,
    instances: usize,
    refused: usize,
}

/// Who asks it, or why nobody does.
enum Asked {
    By(Client),
    Not(String),
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::By(_) => "By",
            Self::Not(why) => why,
        })
    }
}

impl Consuls {
    /// Nothing is known of any.
    pub fn new(configs: &[Config]) -> Self {
        Self(configs.iter().cloned().map(|config| Arc::new(Beside::new(config))).collect())
    }

    /// All of them, in the order in which they are written.
    pub fn list(&self) -> Vec<ConsulInfo> {
        self.0.iter().map(|beside| beside.info()).collect()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Beside>> {
        self.0.iter()
    }
}

impl Beside {
    fn new(config: Config) -> Self {
        let (import, exports) =
            (watch::Sender::new(Import::default()), watch::Sender::new(Exports::default()));
        Self { config, import, exports, written: Mutex::default() }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn asked_by(&self, client: &Client) {
        self.written().asked_by = Some(Asked::By(client.clone()));
    }

    pub(super) fn is_not_asked(&self, why: String) {
        self.written().asked_by = Some(Asked::Not(why));
    }

    /// How many services and instances are registered, and how much is not.
    pub(super) fn has_written(&self, services: usize, instances: usize, refused: usize) {
        let mut written = self.written();
        (written.services, written.instances, written.refused) = (services, instances, refused);
    }

    fn info(&self) -> ConsulInfo {
        let written = self.written();
        let (import, exports) = (self.import.borrow(), self.exports.borrow());
        let door = self.door().map(ToString::to_string).unwrap_or_default();
        let mut info = ConsulInfo {
            address: self.config.connection.address.clone(),
            door,
            imported_services: count(written.services),
            imported_instances: count(written.instances),
            not_imported: count(written.refused),
            exported: count(exports.shown),
            not_exported: count(exports.refused.len()),
            ..ConsulInfo::default()
        };
        let waits = match &written.asked_by {
            Some(Asked::Not(why)) => Some(why.clone()),
            Some(Asked::By(client)) => {
                info.index = client.figures().index();
                let errors = client.figures().errors().into_iter();
                let errors = errors.map(|(kind, count)| ConsulErrors { kind: kind.into(), count });
                info.errors = errors.collect();
                None
            }
            None => Some(String::new()),
        };
        let waits = waits.or_else(|| self.waits(&import));
        let stale = self.stale(&import, &exports);
        let (state, problem) = match (waits, &stale) {
            (Some(why), _) if !why.is_empty() => ("waiting", why),
            (Some(_), Some((_, why))) => ("waiting", why.clone()),
            (Some(_), None) => ("waiting", "not everything was answered once".to_owned()),
            (None, Some((_, why))) => ("stale", why.clone()),
            (None, None) => ("fresh", String::new()),
        };
        (info.state, info.problem) = (state.to_owned(), problem);
        info.stale_ms = stale.map_or(0, |(since, _)| ms(since.elapsed()));
        info
    }

    fn door(&self) -> Option<&NodeId> {
        self.config.door.as_ref().filter(|_| !self.config.import.is_empty())
    }

    /// Some list has never been answered; empty where it is not said why.
    fn waits(&self, import: &Import) -> Option<String> {
        (!self.config.import.is_empty() && !import.complete).then(String::new)
    }

    /// The oldest of what is not as of now, and why.
    fn stale(&self, import: &Import, exports: &Exports) -> Option<(Instant, String)> {
        let of_names = import.stale.values();
        let of_services = import.services.values().filter_map(|service| service.stale.as_ref());
        let imported = of_names
            .chain(of_services)
            .map(|Stale { since, why }| (*since, why.to_string()))
            .min_by_key(|(since, _)| *since);
        let exported = exports.failing.clone().filter(|_| !self.config.export.is_empty());
        imported.into_iter().chain(exported).min_by_key(|(since, _)| *since)
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
