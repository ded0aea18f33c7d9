//! What the controller is told: whom pods believe, and which services the
//! cluster has from elsewhere.

use std::{collections::BTreeSet, time::Duration};

use mesh_api::v1::{self, ClusterNews, Service, Site, resource::Resource as R};
use mesh_core::{Revision, ServiceName};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{authority::State, view::View};

/// How often it is looked whether a view that has just begun has settled.
const LOOK: Duration = Duration::from_millis(200);

/// How long what is new waits for more: where pods come and go, each moment has
/// a revision, and hardly one of them is news.
const PACE: Duration = Duration::from_millis(100);

/// Endpoints on machines that the controller is told of; in a message they have a
/// few hundred bytes each.
const MAX_WORKLOADS: usize = 2000;

/// Follows the view.
pub(super) struct News {
    view: View,
    changed: watch::Receiver<v1::Revision>,
    durable: watch::Receiver<Revision>,
    told: Option<ClusterNews>,
    /// When to look at what has changed.
    due: Option<Instant>,
}

impl News {
    pub(super) fn new(view: View) -> Self {
        let mut changed = view.revision();
        changed.mark_changed();
        let durable = view.authority().revision();
        Self { view, changed, durable, told: None, due: None }
    }

    /// Waits until there is something new.
    pub(super) async fn changed(&mut self) -> ClusterNews {
        loop {
            // Whoever waits here is interrupted by each message of the controller.
            let due = match self.due {
                Some(due) => due,
                None => {
                    let alive = tokio::select! {
                        alive = self.changed.changed() => alive,
                        alive = self.durable.changed() => alive,
                        () = sleep(LOOK), if self.told.is_none() => Ok(()),
                    };
                    if alive.is_err() {
                        return std::future::pending().await;
                    }
                    *self.due.insert(Instant::now() + PACE)
                }
            };
            sleep_until(due).await;
            self.due = None;
            // What linked sites export is not known yet: nothing is taken away
            // for that.
            if !self.view.is_settled() {
                continue;
            }
            self.changed.mark_unchanged();
            self.durable.mark_unchanged();
            let now = news(&self.view);
            if self.told.as_ref() != Some(&now) {
                self.told = Some(now.clone());
                return now;
            }
        }
    }
}

fn news(view: &View) -> ClusterNews {
    let state = view.authority().state();
    let backed = backed_by_pods(&state);
    let (mut imports, mut workloads) = (Vec::new(), Vec::new());
    view.read(|resources, _| {
        for resource in resources.values() {
            match &resource.resource {
                Some(R::Service(service)) if !backed.contains(service.name.as_str()) => {
                    imports.push(import(service));
                }
                Some(R::Endpoint(endpoint))
                    if !endpoint.workload.is_empty() && workloads.len() < MAX_WORKLOADS =>
                {
                    workloads.push(endpoint.clone());
                }
                _ => {}
            }
        }
    });
    let site = state.site();
    ClusterNews {
        site: Some(Site {
            name: site.name.to_string(),
            trust_domain: site.trust_domain.to_string(),
            ..Site::default()
        }),
        bundle: Some(site.bundle.clone()),
        imports,
        workloads,
    }
}

/// Name, ports and where it comes from.
fn import(service: &Service) -> Service {
    Service {
        name: service.name.clone(),
        ports: service.ports.clone(),
        imported_from: service.imported_from.clone(),
        ..Service::default()
    }
}

fn backed_by_pods(state: &State) -> BTreeSet<ServiceName> {
    let mut backed = BTreeSet::new();
    for registration in state.registrations.values().filter(|known| known.of_pod) {
        // Most are of a service that is there already.
        if !backed.contains(&registration.service) {
            backed.insert(registration.service.clone());
        }
    }
    backed
}
