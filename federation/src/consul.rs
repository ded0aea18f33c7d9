//! Consuls beside the site: what they have is registered, and they show what is
//! configured.
//!
//! An instance that Consul knows has no proxy and no identity, and no message can
//! say so of an endpoint (ADR 17). What is imported is therefore registered for a
//! node that an operator names, the door: requests go to the door's proxy, which
//! proves the door's identity, authorizes, and dials the instance. All that is asked
//! of a machine's own registrations is asked of these; the services must be granted
//! to it. Their leases are the door's, their health is Consul's.
//!
//! What is exported is shown at listeners of proxies that an operator names, and
//! passes while the site has a usable endpoint of it.

mod beside;
mod decide;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use mesh_consul::{
    Client, Config,
    export::{Exporter, Wanted},
    import::{self, Health, Import},
};
use mesh_runtime::drain::Drain;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

pub use self::beside::Consuls;
use self::{
    beside::Beside,
    decide::{Bridge, Decided},
};
use crate::{
    authority::{CommitError, State},
    feed::{Key, Resources},
    refusal::Never,
    registration::OwnPorts,
    render::endpoint_ids,
    view::View,
};

/// How often it is looked whether all is as it should be, whoever else changes it.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is looked which exports pass.
const LOOK_AT_EXPORTS: Duration = Duration::from_secs(1);
/// Until files that cannot be used are read again.
const RETRY: Duration = Duration::from_secs(30);

/// Follows all of them until the process drains; without any, only takes away what
/// earlier ones have left.
pub async fn run(consuls: Consuls, view: View, own_ports: OwnPorts, drain: Drain) {
    let bridges: Vec<Bridge> =
        consuls.all().filter_map(|beside| Bridge::of(&beside.config)).collect();
    let forget = |state: &State| Ok::<_, Never>((decide::left_behind(state, &bridges), ()));
    if let Err(error) = view.authority().commit("federation", forget).await {
        log::error!(error:% = error; "what earlier Consuls have left cannot be taken away");
    }
    let mut tasks = JoinSet::new();
    for beside in consuls.all() {
        tasks.spawn(follow(beside.clone(), view.clone(), own_ports.clone()));
    }
    drain.draining().await;
}

/// One of them, for ever.
async fn follow(beside: Arc<Beside>, view: View, own_ports: OwnPorts) {
    let config = &beside.config;
    let address = config.connection.address.clone();
    let client = loop {
        match Client::new(&config.connection) {
            Ok(client) => break client,
            Err(error) => {
                log::error!(address, error:% = error; "consul is not asked");
                beside.is_not_asked(error.to_string());
            }
        }
        sleep(RETRY).await;
    };
    beside.asked_by(&client);
    let (want, wanted) = watch::channel(None);
    let site = view.authority().state().site().name.clone();
    let exporter = Exporter::new(client.clone(), site, config.export_ttl);
    let bridge = Bridge::of(config);
    tokio::join!(
        async {
            if let Some(bridge) = &bridge {
                tokio::join!(
                    import::follow(
                        &client,
                        &config.import,
                        &config.pace,
                        config.max_services,
                        &beside.import
                    ),
                    register(bridge, &beside, &view, &own_ports),
                );
            }
        },
        // Without rules, too: what an earlier configuration has exported goes.
        exporter.run(wanted, &beside.exports),
        watch_exports(config, bridge.as_ref(), &view, &want),
    );
}

/// Makes the site's record of the door's imports what they are, for ever.
async fn register(
    bridge: &Bridge,
    beside: &Beside,
    view: &View,
    own_ports: &OwnPorts,
) -> Infallible {
    let mut told = beside.import.subscribe();
    let mut said = BTreeMap::new();
    loop {
        let import = told.borrow_and_update().clone();
        let refused = match write(bridge, view, own_ports, &import).await {
            Ok(refused) => refused,
            Err(error) => BTreeMap::from([(bridge.address.clone(), error.to_string())]),
        };
        let state = view.authority().state();
        let known = decide::registered(&state, bridge).collect::<Vec<_>>();
        let services: BTreeSet<&str> = known.iter().map(|one| one.service.as_str()).collect();
        beside.has_written(services.len(), known.len(), refused.len());
        for (what, why) in &refused {
            if said.get(what) != Some(why) {
                log::warn!(consul = bridge.address.as_str(), what = what.as_str(), why = why.as_str();
                    "not imported from consul");
            }
        }
        said = refused;
        // Whether it has changed or not; the sender is held here, too.
        let _ = timeout(LOOK, told.changed()).await;
    }
}

