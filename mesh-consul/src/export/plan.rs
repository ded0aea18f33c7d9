//! What to change at an agent. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mesh_core::SiteName;

use super::{GONE_AFTER, MAX_EXPORTED, Wanted};
use crate::{
    import::{Health, MANAGED_BY},
    wire::{AgentServices, Registration, Service, TtlCheck, Weights},
};

/// The meta key of whose an instance is.
const SITE: &str = "isthmus-site";
/// The longest name of an instance, in bytes.
const MAX_INSTANCE: usize = 128;

/// What makes an agent have what is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// Ids that are then there and ours.
    pub shown: BTreeSet<String>,
    /// By id, what cannot be, and why.
    pub refused: BTreeMap<String, String>,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is not there, or otherwise.
    Register(Box<Registration>),
    /// It is of this site, and not wanted.
    Deregister(String),
}

/// Registers first: who renames a service is not without it.
pub fn plan(site: &SiteName, ttl: Duration, wanted: &[Wanted], present: &AgentServices) -> Plan {
    let mut plan = Plan::default();
    for one in wanted {
        let id = id(site, one);
        if let Err(why) = check_wanted(one) {
            plan.refused.insert(id, why.to_owned());
        } else if plan.shown.len() >= MAX_EXPORTED {
            let why = format!("{MAX_EXPORTED} instances are exported already; export fewer");
            plan.refused.insert(id, why);
        } else if present.get(&id).is_some_and(|known| !is_of(known, site)) {
            let why = "somebody else has registered this id at the agent; deregister it there";
            plan.refused.insert(id, why.to_owned());
        } else if plan.shown.insert(id.clone()) {
            let registration = registration(site, ttl, one, id.clone());
            if present.get(&id).is_none_or(|known| !is_same(known, &registration)) {
                plan.actions.push(Action::Register(Box::new(registration)));
            }
        }
    }
    let gone = present.iter().filter(|(id, known)| is_of(known, site) && !plan.shown.contains(*id));
    plan.actions.extend(gone.map(|(id, _)| Action::Deregister(id.clone())));
    plan
}

/// The id of an instance, unique among those of all sites.
pub(super) fn id(site: &SiteName, wanted: &Wanted) -> String {
    format!("isthmus:{site}:{}:{}", wanted.service, wanted.instance)
}

/// The id of its check.
pub(super) fn check(id: &str) -> String {
    format!("{id}:alive")
}

/// Checks know no maintenance.
pub(super) fn status(health: Health) -> &'static str {
    match health {
        Health::Passing => "passing",
        Health::Warning => "warning",
        Health::Critical | Health::Maintenance => "critical",
    }
}

fn check_wanted(wanted: &Wanted) -> Result<(), &'static str> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let is_id =
        |text: &str, longest| !text.is_empty() && text.len() <= longest && text.bytes().all(ok);
    if !is_id(&wanted.service, 63) {
        return Err("the name in Consul must be 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-'");
    }
    if !is_id(&wanted.instance, MAX_INSTANCE) {
        return Err("the instance's name must be 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'");
    }
    if wanted.address.is_empty() || wanted.port == 0 {
        return Err("has no address and port where clients of Consul could reach it");
    }
    Ok(())
}

fn registration(site: &SiteName, ttl: Duration, wanted: &Wanted, id: String) -> Registration {
    let weight = i64::from(wanted.weight.clamp(1, 65_535));
    let mut meta = wanted.meta.clone();
    meta.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    meta.insert(SITE.into(), site.to_string());
    let check = TtlCheck {
        id: check(&id),
        name: format!("kept alive by isthmus, site {site}"),
        ttl: format!("{}ms", ttl.as_millis()),
        status: status(wanted.health).into(),
        deregister_critical_service_after: GONE_AFTER.into(),
    };
    Registration {
        id,
        name: wanted.service.clone(),
        tags: wanted.tags.clone(),
        address: wanted.address.clone(),
        port: wanted.port,
        meta,
        weights: Weights { passing: weight, warning: weight },
        check,
    }
}

fn is_of(known: &Service, site: &SiteName) -> bool {
    let says = |key: &str, value: &str| known.meta.get(key).is_some_and(|known| known == value);
    says(MANAGED_BY.0, MANAGED_BY.1) && says(SITE, site.as_str())
}

fn is_same(known: &Service, wanted: &Registration) -> bool {
    known.service == wanted.name
        && known.tags == wanted.tags
        && known.address == wanted.address
        && known.port == i64::from(wanted.port)
        && known.meta == wanted.meta
        && known.weights == wanted.weights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(name: &str) -> SiteName {
        name.parse().unwrap()
    }

    fn wanted(service: &str, instance: &str) -> Wanted {
        Wanted {
            service: service.into(),
            instance: instance.into(),
            address: "10.0.0.1".into(),
            port: 80,
            tags: vec!["v1".into()],
            meta: BTreeMap::new(),
            weight: 3,
            health: Health::Passing,
        }
    }

    /// What an agent would show.
    fn shown(plan: &Plan) -> AgentServices {
        let registered = plan.actions.iter().filter_map(|action| match action {
            Action::Register(r) => Some((
                r.id.clone(),
                Service {
                    id: r.id.clone(),
                    service: r.name.clone(),
                    tags: r.tags.clone(),
                    address: r.address.clone(),
                    port: r.port.into(),
                    meta: r.meta.clone(),
                    weights: r.weights.clone(),
                    ..Service::default()
                },
            )),
            Action::Deregister(_) => None,
        });
        registered.collect()
    }

    const TTL: Duration = Duration::from_secs(15);

    #[test]
    fn what_is_there_is_not_written_again_and_what_changes_is() {
        let west = site("west");
        let first = plan(&west, TTL, &[wanted("web", "a"), wanted("web", "b")], &BTreeMap::new());
        assert_eq!(first.actions.len(), 2);
        let present = shown(&first);
        let again = plan(&west, TTL, &[wanted("web", "a"), wanted("web", "b")], &present);
        assert_eq!(again.actions, []);
        let mut other = wanted("web", "a");
        other.port = 81;
        let changed = plan(&west, TTL, &[other], &present);
        let [Action::Register(register), Action::Deregister(id)] = &changed.actions[..] else {
            panic!("{changed:?}")
        };
        assert_eq!((register.port, id.as_str()), (81, "isthmus:west:web:b"));
    }

    #[test]
    fn nobody_elses_is_touched() {
        let mut present = shown(&plan(&site("east"), TTL, &[wanted("web", "a")], &BTreeMap::new()));
        let theirs = Service { id: "web".into(), service: "web".into(), ..Service::default() };
        present.insert("web".into(), theirs.clone());
        present.insert("isthmus:west:web:a".into(), theirs);
        let plan = plan(&site("west"), TTL, &[wanted("web", "a")], &present);
        assert_eq!(plan.actions, []);
        assert!(plan.refused["isthmus:west:web:a"].contains("somebody else"));
    }

    #[test]
    fn what_consul_could_not_name_is_refused() {
        let west = site("west");
        for (service, instance) in [("", "a"), ("web", ""), ("we b", "a"), ("web", "a/b")] {
            let plan = plan(&west, TTL, &[wanted(service, instance)], &BTreeMap::new());
            assert_eq!((plan.actions.len(), plan.refused.len()), (0, 1), "{service} {instance}");
        }
        let many: Vec<_> = (0..=MAX_EXPORTED).map(|i| wanted("web", &i.to_string())).collect();
        let plan = plan(&west, TTL, &many, &BTreeMap::new());
        assert_eq!((plan.shown.len(), plan.refused.len()), (MAX_EXPORTED, 1));
    }
}