/// Durable when it returns; what is not imported, and why.
async fn write(
    bridge: &Bridge,
    view: &View,
    own_ports: &OwnPorts,
    import: &Import,
) -> Result<BTreeMap<String, String>, CommitError<Never>> {
    let mut refused: BTreeMap<String, String> =
        import.skipped.iter().map(|skipped| (skipped.what.clone(), skipped.why.clone())).collect();
    if !view.liveness(&bridge.door).0.is_published() {
        // What is registered for it would only be taken away again.
        let why = "nobody hears of this node; imports wait for it".to_owned();
        refused.insert(bridge.door.to_string(), why);
        return Ok(refused);
    }
    let decide = |state: &State| {
        let decided = decide::decide(state, bridge, import, own_ports);
        Ok::<_, Never>((decided.events.clone(), decided))
    };
    let Decided { refused: more, health, .. } = view.authority().commit("consul", decide).await?;
    refused.extend(more);
    for (instance, health) in health {
        view.report_health(&bridge.door, &instance, health, "");
    }
    Ok(refused)
}

/// Tells the exporter what to show, for ever.
async fn watch_exports(
    config: &Config,
    bridge: Option<&Bridge>,
    view: &View,
    want: &watch::Sender<Option<Vec<Wanted>>>,
) -> Infallible {
    let mut revision = view.revision();
    let (mut theirs, mut before) = (BTreeSet::new(), BTreeSet::new());
    // What linked sites have is not known at once; what is in Consul stays until it is.
    while !view.is_settled() {
        sleep(LOOK_AT_EXPORTS).await;
    }
    loop {
        revision.mark_unchanged();
        // What is published follows what is registered: it may still have what has just
        // gone, and has nothing that is not registered yet.
        std::mem::swap(&mut theirs, &mut before);
        let wanted = view.read(|resources, _| {
            theirs = bridge.map(|bridge| told_by(bridge, view)).unwrap_or_default();
            let is_theirs = |id: &str| theirs.contains(id) || before.contains(id);
            wanted(config, is_theirs, resources)
        });
        want.send_if_modified(|now| {
            let changed = now.as_ref() != Some(&wanted);
            *now = Some(wanted);
            changed
        });
        sleep(LOOK_AT_EXPORTS).await;
        if revision.changed().await.is_err() {
            sleep(LOOK).await;
        }
    }
}

/// Ids of endpoints that this Consul has told of.
fn told_by(bridge: &Bridge, view: &View) -> BTreeSet<String> {
    let state = view.authority().state();
    let site = &state.site().name;
    decide::registered(&state, bridge).flat_map(|known| endpoint_ids(site, known)).collect()
}

/// Services that the site does not have are not shown, nor those of which it has
/// only what this Consul has told: its clients reach that without a detour. Those
/// without a usable endpoint are, as critical.
fn wanted(config: &Config, is_theirs: impl Fn(&str) -> bool, resources: &Resources) -> Vec<Wanted> {
    use mesh_api::v1::{self, ResourceKind, resource::Resource as R};

    let mut passes: BTreeMap<&str, bool> = BTreeMap::new();
    let first = Key { kind: ResourceKind::Endpoint, name: "".into() };
    let endpoints = resources.range(first..).take_while(|(k, _)| k.kind == ResourceKind::Endpoint);
    for (_, resource) in endpoints.filter(|_| !config.export.is_empty()) {
        let Some(R::Endpoint(endpoint)) = &resource.resource else { continue };
        if is_theirs(&endpoint.id) {
            continue;
        }
        let usable = matches!(endpoint.health(), v1::Health::Healthy | v1::Health::Unknown);
        *passes.entry(&endpoint.service).or_default() |= usable && endpoint.weight > 0;
    }
    let mut wanted = Vec::new();
    for rule in &config.export {
        let Some(passes) = passes.get(rule.service.as_str()) else { continue };
        for at in &rule.at {
            wanted.push(Wanted {
                service: rule.name.clone(),
                instance: at.to_string().replace([':', '[', ']'], "-"),
                address: at.ip().to_string(),
                port: at.port(),
                tags: rule.tags.clone(),
                meta: rule.meta.clone(),
                weight: 1,
                health: if *passes { Health::Passing } else { Health::Critical },
            });
        }
    }
    wanted
}

#[cfg(test)]
mod tests;
